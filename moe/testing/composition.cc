#include "moe/testing/composition.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "moe/model/config.h"
#include "moe/passes/strategy.h"
#include "moe/testing/equivalence_lines.h"
#include "moe/testing/strategy_space.h"

namespace moe::testing {
namespace {

struct Subject {
  EquivalenceCase c;
  passes::Strategy s;
  model::ModelConfig m;
};

struct Feature {
  const char* name;
  bool (*has)(const Subject& x);
};

// One line for a feature, and one in strategy_space.cc so that it is combined with all others.
constexpr Feature kFeatures[] = {
    {"dp", [](const Subject& x) { return x.s.dp > 1; }},
    {"tp", [](const Subject& x) { return x.s.tp > 1; }},
    {"sp", [](const Subject& x) { return x.s.sequence_parallel && x.s.tp > 1; }},
    {"vp", [](const Subject& x) { return x.s.vocab_parallel && x.s.tp > 1; }},
    {"cp", [](const Subject& x) { return x.s.cp > 1; }},
    {"ep", [](const Subject& x) { return x.s.ep > 1; }},
    {"etp", [](const Subject& x) { return x.s.etp > 1; }},
    {"pp", [](const Subject& x) { return x.s.pp > 1; }},
    {"zero 1", [](const Subject& x) { return x.s.zero == 1; }},
    {"zero 2", [](const Subject& x) { return x.s.zero == 2; }},
    {"zero 3", [](const Subject& x) { return x.s.zero == 3; }},
    {"expert zero", [](const Subject& x) { return x.s.expert_zero >= 0 && x.s.expert_zero != x.s.zero; }},
    {"accumulate", [](const Subject& x) { return x.s.microbatches > 1; }},
    {"gpipe", [](const Subject& x) { return x.s.schedule == "gpipe" && x.s.pp > 1; }},
    {"interleaved", [](const Subject& x) { return x.s.schedule == "interleaved" && x.s.pp > 1; }},
    {"zb-h1", [](const Subject& x) { return x.s.schedule == "zb-h1" && x.s.pp > 1; }},
    {"zb-v", [](const Subject& x) { return x.s.schedule == "zb-v" && x.s.pp > 1; }},
    {"dualpipe", [](const Subject& x) { return x.s.schedule == "dualpipe" && x.s.pp > 1; }},
    {"selective", [](const Subject& x) { return x.s.checkpoint == "selective"; }},
    {"full", [](const Subject& x) { return x.s.checkpoint == "full"; }},
    {"auto", [](const Subject& x) { return absl::StartsWith(x.s.checkpoint, "auto"); }},
    {"op list", [](const Subject& x) { return absl::StrContains(x.s.checkpoint, "."); }},
    {"hybrid zero", [](const Subject& x) { return x.s.zero_dp > 0 || x.s.expert_zero_dp > 0; }},
    {"allgather", [](const Subject& x) { return x.s.dispatcher == "allgather" && x.s.ep > 1; }},
    {"slots", [](const Subject& x) { return x.s.expert_slots > 0 || !x.s.expert_map.empty(); }},
    {"ring", [](const Subject& x) { return x.s.cp_attention == "ring" && x.s.cp > 1; }},
    {"zig-zag", [](const Subject& x) { return x.s.cp_order == "zigzag" && x.s.cp > 1; }},
    {"nodes", [](const Subject& x) { return x.s.devices_per_node > 0 && x.s.hierarchical == "on"; }},
    {"overlap", [](const Subject& x) { return x.s.overlap == "on"; }},
    {"buckets", [](const Subject& x) { return x.s.bucket > 0; }},
    {"moe chunks", [](const Subject& x) { return x.s.moe_chunks > 1; }},
    {"bf16", [](const Subject& x) { return x.s.precision == "bf16"; }},
    {"f16", [](const Subject& x) { return x.s.precision == "f16"; }},
    {"narrow gradients", [](const Subject& x) { return !x.s.grads.empty(); }},
    {"fp8 experts", [](const Subject& x) { return x.s.fp8_experts; }},
    {"compressed",
     [](const Subject& x) {
       return !x.s.compress_dispatch.empty() || !x.s.compress_combine.empty() ||
              !x.s.compress_gather.empty() || !x.s.compress_grad.empty();
     }},
    {"capacity", [](const Subject& x) { return x.m.num_experts() > 0 && x.m.capacity_factor() > 0; }},
    {"dropless", [](const Subject& x) { return x.m.num_experts() > 0 && x.m.capacity_factor() == 0; }},
    {"spill",
     [](const Subject& x) {
       return x.m.num_experts() > 0 && x.m.capacity_factor() == 0 && x.s.overload > 0;
     }},
    {"shared expert", [](const Subject& x) { return x.m.shared_expert_ffn_hidden_size() > 0; }},
    {"tied", [](const Subject& x) { return x.m.tie_embeddings(); }},
    {"odd sizes", [](const Subject& x) { return x.m.hidden_size() == 328; }},
    {"starved", [](const Subject& x) { return x.c.empty_sample || x.c.one_expert; }},
};

Subject SubjectOf(const EquivalenceCase& c) {
  const absl::StatusOr<passes::Strategy> s = passes::ParseStrategy(c.strategy);
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
  constexpr size_t kCount = std::size(kFeatures);
  Composition out;
  for (const Feature& f : kFeatures) out.features.push_back(f.name);
  out.together.assign(kCount, std::vector<int>(kCount, 0));
  out.refused.assign(kCount, std::vector<std::string>(kCount));
  for (const EquivalenceCase& c : cases) {
    const Subject x = SubjectOf(c);
    for (size_t a = 0; a < kCount; ++a) {
      if (!kFeatures[a].has(x)) continue;
      for (size_t b = 0; b < kCount; ++b) out.together[a][b] += kFeatures[b].has(x);
    }
  }
  // Pairs that the space found no legal point for: by the features that their values stand for.
  for (const ImpossiblePair& pair : MatrixImpossible()) {
    std::vector<size_t> features[2];
    for (int side = 0; side < 2; ++side) {
      Point p = MatrixSpace().Plain();
      const Subject plain = SubjectOf(MatrixSpace().Case(p));
      p[pair.dimension[side]] = pair.value[side];
      const EquivalenceCase c = MatrixSpace().Case(p);
      Subject x = plain;
      x.c = c;
      x.s = *passes::ParseStrategy(c.strategy);
      if (const auto m = model::ParseModelConfig(c.model, c.name); m.ok()) x.m = *m;
      // Features that show only with others (sp without tp) are asked with these.
      const Subject alone = x;
      Subject around = plain;
      for (Subject* s : {&x, &around}) {
        for (int64_t passes::Strategy::*degree :
             {&passes::Strategy::tp, &passes::Strategy::pp, &passes::Strategy::cp, &passes::Strategy::ep}) {
          s->s.*degree = std::max<int64_t>(s->s.*degree, 2);
        }
      }
      for (size_t f = 0; f < kCount; ++f) {
        const bool by_itself = kFeatures[f].has(alone) && !kFeatures[f].has(plain);
        if (by_itself || (kFeatures[f].has(x) && !kFeatures[f].has(around))) features[side].push_back(f);
      }
    }
    for (const size_t a : features[0]) {
      for (const size_t b : features[1]) {
        out.refused[a][b] = out.refused[b][a] = pair.reason;
      }
    }
  }
  // One of several, of which there is only one at a time.
  const std::vector<std::vector<std::string>> exclusive = {
      {"zero 1", "zero 2", "zero 3"},
      {"gpipe", "interleaved", "zb-h1", "zb-v", "dualpipe"},
      {"selective", "full", "auto", "op list"},
      {"bf16", "f16"},
      {"f16", "fp8 experts"},
      {"capacity", "dropless", "spill"}};
  for (const auto& group : exclusive) {
    for (size_t a = 0; a < kCount; ++a) {
      for (size_t b = 0; b < kCount; ++b) {
        const bool both = std::count(group.begin(), group.end(), out.features[a]) &&
                          std::count(group.begin(), group.end(), out.features[b]);
        if (both && a != b && out.together[a][b] == 0) {
          out.refused[a][b] = absl::StrCat("one of ", absl::StrJoin(group, ", "), " at a time");
        }
      }
    }
  }
  return out;
}

std::string CompositionTable() {
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
  return table;
}

}  // namespace moe::testing
