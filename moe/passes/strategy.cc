#include "moe/passes/strategy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace moe {
namespace {

struct IntField {
  const char* name;
  int64_t Strategy::*field;
};
constexpr IntField kDegrees[] = {{"pp", &Strategy::pp}, {"dp", &Strategy::dp}, {"cp", &Strategy::cp},
                                 {"tp", &Strategy::tp}, {"ep", &Strategy::ep}, {"etp", &Strategy::etp}};
constexpr IntField kCounts[] = {{"microbatches", &Strategy::microbatches},
                                {"virtual_chunks", &Strategy::virtual_chunks}};
constexpr int64_t kMaxDegree = int64_t{1} << 24;

std::vector<int64_t> Divisors(int64_t n) {
  std::vector<int64_t> out;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d) continue;
    out.push_back(d);
    if (d * d != n) out.push_back(n / d);
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Degrees of the ranks of one stage, and where they cut the rank number.
struct Degrees {
  int64_t tp = 1, cp = 1, dp = 1, etp = 1, ep = 1, edp = 1;
  int64_t kv_heads = 0;
  std::vector<int64_t> more_cuts;  // of strategies that share the mesh
  int64_t world() const { return tp * cp * dp; }

  // kvh: the part of tp that shards K and V; the other part, kvr, repeats them and is minor.
  int64_t kv_repeats() const { return kv_heads ? tp / std::gcd(tp, kv_heads) : 1; }

  std::vector<int64_t> Cuts(bool edp_inside_ep = false) const {
    std::vector<int64_t> cuts = {
        1, tp, tp * cp, world(), etp, etp * (edp_inside_ep ? edp : ep), etp * ep * edp, kv_repeats()};
    cuts.insert(cuts.end(), more_cuts.begin(), more_cuts.end());
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    return cuts;
  }

  // What is wrong, or nothing.
  std::optional<std::string> Problem(bool edp_inside_ep = false) const {
    if (etp * ep * edp != world()) {
      return absl::StrCat("etp x ep = ", etp * ep, " does not divide tp x cp x dp = ", world(),
                          " (the ranks of a stage, shared by attention and experts)");
    }
    if (kv_heads && kv_heads % tp && tp % kv_heads) {
      return absl::StrCat("tp = ", tp, " and ", kv_heads, " key-value heads: neither divides the other");
    }
    const std::vector<int64_t> cuts = Cuts(edp_inside_ep);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (cuts[i + 1] % cuts[i]) {
        return absl::StrCat("attention and experts cut the ranks at {", absl::StrJoin(cuts, ", "), "}, and ",
                            cuts[i], " does not divide ", cuts[i + 1]);
      }
    }
    return std::nullopt;
  }
};

Degrees DegreesOf(const Strategy& s, int64_t kv_heads) {
  Degrees d;
  d.tp = s.tp, d.cp = s.cp, d.dp = s.dp, d.etp = s.etp, d.ep = s.ep;
  d.edp = std::max<int64_t>(1, d.world() / (d.etp * d.ep));
  d.kv_heads = s.kv_axis ? kv_heads : 0;
  return d;
}

std::string Nearest(const Degrees& wanted) {
  Degrees best;
  double best_distance = std::numeric_limits<double>::infinity();
  const auto log_ratio = [](int64_t a, int64_t b) {
    return std::abs(std::log(static_cast<double>(a) / static_cast<double>(b)));
  };
  const std::vector<int64_t> divisors = Divisors(wanted.world());
  Degrees d = wanted;
  for (int64_t tp : divisors) {
    for (int64_t cp : divisors) {
      if (wanted.world() % (tp * cp)) continue;
      for (int64_t etp : divisors) {
        for (int64_t ep : divisors) {
          if (wanted.world() % (etp * ep)) continue;
          d.tp = tp, d.cp = cp, d.dp = wanted.world() / (tp * cp);
          d.etp = etp, d.ep = ep, d.edp = wanted.world() / (etp * ep);
          if (d.Problem()) continue;
          const double distance = log_ratio(tp, wanted.tp) + log_ratio(cp, wanted.cp) +
                                  log_ratio(etp, wanted.etp) + log_ratio(ep, wanted.ep);
          if (distance < best_distance - 1e-9) best_distance = distance, best = d;
        }
      }
    }
  }
  return absl::StrFormat("tp=%d cp=%d dp=%d etp=%d ep=%d (edp=%d)", best.tp, best.cp, best.dp, best.etp,
                         best.ep, best.edp);
}

}  // namespace

std::string Strategy::ToString() const {
  const Strategy defaults;
  std::vector<std::string> words;
  for (const IntField& f : kDegrees) {
    if (this->*f.field != 1) words.push_back(absl::StrCat(f.name, "=", this->*f.field));
  }
  if (sequence_parallel) words.push_back("sp");
  if (vocab_parallel) words.push_back("vp");
  if (zero != 0) words.push_back(absl::StrCat("zero=", zero));
  if (expert_zero >= 0) words.push_back(absl::StrCat("expert_zero=", expert_zero));
  for (const IntField& f : kCounts) {
    if (this->*f.field != 1) words.push_back(absl::StrCat(f.name, "=", this->*f.field));
  }
  if (schedule != defaults.schedule) words.push_back(absl::StrCat("schedule=", schedule));
  if (checkpoint != defaults.checkpoint) words.push_back(absl::StrCat("checkpoint=", checkpoint));
  if (overload != 0) words.push_back(absl::StrFormat("overload=%.17g", overload));
  if (!ep_order.empty()) words.push_back(absl::StrCat("ep_order=", ep_order));
  if (!kv_axis) words.push_back("no_kv_axis");
  if (words.empty()) words.push_back("dp=1");
  return absl::StrJoin(words, " ");
}

