#include "moe/train/config/validate_parts.h"

#include <cmath>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "moe/passes/strategy.h"

namespace moe::train {
namespace {

bool HasMoeLayer(const model::ModelConfig& model) {
  if (model.num_experts() < 1 || model.moe_layer_freq() < 1) return false;
  for (int64_t l = 0; l < std::min<int64_t>(model.num_layers(), 100'000); ++l) {
    if (model::IsMoeLayer(model, l)) return true;
  }
  return false;
}

bool HasDenseLayer(const model::ModelConfig& model) {
  for (int64_t l = 0; l < std::min<int64_t>(model.num_layers(), 100'000); ++l) {
    if (!model::IsMoeLayer(model, l)) return true;
  }
  return false;
}

}  // namespace

bool KvFits(int64_t kv_heads, int64_t tp, bool split) {
  return kv_heads < 1 || kv_heads % tp == 0 || (split && tp % kv_heads == 0);
}

std::vector<int64_t> Divisors(int64_t n) {
  std::vector<int64_t> small, large;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    small.push_back(d);
    if (d != n / d) large.push_back(n / d);
  }
  small.insert(small.end(), large.rbegin(), large.rend());
  return small;
}

std::vector<int64_t> Keep(std::vector<int64_t> values, const std::function<bool(int64_t)>& wanted) {
  values.erase(std::remove_if(values.begin(), values.end(), [&](int64_t v) { return !wanted(v); }),
               values.end());
  return values;
}

double Distance(int64_t value, int64_t wanted) {
  return std::abs(std::log2(static_cast<double>(value)) -
                  std::log2(static_cast<double>(std::max<int64_t>(wanted, 1))));
}

std::string ShowNear(std::vector<int64_t> values, int64_t wanted) {
  constexpr size_t kMost = 12;
  if (values.size() <= kMost) return absl::StrJoin(values, ", ");
  std::stable_sort(values.begin(), values.end(),
                   [&](int64_t a, int64_t b) { return Distance(a, wanted) < Distance(b, wanted); });
  values.resize(kMost);
  std::sort(values.begin(), values.end());
  return absl::StrCat(absl::StrJoin(values, ", "), " and others");
}

Sizes::Sizes(const RunConfig& config) {
  const model::ModelConfig& m = config.model();
  heads = Sane(m.num_attention_heads());
  kv_heads = Sane(m.num_key_value_heads());
  experts = Sane(m.num_experts());
  moe_layers = HasMoeLayer(m);
  layers = Sane(m.num_layers());
  seq = Sane(m.seq_length());
  expert_ffn = experts > 0 ? Sane(m.moe_ffn_hidden_size()) : 0;
  if (m.moe_layer_freq() >= 1 || experts == 0) dense_ffn = HasDenseLayer(m) ? Sane(m.ffn_hidden_size()) : 0;
  shared_ffn = experts > 0 ? Sane(m.shared_expert_ffn_hidden_size()) : 0;
  const StrategyConfig& s = config.strategy();
  const absl::StatusOr<std::vector<int64_t>> map = passes::ParseExpertMap(s.expert_map());
  slots = s.expert_slots() != 0     ? Sane(s.expert_slots())
          : !s.expert_map().empty() ? (map.ok() ? static_cast<int64_t>(map->size()) : 0)
                                    : experts;
  seq_parallel = config.strategy().sequence_parallel();
  split_kv = config.strategy().split_tensor_by_kv_heads();
}

bool Sizes::TensorFits(int64_t tp) const {
  for (const auto& [field, size] : OfTensor()) {
    if (size > 0 && size % tp != 0) return false;
  }
  return KvFits(kv_heads, tp, split_kv) && (!seq_parallel || seq < 1 || seq % tp == 0);
}

bool IsSchedule(const std::string& s) {
  return s == "1f1b" || s == "gpipe" || s == "interleaved" || s == "zb-h1" || s == "zb-v" ||
         s == "dualpipe" || (absl::StartsWith(s, "file:") && s.size() > 5);
}

ChunkRange ChunksOf(const std::string& schedule) {
  if (schedule == "1f1b" || schedule == "zb-h1") return {1, 1};
  if (schedule == "zb-v" || schedule == "dualpipe") return {2, 2};
  return {schedule == "interleaved" ? 2 : 1, kMaxDegree};
}

bool IsDispatcher(const std::string& s) { return s == "alltoall" || s == "allgather" || s == "auto"; }
bool IsGradsDType(const StrategyConfig& s) {
  const std::string& d = s.main_grads_dtype();
  return d.empty() || d == "fp32" || (d == "bf16" && s.bf16()) || (d == "fp16" && s.fp16());
}

bool IsWire(const std::string& s) { return s.empty() || s == "bf16" || s == "f8"; }
bool IsExpertOrder(const std::string& s) { return s.empty() || s == "fold" || s == "reversed"; }
bool IsOverlap(const std::string& s) { return s.empty() || s == "on" || s == "off"; }

const std::vector<Choice>& Choices() {
  static const auto& choices = *new std::vector<Choice>{
      {"cp_attention", &StrategyConfig::cp_attention, {"auto", "gather", "ring"}},
      {"cp_order", &StrategyConfig::cp_order, {"auto", "contiguous", "zigzag"}},
      {"hierarchical_collectives", &StrategyConfig::hierarchical_collectives, {"auto", "on", "off"}}};
  return choices;
}

void CheckExpertSlots(const Sizes& z, const StrategyConfig& s, Collector& out) {
  if (s.expert_slots() == 0 && s.expert_map().empty()) return;
  if (!z.moe_layers) {
    out.Add("expert_slots or expert_map is given, but the model has no experts").legal = "neither";
    return;
  }
  const absl::StatusOr<std::vector<int64_t>> map = passes::ParseExpertMap(s.expert_map());
  if (!s.expert_map().empty() && !map.ok()) {
    out.Add(map.status().message()).legal = "experts and -1, separated by commas";
    return;
  }
  if (s.expert_slots() < 0) {
    out.Add("expert_slots = ", s.expert_slots()).legal = "0 (as many as experts) or more";
    return;
  }
  passes::Strategy strategy;
  strategy.ep = s.expert_model_parallel_size();
  strategy.expert_slots = s.expert_slots();
  if (!s.expert_map().empty()) strategy.expert_map = *map;
  const absl::Status status = passes::ExpertMapOf(strategy, z.experts).status();
  if (status.ok()) return;
  const int64_t least = (z.experts + strategy.ep - 1) / strategy.ep * strategy.ep;
  out.Add(status.message()).legal =
      absl::StrCat("--expert_slots=", least, " or a larger multiple of ", strategy.ep,
                   ", with an entry of --expert_map each, if that is given, and every expert among them");
}

int64_t Part(int64_t part, int64_t all, bool sharded) {
  return sharded && part > 0 && all % part == 0 ? part : 0;
}

bool CountsOutOfOrder(const RunConfig& config) {
  const model::ModelConfig& m = config.model();
  return config.strategy().schedule() == "dualpipe" && m.num_experts() > 0 && m.aux_loss_coeff() != 0 &&
         m.aux_loss_scope() == "global_batch";
}

}  // namespace moe::train
