// What decides where tokens go: router, top-k, counts, slots, replicas; and the weights of choices.

#include <algorithm>

#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/rank.h"
#include "moe/kernels/cuda/vec.h"
#include "moe/kernels/larger.h"

namespace moe::kernels {
namespace {

int64_t Tokens(const KernelContext& c) { return c.Extent("b") * c.Extent("c") * c.Extent("t"); }

struct RouterArgs {
  Reals x, mask;            // x: logits, or with softmax = false probabilities
  Reals probability, top;   // probability: null without softmax
  int32_t *expert, *count;  // count: may be null
  int64_t tokens, e, k;
  bool softmax;
};

// The better of two candidates: the larger, ties to the lower index; -1 stands for none.
__device__ void TakeBetter(float& p, int& n, float other_p, int other_n) {
  if (other_n < 0) return;
  if (n < 0 || IsLarger(other_p, p) || (IsSame(other_p, p) && other_n < n)) {
    p = other_p;
    n = other_n;
  }
}

// A warp a token. Up to 32 kPerLane experts are held in registers, expert i in lane i % 32; with kPerLane = 0
// any number, computed again for each choice. Choices are counted per block in shared memory, if there is
// room (shared_counts), and then in `count`: integers add up to the same in any order.
template <int kPerLane>
__global__ void RouterKernel(RouterArgs a, bool shared_counts) {
  MOE_DYNAMIC_SHARED(int32_t, of_block);
  const int lane = threadIdx.x, e = static_cast<int>(a.e);
  const int thread = threadIdx.y * kWarp + lane, threads = blockDim.y * kWarp;
  if (shared_counts) {
    for (int n = thread; n < e; n += threads) of_block[n] = 0;
    __syncthreads();
  }
  int32_t* const count = shared_counts ? of_block : a.count;
  for (int64_t token = FirstRow(); token < a.tokens; token += RowStep()) {
    float held[kPerLane > 0 ? kPerLane : 1];
    float max = -1e30f, sum = 0;
    if constexpr (kPerLane > 0) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int n = lane + i * kWarp;
        held[i] = n < e ? LoadOne(a.x, token * e + n) : -1e30f;
      }
    }
    if (a.softmax) {
      if constexpr (kPerLane > 0) {
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) max = fmaxf(max, held[i]);
        max = WarpReduce(max, MaxOf());
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          held[i] = lane + i * kWarp < e ? expf(held[i] - max) : 0.0f;
          sum += held[i];
        }
        sum = WarpReduce(sum, SumOf());
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          held[i] /= sum;
          if (lane + i * kWarp < e) StoreOne(a.probability, token * e + lane + i * kWarp, held[i]);
        }
      } else {
        for (int n = lane; n < e; n += kWarp) max = fmaxf(max, LoadOne(a.x, token * e + n));
        max = WarpReduce(max, MaxOf());
        for (int n = lane; n < e; n += kWarp) sum += expf(LoadOne(a.x, token * e + n) - max);
        sum = WarpReduce(sum, SumOf());
        for (int n = lane; n < e; n += kWarp)
          StoreOne(a.probability, token * e + n, expf(LoadOne(a.x, token * e + n) - max) / sum);
      }
    }
    // Each choice is the best of what comes after the last one in falling order.
    const bool routed = LoadOne(a.mask, token) != 0;
    float last_p = 0;
    int last = -1;
    for (int64_t j = 0; j < a.k; ++j) {
      float p = 0;
      int best = -1;
      if (routed && (j == 0 || last >= 0)) {
        const auto consider = [&](float candidate, int n) {
          if (j == 0 || IsLarger(last_p, candidate) || (IsSame(candidate, last_p) && n > last))
            TakeBetter(p, best, candidate, n);
        };
        if constexpr (kPerLane > 0) {
#pragma unroll
          for (int i = 0; i < kPerLane; ++i) {
            if (lane + i * kWarp < e) consider(held[i], lane + i * kWarp);
          }
        } else {
          for (int n = lane; n < e; n += kWarp) {
            const float x = LoadOne(a.x, token * e + n);
            consider(a.softmax ? expf(x - max) / sum : x, n);
          }
        }
#pragma unroll
        for (int offset = kWarp / 2; offset > 0; offset /= 2) {
          const float other_p = __shfl_xor_sync(kAllLanes, p, offset);
          const int other = __shfl_xor_sync(kAllLanes, best, offset);
          TakeBetter(p, best, other_p, other);
        }
      }
      last_p = p;
      last = best;
      if (lane != 0) continue;
      StoreOne(a.top, token * a.k + j, best >= 0 ? p : 0.0f);
      a.expert[token * a.k + j] = best;
      if (a.count != nullptr && best >= 0) atomicAdd(count + best, 1);
    }
  }
  if (shared_counts) {
    __syncthreads();
    for (int n = thread; n < e; n += threads) {
      if (of_block[n] > 0) atomicAdd(a.count + n, of_block[n]);
    }
  }
}

