#include "moe/testing/strategy_space.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "glog/logging.h"
#include "moe/base/textproto.h"
#include "moe/model/config.h"
#include "moe/strategy/strategy.h"
#include "moe/strategy/word.h"
#include "moe/train/config/config.h"
#include "moe/train/config/validate.h"

namespace moe::testing {
namespace {

// Values that are only words, only fields, or numbers after a common word.
Dimension Words(std::string name, const std::vector<std::string>& words, const std::string& wants = "") {
  Dimension d{std::move(name), {}};
  for (const std::string& w : words) d.values.push_back({w, w, "", "", w.empty() ? "" : wants});
  return d;
}
Dimension Fields(std::string name, const std::vector<std::string>& labels,
                 const std::vector<std::string>& fields) {
  CHECK_EQ(labels.size(), fields.size());
  Dimension d{std::move(name), {}};
  for (size_t i = 0; i < labels.size(); ++i) d.values.push_back({labels[i], "", fields[i], ""});
  return d;
}
Dimension Sizes(const std::string& field, const std::vector<int64_t>& sizes) {
  Dimension d{field, {}};
  for (const int64_t n : sizes) {
    const std::string text = absl::StrCat(field, ": ", n);
    d.values.push_back({text, "", text, ""});
  }
  return d;
}

// Features of a strategy: a dimension for each word whose row says what to try.
std::vector<Dimension> Features() {
  std::vector<Dimension> out;
  for (const strategy::Word& w : strategy::Words()) {
    if (w.tried.empty()) continue;
    std::vector<std::string> values = {""};
    values.insert(values.end(), w.tried.begin(), w.tried.end());
    out.push_back(Words(w.name, values, w.wants));
  }
  out.push_back({"workload",
                 {{"", "", "", "", ""},
                  {"empty sample", "", "", "empty sample", ""},
                  {"one expert", "", "", "one expert", ""}}});
  return out;
}

// Features that need fields of the model.
std::vector<Dimension> ModelFeatures() {
  return {
      {"routing",
       {{"", "", "moe_router_topk: 2 norm_topk_prob: true capacity_factor: 1.25", ""},
        {"dropless", "", "moe_router_topk: 2 norm_topk_prob: true", ""},
        {"dropless, spilling", "overload=0.8", "moe_router_topk: 2", ""},
        {"top-1", "", "moe_router_topk: 1 capacity_factor: 1.5", ""}}},
      Fields("aux loss", {"", "sequence", "global batch"},
             {"", "aux_loss_scope: \"sequence\"", "aux_loss_scope: \"global_batch\""}),
      Fields("head", {"", "tied"}, {"", "tie_embeddings: true"}),
      Fields("shared expert", {"", "shared expert"}, {"", "shared_expert_ffn_hidden_size: 24"}),
  };
}

constexpr char kFields[] = "aux_loss_coeff: 0.02 z_loss_coeff: 0.002 init_std: 0.1 ";

std::vector<Dimension> Join(std::vector<Dimension> a, const std::vector<Dimension>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

int64_t Pairs(const std::vector<Dimension>& dimensions) {
  int64_t n = 0;
  for (size_t a = 0; a < dimensions.size(); ++a) {
    for (size_t b = a + 1; b < dimensions.size(); ++b) {
      n += static_cast<int64_t>(dimensions[a].values.size() * dimensions[b].values.size());
    }
  }
  return n;
}

strategy::Strategy ParsedStrategy(const std::string& words) {
  const absl::StatusOr<strategy::Strategy> s = strategy::ParseStrategy(words);
  CHECK(s.ok()) << s.status();
  return *s;
}

int64_t BatchOf(const strategy::Strategy& s) {
  const int64_t least = s.dp * s.microbatches;
  return least * (least <= 8 ? 2 : 1);
}

}  // namespace

uint64_t Draw::Next() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return state_ * 0x2545f4914f6cdd1d;
}

StrategySpace::StrategySpace(const std::string& model, std::vector<Dimension> dimensions, int64_t most_ranks)
    : dimensions_(std::move(dimensions)), most_ranks_(most_ranks) {
  CHECK(MergeTextproto(model, "space", model_).ok()) << model;
  for (const Dimension& d : dimensions_) {
    fields_.emplace_back(d.values.size());
    for (size_t v = 0; v < d.values.size(); ++v) {
      const absl::Status merged = MergeTextproto(d.values[v].model, d.name, fields_.back()[v]);
      CHECK(merged.ok()) << merged;
    }
  }
}

model::ModelConfig StrategySpace::ModelOf(const Point& p) const {
  model::ModelConfig model = model_;
  for (size_t d = 0; d < p.size(); ++d) model.MergeFrom(fields_[d][p[d]]);
  return model;
}

std::string StrategySpace::WordsOf(const Point& p) const {
  CHECK_EQ(p.size(), dimensions_.size());
  std::vector<std::string> words;
  for (size_t d = 0; d < p.size(); ++d) {
    const DimensionValue& v = dimensions_[d].values[p[d]];
    if (!v.strategy.empty()) words.push_back(v.strategy);
  }
  return absl::StrJoin(words, " ");
}

EquivalenceCase StrategySpace::Case(const Point& p) const {
  EquivalenceCase c;
  c.name = Describe(p);
  c.model = model::ModelConfigToText(ModelOf(p));
  c.strategy = WordsOf(p);
  for (size_t d = 0; d < p.size(); ++d) {
    const DimensionValue& v = dimensions_[d].values[p[d]];
    c.empty_sample = c.empty_sample || v.batch == "empty sample";
    c.one_expert = c.one_expert || v.batch == "one expert";
  }
  c.global_batch = BatchOf(ParsedStrategy(c.strategy));
  return c;
}

std::string StrategySpace::Describe(const Point& p) const {
  std::vector<std::string> words, fields, batch;
  for (size_t d = 0; d < p.size(); ++d) {
    if (p[d] == 0) continue;
    const DimensionValue& v = dimensions_[d].values[p[d]];
    if (!v.strategy.empty()) words.push_back(v.strategy);
    if (v.strategy.empty() || !v.model.empty()) (v.batch.empty() ? fields : batch).push_back(v.label);
  }
  std::vector<std::string> parts = {words.empty() ? "one rank" : absl::StrJoin(words, " ")};
  if (!fields.empty()) parts.push_back(absl::StrJoin(fields, ", "));
  if (!batch.empty()) parts.push_back(absl::StrJoin(batch, ", "));
  return absl::StrJoin(parts, " | ");
}

std::string StrategySpace::Problems(const Point& p) const {
  const strategy::Strategy s = ParsedStrategy(WordsOf(p));
  for (size_t d = 0; d < p.size(); ++d) {
    const DimensionValue& v = dimensions_[d].values[p[d]];
    if (!v.wants.empty() && p[Find(v.wants)] == 0) {
      return absl::StrCat(v.label, " does nothing without ", v.wants);
    }
  }
  if (s.world() > most_ranks_) {
    return absl::StrCat("more than ", most_ranks_, " ranks, the most that this table runs");
  }
  train::RunConfig config = train::DefaultRunConfig();
  *config.mutable_model() = ModelOf(p);
  config.mutable_train()->set_global_batch_size(BatchOf(s));
  train::SetStrategy(s, config);
  config.mutable_train()->set_micro_batch_size(BatchOf(s) / (s.dp * s.microbatches));
  config = train::ResolveRunConfig(config);
  std::vector<std::string> problems = model::ModelProblems(config.model());
  for (const strategy::Problem& problem : train::StrategyProblems(config)) problems.push_back(problem.what);
  return absl::StrJoin(problems, "\n");
}

int StrategySpace::Find(const std::string& dimension) const {
  for (size_t d = 0; d < dimensions_.size(); ++d) {
    if (dimensions_[d].name == dimension) return static_cast<int>(d);
  }
  LOG(FATAL) << "no dimension " << dimension;
}

void StrategySpace::Complete(Point* p, Draw* draw) const {
  for (size_t d = 0; d < p->size(); ++d) {
    const std::string& wants = dimensions_[d].values[(*p)[d]].wants;
    if (wants.empty()) continue;
    int& other = (*p)[Find(wants)];
    if (other == 0) other = 1 + draw->Below(static_cast<int>(dimensions_[Find(wants)].values.size()) - 1);
  }
}

Point StrategySpace::Random(Draw* draw) const {
  Point p;
  for (const Dimension& d : dimensions_) {
    // Half of the values plain, so that many points are legal.
    const int n = static_cast<int>(d.values.size());
    p.push_back(draw->Below(2) == 0 ? 0 : draw->Below(n));
  }
  Complete(&p, draw);
  return p;
}

Point StrategySpace::RandomLegal(Draw* draw) const {
  for (int i = 0; i < 5000; ++i) {
    Point p = Random(draw);
    if (Problems(p).empty()) return p;
  }
  return Plain();
}

std::vector<Point> StrategySpace::CoverPairs(uint64_t seed, std::vector<ImpossiblePair>* impossible) const {
  const size_t n = dimensions_.size();
  const auto index = [&](size_t a, int va, size_t b, int vb) {
    return std::array<int, 4>{static_cast<int>(a), va, static_cast<int>(b), vb};
  };
  std::set<std::array<int, 4>> open;
  for (size_t a = 0; a < n; ++a) {
    for (size_t b = a + 1; b < n; ++b) {
      for (size_t va = 0; va < dimensions_[a].values.size(); ++va) {
        for (size_t vb = 0; vb < dimensions_[b].values.size(); ++vb) {
          open.insert(index(a, static_cast<int>(va), b, static_cast<int>(vb)));
        }
      }
    }
  }
  CHECK_EQ(static_cast<int64_t>(open.size()), Pairs(dimensions_));
  const auto gain = [&](const Point& p) {
    int sum = 0;
    for (size_t a = 0; a < n; ++a) {
      for (size_t b = a + 1; b < n; ++b) sum += open.count(index(a, p[a], b, p[b]));
    }
    return sum;
  };
  Draw draw(seed);
  std::vector<Point> rows;
  while (!open.empty()) {
    const std::array<int, 4> pair = *open.begin();
    const auto fixed = [&](Point p) {
      p[pair[0]] = pair[1];
      p[pair[2]] = pair[3];
      return p;
    };
    // Legal points with the pair; the one with the most open pairs, made better value by value.
    Point best;
    int most = -1;
    constexpr int kTries = 2000, kEnough = 4;
    int legal = 0;
    std::map<std::string, int> problems;
    for (int i = 0; i < kTries && legal < kEnough; ++i) {
      Point p = fixed(i == 0 ? Plain() : Random(&draw));
      Complete(&p, &draw);
      p = fixed(p);
      const std::string wrong = Problems(p);
      if (!wrong.empty()) {
        for (const absl::string_view line : absl::StrSplit(wrong, '\n')) ++problems[std::string(line)];
        continue;
      }
      ++legal;
      if (const int g = gain(p); g > most) best = p, most = g;
    }
    if (most < 0) {
      const auto often = std::max_element(problems.begin(), problems.end(),
                                          [](const auto& a, const auto& b) { return a.second < b.second; });
      if (impossible != nullptr) {
        impossible->push_back({{pair[0], pair[2]}, {pair[1], pair[3]}, often->first});
      }
      open.erase(pair);
      continue;
    }
    for (bool better = true; better;) {
      better = false;
      for (size_t d = 0; d < n; ++d) {
        if (static_cast<int>(d) == pair[0] || static_cast<int>(d) == pair[2]) continue;
        for (size_t v = 0; v < dimensions_[d].values.size(); ++v) {
          Point p = best;
          p[d] = static_cast<int>(v);
          const int g = gain(p);
          if (g <= most || !Problems(p).empty()) continue;
          best = p, most = g, better = true;
        }
      }
    }
    for (size_t a = 0; a < n; ++a) {
      for (size_t b = a + 1; b < n; ++b) open.erase(index(a, best[a], b, best[b]));
    }
    rows.push_back(best);
  }
  return rows;
}

Point StrategySpace::Exact(Point p) const {
  for (const strategy::Word& w : strategy::Words()) {
    if (w.rounds && !w.tried.empty()) p[Find(w.name)] = 0;
  }
  return p;
}

Point StrategySpace::Shrink(Point p, const std::function<bool(const Point&)>& fails) const {
  for (bool smaller = true; smaller;) {
    smaller = false;
    for (size_t d = 0; d < p.size(); ++d) {
      // The plain value, then everything simpler than this one.
      for (int v = 0; v < p[d]; ++v) {
        Point q = p;
        q[d] = v;
        if (!Problems(q).empty() || !fails(q)) continue;
        p = q;
        smaller = true;
        break;
      }
    }
    // Two at once, where one alone is not legal (a schedule and its microbatches, a degree and another).
    for (size_t a = 0; a < p.size() && !smaller; ++a) {
      for (size_t b = a + 1; b < p.size() && !smaller; ++b) {
        if (p[a] == 0 || p[b] == 0) continue;
        Point q = p;
        q[a] = q[b] = 0;
        if (!Problems(q).empty() || !fails(q)) continue;
        p = q;
        smaller = true;
      }
    }
  }
  return p;
}

const StrategySpace& MatrixSpace() {
  static const StrategySpace& space = *new StrategySpace(
      kFields,
      Join(Join(Features(), ModelFeatures()),
           {{"sizes",
             {{"", "",
               "num_layers: 4 hidden_size: 32 num_attention_heads: 8 num_key_value_heads: 2 "
               "ffn_hidden_size: 48 vocab_size: 64 seq_length: 16 num_experts: 8 moe_ffn_hidden_size: 16 "
               "first_dense_layers: 1 routing_groups_per_sequence: 4",
               "", ""},
              // What is kept is larger, and so is the budget for it. Weights are smaller: with 0.1 and this
              // width attention saturates, and its gradients in f32 are good to 1e-5 and no better.
              {"odd sizes", "checkpoint_budget=32MiB",
               "num_layers: 5 hidden_size: 328 num_attention_heads: 6 num_key_value_heads: 2 "
               "head_dim: 10 ffn_hidden_size: 72 vocab_size: 1009 seq_length: 12 num_experts: 7 "
               "moe_ffn_hidden_size: 36 moe_layer_freq: 2 routing_groups_per_sequence: 2 init_std: 0.05",
               "", ""}}}}),
      16);
  return space;
}

namespace {

struct Matrix {
  std::vector<Point> points;
  std::vector<ImpossiblePair> impossible;
};
const Matrix& TheMatrix() {
  static const Matrix& matrix = *[] {
    auto* m = new Matrix;
    m->points = MatrixSpace().CoverPairs(kMatrixSeed, &m->impossible);
    Draw draw(kMatrixSeed + 1);
    while (static_cast<int>(m->points.size()) < kMatrixRows) {
      Point p = MatrixSpace().RandomLegal(&draw);
      if (std::find(m->points.begin(), m->points.end(), p) == m->points.end()) m->points.push_back(p);
    }
    return m;
  }();
  return matrix;
}

}  // namespace

const std::vector<Point>& MatrixPoints() { return TheMatrix().points; }
const std::vector<ImpossiblePair>& MatrixImpossible() { return TheMatrix().impossible; }

const StrategySpace& FuzzSpace() {
  static const StrategySpace& space = *new StrategySpace(
      absl::StrCat(kFields, "head_dim: 4 "),
      Join(Join(Join(Features(), ModelFeatures()),
                {Words("more dp", {"", "dp=3"}), Words("more tp", {"", "tp=3"}),
                 Words("more cp", {"", "cp=3"}), Words("more pp", {"", "pp=3"}),
                 Words("more ep", {"", "ep=3"}),
                 Words("more chunks", {"", "schedule=interleaved virtual_chunks=3"}),
                 Words("more microbatches", {"", "microbatches=3"})}),
           {Sizes("num_layers", {1, 2, 3, 4, 5, 6}), Sizes("hidden_size", {8, 12, 20, 24, 32}),
            Sizes("num_attention_heads", {1, 2, 3, 4, 6, 8}),
            Fields("kv heads",
                   {"", "num_key_value_heads: 1", "num_key_value_heads: 2", "num_key_value_heads: 3"},
                   {"", "num_key_value_heads: 1", "num_key_value_heads: 2", "num_key_value_heads: 3"}),
            Sizes("ffn_hidden_size", {8, 12, 15, 24}), Sizes("vocab_size", {16, 24, 31, 60}),
            Sizes("seq_length", {2, 4, 6, 9, 12}), Sizes("num_experts", {2, 3, 4, 6, 7, 8, 12}),
            Sizes("moe_ffn_hidden_size", {4, 6, 10, 15}),
            Fields("dense layers", {"", "one", "every second"},
                   {"", "first_dense_layers: 1", "moe_layer_freq: 2"}),
            Fields("groups", {"", "routing_groups_per_sequence: 2", "routing_groups_per_sequence: 3"},
                   {"", "routing_groups_per_sequence: 2", "routing_groups_per_sequence: 3"}),
            Fields("capacity", {"", "capacity_factor: 0.5", "capacity_factor: 3"},
                   {"", "capacity_factor: 0.5", "capacity_factor: 3"})}),
      16);
  return space;
}

}  // namespace moe::testing
