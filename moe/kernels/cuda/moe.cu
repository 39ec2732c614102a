// Between dispatch and combine: rows of tokens to the slots of experts and back, and expert tensors by
// replicas and in parts.
//
// All ops that touch rows go by token: the threads of a row walk its chunks, and for each chunk the choices
// of the token. So dispatch reads a token once and writes it k times, combine reads k rows and writes one,
// and no two threads write the same element.

#include <algorithm>
#include <type_traits>

#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {
namespace {

// Where rows are, as moe/kernels/dispatched.h has it.
struct Routing {
  const int32_t *expert, *slot;
  int64_t choices, k;  // of a group; of a token
  int64_t tokens, groups, e, e0;
  int64_t slots;         // dense: of a cell
  const int32_t* sizes;  // ragged: of the cells
  RaggedRows rows;       // null header: dense

  // Of a choice; -1 if it has none here.
  __device__ int64_t Row(int64_t choice) const {
    const int64_t local = expert[choice] - e0, at = slot[choice];
    if (local < 0 || local >= e || at < 0) return -1;
    const int64_t cell = local * groups + choice / choices;
    if (rows.header == nullptr) return at < slots ? cell * slots + at : -1;
    return at < sizes[cell] ? rows.starts[cell] + at : -1;
  }
};

Routing RoutingOf(const KernelContext& c, const Tensor& expert, const Tensor& slot,
                  const Tensor& dispatched) {
  Routing r = {};
  r.expert = expert.As<int32_t>();
  r.slot = slot.As<int32_t>();
  r.k = c.Extent("k");
  r.choices = c.Extent("t") * r.k;
  r.groups = c.Extent("b") * c.Extent("c");
  r.tokens = r.groups * c.Extent("t");
  r.e = c.Extent("e");
  r.e0 = c.Offset("e");
  r.slots = dispatched.is_ragged() ? 0 : dispatched.dims[3];
  r.sizes = dispatched.sizes;
  return r;
}

// Rows of a token's first choices stay in registers: as many as it has choices, up to 8, so that threads of
// few choices have few registers and an SM many such threads.
template <typename F>
absl::Status WithHeldChoices(int64_t k, F f) {
  if (k <= 2) return f(std::integral_constant<int, 2>());
  if (k <= 4) return f(std::integral_constant<int, 4>());
  return f(std::integral_constant<int, 8>());
}

// ---- to the slots

// Sizes of cells, by integers that add up to the same in any order.
__global__ void CountCellsKernel(Routing r, int32_t* sizes) {
  for (int64_t i = FirstItem(); i < r.groups * r.choices; i += ItemStep()) {
    const int64_t local = r.expert[i] - r.e0;
    if (local >= 0 && local < r.e && r.slot[i] >= 0) atomicAdd(sizes + local * r.groups + i / r.choices, 1);
  }
}

__global__ void MarkKernel(Routing r, uint8_t* taken) {
  for (int64_t i = FirstItem(); i < r.groups * r.choices; i += ItemStep()) {
    const int64_t row = r.Row(i);
    if (row >= 0) taken[row] = 1;
  }
}

__global__ void ZeroRowsKernel(const uint8_t* taken, Reals d, int64_t rows, int64_t h, bool aligned) {
  for (int64_t row = FirstRow(); row < rows; row += RowStep()) {
    if (taken[row]) continue;
    for (int64_t at = FirstChunk(); at < h; at += ChunkStep())
      Store(d, row * h + at, ChunkSize(at, h), aligned, Filled(0));
  }
}

// d = x, in whole chunks of the same storage.
template <int kHeld>
__global__ void CopyScatterKernel(Routing r, Reals x, Reals d, int64_t h) {
  if (r.rows.header != nullptr) d.data = r.rows.header->data[0];
  for (int64_t token = FirstRow(); token < r.tokens; token += RowStep()) {
    for (int64_t first = 0; first < r.k; first += kHeld) {
      int64_t row[kHeld];
#pragma unroll
      for (int j = 0; j < kHeld; ++j) row[j] = first + j < r.k ? r.Row(token * r.k + first + j) : -1;
      for (int64_t at = FirstChunk(); at < h; at += ChunkStep()) {
        const RawChunk raw = LoadRaw(x, token * h + at);
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          if (row[j] >= 0) StoreRaw(d, row[j] * h + at, raw);
        }
      }
    }
  }
}

