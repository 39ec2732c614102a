#include "moe/strategy/nearest.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/strategy/needs.h"

namespace moe::strategy {
namespace {

constexpr double kReset = 1.5;     // what it weighs to set a word to its default
constexpr double kFollows = 0.25;  // of a size that follows from others
constexpr double kClose = 1e-9;
constexpr int kMostRefused = 8;

// The words whose values are searched; others keep theirs, or fall back to their defaults.
constexpr int64_t Strategy::*kSearched[] = {
    &Strategy::pp, &Strategy::virtual_chunks, &Strategy::tp, &Strategy::cp, &Strategy::dp, &Strategy::ep,
    &Strategy::etp};
bool IsSearched(const Word& w) {
  static const std::set<std::string>& names =
      *new std::set<std::string>{"pp", "virtual_chunks", "tp", "cp", "dp", "ep", "etp", "microbatches"};
  return names.count(w.name) > 0;
}

// By distance from what is wanted, nearest first; smaller ones first among equals.
std::vector<int64_t> Near(std::vector<int64_t> values, int64_t wanted, size_t most) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  std::stable_sort(values.begin(), values.end(),
                   [&](int64_t a, int64_t b) { return Distance(a, wanted) < Distance(b, wanted); });
  if (values.size() > most) values.resize(most);
  return values;
}

std::vector<int64_t> DivisorsOf(int64_t n) { return Divisors(std::max<int64_t>(1, n)); }

class Search {
 public:
  Search(const Strategy& wanted, const Facts& facts) : wanted_(wanted), facts_(facts), trial_(wanted) {
    const size_t most = wanted.world_size > 0 ? 32 : 6;
    const auto near = [&](std::vector<int64_t> values, int64_t w) {
      return Near(Keep(std::move(values),
                       [&](int64_t d) { return wanted.world_size == 0 || wanted.world_size % d == 0; }),
                  w, most);
    };
    std::vector<int64_t> stages, experts = DivisorsOf(SlotsOf(wanted, facts.experts));
    const std::vector<int64_t> all_experts = DivisorsOf(facts.experts);
    experts.insert(experts.end(), all_experts.begin(), all_experts.end());
    for (int64_t p = 1; p <= std::clamp<int64_t>(facts.layers, 1, 4096); ++p) stages.push_back(p);
    values_ = {near(stages, wanted.pp),
               Near({1, 2, std::clamp<int64_t>(wanted.virtual_chunks, 1, std::max<int64_t>(1, facts.layers))},
                    wanted.virtual_chunks, 3),
               near(DivisorsOf(facts.heads), wanted.tp),
               near(DivisorsOf(facts.seq), wanted.cp),
               near(DivisorsOf(facts.global_batch), wanted.dp),
               near(experts, wanted.ep),
               near(DivisorsOf(facts.expert_ffn), wanted.etp)};
  }

  // The nearest but for those in `refused`.
  std::optional<Nearest> Best(const std::set<std::string>& refused) {
    best_ = std::numeric_limits<double>::infinity();
    found_.reset();
    refused_ = &refused;
    Descend(0, 0);
    return found_;
  }

 private:
  static constexpr size_t kDp = 4;

  // Depth first, nearest values first; a branch ends where it is already as far as the best found.
  void Descend(size_t depth, double distance) {
    if (depth == values_.size()) return Batch(distance);
    std::vector<int64_t> follows;
    if (depth == kDp && wanted_.world_size > 0) {
      const int64_t others = trial_.pp * trial_.tp * trial_.cp;
      if (wanted_.world_size % others != 0 || facts_.global_batch % (wanted_.world_size / others) != 0)
        return;
      follows = {wanted_.world_size / others};
    }
    for (const int64_t value : follows.empty() ? values_[depth] : follows) {
      const int64_t wanted = wanted_.*kSearched[depth];
      const double far = distance + (follows.empty() ? 1 : kFollows) * Distance(value, wanted);
      if (far >= best_ - kClose) break;
      trial_.*kSearched[depth] = value;
      // What is cheap to see here need not be found below.
      if (depth == 2 && !TensorFits(value, trial_, facts_)) continue;
      if (depth == 6 && trial_.stage_ranks() % (trial_.ep * trial_.etp) != 0) continue;
      Descend(depth + 1, far);
    }
  }

