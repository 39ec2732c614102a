#include "moe/testing/composition.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "moe/model/config.h"
#include "moe/strategy/strategy.h"
#include "moe/strategy/word.h"
#include "moe/testing/equivalence_lines.h"
#include "moe/testing/strategy_space.h"

namespace moe::testing {
namespace {

struct Subject {
  EquivalenceCase c;
  strategy::Strategy s;
  model::ModelConfig m;
};

struct Feature {
  std::string name;
  std::function<bool(const Subject& x)> has;
  std::string one_of;  // features that share this exclude each other
};

bool HasExperts(const Subject& x) { return x.m.num_experts() > 0; }
bool IsDropless(const Subject& x) { return HasExperts(x) && x.m.capacity_factor() == 0; }

// Those of the strategy's words, and of the model and the batch; the latter have a line in strategy_space.cc,
// too, so that they are combined with all others.
const std::vector<Feature>& Features() {
  static const std::vector<Feature>& features = *[] {
    auto* all = new std::vector<Feature>;
    for (const strategy::Word& w : strategy::Words()) {
      for (const strategy::Word::FeatureOf& f : w.features) {
        all->push_back({f.name, [&w = w, &f = f](const Subject& x) { return w.HasFeature(f, x.s); }, w.name});
      }
    }
    for (const Feature& f : std::vector<Feature>{
             {"capacity", [](const Subject& x) { return HasExperts(x) && x.m.capacity_factor() > 0; },
              "routing"},
             {"dropless", IsDropless, "routing"},
             {"spill", [](const Subject& x) { return IsDropless(x) && x.s.overload > 0; }, "routing"},
             {"shared expert", [](const Subject& x) { return x.m.shared_expert_ffn_hidden_size() > 0; }, ""},
             {"tied", [](const Subject& x) { return x.m.tie_embeddings(); }, ""},
             {"odd sizes", [](const Subject& x) { return x.m.hidden_size() == 328; }, ""},
             {"starved", [](const Subject& x) { return x.c.empty_sample || x.c.one_expert; }, ""}}) {
      all->push_back(f);
    }
    return all;
  }();
  return features;
}

Subject SubjectOf(const EquivalenceCase& c) {
  const absl::StatusOr<strategy::Strategy> s = strategy::ParseStrategy(c.strategy);
  const absl::StatusOr<model::ModelConfig> m = model::ParseModelConfig(c.model, c.name);
  CHECK(s.ok()) << s.status();
  CHECK(m.ok()) << m.status();
  return {c, *s, *m};
}

}  // namespace

std::vector<EquivalenceCase> TestedCases() {
  std::vector<EquivalenceCase> cases = WrittenCases();
  for (const Point& p : MatrixPoints()) cases.push_back(MatrixSpace().Case(p));
  return cases;
}

Composition Compose(const std::vector<EquivalenceCase>& cases) {
  const std::vector<Feature>& features = Features();
  const size_t count = features.size();
  Composition out;
  for (const Feature& f : features) out.features.push_back(f.name);
  out.together.assign(count, std::vector<int>(count, 0));
  out.refused.assign(count, std::vector<std::string>(count));
  for (const EquivalenceCase& c : cases) {
    const Subject x = SubjectOf(c);
    std::vector<size_t> has;
    for (size_t f = 0; f < count; ++f) {
      if (features[f].has(x)) has.push_back(f);
    }
    for (const size_t a : has) {
      for (const size_t b : has) ++out.together[a][b];
    }
  }
  // Pairs that the space found no legal point for: by the features that their values stand for.
  for (const ImpossiblePair& pair : MatrixImpossible()) {
    std::vector<size_t> shown[2];
    for (int side = 0; side < 2; ++side) {
      Point p = MatrixSpace().Plain();
      const Subject plain = SubjectOf(MatrixSpace().Case(p));
      p[pair.dimension[side]] = pair.value[side];
      const EquivalenceCase c = MatrixSpace().Case(p);
      Subject x = plain;
      x.c = c;
      x.s = *strategy::ParseStrategy(c.strategy);
      if (const auto m = model::ParseModelConfig(c.model, c.name); m.ok()) x.m = *m;
      // Features that show only with others (sp without tp) are asked with these.
      const Subject alone = x;
      Subject around = plain;
      for (Subject* s : {&x, &around}) {
        for (int64_t strategy::Strategy::*degree : {&strategy::Strategy::tp, &strategy::Strategy::pp,
                                                    &strategy::Strategy::cp, &strategy::Strategy::ep}) {
          s->s.*degree = std::max<int64_t>(s->s.*degree, 2);
        }
      }
      for (size_t f = 0; f < count; ++f) {
        const bool by_itself = features[f].has(alone) && !features[f].has(plain);
        if (by_itself || (features[f].has(x) && !features[f].has(around))) shown[side].push_back(f);
      }
    }
    for (const size_t a : shown[0]) {
      for (const size_t b : shown[1]) {
        out.refused[a][b] = out.refused[b][a] = pair.reason;
      }
    }
  }
  // Values of one word, and of fields of the model, of which there is only one at a time; and f16 with what
  // rounds bf16.
  for (size_t a = 0; a < count; ++a) {
    std::vector<std::string> group;
    for (const Feature& f : features) {
      if (!f.one_of.empty() && f.one_of == features[a].one_of) group.push_back(f.name);
    }
    for (size_t b = 0; b < count; ++b) {
      std::vector<std::string> one_of;
      if (std::count(group.begin(), group.end(), out.features[b])) one_of = group;
      if (std::set<std::string>{out.features[a], out.features[b]} ==
          std::set<std::string>{"f16", "fp8 experts"}) {
        one_of = {"f16", "fp8 experts"};
      }
      if (a != b && !one_of.empty() && out.together[a][b] == 0) {
        out.refused[a][b] = absl::StrCat("one of ", absl::StrJoin(one_of, ", "), " at a time");
      }
    }
  }
  return out;
}

std::string CompositionPage() {
  const Composition c = Compose(TestedCases());
  std::string table = "| |", rule = "|---|";
  for (const std::string& f : c.features) {
    absl::StrAppend(&table, f, "|");
    rule += "---|";
  }
  absl::StrAppend(&table, "\n", rule, "\n");
  std::map<std::string, std::string> letters;
  std::vector<std::string> reasons;
  for (size_t a = 0; a < c.features.size(); ++a) {
    absl::StrAppend(&table, "|**", c.features[a], "**|");
    for (size_t b = 0; b < c.features.size(); ++b) {
      std::string cell = absl::StrCat(c.together[a][b]);
      if (c.together[a][b] == 0) {
        const std::string& reason = c.refused[a][b];
        if (reason.empty()) {
          cell = "untested";
        } else {
          if (letters.count(reason) == 0) {
            letters[reason] = absl::StrCat(letters.size() < 26 ? "" : "a",
                                           std::string(1, static_cast<char>('a' + letters.size() % 26)));
            reasons.push_back(reason);
          }
          cell = letters[reason];
        }
      }
      absl::StrAppend(&table, cell, "|");
    }
    table += "\n";
  }
  for (const std::string& reason : reasons) absl::StrAppend(&table, "\n- ", letters[reason], ": ", reason);
  if (!reasons.empty()) table += "\n";
  return absl::StrCat(
      "# What composes\n\n"
      "Written by `bazel run //moe/testing:composition_page > docs/composition.md` from the words of a\n"
      "strategy (`moe/strategy/words.inc`) and the strategies that the equivalence tests run; a test fails\n"
      "when this page is stale.\n\n"
      "The table counts the strategies that have both features. \"Accumulate\" stands for several\n"
      "microbatches a step, \"spill\" for a bound on ragged values below what routing reaches, and\n"
      "\"starved\" for batches with an empty sample or where one expert gets every token. A letter says why\n"
      "there is none.\n\n",
      table);
}

}  // namespace moe::testing