// d = x, or with `weight` x times that of the choice.
template <int kHeld>
__global__ void ScatterKernel(Routing r, Reals x, Reals weight, Reals d, int64_t h, bool aligned) {
  if (r.rows.header != nullptr) d.data = r.rows.header->data[0];
  for (int64_t token = FirstRow(); token < r.tokens; token += RowStep()) {
    for (int64_t first = 0; first < r.k; first += kHeld) {
      int64_t row[kHeld];
      float by[kHeld];
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int64_t choice = token * r.k + first + j;
        row[j] = first + j < r.k ? r.Row(choice) : -1;
        by[j] = row[j] >= 0 && weight.data != nullptr ? LoadOne(weight, choice) : 1.0f;
      }
      for (int64_t at = FirstChunk(); at < h; at += ChunkStep()) {
        const int n = ChunkSize(at, h);
        const Chunk v = Load(x, token * h + at, n, aligned);
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          if (row[j] < 0) continue;
          Chunk y;
#pragma unroll
          for (int i = 0; i < kChunk; ++i) y.x[i] = v.x[i] * by[j];
          Store(d, row[j] * h + at, n, aligned, y);
        }
      }
    }
  }
}

int64_t ScatterWorkspace(const Node&, const ShardingRule&, absl::Span<const int64_t>,
                         absl::Span<const Tensor>, absl::Span<const Tensor> out) {
  const Tensor& d = out[0];
  if (d.is_ragged()) return RaggedWorkspace(d.cells);
  return WorkspacePart(d.dims[0] * d.dims[1] * d.dims[2] * d.dims[3]);  // a byte a slot
}

absl::Status Scatter(KernelContext& c, const Tensor& x, const Tensor* weight, const Tensor& expert,
                     const Tensor& slot) {
  const cudaStream_t stream = CudaStreamOf(c);
  Tensor& d = c.out[0];
  const int64_t h = c.Extent("h");
  Routing r = RoutingOf(c, expert, slot, d);
  ASSIGN_OR_RETURN(const Reals from, RealsOf(x));
  ASSIGN_OR_RETURN(const Reals to, RealsOf(d));
  Reals by;
  if (weight != nullptr) {
    ASSIGN_OR_RETURN(by, RealsOf(*weight));
  }
  const bool aligned = HasAlignedRows(x, h) && HasAlignedRows(d, h);
  const LaunchShape choices = FlatLaunch(r.groups * r.choices);
  Workspace w(c);
  if (d.is_ragged()) {
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(d.sizes, 0, d.cells * sizeof(int32_t), stream));
    RETURN_IF_ERROR(MOE_LAUNCH(CountCellsKernel, GridOf(choices), BlockOf(choices), 0, stream, r, d.sizes));
    ASSIGN_OR_RETURN(r.rows,
                     PlaceRagged(stream, d.sizes, d.cells, {&d}, {}, w.Take<char>(RaggedWorkspace(d.cells))));
  } else {  // empty slots are zero
    const int64_t rows = r.e * r.groups * r.slots;
    uint8_t* const taken = w.Take<uint8_t>(rows);
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(taken, 0, rows, stream));
    RETURN_IF_ERROR(MOE_LAUNCH(MarkKernel, GridOf(choices), BlockOf(choices), 0, stream, r, taken));
    const LaunchShape l = ChunkRowLaunch(rows, h);
    RETURN_IF_ERROR(
        MOE_LAUNCH(ZeroRowsKernel, GridOf(l), BlockOf(l), 0, stream, taken, to, rows, h, aligned));
  }
  if (r.k == 0) return absl::OkStatus();
  const LaunchShape l = ChunkRowLaunch(r.tokens, h);
  return WithHeldChoices(r.k, [&](auto held) {
    constexpr int kHeld = decltype(held)::value;
    if (weight == nullptr && aligned && from.storage == to.storage) {
      return MOE_LAUNCH(CopyScatterKernel<kHeld>, GridOf(l), BlockOf(l), 0, stream, r, from, to, h);
    }
    return MOE_LAUNCH(ScatterKernel<kHeld>, GridOf(l), BlockOf(l), 0, stream, r, from, by, to, h, aligned);
  });
}