absl::StatusOr<Strategy> ParseStrategy(absl::string_view text) {
  Strategy s;
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" ,\t\n"), absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> kv = absl::StrSplit(word, absl::MaxSplits('=', 1));
    const auto& [key, value] = kv;
    const auto bad = [w = word](absl::string_view legal) {
      return absl::InvalidArgumentError(absl::StrCat("strategy: '", w, "': legal is ", legal));
    };
    if (word == "sp") {
      s.sequence_parallel = true;
    } else if (word == "vp") {
      s.vocab_parallel = true;
    } else if (word == "no_kv_axis") {
      s.kv_axis = false;
    } else if (key == "zero" || key == "expert_zero") {
      int stage;
      if (!absl::SimpleAtoi(value, &stage) || stage < 0 || stage > 3) return bad("0, 1, 2 or 3");
      (key == "zero" ? s.zero : s.expert_zero) = stage;
    } else if (key == "schedule" && !value.empty()) {
      s.schedule = std::string(value);
    } else if (key == "checkpoint") {
      if (value != "none" && value != "selective" && value != "full") return bad("none, selective or full");
      s.checkpoint = std::string(value);
    } else if (key == "overload") {
      if (!absl::SimpleAtod(value, &s.overload) || !std::isfinite(s.overload)) return bad("a number");
    } else if (key == "ep_order") {
      if (value != "fold" && value != "reversed") return bad("fold or reversed");
      s.ep_order = std::string(value);
    } else {
      int64_t Strategy::*field = nullptr;
      for (const IntField& f : kDegrees) field = key == f.name ? f.field : field;
      for (const IntField& f : kCounts) field = key == f.name ? f.field : field;
      if (field == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(
            "strategy: unknown word '", word,
            "'; known: pp= dp= cp= tp= ep= etp= sp vp zero= expert_zero= microbatches= virtual_chunks= "
            "schedule= checkpoint= overload= ep_order= no_kv_axis"));
      }
      if (!absl::SimpleAtoi(value, &(s.*field)) || s.*field < 1 || s.*field > kMaxDegree) {
        return bad("a positive number");
      }
    }
  }
  return s;
}

std::string FoldProblem(const Strategy& s, int64_t kv_heads) {
  for (const IntField& f : kDegrees) {
    if (s.*f.field < 1 || s.*f.field > kMaxDegree)
      return absl::StrCat(f.name, " = ", s.*f.field, " is not positive");
  }
  return DegreesOf(s, kv_heads).Problem().value_or("");
}

absl::StatusOr<Mesh> FoldMesh(const Strategy& s, int64_t kv_heads, absl::Span<const Strategy> alongside) {
  for (const IntField& f : kDegrees) {
    if (s.*f.field < 1 || s.*f.field > kMaxDegree) {
      return absl::InvalidArgumentError(
          absl::StrCat("strategy: ", f.name, " = ", s.*f.field, " is not positive"));
    }
  }
  Degrees d = DegreesOf(s, kv_heads);
  for (const Strategy& other : alongside) {
    if (other.pp != s.pp || other.world() != s.world()) {
      return absl::InvalidArgumentError(
          absl::StrCat("strategies '", s.ToString(), "' and '", other.ToString(),
                       "' cannot share state: they must have the same world and the "
                       "same number of stages"));
    }
    const std::vector<int64_t> cuts = DegreesOf(other, kv_heads).Cuts();
    d.more_cuts.insert(d.more_cuts.end(), cuts.begin(), cuts.end());
  }
  if (const std::optional<std::string> problem = d.Problem()) {
    std::string message = absl::StrCat("strategy: ", *problem, "; nearest legal: ", Nearest(d));
    // The chain is stricter than necessary: the same degrees may fit with edp inside ep.
    if (d.etp * d.ep * d.edp == d.world() && !d.Problem(/*edp_inside_ep=*/true)) {
      absl::StrAppend(&message,
                      "; these degrees would fit in the order (etp, edp, ep), minor first, instead of "
                      "(etp, ep, edp), which is not supported");
    }
    return absl::InvalidArgumentError(message);
  }

  const std::vector<int64_t> cuts = d.Cuts();
  const int atoms = static_cast<int>(cuts.size()) - 1;
  std::vector<MeshAxis> axes;
  if (s.pp > 1) axes.push_back({"pp", s.pp});
  const int first = static_cast<int>(axes.size());
  for (int i = atoms - 1; i >= 0; --i) axes.push_back({std::string(1, 'a' + i), cuts[i + 1] / cuts[i]});
  const auto span = [&](int64_t low, int64_t high) {
    AxisList list;
    for (int i = atoms - 1; i >= 0; --i) {
      if (low <= cuts[i] && cuts[i] < high) list.push_back(static_cast<AxisId>(first + atoms - 1 - i));
    }
    return list;
  };
  const std::map<std::string, AxisList> aliases = {
      {"tp", span(1, d.tp)},
      {"cp", span(d.tp, d.tp * d.cp)},
      {"dp", span(d.tp * d.cp, d.world())},
      {"etp", span(1, d.etp)},
      {"ep", span(d.etp, d.etp * d.ep)},
      {"edp", span(d.etp * d.ep, d.world())},
      {"kvh", span(d.kv_repeats(), d.tp)},
  };
  return Mesh(std::move(axes), aliases);
}

}  // namespace moe