  void Batch(double distance) {
    const int64_t samples = facts_.global_batch / trial_.dp;
    for (const int64_t micro : Near(DivisorsOf(samples), facts_.micro_batch, 4)) {
      double far = distance + kFollows * Distance(micro, facts_.micro_batch);
      if (far >= best_ - kClose) break;
      Nearest candidate = {trial_, micro};
      if (!Repair(candidate, &far) || refused_->count(candidate.strategy.ToString()) > 0) continue;
      best_ = far;
      found_ = candidate;
    }
  }

  // Sets words that have a problem to their defaults, until there is none; false where that does not help.
  bool Repair(Nearest& candidate, double* distance) const {
    Facts facts = facts_;
    facts.micro_batch = candidate.micro_batch;
    for (;;) {
      const std::vector<Problem> problems = Problems(candidate.strategy, facts);
      if (problems.empty()) return true;
      std::set<const Word*> words;
      for (const Problem& p : problems) {
        if (!IsSearched(*p.word) && !p.word->IsDefault(candidate.strategy)) words.insert(p.word);
      }
      if (words.empty()) return false;
      for (const Word* w : words) w->Reset(candidate.strategy);
      *distance += kReset * static_cast<double>(words.size());
      if (*distance >= best_ - kClose) return false;
    }
  }

  const Strategy& wanted_;
  const Facts& facts_;
  Strategy trial_;
  std::vector<std::vector<int64_t>> values_;  // as kSearched
  double best_ = 0;
  std::optional<Nearest> found_;
  const std::set<std::string>* refused_ = nullptr;
};

}  // namespace

std::optional<Nearest> NearestLegal(const Strategy& given, const Facts& facts, const Accepts& accepts) {
  if (facts.global_batch < 1 || facts.global_batch > kMaxSize) return std::nullopt;
  Strategy wanted = given;
  Resolve(facts.experts > 0, wanted);
  Search search(wanted, facts);
  std::set<std::string> refused;
  while (static_cast<int>(refused.size()) <= kMostRefused) {
    std::optional<Nearest> best = search.Best(refused);
    if (!best || !accepts || accepts(best->strategy, best->micro_batch)) return best;
    refused.insert(best->strategy.ToString());
  }
  return std::nullopt;
}

std::string DescribeNearest(const Strategy& given, const Nearest& nearest, const Facts& facts,
                            absl::Span<const Problem> unread) {
  const Strategy& s = nearest.strategy;
  Strategy wanted = given;
  Resolve(facts.experts > 0, wanted);
  std::vector<std::string> degrees;
  for (const auto& [name, size] : {std::pair("pp", s.pp), {"dp", s.dp}, {"cp", s.cp}, {"tp", s.tp}}) {
    if (size > 1) degrees.push_back(absl::StrCat(name, " ", size));
  }
  std::string text = degrees.empty() ? "one rank" : absl::StrJoin(degrees, " x ");
  if (facts.experts > 0) {
    absl::StrAppend(&text, ", ep ", s.ep, ", etp ", s.etp);
    if (facts.experts % s.ep == 0) absl::StrAppend(&text, ", ", facts.experts / s.ep, " experts per rank");
  }
  std::vector<std::string> flags;
  for (const Word& w : Words()) {
    const bool was_read =
        std::none_of(unread.begin(), unread.end(), [&](const Problem& p) { return p.word == &w; });
    if (!w.flags.empty() && (!was_read || w.Value(wanted) != w.Value(s))) flags.push_back(w.FlagFor(s));
  }
  if (facts.micro_batch != nearest.micro_batch) {
    flags.push_back(absl::StrCat("--micro_batch_size=", nearest.micro_batch));
  }
  return absl::StrCat(text, "\n  ", absl::StrJoin(flags, " "));
}

}  // namespace moe::strategy
