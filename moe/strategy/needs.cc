#include "moe/strategy/needs.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/strategy/fold.h"

namespace moe::strategy {
namespace {

bool KvFits(const Facts& f, int64_t tp, bool split) {
  return f.kv_heads < 1 || f.kv_heads % tp == 0 || (split && tp % f.kv_heads == 0);
}

bool HasSlots(const Strategy& s) { return s.expert_slots > 0 || !s.expert_map.empty(); }

// A part of the data ranks that is wrong is told by its own word.
int64_t PartOr0(int64_t part, int64_t all, bool sharded) {
  return sharded && part > 0 && all % part == 0 ? part : 0;
}

// What is wrong with the slots of experts, or with the map of them.
void AddSlots(const Strategy& s, const Facts& f, Report& out) {
  const absl::Status status = ExpertMapOf(s, f.experts).status();
  if (status.ok()) return;
  const int64_t least = (f.experts + s.ep - 1) / s.ep * s.ep;
  out.Add(status.message()).legal =
      absl::StrCat("--expert_slots=", least, " or a larger multiple of ", s.ep,
                   ", with an entry of --expert_map each, if that is given, and every expert among them");
}

constexpr char kNoExperts[] = "expert_slots or expert_map is given, but the model has no experts";

Strategy WithoutMap(Strategy s) {
  s.expert_map.clear();
  return s;
}

}  // namespace

bool TensorFits(int64_t tp, const Strategy& s, const Facts& f) {
  for (const auto& [field, size] : f.OfTensor()) {
    if (size > 0 && size % tp != 0) return false;
  }
  return KvFits(f, tp, s.kv_axis) && (!s.sequence_parallel || f.seq < 1 || f.seq % tp == 0);
}

ChunkRange ChunksOf(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::k1F1B:
    case ScheduleKind::kZbH1:
      return {1, 1};
    case ScheduleKind::kZbV:
    case ScheduleKind::kDualPipe:
      return {2, 2};
    case ScheduleKind::kInterleaved:
      return {2, kMaxDegree};
    case ScheduleKind::kGPipe:
    case ScheduleKind::kFile:
      break;
  }
  return {1, kMaxDegree};
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

void NeedsOfStages(const Strategy& s, const Facts& f, Report& out) {
  // dualpipe has each layer in two chunks.
  const bool twice = s.schedule.kind == ScheduleKind::kDualPipe;
  const int64_t chunks = s.virtual_chunks;
  if (twice && s.pp % 2 != 0) {
    out.Add("pipeline_model_parallel_size = ", s.pp, " with schedule dualpipe, which pairs the stages")
        .legal = absl::StrCat("an even number, as ", s.pp + 1);
  }
  if (f.layers < 1 || s.pp * (twice ? 1 : chunks) <= f.layers) return;
  const std::string of =
      chunks > 1 ? absl::StrCat(s.pp * chunks, " chunks (", s.pp, " stages x ", chunks, ") leaves a chunk")
                 : absl::StrCat(s.pp, " pipeline stages leaves a stage");
  out.Add("num_layers = ", f.layers, " on ", of, " empty").legal =
      f.layers / chunks >= 1 ? absl::StrCat("pipeline_model_parallel_size from 1 to ", f.layers / chunks)
                             : absl::StrCat("virtual_pipeline_model_parallel_size up to ", f.layers);
}

void NeedsOfTensor(const Strategy& s, const Facts& f, Report& out) {
  const auto fitting = [&](int64_t size) {
    return ShowNear(Keep(Divisors(size), [&](int64_t t) { return TensorFits(t, s, f); }), s.tp);
  };
  for (const auto& [field, size] : f.OfTensor()) {
    if (size < 1 || size % s.tp == 0) continue;
    out.Add("tensor_model_parallel_size = ", s.tp, " does not divide ", field, " = ", size).legal =
        fitting(size);
  }
  if (f.heads < 1 || f.heads % s.tp != 0 || KvFits(f, s.tp, s.kv_axis)) return;
  out.Add("tensor_model_parallel_size = ", s.tp, " and num_key_value_heads = ", f.kv_heads,
          s.kv_axis ? ": one must divide the other"
                    : ": without split_tensor_by_kv_heads the first must divide the second")
      .legal = fitting(f.heads);
}

void NeedsOfWorld(const Strategy& s, const Facts&, Report& out) {
  const int64_t world = s.world();
  if (s.world_size < 1 || world == s.world_size) return;
  std::string& legal = out.Add("pp x dp x cp x tp = ", s.pp, " x ", s.dp, " x ", s.cp, " x ", s.tp, " = ",
                               world, " is not the world size ", s.world_size)
                           .legal;
  const int64_t others = s.pp * s.cp * s.tp;
  legal = s.world_size % others == 0
              ? absl::StrCat("data_parallel_size = ", s.world_size / others, ", or world_size = ", world)
              : absl::StrCat("world_size = ", world, ", or sizes whose product is ", s.world_size);
  if (s.ep > 1 && static_cast<double>(world) * s.ep * s.etp == static_cast<double>(s.world_size)) {
    absl::StrAppend(&legal, "; experts share the ranks of dp, cp and tp, they do not multiply the world");
  }
}

void NeedsOfExperts(const Strategy& s, const Facts& f, Report& out) {
  if (f.experts == 0) {
    if (s.ep * s.etp > 1) {
      out.Add("expert_model_parallel_size = ", s.ep, ", expert_tensor_parallel_size = ", s.etp,
              ", but the model has no experts")
          .legal = "1 and 1";
    }
    return;
  }
  if (!HasSlots(s) && f.experts % s.ep != 0) {
    out.Add("expert_model_parallel_size = ", s.ep, " does not divide num_experts = ", f.experts).legal =
        absl::StrCat(ShowNear(Divisors(f.experts), s.ep),
                     ", or --expert_slots=", (f.experts + s.ep - 1) / s.ep * s.ep,
                     ", of which some stay empty");
  }
  const int64_t stage = s.stage_ranks(), slots = SlotsOf(s, f.experts);
  if (stage % (s.ep * s.etp) != 0) {
    const std::vector<int64_t> fit =
        stage % s.etp == 0 ? Keep(Divisors(stage / s.etp), [&](int64_t e) { return slots % e == 0; })
                           : std::vector<int64_t>();
    // Who counts experts as ranks of their own multiplies them into the world.
    const std::string product =
        absl::StrCat(s.cp > 1 ? "ep x tp x pp x dp x cp = " : "ep x tp x pp x dp = ", s.ep, " x ", s.tp,
                     " x ", s.pp, " x ", s.dp, s.cp > 1 ? absl::StrCat(" x ", s.cp) : "", " = ");
    const bool multiplies = s.ep > 1 && static_cast<double>(s.world()) * s.ep < 1e18;
    out.Add("expert_model_parallel_size x expert_tensor_parallel_size = ", s.ep, " x ", s.etp,
            " does not divide the ", stage, " ranks of a stage, which experts share with dp, cp and tp",
            multiplies ? absl::StrCat(" (", product, s.world() * s.ep, " is not the world size ",
                                      s.world_size > 0 ? s.world_size : s.world(), ")")
                       : "")
        .legal = fit.empty()
                     ? absl::StrCat("expert_tensor_parallel_size of ", ShowNear(Divisors(stage), s.etp))
                     : absl::StrCat("expert_model_parallel_size of ", ShowNear(fit, s.ep),
                                    " with this expert_tensor_parallel_size");
    return;
  }
  if (!KvFits(f, s.tp, s.kv_axis)) return;  // told by tp
  Strategy trial = s;
  trial.zero_dp = PartOr0(s.zero_dp, s.dp * s.cp, s.zero > 0);
  trial.expert_zero_dp = PartOr0(s.expert_zero_dp, s.edp(), s.expert_zero_stage() > 0);
  const std::string fold = FoldProblem(trial, f.kv_heads);
  if (fold.empty()) return;
  const auto folds = [&](int64_t e, int64_t t) {
    trial.ep = e, trial.etp = t;
    return f.experts % e == 0 && FoldProblem(trial, f.kv_heads).empty();
  };
  const std::vector<int64_t> eps = Keep(Divisors(stage / s.etp), [&](int64_t e) { return folds(e, s.etp); });
  const std::vector<int64_t> etps = Keep(Divisors(stage), [&](int64_t t) { return folds(1, t); });
  out.Add("the sizes do not fold over the same ranks: ", fold).legal =
      eps.empty() ? absl::StrCat("expert_tensor_parallel_size of ", ShowNear(etps, s.etp),
                                 " with expert_model_parallel_size = 1")
                  : absl::StrCat("expert_model_parallel_size of ", ShowNear(eps, s.ep), " with these others");
}

void NeedsOfSlots(const Strategy& s, const Facts& f, Report& out) {
  if (s.expert_slots == 0) return;
  if (!f.moe_layers) {
    out.Add(kNoExperts).legal = "neither";
  } else {
    AddSlots(WithoutMap(s), f, out);
  }
}

void NeedsOfMap(const Strategy& s, const Facts& f, Report& out) {
  if (s.expert_map.empty()) return;
  if (s.expert_slots > 0 && (!f.moe_layers || !ExpertMapOf(WithoutMap(s), f.experts).ok())) return;  // told
  if (!f.moe_layers) {
    out.Add(kNoExperts).legal = "neither";
  } else {
    AddSlots(s, f, out);
  }
}

void NeedsOfMicrobatches(const Strategy& s, const Facts& f, Report& out) {
  const int64_t global = f.global_batch, micro = f.micro_batch;
  const std::string legal_size = absl::StrCat("1 to ", kMaxSize);
  const bool global_ok = global >= 1 && global <= kMaxSize, micro_ok = micro >= 1 && micro <= kMaxSize;
  if (!global_ok) out.Add("global_batch_size = ", global).legal = legal_size;
  if (!micro_ok) out.Add("micro_batch_size = ", micro).legal = legal_size;
  if (!global_ok || !micro_ok) return;
  const int64_t step = micro * s.dp;  // samples in a microbatch of all ranks; below 2^51
  const int64_t microbatches = MicrobatchesOf(s, f);
  const std::string counted =
      absl::StrCat(microbatches, " microbatches (global_batch_size ", global, " / ", step, ")");
  if (microbatches > 0 && s.schedule.kind == ScheduleKind::kDualPipe &&
      (microbatches % 2 != 0 || microbatches < 2 * s.pp)) {
    out.Add(counted, " with schedule dualpipe, which sends half of them down and half up the stages").legal =
        absl::StrCat("an even number of at least 2 x pipeline_model_parallel_size = ", 2 * s.pp,
                     ": global_batch_size of ", std::max(2 * s.pp, (microbatches + 1) / 2 * 2) * step);
  }
  if (microbatches > 0 && s.schedule.kind == ScheduleKind::kInterleaved && microbatches % s.pp != 0) {
    const int64_t below = microbatches / s.pp * s.pp * step;
    out.Add(counted, " are no multiple of pipeline_model_parallel_size = ", s.pp,
            ", in groups of which schedule interleaved moves them")
        .legal = absl::StrCat("global_batch_size of ", below > 0 ? absl::StrCat(below, " or ") : "",
                              below + s.pp * step);
  }
  if (microbatches > 0) return;
  const int64_t below = global / step * step;
  std::string& legal = out.Add("micro_batch_size x data_parallel_size = ", micro, " x ", s.dp,
                               " does not divide global_batch_size = ", global)
                           .legal;
  if (global % s.dp == 0) {
    absl::StrAppend(&legal, "micro_batch_size of ", ShowNear(Divisors(global / s.dp), micro), ", or ");
  }
  absl::StrAppend(&legal, "global_batch_size of ", below > 0 ? absl::StrCat(below, " or ") : "",
                  below + step);
}

void NeedsOfSchedule(const Strategy& s, const Facts& f, Report& out) {
  if (s.schedule.kind != ScheduleKind::kDualPipe || !f.global_aux_loss) return;
  out.Add(
         "moe_aux_loss_scope = global_batch, a sum over the microbatches so far, with schedule dualpipe, "
         "which sends half of them through a second copy of the model")
      .legal =
      "moe_aux_loss_scope = sequence or microbatch, or a schedule that runs forwards in order, as 1f1b";
}

}  // namespace moe::strategy
