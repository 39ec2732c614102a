#include "moe/train/config/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/cost/targets.h"
#include "moe/model/config.h"
#include "moe/passes/checkpoint_policy.h"
#include "moe/passes/strategy.h"
#include "moe/train/config/validate_parts.h"

namespace moe::train {
namespace {

constexpr int64_t kByteVocabulary = 256;

// Words of the strategy that mean something only as one of a few.
void CheckWords(const StrategyConfig& s, Collector& out) {
  if (!IsSchedule(s.schedule())) out.Add("schedule = '", s.schedule(), "' is not known").legal = kSchedules;
  const absl::StatusOr<passes::CheckpointPolicy> policy =
      passes::ParseCheckpointPolicy(s.recompute_granularity());
  if (!policy.ok()) {
    out.Add("recompute_granularity = '", s.recompute_granularity(), "': ", policy.status().message()).legal =
        "none, selective, full, auto, or ops joined by '+'";
  } else if (policy->base == passes::CheckpointPolicy::kAuto && s.recompute_budget().empty() &&
             s.memory_limit().empty()) {
    out.Add("recompute_granularity = auto without a budget").legal =
        "recompute_budget or memory_limit, in bytes (38.5MiB)";
  }
  for (const auto& [field, value] :
       {std::pair("recompute_budget", s.recompute_budget()), {"memory_limit", s.memory_limit()}}) {
    if (value.empty()) continue;
    if (const auto bytes = passes::ParseByteSize(value); !bytes.ok())
      out.Add(field, " = '", value, "' is no number of bytes").legal = "1048576, 512KiB, 38.5MiB, 80GiB";
  }
  if (!IsDispatcher(s.moe_token_dispatcher_type())) {
    out.Add("moe_token_dispatcher_type = '", s.moe_token_dispatcher_type(), "' is not known").legal =
        "alltoall, allgather, auto";
  }
  if (!IsExpertOrder(s.expert_axis_order())) {
    out.Add("expert_axis_order = '", s.expert_axis_order(), "' is not known").legal =
        "fold, reversed, or empty";
  }
  if (s.zero_stage() < 0 || s.zero_stage() > 3) out.Add("zero_stage = ", s.zero_stage()).legal = "0, 1, 2, 3";
  if (s.expert_zero_stage() < -1 || s.expert_zero_stage() > 3) {
    out.Add("expert_zero_stage = ", s.expert_zero_stage()).legal = "-1 (as zero_stage), 0, 1, 2, 3";
  }
  for (const Choice& c : Choices()) {
    const std::string& value = (s.*c.get)();
    if (!c.Has(value)) out.Add(c.flag, " = '", value, "' is not known").legal = absl::StrJoin(c.values, ", ");
  }
  if (s.devices_per_node() < 0) {
    out.Add("devices_per_node = ", s.devices_per_node()).legal = "0 (one node) or a positive number";
  }
  const ChunkRange range = ChunksOf(s.schedule());
  if (s.virtual_pipeline_model_parallel_size() >= 1 && !range.Has(s.virtual_pipeline_model_parallel_size())) {
    const char* has = range.most == 1 ? "one chunk" : range.most == 2 ? "two chunks" : "at least two chunks";
    out.Add("virtual_pipeline_model_parallel_size = ", s.virtual_pipeline_model_parallel_size(),
            " with schedule ", s.schedule(), ", which has ", has, " per stage")
        .legal = range.most == 1 ? "1, or schedule gpipe, interleaved or file:PATH"
                                 : "2, or schedule 1f1b or zb-h1 for one chunk";
  }
  if (!IsOverlap(s.overlap()))
    out.Add("overlap = '", s.overlap(), "' is not known").legal = "on, off, or empty";
  if (s.moe_chunks() < 0) out.Add("moe_chunks = ", s.moe_chunks()).legal = "a positive number";
  if (s.ddp_bucket_size() < -1) {
    out.Add("ddp_bucket_size = ", s.ddp_bucket_size()).legal = "-1 (as the target likes), 0 (none) or bytes";
  }
  if (s.bf16() && s.fp16()) out.Add("bf16 and fp16 at once").legal = "one of them, or neither";
  if (!IsGradsDType(s)) {
    out.Add("main_grads_dtype = '", s.main_grads_dtype(), "' where ",
            s.bf16()   ? "bf16"
            : s.fp16() ? "fp16"
                       : "fp32",
            " is computed in")
        .legal = s.bf16()   ? "fp32 or bf16"
                 : s.fp16() ? "fp32 or fp16"
                            : "fp32, or bf16 with --bf16";
  }
  const std::pair<const char*, const std::string&> wires[] = {{"compress_dispatch", s.compress_dispatch()},
                                                              {"compress_combine", s.compress_combine()},
                                                              {"compress_gather", s.compress_gather()},
                                                              {"compress_grad", s.compress_grad()}};
  for (const auto& [flag, wire] : wires) {
    if (!IsWire(wire)) {
      out.Add(flag, " = '", wire, "' is not known").legal = "bf16, f8 or empty";
    }
  }
  if (!std::isfinite(s.moe_overload_factor()) || s.moe_overload_factor() < 0) {
    out.Add("moe_overload_factor = ", s.moe_overload_factor()).legal =
        "0 (the worst case) or a positive number";
  }
}

// Positive and small enough to multiply.
bool CheckDegrees(const StrategyConfig& s, Collector& out) {
  bool good = true;
  for (const Degree& d : kDegrees) {
    const int64_t value = (s.*d.get)();
    if (value >= 1 && value <= kMaxDegree) continue;
    out.Add(d.flag, " = ", value).legal = absl::StrCat("1 to ", kMaxDegree);
    good = false;
  }
  const int64_t chunks = s.virtual_pipeline_model_parallel_size();
  if (chunks < 1 || chunks > kMaxDegree) {
    out.Add("virtual_pipeline_model_parallel_size = ", chunks).legal = absl::StrCat("1 to ", kMaxDegree);
    good = false;
  }
  if (s.world_size() < 0)
    out.Add("world_size = ", s.world_size()).legal = "0 (the product of the sizes) or positive";
  return good;
}

void CheckFp8Experts(const RunConfig& config, const Sizes& z, Collector& out) {
  const StrategyConfig& s = config.strategy();
  if (!s.fp8_experts()) return;
  if (!s.bf16()) out.Add("fp8_experts without bf16, which it rounds").legal = "bf16 with it, or neither";
  if (!z.moe_layers)
    out.Add("fp8_experts, but the model has no experts").legal = "a model with experts, or not";
  const cost::Target target = TargetOf(config);
  if (target.f8_flops <= 0) {
    std::vector<std::string> with;
    for (const std::string& name : cost::TargetNames()) {
      if (cost::NamedTarget(name)->f8_flops > 0) with.push_back(name);
    }
    out.Add("fp8_experts on target ", target.name, ", which has no products of e4m3").legal =
        absl::StrJoin(with, ", ");
  }
}

void CheckModelFits(const Sizes& z, const StrategyConfig& s, Collector& out) {
  const int64_t pp = s.pipeline_model_parallel_size(), tp = s.tensor_model_parallel_size();
  const int64_t cp = s.context_parallel_size(), ep = s.expert_model_parallel_size();
  const int64_t etp = s.expert_tensor_parallel_size(), chunks = s.virtual_pipeline_model_parallel_size();
  // dualpipe has each layer in two chunks.
  const bool twice = s.schedule() == "dualpipe";
  if (twice && pp % 2 != 0) {
    out.Add("pipeline_model_parallel_size = ", pp, " with schedule dualpipe, which pairs the stages").legal =
        absl::StrCat("an even number, as ", pp + 1);
  }
  if (z.layers >= 1 && pp * (twice ? 1 : chunks) > z.layers) {
    const std::string of =
        chunks > 1 ? absl::StrCat(pp * chunks, " chunks (", pp, " stages x ", chunks, ") leaves a chunk")
                   : absl::StrCat(pp, " pipeline stages leaves a stage");
    out.Add("num_layers = ", z.layers, " on ", of, " empty").legal =
        z.layers / chunks >= 1 ? absl::StrCat("pipeline_model_parallel_size from 1 to ", z.layers / chunks)
                               : absl::StrCat("virtual_pipeline_model_parallel_size up to ", z.layers);
  }
  for (const auto& [field, size] : z.OfTensor()) {
    if (size < 1 || size % tp == 0) continue;
    out.Add("tensor_model_parallel_size = ", tp, " does not divide ", field, " = ", size).legal =
        ShowNear(Keep(Divisors(size), [&](int64_t t) { return z.TensorFits(t); }), tp);
  }
  if (z.heads >= 1 && z.heads % tp == 0 && !KvFits(z.kv_heads, tp, z.split_kv)) {
    out.Add("tensor_model_parallel_size = ", tp, " and num_key_value_heads = ", z.kv_heads,
            z.split_kv ? ": one must divide the other"
                       : ": without split_tensor_by_kv_heads the first must divide the second")
        .legal = ShowNear(Keep(Divisors(z.heads), [&](int64_t t) { return z.TensorFits(t); }), tp);
  }
  if (s.cp_order() == "zigzag" && z.seq >= 1 && z.seq % cp == 0 && z.seq % (2 * cp) != 0) {
    out.Add("cp_order = zigzag cuts a sequence into 2 x context_parallel_size = ", 2 * cp,
            " blocks, which does not divide seq_length = ", z.seq)
        .legal = "cp_order = contiguous or auto";
  }
  if (z.seq >= 1 && z.seq % cp != 0) {
    out.Add("context_parallel_size = ", cp, " does not divide seq_length = ", z.seq).legal =
        ShowNear(Divisors(z.seq), cp);
  } else if (z.seq >= 1 && z.seq_parallel && z.seq % (cp * tp) != 0) {
    out.Add("sequence_parallel: context_parallel_size x tensor_model_parallel_size = ", cp * tp,
            " does not divide seq_length = ", z.seq)
        .legal =
        absl::StrCat("a product of ", ShowNear(Divisors(z.seq), cp * tp), ", or no sequence_parallel");
  }
  CheckExpertSlots(z, s, out);
  if (s.expert_slots() == 0 && s.expert_map().empty() && z.experts > 0 && z.experts % ep != 0) {
    out.Add("expert_model_parallel_size = ", ep, " does not divide num_experts = ", z.experts).legal =
        absl::StrCat(ShowNear(Divisors(z.experts), ep),
                     ", or --expert_slots=", (z.experts + ep - 1) / ep * ep, ", of which some stay empty");
  }
  if (z.slots > 0 && z.slots % ep == 0 && s.moe_chunks() > 1 && z.slots / ep % s.moe_chunks() != 0) {
    out.Add("moe_chunks = ", s.moe_chunks(), " does not divide the ", z.slots / ep, " experts of a rank")
        .legal = ShowNear(Divisors(z.slots / ep), s.moe_chunks());
  }
  if (z.experts == 0 && ep * etp > 1) {
    out.Add("expert_model_parallel_size = ", ep, ", expert_tensor_parallel_size = ", etp,
            ", but the model has no experts")
        .legal = "1 and 1";
  }
  if (z.expert_ffn > 0 && z.expert_ffn % etp != 0) {
    out.Add("expert_tensor_parallel_size = ", etp, " does not divide moe_ffn_hidden_size = ", z.expert_ffn)
        .legal = ShowNear(Divisors(z.expert_ffn), etp);
  }
}

// Hybrid sharding: `part` of the `all` data ranks of a class of parameters share one copy of its state.
void CheckPart(absl::string_view flag, int64_t part, absl::string_view ranks, int64_t all, bool sharded,
               Collector& out) {
  if (part == 0) return;
  if (part < 0 || all % part != 0) {
    out.Add(flag, " = ", part, " does not divide ", ranks, " = ", all).legal =
        absl::StrCat(ShowNear(Divisors(all), part), ", or 0 for all of them");
  } else if (!sharded) {
    out.Add(flag, " = ", part, ", but this state is not sharded").legal = "0, or a ZeRO stage of 1, 2 or 3";
  }
}

void CheckWorld(const Sizes& z, const StrategyConfig& s, Collector& out) {
  const int64_t pp = s.pipeline_model_parallel_size(), dp = s.data_parallel_size(),
                cp = s.context_parallel_size();
  const int64_t tp = s.tensor_model_parallel_size(), ep = s.expert_model_parallel_size();
  const int64_t etp = s.expert_tensor_parallel_size();
  // Degrees are at most 2^20 each; doubles tell the product of all of them apart well enough to reject the
  // absurd.
  if (static_cast<double>(pp) * dp * cp * tp > 1e9 || static_cast<double>(ep) * etp > 1e9) {
    out.Add("more than a thousand million ranks").legal = "smaller sizes";
    return;
  }
  const int64_t stage = dp * cp * tp, world = pp * stage;
  const int64_t expert_stage = s.expert_zero_stage() < 0 ? s.zero_stage() : s.expert_zero_stage();
  CheckPart("zero_dp_size", s.zero_dp_size(), "data_parallel_size x context_parallel_size", dp * cp,
            s.zero_stage() > 0, out);
  if (stage % (ep * etp) == 0) {
    CheckPart("expert_zero_dp_size", s.expert_zero_dp_size(), "the data ranks of experts", stage / (ep * etp),
              expert_stage > 0, out);
  }
  if (s.world_size() > 0 && world != s.world_size()) {
    std::string& legal = out.Add("pp x dp x cp x tp = ", pp, " x ", dp, " x ", cp, " x ", tp, " = ", world,
                                 " is not the world size ", s.world_size())
                             .legal;
    const int64_t others = pp * cp * tp;
    legal = s.world_size() % others == 0
                ? absl::StrCat("data_parallel_size = ", s.world_size() / others, ", or world_size = ", world)
                : absl::StrCat("world_size = ", world, ", or sizes whose product is ", s.world_size());
    if (ep > 1 && static_cast<double>(world) * ep * etp == static_cast<double>(s.world_size())) {
      absl::StrAppend(&legal, "; experts share the ranks of dp, cp and tp, they do not multiply the world");
    }
  }
  if (z.experts == 0) return;
  if (stage % (ep * etp) != 0) {
    const std::vector<int64_t> fit =
        stage % etp == 0
            ? Keep(Divisors(stage / etp), [&](int64_t e) { return z.slots > 0 && z.slots % e == 0; })
            : std::vector<int64_t>();
    // Who counts experts as ranks of their own multiplies them into the world.
    const std::string product =
        absl::StrCat(cp > 1 ? "ep x tp x pp x dp x cp = " : "ep x tp x pp x dp = ", ep, " x ", tp, " x ", pp,
                     " x ", dp, cp > 1 ? absl::StrCat(" x ", cp) : "", " = ");
    const bool multiplies = ep > 1 && static_cast<double>(world) * ep < 1e18;
    out.Add("expert_model_parallel_size x expert_tensor_parallel_size = ", ep, " x ", etp,
            " does not divide the ", stage, " ranks of a stage, which experts share with dp, cp and tp",
            multiplies ? absl::StrCat(" (", product, world * ep, " is not the world size ",
                                      s.world_size() > 0 ? s.world_size() : world, ")")
                       : "")
        .legal = fit.empty() ? absl::StrCat("expert_tensor_parallel_size of ", ShowNear(Divisors(stage), etp))
                             : absl::StrCat("expert_model_parallel_size of ", ShowNear(fit, ep),
                                            " with this ", "expert_tensor_parallel_size");
    return;
  }
  if (!KvFits(z.kv_heads, tp, z.split_kv)) return;  // told already
  RunConfig config;
  *config.mutable_strategy() = s;
  StrategyConfig& parts = *config.mutable_strategy();  // what is wrong with these is told already
  parts.set_zero_dp_size(Part(s.zero_dp_size(), dp * cp, s.zero_stage() > 0));
  parts.set_expert_zero_dp_size(Part(s.expert_zero_dp_size(), stage / (ep * etp), expert_stage > 0));
  const passes::Strategy strategy = StrategyOf(config);
  const std::string fold = passes::FoldProblem(strategy, z.kv_heads);
  if (fold.empty()) return;
  const auto folds = [&](int64_t e, int64_t t) {
    passes::Strategy other = strategy;
    other.ep = e, other.etp = t;
    return z.experts % e == 0 && passes::FoldProblem(other, z.kv_heads).empty();
  };
  const std::vector<int64_t> eps = Keep(Divisors(stage / etp), [&](int64_t e) { return folds(e, etp); });
  const std::vector<int64_t> etps = Keep(Divisors(stage), [&](int64_t t) { return folds(1, t); });
  out.Add("the sizes do not fold over the same ranks: ", fold).legal =
      eps.empty() ? absl::StrCat("expert_tensor_parallel_size of ", ShowNear(etps, etp),
                                 " with expert_model_parallel_size = 1")
                  : absl::StrCat("expert_model_parallel_size of ", ShowNear(eps, ep), " with these others");
}

void CheckBatch(const RunConfig& config, Collector& out) {
  if (CountsOutOfOrder(config)) {
    out.Add(
           "moe_aux_loss_scope = global_batch, a sum over the microbatches so far, with schedule dualpipe, "
           "which sends half of them through a second copy of the model")
        .legal =
        "moe_aux_loss_scope = sequence or microbatch, or a schedule that runs forwards in order, as 1f1b";
  }
  const int64_t global = config.train().global_batch_size(), micro = config.train().micro_batch_size();
  const int64_t dp = config.strategy().data_parallel_size();
  const std::string legal_size = absl::StrCat("1 to ", kMaxSize);
  const bool global_ok = global >= 1 && global <= kMaxSize, micro_ok = micro >= 1 && micro <= kMaxSize;
  if (!global_ok) out.Add("global_batch_size = ", global).legal = legal_size;
  if (!micro_ok) out.Add("micro_batch_size = ", micro).legal = legal_size;
  if (!global_ok || !micro_ok) return;
  const int64_t microbatches = NumMicrobatches(config), pp = config.strategy().pipeline_model_parallel_size();
  if (microbatches > 0 && config.strategy().schedule() == "dualpipe" &&
      (microbatches % 2 != 0 || microbatches < 2 * pp)) {
    out.Add(microbatches, " microbatches (global_batch_size ", global, " / ", micro * dp,
            ") with schedule dualpipe, which sends half of them down and half up the stages")
        .legal =
        absl::StrCat("an even number of at least 2 x pipeline_model_parallel_size = ", 2 * pp,
                     ": global_batch_size of ", std::max(2 * pp, (microbatches + 1) / 2 * 2) * micro * dp);
  }
  if (microbatches > 0 && config.strategy().schedule() == "interleaved" && microbatches % pp != 0) {
    const int64_t per = micro * dp;  // samples in a microbatch, so that `global` is microbatches x per
    std::string& legal = out.Add(microbatches, " microbatches (global_batch_size ", global, " / ", per,
                                 ") are no multiple of pipeline_model_parallel_size = ", pp,
                                 ", in groups of which schedule interleaved moves them")
                             .legal;
    absl::StrAppend(&legal, "global_batch_size of ");
    const int64_t below = microbatches / pp * pp * per;
    if (below > 0) absl::StrAppend(&legal, below, " or ");
    absl::StrAppend(&legal, below + pp * per);
  }
  if (microbatches > 0) return;
  const bool divides = global % dp == 0;
  const int64_t step = micro * dp;  // below 2^51
  const int64_t below = global / step * step;
  std::string& legal = out.Add("micro_batch_size x data_parallel_size = ", micro, " x ", dp,
                               " does not divide global_batch_size = ", global)
                           .legal;
  if (divides)
    absl::StrAppend(&legal, "micro_batch_size of ", ShowNear(Divisors(global / dp), micro), ", or ");
  absl::StrAppend(&legal, "global_batch_size of ");
  if (below > 0) absl::StrAppend(&legal, below, " or ");
  absl::StrAppend(&legal, below + step);
}

}  // namespace

std::vector<ConfigProblem> ModelConfigProblems(const RunConfig& config) {
  Collector out;
  for (const std::string& problem : model::ModelProblems(config.model())) out.Add(problem);
  const int64_t vocab = config.model().vocab_size();
  if (vocab >= 1 && vocab < kByteVocabulary) {
    out.Add("vocab_size = ", vocab, " is below the ", kByteVocabulary, " tokens of the byte tokenizer")
        .legal = absl::StrCat(kByteVocabulary, " or more");
  }
  return out.Take();
}

std::vector<ConfigProblem> StrategyProblems(const RunConfig& config) {
  Collector out;
  const Sizes sizes(config);
  CheckWords(config.strategy(), out);
  if ((config.strategy().bf16() || config.strategy().fp16()) && config.model().dtype() == "f64") {
    out.Add(config.strategy().bf16() ? "bf16" : "fp16", " with dtype = 'f64': masters are f32").legal =
        "dtype f32";
  }
  CheckFp8Experts(config, sizes, out);
  if (CheckDegrees(config.strategy(), out)) {
    CheckModelFits(sizes, config.strategy(), out);
    CheckWorld(sizes, config.strategy(), out);
    CheckBatch(config, out);
  }
  return out.Take();
}

std::vector<ConfigProblem> TrainConfigProblems(const RunConfig& config) {
  Collector out;
  const TrainConfig& t = config.train();
  auto at_least = [&](absl::string_view field, int64_t value, int64_t least) {
    if (value < least) out.Add(field, " = ", value).legal = absl::StrCat(least, " or more");
  };
  auto within = [&](absl::string_view field, double value, bool good, absl::string_view legal) {
    if (!std::isfinite(value) || !good) out.Add(field, " = ", value).legal = std::string(legal);
  };
  at_least("train_iters", t.train_iters(), 1);
  at_least("lr_warmup_iters", t.lr_warmup_iters(), 0);
  at_least("log_interval", t.log_interval(), 1);
  at_least("eval_interval", t.eval_interval(), 0);
  at_least("eval_samples", t.eval_samples(), 0);
  at_least("save_interval", t.save_interval(), 0);
  at_least("max_consecutive_skips", t.max_consecutive_skips(), 1);
  const ClusterConfig& c = config.cluster();
  if (!c.target().empty() && !cost::NamedTarget(c.target()).ok()) {
    out.Add("target = ", c.target()).legal = absl::StrJoin(cost::TargetNames(), ", ");
  }
  const std::string device = TargetOf(config).device;
  if (!t.device().empty() && t.device() != "cpu" && t.device() != "cuda") {
    out.Add("device = ", t.device()).legal = "cpu, cuda";
  } else if (!t.device().empty() && t.device() != device) {
    out.Add("device = ", t.device(), " with target = ", c.target()).legal = device;
  }
  if (t.tf32() && device != "cuda") {
    out.Add("tf32, in which GPUs multiply, with device = ", device).legal = "--notf32, or --device=cuda";
  }
  if (t.cudnn_attention() && device != "cuda") {
    out.Add("cudnn_attention with device = ", device).legal = "--nocudnn_attention, or --device=cuda";
  }
  if (device == "cuda" && config.model().dtype() == "f64") {
    out.Add("dtype = f64 on CUDA, which has no kernels for it").legal = "f32";
  }
  for (const auto& [field, value] : {std::pair("link_gbytes_per_second", c.link_gbytes_per_second()),
                                     std::pair("link_microseconds", c.link_microseconds()),
                                     std::pair("node_gbytes_per_second", c.node_gbytes_per_second()),
                                     std::pair("node_microseconds", c.node_microseconds())}) {
    within(field, value, value >= 0, "0 (the target's) or a positive number");
  }
  at_least("loss_scale_window", t.loss_scale_window(), 1);
  at_least("hysteresis", t.hysteresis(), 1);
  within("min_loss_scale", t.min_loss_scale(), t.min_loss_scale() > 0, "above 0");
  within("initial_loss_scale", t.initial_loss_scale(), t.initial_loss_scale() >= t.min_loss_scale(),
         absl::StrCat("min_loss_scale = ", t.min_loss_scale(), " or more"));
  at_least("micro_batch_interval", t.micro_batch_interval(), 0);
  const absl::StatusOr<std::vector<int64_t>> lengths = LengthsOf(config);
  if (!lengths.ok()) {
    out.Add(lengths.status().message());
  } else if (!t.length_buckets().empty() && config.model().routing_groups_per_sequence() > 1) {
    for (const int64_t length : *lengths) {
      if (length % config.model().routing_groups_per_sequence() == 0) continue;
      out.Add("length_buckets: routing_groups_per_sequence = ", config.model().routing_groups_per_sequence(),
              " does not divide ", length)
          .legal = "multiples of it";
    }
  }
  const std::string& scope = config.model().aux_loss_scope();
  if (t.adaptive_micro_batch_size() && config.model().num_experts() > 0 && !scope.empty() &&
      scope != "sequence") {
    out.Add("adaptive_micro_batch_size with moe_aux_loss_scope = ", scope,
            ", a loss that changes with the size of a microbatch")
        .legal = "moe_aux_loss_scope = sequence";
  }
  within("held_out_fraction", t.held_out_fraction(), t.held_out_fraction() >= 0 && t.held_out_fraction() < 1,
         "at least 0, below 1");
  within("lr", t.lr(), t.lr() >= 0, "0 or more");
  within("min_lr", t.min_lr(), t.min_lr() >= 0 && t.min_lr() <= t.lr(), absl::StrCat("0 to lr = ", t.lr()));
  within("weight_decay", t.weight_decay(), t.weight_decay() >= 0, "0 or more");
  within("adam_beta1", t.adam_beta1(), t.adam_beta1() >= 0 && t.adam_beta1() < 1, "at least 0, below 1");
  within("adam_beta2", t.adam_beta2(), t.adam_beta2() >= 0 && t.adam_beta2() < 1, "at least 0, below 1");
  within("adam_eps", t.adam_eps(), t.adam_eps() > 0, "above 0");
  within("clip_grad", t.clip_grad(), t.clip_grad() >= 0, "0 (no clipping) or more");
  return out.Take();
}

absl::Status ValidateRunConfig(const RunConfig& config) {
  std::vector<ConfigProblem> problems = ModelConfigProblems(config);
  const std::vector<ConfigProblem> strategy = StrategyProblems(config), train = TrainConfigProblems(config);
  const bool only_strategy = problems.empty() && train.empty();
  problems.insert(problems.end(), strategy.begin(), strategy.end());
  problems.insert(problems.end(), train.begin(), train.end());
  if (problems.empty()) return absl::OkStatus();
  std::string text =
      absl::StrCat(only_strategy ? "this strategy cannot be built; " : "this configuration cannot be built; ",
                   problems.size(), problems.size() == 1 ? " problem\n" : " problems\n");
  for (size_t i = 0; i < problems.size(); ++i) {
    absl::StrAppend(&text, "\n", i + 1 < 10 ? "  " : " ", i + 1, "  ", problems[i].what);
    if (!problems[i].legal.empty()) absl::StrAppend(&text, "\n     legal here: ", problems[i].legal);
  }
  if (!strategy.empty()) {
    if (const std::optional<RunConfig> nearest = NearestLegalStrategy(config)) {
      absl::StrAppend(&text, "\n\nnearest legal strategy:  ", DescribeNearest(config, *nearest));
    } else {
      absl::StrAppend(&text, "\n\nno legal strategy is near; the model or the batch must change first");
    }
  }
  return absl::InvalidArgumentError(text);
}

}  // namespace moe::train
