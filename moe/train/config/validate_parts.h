// Shared by the checks of a configuration (validate.cc) and the search for the nearest legal one
// (nearest_strategy.cc): what sizes must divide, which words there are, and who collects problems.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/model/config.h"
#include "moe/train/config/config.h"
#include "moe/train/config/validate.h"

namespace moe::train {

inline constexpr int64_t kMaxDegree = int64_t{1} << 20;
inline constexpr int64_t kMaxSize = int64_t{1} << 31;

std::vector<int64_t> Divisors(int64_t n);
std::vector<int64_t> Keep(std::vector<int64_t> values, const std::function<bool(int64_t)>& wanted);
// Of sizes: the absolute difference of their logarithms.
double Distance(int64_t value, int64_t wanted);
// "1, 2, 4, 8"; of many, the dozen nearest to what was asked for.
std::string ShowNear(std::vector<int64_t> values, int64_t wanted);

// With fewer key-value heads than tensor ranks, ranks share a head, if tp may be split by them.
bool KvFits(int64_t kv_heads, int64_t tp, bool split);

// Sizes that tp, etp, ... must divide, in one place for the checks and for the search. 0: no such size.
struct Sizes {
  // Absurd sizes are problems of the model, told elsewhere; here they must not cost time.
  static int64_t Sane(int64_t size) { return size >= 1 && size <= kMaxSize ? size : 0; }
  explicit Sizes(const RunConfig& config);
  // Every size that the tensor ranks divide, with its field.
  std::vector<std::pair<std::string, int64_t>> OfTensor() const {
    return {{"num_attention_heads", heads},
            {"ffn_hidden_size", dense_ffn},
            {"shared_expert_ffn_hidden_size", shared_ffn}};
  }
  bool TensorFits(int64_t tp) const;
  int64_t heads = 0, kv_heads = 0, experts = 0, layers = 0, seq = 0;
  int64_t slots = 0;        // that experts are stored in
  bool moe_layers = false;  // experts without a layer that has them are none
  int64_t expert_ffn = 0, dense_ffn = 0, shared_ffn = 0;
  bool seq_parallel = false, split_kv = true;
};

struct Degree {
  const char* flag;
  int64_t (StrategyConfig::*get)() const;
  void (StrategyConfig::*set)(int64_t);
};
inline constexpr Degree kDegrees[] = {
    {"pipeline_model_parallel_size", &StrategyConfig::pipeline_model_parallel_size,
     &StrategyConfig::set_pipeline_model_parallel_size},
    {"data_parallel_size", &StrategyConfig::data_parallel_size, &StrategyConfig::set_data_parallel_size},
    {"context_parallel_size", &StrategyConfig::context_parallel_size,
     &StrategyConfig::set_context_parallel_size},
    {"tensor_model_parallel_size", &StrategyConfig::tensor_model_parallel_size,
     &StrategyConfig::set_tensor_model_parallel_size},
    {"expert_model_parallel_size", &StrategyConfig::expert_model_parallel_size,
     &StrategyConfig::set_expert_model_parallel_size},
    {"expert_tensor_parallel_size", &StrategyConfig::expert_tensor_parallel_size,
     &StrategyConfig::set_expert_tensor_parallel_size},
};

inline constexpr char kSchedules[] = "1f1b, gpipe, interleaved, zb-h1, zb-v, dualpipe, file:PATH";
bool IsSchedule(const std::string& s);
// Chunks per stage that a schedule can have.
struct ChunkRange {
  int64_t least, most;
  bool Has(int64_t chunks) const { return least <= chunks && chunks <= most; }
};
ChunkRange ChunksOf(const std::string& schedule);
// Is there such a word.
bool IsDispatcher(const std::string& s);
bool IsGradsDType(const StrategyConfig& s);
bool IsWire(const std::string& s);
bool IsExpertOrder(const std::string& s);
bool IsOverlap(const std::string& s);

// Words of which the empty one, before the configuration is resolved, means auto.
struct Choice {
  const char* flag;
  const std::string& (StrategyConfig::*get)() const;
  std::vector<std::string> values;
  bool Has(const std::string& value) const {
    return value.empty() || std::find(values.begin(), values.end(), value) != values.end();
  }
};
const std::vector<Choice>& Choices();

class Collector {
 public:
  template <typename... Parts>
  ConfigProblem& Add(const Parts&... parts) {
    problems_.push_back({absl::StrCat(parts...), ""});
    return problems_.back();
  }
  std::vector<ConfigProblem> Take() { return std::move(problems_); }

 private:
  std::vector<ConfigProblem> problems_;
};

// Slots that experts are stored in, where they are asked for.
void CheckExpertSlots(const Sizes& z, const StrategyConfig& s, Collector& out);
// The part of the data ranks that shares one copy of the state, or all where it does not fit.
int64_t Part(int64_t part, int64_t all, bool sharded);
// A sum over the microbatches so far has no order where half of them go through a second copy of the model.
bool CountsOutOfOrder(const RunConfig& config);

// "pp 2 x dp 2 x tp 2, ep 2" and the flags in which `to` differs from `from`.
std::string DescribeNearest(const RunConfig& from, const RunConfig& to);

}  // namespace moe::train