absl::Status Dispatch(KernelContext& c) { return Scatter(c, c.in[0], nullptr, c.in[1], c.in[2]); }
absl::Status CombineDo(KernelContext& c) { return Scatter(c, c.in[0], &c.in[1], c.in[2], c.in[3]); }

// ---- back from them

// y = sum over the choices of a token, in their order, of weight times row.
template <int kHeld>
__global__ void GatherKernel(Routing r, Reals o, Reals weight, Reals y, int64_t h, bool aligned) {
  if (r.rows.header != nullptr) o.data = r.rows.header->data[0];
  for (int64_t token = FirstRow(); token < r.tokens; token += RowStep()) {
    int64_t row[kHeld];
    float by[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int64_t choice = token * r.k + j;
      row[j] = j < r.k ? r.Row(choice) : -1;
      by[j] = row[j] >= 0 && weight.data != nullptr ? LoadOne(weight, choice) : 1.0f;
    }
    for (int64_t at = FirstChunk(); at < h; at += ChunkStep()) {
      const int n = ChunkSize(at, h);
      Chunk sum = Filled(0);
      if (aligned) {  // all rows are under way before the first is added
        RawChunk raw[kHeld];
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          if (row[j] >= 0) raw[j] = LoadRaw(o, row[j] * h + at);
        }
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          if (row[j] < 0) continue;
          const Chunk v = Widen(o.storage, raw[j]);
#pragma unroll
          for (int i = 0; i < kChunk; ++i) sum.x[i] += by[j] * v.x[i];
        }
      } else {
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          if (row[j] < 0) continue;
          const Chunk v = Load(o, row[j] * h + at, n, false);
#pragma unroll
          for (int i = 0; i < kChunk; ++i) sum.x[i] += by[j] * v.x[i];
        }
      }
      for (int64_t j = kHeld; j < r.k; ++j) {
        const int64_t choice = token * r.k + j, more = r.Row(choice);
        if (more < 0) continue;
        const float p = weight.data != nullptr ? LoadOne(weight, choice) : 1.0f;
        const Chunk v = Load(o, more * h + at, n, aligned);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum.x[i] += p * v.x[i];
      }
      Store(y, token * h + at, n, aligned, sum);
    }
  }
}

absl::Status PlaceOperand(KernelContext& c, Routing& r) {
  Workspace w(c);
  ASSIGN_OR_RETURN(r.rows, PlaceLikeOperand(c, w));
  return absl::OkStatus();
}

absl::Status Gather(KernelContext& c, const Tensor* weight, const Tensor& expert, const Tensor& slot) {
  const Tensor& o = c.in[0];
  const int64_t h = c.Extent("h");
  Routing r = RoutingOf(c, expert, slot, o);
  RETURN_IF_ERROR(PlaceOperand(c, r));
  ASSIGN_OR_RETURN(const Reals from, RealsOf(o));
  ASSIGN_OR_RETURN(const Reals to, RealsOf(c.out[0]));
  Reals by;
  if (weight != nullptr) {
    ASSIGN_OR_RETURN(by, RealsOf(*weight));
  }
  const LaunchShape l = ChunkRowLaunch(r.tokens, h);
  const bool aligned = HasAlignedRows(o, h) && HasAlignedRows(c.out[0], h);
  return WithHeldChoices(r.k, [&](auto held) {
    return MOE_LAUNCH(GatherKernel<decltype(held)::value>, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), r, from,
                      by, to, h, aligned);
  });
}

absl::Status Undispatch(KernelContext& c) { return Gather(c, nullptr, c.in[1], c.in[2]); }
absl::Status Combine(KernelContext& c) { return Gather(c, &c.in[1], c.in[2], c.in[3]); }

// The threads of a row take a choice: those of one token are neighbours, and find its row of dy near.
__global__ void DotKernel(Routing r, Reals o, Reals dy, Reals dp, int64_t h, bool aligned) {
  if (r.rows.header != nullptr) o.data = r.rows.header->data[0];
  for (int64_t choice = FirstRow(); choice < r.groups * r.choices; choice += RowStep()) {
    const int64_t row = r.Row(choice), token = choice / r.k;
    float sum = 0;
    for (int64_t at = FirstChunk(); row >= 0 && at < h; at += ChunkStep()) {
      const int n = ChunkSize(at, h);
      const Chunk a = Load(o, row * h + at, n, aligned), b = Load(dy, token * h + at, n, aligned);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sum += a.x[i] * b.x[i];
    }
    sum = RowSum(sum);
    if (threadIdx.x == 0) StoreOne(dp, choice, sum);
  }
}

