#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/passes/checkpoint_policy.h"
#include "moe/passes/strategy.h"
#include "moe/train/config/validate.h"
#include "moe/train/config/validate_parts.h"

namespace moe::train {
namespace {

// Candidates by distance from what is wanted, nearest first; smaller ones first among equals.
struct Candidates {
  std::vector<int64_t> values;
  int64_t wanted;
};
Candidates Near(std::vector<int64_t> values, int64_t wanted, size_t most) {
  std::stable_sort(values.begin(), values.end(),
                   [&](int64_t a, int64_t b) { return Distance(a, wanted) < Distance(b, wanted); });
  if (values.size() > most) values.resize(most);
  return {std::move(values), wanted};
}

}  // namespace

std::string DescribeNearest(const RunConfig& from, const RunConfig& to) {
  const passes::Strategy s = StrategyOf(to);
  std::vector<std::string> degrees;
  for (const auto& [name, size] : {std::pair("pp", s.pp), {"dp", s.dp}, {"cp", s.cp}, {"tp", s.tp}}) {
    if (size > 1) degrees.push_back(absl::StrCat(name, " ", size));
  }
  std::string text = degrees.empty() ? "one rank" : absl::StrJoin(degrees, " x ");
  if (to.model().num_experts() > 0) {
    absl::StrAppend(&text, ", ep ", s.ep, ", etp ", s.etp);
    if (to.model().num_experts() % s.ep == 0) {
      absl::StrAppend(&text, ", ", to.model().num_experts() / s.ep, " experts per rank");
    }
  }
  std::vector<std::string> flags;
  auto add = [&](absl::string_view flag, const auto& value) {
    flags.push_back(absl::StrCat("--", flag, "=", value));
  };
  for (const Degree& d : kDegrees) {
    if ((from.strategy().*d.get)() != (to.strategy().*d.get)()) add(d.flag, (to.strategy().*d.get)());
  }
  const StrategyConfig &a = from.strategy(), &b = to.strategy();
  if (a.virtual_pipeline_model_parallel_size() != b.virtual_pipeline_model_parallel_size()) {
    add("virtual_pipeline_model_parallel_size", b.virtual_pipeline_model_parallel_size());
  }
  if (a.schedule() != b.schedule()) add("schedule", b.schedule());
  if (a.recompute_granularity() != b.recompute_granularity())
    add("recompute_granularity", b.recompute_granularity());
  if (a.moe_token_dispatcher_type() != b.moe_token_dispatcher_type())
    add("moe_token_dispatcher_type", b.moe_token_dispatcher_type());
  if (a.fp16() != b.fp16()) add("fp16", b.fp16());
  if (a.main_grads_dtype() != b.main_grads_dtype()) add("main_grads_dtype", b.main_grads_dtype());
  if (a.compress_dispatch() != b.compress_dispatch()) add("compress_dispatch", b.compress_dispatch());
  if (a.compress_combine() != b.compress_combine()) add("compress_combine", b.compress_combine());
  if (a.compress_gather() != b.compress_gather()) add("compress_gather", b.compress_gather());
  if (a.compress_grad() != b.compress_grad()) add("compress_grad", b.compress_grad());
  if (a.expert_axis_order() != b.expert_axis_order()) add("expert_axis_order", b.expert_axis_order());
  if (a.zero_stage() != b.zero_stage()) add("zero_stage", b.zero_stage());
  if (a.expert_slots() != b.expert_slots()) add("expert_slots", b.expert_slots());
  if (a.expert_map() != b.expert_map()) add("expert_map", b.expert_map());
  if (a.expert_zero_stage() != b.expert_zero_stage()) add("expert_zero_stage", b.expert_zero_stage());
  if (a.zero_dp_size() != b.zero_dp_size()) add("zero_dp_size", b.zero_dp_size());
  if (a.expert_zero_dp_size() != b.expert_zero_dp_size()) add("expert_zero_dp_size", b.expert_zero_dp_size());
  if (a.devices_per_node() != b.devices_per_node()) add("devices_per_node", b.devices_per_node());
  for (const Choice& c : Choices()) {
    if ((a.*c.get)() != (b.*c.get)()) add(c.flag, (b.*c.get)());
  }
  if (a.moe_overload_factor() != b.moe_overload_factor()) add("moe_overload_factor", b.moe_overload_factor());
  if (a.moe_chunks() != b.moe_chunks()) add("moe_chunks", b.moe_chunks());
  if (a.overlap() != b.overlap()) add("overlap", b.overlap());
  if (a.ddp_bucket_size() != b.ddp_bucket_size()) add("ddp_bucket_size", b.ddp_bucket_size());
  if (a.fp8_experts() && !b.fp8_experts()) flags.push_back("--nofp8_experts");
  if (a.world_size() != b.world_size()) add("world_size", b.world_size());
  if (from.train().micro_batch_size() != to.train().micro_batch_size()) {
    add("micro_batch_size", to.train().micro_batch_size());
  }
  return absl::StrCat(text, "\n  ", absl::StrJoin(flags, " "));
}

std::optional<RunConfig> NearestLegalStrategy(const RunConfig& config) {
  RunConfig trial = config;
  StrategyConfig& s = *trial.mutable_strategy();
  if (!IsSchedule(s.schedule()) || CountsOutOfOrder(config)) s.set_schedule("1f1b");
  const absl::StatusOr<passes::CheckpointPolicy> policy =
      passes::ParseCheckpointPolicy(s.recompute_granularity());
  const bool budget = !s.recompute_budget().empty() || !s.memory_limit().empty();
  if (!policy.ok() || (policy->base == passes::CheckpointPolicy::kAuto && !budget))
    s.set_recompute_granularity("none");
  if (!IsDispatcher(s.moe_token_dispatcher_type())) s.set_moe_token_dispatcher_type("auto");
  if (!IsExpertOrder(s.expert_axis_order())) s.set_expert_axis_order("");
  if (s.bf16()) s.set_fp16(false);
  if (!IsGradsDType(s)) s.set_main_grads_dtype("fp32");
  if (!s.bf16() || !Sizes(config).moe_layers || TargetOf(config).f8_flops <= 0) s.set_fp8_experts(false);
  for (std::string* wire : {s.mutable_compress_dispatch(), s.mutable_compress_combine(),
                            s.mutable_compress_gather(), s.mutable_compress_grad()}) {
    if (!IsWire(*wire)) wire->clear();
  }
  s.set_zero_stage(std::clamp<int64_t>(s.zero_stage(), 0, 3));
  s.set_expert_zero_stage(std::clamp<int64_t>(s.expert_zero_stage(), -1, 3));
  if (!(s.moe_overload_factor() >= 0) || !std::isfinite(s.moe_overload_factor()))
    s.set_moe_overload_factor(0);
  if (!IsOverlap(s.overlap())) s.set_overlap("");
  s.set_moe_chunks(std::max<int64_t>(0, s.moe_chunks()));
  s.set_ddp_bucket_size(std::max<int64_t>(-1, s.ddp_bucket_size()));
  if (s.world_size() < 0) s.set_world_size(0);
  StrategyConfig any_ep = s;  // slots that ep does not divide may stay: ep changes
  any_ep.set_expert_model_parallel_size(1);
  Collector slots;
  CheckExpertSlots(Sizes(trial), any_ep, slots);
  if (!slots.Take().empty()) {
    s.set_expert_slots(0);
    s.clear_expert_map();
  }
  s.set_devices_per_node(std::max<int64_t>(0, s.devices_per_node()));
  if (!Choices()[0].Has(s.cp_attention())) s.set_cp_attention("auto");
  if (!Choices()[1].Has(s.cp_order())) s.set_cp_order("auto");
  if (!Choices()[2].Has(s.hierarchical_collectives())) s.set_hierarchical_collectives("auto");
  const Sizes z(trial);
  int64_t chunks = std::max<int64_t>(1, s.virtual_pipeline_model_parallel_size());
  chunks = std::clamp(chunks, ChunksOf(s.schedule()).least, ChunksOf(s.schedule()).most);
  chunks = std::min(chunks, std::max<int64_t>(1, z.layers));
  s.set_virtual_pipeline_model_parallel_size(chunks);

  const int64_t expert_stage = s.expert_zero_stage() < 0 ? s.zero_stage() : s.expert_zero_stage();
  const int64_t world = s.world_size(), global = trial.train().global_batch_size();
  if (global < 1 || global > kMaxSize) return std::nullopt;
  const size_t most = world > 0 ? 32 : 6;
  auto in_world = [&](int64_t d) { return world == 0 || world % d == 0; };
  auto divisors = [](int64_t n) { return Divisors(std::max<int64_t>(1, n)); };
  auto near = [&](std::vector<int64_t> values, int64_t wanted) {
    return Near(Keep(std::move(values), in_world), wanted, most);
  };
  std::vector<int64_t> stages;
  const int64_t most_stages = std::max<int64_t>(1, std::min<int64_t>(z.layers / chunks, 4096));
  for (int64_t p = 1; p <= most_stages; ++p) stages.push_back(p);
  const Candidates pp = near(stages, s.pipeline_model_parallel_size());
  const Candidates tp = near(Keep(divisors(z.heads), [&](int64_t t) { return z.TensorFits(t); }),
                             s.tensor_model_parallel_size());
  const Candidates cp = near(divisors(z.seq), s.context_parallel_size());
  const Candidates ep = near(divisors(z.slots), s.expert_model_parallel_size());
  const Candidates etp = near(divisors(z.expert_ffn), s.expert_tensor_parallel_size());
  const Candidates dp = near(divisors(global), s.data_parallel_size());

  double best = std::numeric_limits<double>::infinity();
  std::optional<RunConfig> found;
  const double close = 1e-9;
  // Depth first, nearest candidates first; a branch ends where it is already as far as the best found.
  for (int64_t p : pp.values) {
    const double d1 = Distance(p, pp.wanted);
    if (d1 >= best - close) break;
    for (int64_t t : tp.values) {
      const double d2 = d1 + Distance(t, tp.wanted);
      if (d2 >= best - close) break;
      for (int64_t c : cp.values) {
        const double d3 = d2 + Distance(c, cp.wanted);
        if (d3 >= best - close) break;
        std::vector<int64_t> datas = dp.values;
        if (world > 0) {
          if (world % (p * t * c) != 0) continue;
          datas = {world / (p * t * c)};
        }
        for (int64_t d : datas) {
          if (global % d != 0) continue;
          // With the world given, the size of dp follows from the others and weighs less.
          double d4 = d3 + (world > 0 ? 0.25 : 1) * Distance(d, dp.wanted);
          const std::vector<int64_t> micros =
              Near(Divisors(global / d), trial.train().micro_batch_size(), 1).values;
          d4 += 0.25 * Distance(micros[0], trial.train().micro_batch_size());
          for (int64_t e : ep.values) {
            const double d5 = d4 + Distance(e, ep.wanted);
            if (d5 >= best - close) break;
            for (int64_t x : etp.values) {
              const double d6 = d5 + Distance(x, etp.wanted);
              if (d6 >= best - close) break;
              if ((d * c * t) % (e * x) != 0) continue;
              s.set_pipeline_model_parallel_size(p);
              s.set_tensor_model_parallel_size(t);
              s.set_context_parallel_size(c);
              s.set_data_parallel_size(d);
              s.set_expert_model_parallel_size(e);
              s.set_expert_tensor_parallel_size(x);
              s.set_zero_dp_size(Part(config.strategy().zero_dp_size(), d * c, s.zero_stage() > 0));
              s.set_expert_zero_dp_size(
                  Part(config.strategy().expert_zero_dp_size(), d * c * t / (e * x), expert_stage > 0));
              trial.mutable_train()->set_micro_batch_size(micros[0]);
              if (!StrategyProblems(trial).empty()) continue;
              best = d6;
              found = trial;
            }
          }
        }
      }
    }
  }
  return found;
}

}  // namespace moe::train
