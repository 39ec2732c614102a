#include <algorithm>

#include "moe/kernels/cuda/einsum_loops.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kFewResults = 1 << 16, kMuchToReduce = 256;

__device__ __forceinline__ void Step(const LoopFactor& f, int64_t index, int64_t (&offset)[kMaxLoopTerms],
                                     int64_t* cell) {
#pragma unroll
  for (int t = 0; t < kMaxLoopTerms; ++t) offset[t] += index * f.stride[t];
  *cell += index * f.cell;
}

// The cell that has a row: the last that begins at or before it and is not empty.
__device__ __forceinline__ int64_t CellOfRow(const int64_t* starts, int64_t cells, int64_t row) {
  int64_t low = 0, high = cells;  // starts[low] <= row < starts[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (starts[middle] <= row ? low : high) = middle;
  }
  return low;
}

// One element of the result: where it is in all terms.
struct Place {
  int64_t offset[kMaxLoopTerms] = {};
  int64_t cell = 0;
};

__device__ Place PlaceOf(const EinsumLoops& p, int64_t index) {
  Place at;
  if (p.result_is_ragged) {
    const int64_t width = p.term[p.num_in].row_elements, row = index / width;
    int64_t inner = index % width, cell = CellOfRow(p.rows.starts, p.rows.cells, row);
    for (int f = p.num_outer + p.num_inner - 1; f >= p.num_outer; --f) {
      Step(p.of_result[f], inner % p.of_result[f].extent, at.offset, &at.cell);
      inner /= p.of_result[f].extent;
    }
    for (int f = p.num_outer - 1; f >= 0; --f) {
      Step(p.of_result[f], cell % p.of_result[f].extent, at.offset, &at.cell);
      cell /= p.of_result[f].extent;
    }
#pragma unroll
    for (int t = 0; t < kMaxLoopTerms; ++t) at.offset[t] += row * p.term[t].row_elements;
    return at;
  }
  for (int f = p.num_outer - 1; f >= 0; --f) {
    Step(p.of_result[f], index % p.of_result[f].extent, at.offset, &at.cell);
    index /= p.of_result[f].extent;
  }
  return at;
}

__device__ __forceinline__ Reals RealsOf(const EinsumLoops& p, int t) {
  return {p.term[t].ragged < 0 ? p.term[t].data : p.rows.header->data[p.term[t].ragged], p.term[t].storage};
}

__device__ __forceinline__ float ProductAt(const EinsumLoops& p, const int64_t (&offset)[kMaxLoopTerms],
                                           int64_t row) {
  float x = 1;
  for (int t = 0; t < p.num_in; ++t) {
    x *= LoadOne(RealsOf(p, t), offset[t] + row * p.term[t].row_elements);
  }
  return x;
}

// The sum over the part of the reduced side that worker `first` of `workers` has.
__device__ float PartialSum(const EinsumLoops& p, const Place& place, int64_t first, int64_t workers) {
  int64_t count = 1;
  for (int f = 0; f < p.num_reduced; ++f) count *= p.reduced[f].extent;
  const bool by_rows = p.reduces_rows && count < workers;  // workers share the rows instead
  float sum = 0;
  for (int64_t i = by_rows ? 0 : first; i < count; i += by_rows ? 1 : workers) {
    Place at = place;
    int64_t left = i;
    for (int f = p.num_reduced - 1; f >= 0; --f) {
      Step(p.reduced[f], left % p.reduced[f].extent, at.offset, &at.cell);
      left /= p.reduced[f].extent;
    }
    if (!p.reduces_rows) {
      sum += ProductAt(p, at.offset, 0);
      continue;
    }
    const int64_t end = at.cell + 1 < p.rows.cells ? p.rows.starts[at.cell + 1] : p.rows.header->rows;
    for (int64_t row = p.rows.starts[at.cell] + (by_rows ? first : 0); row < end;
         row += by_rows ? workers : 1) {
      sum += ProductAt(p, at.offset, row);
    }
  }
  return sum;
}

__device__ __forceinline__ int64_t Results(const EinsumLoops& p) {
  if (p.result_is_ragged) return p.rows.header->rows * p.term[p.num_in].row_elements;
  int64_t n = 1;
  for (int f = 0; f < p.num_outer; ++f) n *= p.of_result[f].extent;
  return n;
}

__device__ __forceinline__ void Store(const EinsumLoops& p, const Place& at, float x) {
  StoreOne(RealsOf(p, p.num_in), at.offset[p.num_in], x);
}

__global__ void ThreadForEachResult(EinsumLoops p) {
  const int64_t results = Results(p);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < results;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const Place at = PlaceOf(p, i);
    Store(p, at, PartialSum(p, at, 0, 1));
  }
}

__global__ void BlockForEachResult(EinsumLoops p) {
  __shared__ float sums[kThreads];
  const int64_t results = Results(p);
  for (int64_t i = blockIdx.x; i < results; i += gridDim.x) {
    const Place at = PlaceOf(p, i);
    sums[threadIdx.x] = PartialSum(p, at, threadIdx.x, kThreads);
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) Store(p, at, sums[0]);
    __syncthreads();
  }
}

}  // namespace

absl::Status LaunchEinsumLoops(const EinsumLoops& loops, cudaStream_t stream) {
  int64_t results = 1,
          reduced = loops.reduces_rows ? loops.most_rows / std::max<int64_t>(1, loops.rows.cells) : 1;
  if (loops.result_is_ragged) {
    results = loops.most_rows * loops.term[loops.num_in].row_elements;
  } else {
    for (int f = 0; f < loops.num_outer; ++f) results *= loops.of_result[f].extent;
  }
  for (int f = 0; f < loops.num_reduced; ++f) reduced *= loops.reduced[f].extent;
  if (results == 0) return absl::OkStatus();
  const bool by_block = results <= kFewResults && reduced >= kMuchToReduce;
  const int64_t blocks = by_block ? results : (results + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 16)));
  if (by_block) return MOE_LAUNCH(BlockForEachResult, grid, dim3(kThreads), 0, stream, loops);
  return MOE_LAUNCH(ThreadForEachResult, grid, dim3(kThreads), 0, stream, loops);
}

}  // namespace moe::kernels