absl::Status CombineDp(KernelContext& c) {
  const int64_t h = c.Extent("h");
  Routing r = RoutingOf(c, c.in[2], c.in[3], c.in[0]);
  RETURN_IF_ERROR(PlaceOperand(c, r));
  ASSIGN_OR_RETURN(const Reals o, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals dy, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dp, RealsOf(c.out[0]));
  const LaunchShape l = ChunkRowLaunch(r.groups * r.choices, h);
  return MOE_LAUNCH(DotKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), r, o, dy, dp, h,
                    HasAlignedRows(c.in[0], h) && HasAlignedRows(c.in[1], h));
}

// ---- expert tensors

struct ReplicaShape {
  const int32_t* map;  // of the local expert slots
  int64_t experts, e0, slots, row;
  bool aligned;
};

ReplicaShape ReplicasOf(const KernelContext& c) {
  ReplicaShape s;
  s.map = c.in[1].As<int32_t>() + c.Offset("q");
  s.experts = c.Extent("e");
  s.e0 = c.Offset("e");
  s.slots = c.Extent("q");
  s.row = c.Extent("f") * c.Extent("h");
  s.aligned = HasAlignedRows(c.in[0], s.row) && HasAlignedRows(c.out[0], s.row);
  return s;
}

// Items are chunks of the result: those of expert 0, of expert 1, ...
__global__ void SumReplicasKernel(ReplicaShape s, Reals x, Reals y) {
  const int64_t chunks = (s.row + kChunk - 1) / kChunk;
  for (int64_t i = FirstItem(); i < s.experts * chunks; i += ItemStep()) {
    const int64_t e = i / chunks, at = (i - e * chunks) * kChunk;
    const int n = ChunkSize(at, s.row);
    Chunk sum = Filled(0);
    for (int64_t q = 0; q < s.slots; ++q) {
      if (s.map[q] != s.e0 + e) continue;
      const Chunk v = Load(x, q * s.row + at, n, s.aligned);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum.x[j] += v.x[j];
    }
    Store(y, e * s.row + at, n, s.aligned, sum);
  }
}

__global__ void CopyToReplicasKernel(ReplicaShape s, Reals x, Reals y) {
  const int64_t chunks = (s.row + kChunk - 1) / kChunk;
  for (int64_t i = FirstItem(); i < s.slots * chunks; i += ItemStep()) {
    const int64_t q = i / chunks, at = (i - q * chunks) * kChunk, e = s.map[q] - s.e0;
    const int n = ChunkSize(at, s.row);
    const bool here = s.map[q] >= 0 && e >= 0 && e < s.experts;
    Store(y, q * s.row + at, n, s.aligned, here ? Load(x, e * s.row + at, n, s.aligned) : Filled(0));
  }
}

absl::Status SumReplicas(KernelContext& c) {
  const ReplicaShape s = ReplicasOf(c);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(s.experts * CeilDiv(s.row, kChunk));
  return MOE_LAUNCH(SumReplicasKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), s, x, y);
}

absl::Status CopyToReplicas(KernelContext& c) {
  const ReplicaShape s = ReplicasOf(c);
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.in[0]));
  ASSIGN_OR_RETURN(const Reals y, RealsOf(c.out[0]));
  const LaunchShape l = FlatLaunch(s.slots * CeilDiv(s.row, kChunk));
  return MOE_LAUNCH(CopyToReplicasKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), s, x, y);
}

}  // namespace

void RegisterCudaMoe(KernelRegistry& r) {
  AddForFloats(r, "moe.combine", &Combine, &RaggedWorkspaceOf);
  AddForFloats(r, "moe.combine_do", &CombineDo, &ScatterWorkspace);
  AddForFloats(r, "moe.combine_dp", &CombineDp, &RaggedWorkspaceOf);
  AddForFloats(r, "moe.copy_to_replicas", &CopyToReplicas);
  AddForFloats(r, "moe.dispatch", &Dispatch, &ScatterWorkspace);
  AddForFloats(r, "moe.sum_replicas", &SumReplicas);
  AddForFloats(r, "moe.undispatch", &Undispatch, &RaggedWorkspaceOf);
}

}  // namespace moe::kernels