absl::Status LaunchRouter(KernelContext& c, const RouterArgs& a) {
  const cudaStream_t stream = CudaStreamOf(c);
  if (a.count != nullptr) RETURN_IF_CUDA_ERROR(cudaMemsetAsync(a.count, 0, a.e * sizeof(int32_t), stream));
  LaunchShape l = RowLaunch(a.tokens, kWarp);
  // Few blocks have many tokens each to count.
  if (a.count != nullptr) l.blocks = std::min<int64_t>(l.blocks, 1024);
  const int64_t bytes = a.e * static_cast<int64_t>(sizeof(int32_t));
  const bool shared = a.count != nullptr && bytes <= kDefaultSharedBytes;
  const auto launch = [&](auto kernel) {
    return MOE_LAUNCH(kernel, GridOf(l), BlockOf(l), shared ? bytes : 0, stream, a, shared);
  };
  if (a.e <= 4 * kWarp) return launch(&RouterKernel<4>);
  if (a.e <= 16 * kWarp) return launch(&RouterKernel<16>);
  return launch(&RouterKernel<0>);
}

// moe.router, and without a fourth result moe.softmax_top_k.
absl::Status Router(KernelContext& c) {
  RouterArgs a = {};
  ASSIGN_OR_RETURN(a.x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(a.mask, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(a.probability, RealsOf(c.out[0]));
  ASSIGN_OR_RETURN(a.top, RealsOf(c.out[1]));
  a.expert = c.out[2].As<int32_t>();
  a.count = c.out.size() > 3 ? c.out[3].As<int32_t>() : nullptr;
  a.tokens = Tokens(c);
  a.e = c.Extent("e");
  a.k = c.Extent("k");
  a.softmax = true;
  return LaunchRouter(c, a);
}

absl::Status TopK(KernelContext& c) {
  RouterArgs a = {};
  ASSIGN_OR_RETURN(a.x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(a.mask, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(a.top, RealsOf(c.out[0]));
  a.expert = c.out[1].As<int32_t>();
  a.tokens = Tokens(c);
  a.e = c.Extent("e");
  a.k = c.Extent("k");
  return LaunchRouter(c, a);
}

__global__ void TopKGradKernel(const int32_t* expert, Reals dtop, Reals dp, int64_t tokens, int64_t e,
                               int64_t e0, int64_t k) {
  for (int64_t i = FirstItem(); i < tokens * e; i += ItemStep()) {
    const int64_t token = i / e, n = e0 + i - token * e;
    float sum = 0;
    for (int64_t j = token * k; j < (token + 1) * k; ++j) {
      if (expert[j] == n) sum += LoadOne(dtop, j);
    }
    StoreOne(dp, i, sum);
  }
}

absl::Status TopKGrad(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals dtop, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dp, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(Tokens(c) * c.Extent("e"));
  return MOE_LAUNCH(TopKGradKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), c.in[0].As<int32_t>(), dtop,
                    dp, Tokens(c), c.Extent("e"), c.Offset("e"), c.Extent("k"));
}

// q = p / sum of p, or with dq its gradient.
__global__ void NormalizeKernel(Reals p, Reals dq, Reals y, int64_t tokens, int64_t k) {
  for (int64_t token = FirstItem(); token < tokens; token += ItemStep()) {
    float sum = 0, dot = 0;
    for (int64_t j = token * k; j < (token + 1) * k; ++j) {
      sum += LoadOne(p, j);
      if (dq.data != nullptr) dot += LoadOne(dq, j) * LoadOne(p, j);
    }
    const float by = sum == 0 ? 0 : 1 / sum;
    for (int64_t j = token * k; j < (token + 1) * k; ++j) {
      StoreOne(y, j, dq.data != nullptr ? (LoadOne(dq, j) - dot * by) * by : LoadOne(p, j) * by);
    }
  }
}

absl::Status Normalize(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals p, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals q, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(Tokens(c));
  return MOE_LAUNCH(NormalizeKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), p, Reals(), q, Tokens(c),
                    c.Extent("k"));
}

absl::Status NormalizeGrad(KernelContext& c) {
  ASSIGN_OR_RETURN(const Reals p, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals dq, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dp, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(Tokens(c));
  return MOE_LAUNCH(NormalizeKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), p, dq, dp, Tokens(c),
                    c.Extent("k"));
}

RankShape SlotRanks(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent) {
  const auto of = [&](absl::string_view factor) { return extent[rule.Find(factor)]; };
  const int64_t keys = n.Is("moe.slots") ? n.Int("experts") : of("w");
  return RanksOf(of("b") * of("c"), of("t") * of("k"), keys);
}

int64_t SlotsWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                       absl::Span<const Tensor>, absl::Span<const Tensor>) {
  return RankWorkspace(SlotRanks(n, rule, extent));
}

absl::Status Slots(KernelContext& c) {
  RankArgs a;
  a.key = c.in[0].As<int32_t>();
  a.rank = c.out[0].As<int32_t>();
  if (!c.node->BoolOr("dropless", false)) a.limit = c.node->Int("capacity");
  return LaunchRanks(CudaStreamOf(c), a, SlotRanks(*c.node, *c.rule, c.extent),
                     static_cast<int32_t*>(c.workspace));
}

struct ReplicaArgs {
  const int32_t *expert, *map;
  int32_t* expert_slot;
  int64_t choices, k, t, w;
  int64_t c, b0, c0, all_groups;  // local groups of a sequence, offsets, groups of a whole sequence
};

// The expert slot of each choice: of n replicas of its expert, the one with the number of its token mod n.
__global__ void ReplicasKernel(ReplicaArgs a) {
  for (int64_t i = FirstItem(); i < a.choices; i += ItemStep()) {
    const int32_t expert = a.expert[i];
    int64_t replicas = 0;
    for (int64_t w = 0; w < a.w && expert >= 0; ++w) replicas += a.map[w] == expert;
    int32_t chosen = -1;
    if (replicas > 0) {
      const int64_t g = i / (a.t * a.k);
      const int64_t group = (a.b0 + g / a.c) * a.all_groups + a.c0 + g % a.c;
      int64_t left = (group * a.t + i / a.k % a.t) % replicas;
      for (int64_t w = 0; chosen < 0; ++w) {
        if (a.map[w] == expert && left-- == 0) chosen = static_cast<int32_t>(w);
      }
    }
    a.expert_slot[i] = chosen;
  }
}

absl::Status ChooseReplicas(KernelContext& c) {
  ReplicaArgs a;
  a.expert = c.in[0].As<int32_t>();
  a.map = c.in[2].As<int32_t>();
  a.expert_slot = c.out[0].As<int32_t>();
  a.choices = c.in[0].elements();
  a.k = c.Extent("k");
  a.t = c.Extent("t");
  a.w = c.Extent("w");
  a.c = c.Extent("c");
  a.b0 = c.Offset("b");
  a.c0 = c.Offset("c");
  a.all_groups = c.global_extent[c.rule->Find("c")];
  const LaunchShape l = FlatLaunch(a.choices);
  RETURN_IF_ERROR(MOE_LAUNCH(ReplicasKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), a));
  RankArgs ranks;
  ranks.key = a.expert_slot;
  ranks.eligible = c.in[1].As<int32_t>();
  ranks.rank = c.out[1].As<int32_t>();
  return LaunchRanks(CudaStreamOf(c), ranks, SlotRanks(*c.node, *c.rule, c.extent),
                     static_cast<int32_t*>(c.workspace));
}

