// Copies of matrix tiles from global to shared memory by all threads of a block, 16 bytes at a time and
// without waiting where the rows are aligned (cp.async, PTX ISA 9.7.9.25), element by element with conversion
// elsewhere.
//
//   CopyTile<T, 64, 32, 40, 256>(tile, source, /*row=*/i, /*column=*/l, rows, columns);
//   CommitCopies(); ... WaitForCopies<1>(); __syncthreads();
//
// Elements beyond the matrix become zero.
#pragma once

#include <cstdint>
#include <type_traits>

#include "moe/device/cuda/cuda.h"
#include "moe/kernels/cuda/vec.h"
#include "moe/kernels/cuda/warp_product.h"

namespace moe::kernels {

template <typename T>
inline constexpr Storage kStorageOf = std::is_same_v<T, __nv_bfloat16> ? Storage::kBF16
                                      : std::is_same_v<T, __half>      ? Storage::kF16
                                                                       : Storage::kF32;

// Two elements that follow one another; with `pairs`, the first lies at a multiple of both.
__device__ __forceinline__ void StorePair(const Reals& to, int64_t at, float x, float y, bool pairs) {
  if (!pairs) {
    StoreOne(to, at, x);
    StoreOne(to, at + 1, y);
  } else if (to.storage == Storage::kF32) {
    *reinterpret_cast<float2*>(static_cast<float*>(to.data) + at) = make_float2(x, y);
  } else if (to.storage == Storage::kBF16) {
    *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(to.data) + at) =
        __floats2bfloat162_rn(x, y);
  } else {
    *reinterpret_cast<__half2*>(static_cast<__half*>(to.data) + at) = __floats2half2_rn(x, y);
  }
}

// A row-major matrix in global memory.
struct MatrixView {
  const void* data = nullptr;
  int64_t pitch = 0;  // elements
  Storage storage = Storage::kF32;
  bool vectors = false;  // every row begins at a multiple of 16 bytes, and the storage is the tile's
};

// 16 bytes, of which `bytes` are there and the others become zero.
__device__ __forceinline__ void Copy16(void* to, const void* from, int bytes) {
#ifdef MOE_EMULATED
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  for (int i = 0; i < 16; ++i) out[i] = i < bytes ? in[i] : 0;
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void CommitCopies() {
#ifndef MOE_EMULATED
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
// Until at most kPending of the groups that this thread committed are under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
#ifndef MOE_EMULATED
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// tile[i * kPitch + j] = matrix[row + i, column + j] for kRows x kColumns. The matrix has `rows` x `columns`.
template <typename T, int kRows, int kColumns, int kPitch, int kThreads>
__device__ __forceinline__ void CopyTile(T* tile, const MatrixView& matrix, int64_t row, int64_t column,
                                         int64_t rows, int64_t columns) {
  if (matrix.vectors) {
    constexpr int kPer = 16 / sizeof(T), kInRow = kColumns / kPer;
    static_assert(kColumns % kPer == 0 && kPitch % kPer == 0);
    for (int i = threadIdx.x; i < kRows * kInRow; i += kThreads) {
      const int r = i / kInRow, c = i % kInRow * kPer;
      const int64_t left = row + r < rows ? columns - (column + c) : 0;
      const int bytes = left <= 0 ? 0 : static_cast<int>((left < kPer ? left : kPer) * sizeof(T));
      const T* from = static_cast<const T*>(matrix.data);
      if (bytes > 0) from += (row + r) * matrix.pitch + column + c;
      Copy16(tile + r * kPitch + c, from, bytes);
    }
    return;
  }
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    T x = Narrow<T>(0.0f);
    if (row + r < rows && column + c < columns) {
      const int64_t at = (row + r) * matrix.pitch + column + c;
      x = matrix.storage == kStorageOf<T>
              ? static_cast<const T*>(matrix.data)[at]
              : Narrow<T>(LoadOne({const_cast<void*>(matrix.data), matrix.storage}, at));
    }
    tile[r * kPitch + c] = x;
  }
}

}  // namespace moe::kernels