// Rows of `items` choices each, a row of counts for each. Blocks along x share a row.
__global__ void CountKernel(const int32_t* expert, int64_t items, int64_t e, int64_t e0, int32_t* count,
                            bool in_shared) {
  MOE_DYNAMIC_SHARED(int32_t, shared);
  const int32_t* const mine = expert + blockIdx.y * items;
  int32_t* const row = count + blockIdx.y * e;
  int32_t* const sum = in_shared ? shared : row;
  if (in_shared) {
    for (int64_t n = threadIdx.x; n < e; n += blockDim.x) shared[n] = 0;
    __syncthreads();
  }
  for (int64_t i = FirstItem(); i < items; i += ItemStep()) {
    const int64_t local = mine[i] - e0;
    if (local >= 0 && local < e) atomicAdd(sum + local, 1);
  }
  if (!in_shared) return;
  __syncthreads();
  for (int64_t n = threadIdx.x; n < e; n += blockDim.x) {
    if (shared[n] > 0) atomicAdd(row + n, shared[n]);
  }
}

absl::Status Count(KernelContext& c) {
  const cudaStream_t stream = CudaStreamOf(c);
  const int64_t e = c.Extent("e"), all = c.in[0].elements();
  const int64_t rows = c.node->BoolOr("per_sequence", false) ? c.Extent("b") : 1;
  RETURN_IF_CUDA_ERROR(cudaMemsetAsync(c.out[0].data, 0, c.out[0].elements() * sizeof(int32_t), stream));
  if (all == 0) return absl::OkStatus();
  const int64_t items = all / rows, bytes = e * static_cast<int64_t>(sizeof(int32_t));
  LaunchShape l = FlatLaunch(items);
  l.blocks = std::min<int64_t>(l.blocks, CeilDiv(items, 16 * l.threads_x));  // 16 items a thread
  const bool in_shared = bytes <= kDefaultSharedBytes;
  for (int64_t row = 0; row < rows; row += kMaxGridY) {
    const dim3 grid(static_cast<unsigned>(l.blocks), static_cast<unsigned>(std::min(kMaxGridY, rows - row)));
    RETURN_IF_ERROR(MOE_LAUNCH(CountKernel, grid, BlockOf(l), in_shared ? bytes : 0, stream,
                               c.in[0].As<int32_t>() + row * items, items, e, c.Offset("e"),
                               c.out[0].As<int32_t>() + row * e, in_shared));
  }
  return absl::OkStatus();
}

__global__ void CountKeptKernel(const int32_t* slot, int64_t n, int32_t* count) {
  int kept = 0;
  for (int64_t i = FirstItem(); i < n; i += ItemStep()) kept += slot[i] >= 0;
  kept = BlockReduce(kept, SumOf(), 0);
  if (threadIdx.x == 0 && kept > 0) atomicAdd(count, kept);
}

absl::Status CountKept(KernelContext& c) {
  const int64_t n = c.in[0].elements();
  RETURN_IF_CUDA_ERROR(cudaMemsetAsync(c.out[0].data, 0, sizeof(int32_t), CudaStreamOf(c)));
  LaunchShape l = FlatLaunch(n);
  l.blocks = std::min<int64_t>(l.blocks, 512);
  return MOE_LAUNCH(CountKeptKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), c.in[0].As<int32_t>(), n,
                    c.out[0].As<int32_t>());
}

}  // namespace

void RegisterCudaRouting(KernelRegistry& r) {
  AddForFloats(r, "moe.normalize", &Normalize);
  AddForFloats(r, "moe.normalize_grad", &NormalizeGrad);
  AddForFloats(r, "moe.router", &Router);
  AddForFloats(r, "moe.softmax_top_k", &Router);
  AddForFloats(r, "moe.top_k", &TopK);
  AddForFloats(r, "moe.top_k_grad", &TopKGrad);
  const auto add = [&](const char* op, KernelFn fn, WorkspaceFn workspace = nullptr) {
    r.Add({op, Backend::kCuda, DType::kS32, fn, workspace});
  };
  add("moe.choose_replicas", &ChooseReplicas, &SlotsWorkspace);
  add("moe.count", &Count);
  add("moe.count_kept", &CountKept);
  add("moe.slots", &Slots, &SlotsWorkspace);
}

}  // namespace moe::kernels
