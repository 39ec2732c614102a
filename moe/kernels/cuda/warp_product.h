// Products of small matrices by one warp, from tiles in shared memory into sums in registers: the inner part
// of matrix products and of attention.
//
//   WarpSums<2, 4> sums;  // 32 x 32
//   sums.Clear();
//   AddProduct<T, /*kAByK=*/true, /*kBByK=*/false>(sums, a, a_pitch, b, b_pitch, k);
//   sums.ForEach([&](int row, int column, float x) { ... });   // what this lane holds
//
// bf16 and f16 go through the tensor cores (mma.sync m16n8k16 and ldmatrix, PTX ISA 9.7.14), f32 through
// plain multiply-adds with sums in the same lanes. All lanes of the warp take part. Operands by k: element
// (i, l) of a at a[i * pitch + l], element (l, j) of b at b[j * pitch + l]; otherwise at a[l * pitch + i],
// b[l * pitch + j]. 16-bit tiles: k a multiple of 16, rows 16-byte aligned. In emulation the exchange between
// the lanes is done by the book, so that layouts are checked.
#pragma once

#include <cstdint>
#include <type_traits>

#include "moe/device/cuda/cuda.h"

namespace moe::kernels {

__device__ __forceinline__ float Widen(float x) { return x; }
__device__ __forceinline__ float Widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float Widen(__half x) { return __half2float(x); }
template <typename T>
__device__ __forceinline__ T Narrow(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half(x);
  } else {
    return x;
  }
}

// The sums of 16 kM x 8 kN elements. A lane holds, of each 16 x 8 block, columns 2 t and 2 t + 1 of rows g
// and g + 8, with g = lane / 4 and t = lane % 4.
template <int kM, int kN>
struct WarpSums {
  float x[kM][kN][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) x[i][j][0] = x[i][j][1] = x[i][j][2] = x[i][j][3] = 0;
    }
  }
  // f(row, column, x&) for what this lane holds; columns of a pair follow each other.
  template <typename F>
  __device__ __forceinline__ void ForEach(F f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          f(i * 16 + l / 2 * 8 + lane / 4, j * 8 + lane % 4 * 2 + l % 2, x[i][j][l]);
        }
      }
    }
  }
};

namespace warp_product_internal {

#ifdef MOE_EMULATED
// What the lanes of a warp show one another, each time in the other of two, so that one barrier is enough.
struct Shown {
  float a[16][16], b[8][16];  // b by columns
  const void* address[32];
};
inline Shown& NextOfWarp() {
  static thread_local Shown shown[32][2];
  static thread_local bool second[1024];
  bool& mine = second[threadIdx.x];
  mine = !mine;
  return shown[threadIdx.x / 32][mine];
}
template <typename T>
float Half(uint32_t word, int which) {
  const uint16_t bits = static_cast<uint16_t>(word >> (16 * which));
  T x;
  static_assert(sizeof(T) == 2);
  __builtin_memcpy(static_cast<void*>(&x), &bits, 2);
  return Widen(x);
}
#endif

// d += a b on 16 x 16 and 16 x 8.
template <typename T>
__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef MOE_EMULATED
  Shown& shown = NextOfWarp();
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) shown.a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = Half<T>(a[i], half);
    for (int i = 0; i < 2; ++i) shown.b[g][2 * t + i * 8 + half] = Half<T>(b[i], half);
  }
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const float *x = shown.a[g + i / 2 * 8], *y = shown.b[2 * t + i % 2];
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += x[k] * y[k];
    d[i] += sum;
  }
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, and gets of
// each elements 2 t and 2 t + 1 of row g, or of column g with kTranspose.
template <bool kTranspose>
__device__ __forceinline__ void LoadMatrices(uint32_t (&to)[4], const void* row) {
#ifdef MOE_EMULATED
  Shown& shown = NextOfWarp();
  const int lane = threadIdx.x % 32;
  shown.address[lane] = row;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    uint32_t word = 0;
    for (int half = 0; half < 2; ++half) {
      const int major = kTranspose ? lane % 4 * 2 + half : lane / 4;
      const int minor = kTranspose ? lane / 4 : lane % 4 * 2 + half;
      word |= static_cast<uint32_t>(static_cast<const uint16_t*>(shown.address[i * 8 + major])[minor])
              << (16 * half);
    }
    to[i] = word;
  }
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

}  // namespace warp_product_internal

// sums += a b, with k products each. See above for how a and b lie. kN is even.
template <typename T, bool kAByK, bool kBByK, int kM, int kN>
__device__ __forceinline__ void AddProduct(WarpSums<kM, kN>& sums, const T* a, int a_pitch, const T* b,
                                           int b_pitch, int k) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    using warp_product_internal::LoadMatrices;
    using warp_product_internal::Mma;
    static_assert(kN % 2 == 0);
    const int matrix = lane / 8, r = lane % 8;
#pragma unroll 2
    for (int l = 0; l < k; l += 16) {
      uint32_t of_a[kM][4];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        const int row = i * 16 + matrix % 2 * 8, at_k = l + matrix / 2 * 8;
        if constexpr (kAByK) {
          LoadMatrices<false>(of_a[i], a + (row + r) * a_pitch + at_k);
        } else {
          LoadMatrices<true>(of_a[i], a + (at_k + r) * a_pitch + row);
        }
      }
#pragma unroll
      for (int j = 0; j < kN; j += 2) {
        uint32_t of_b[4];
        const int column = j * 8 + matrix / 2 * 8, at_k = l + matrix % 2 * 8;
        if constexpr (kBByK) {
          LoadMatrices<false>(of_b, b + (column + r) * b_pitch + at_k);
        } else {
          LoadMatrices<true>(of_b, b + (at_k + r) * b_pitch + column);
        }
        const uint32_t first[2] = {of_b[0], of_b[1]}, second[2] = {of_b[2], of_b[3]};
#pragma unroll
        for (int i = 0; i < kM; ++i) {
          Mma<T>(sums.x[i][j], of_a[i], first);
          Mma<T>(sums.x[i][j + 1], of_a[i], second);
        }
      }
    }
  } else {
    const int g = lane / 4, t = lane % 4;
    for (int l = 0; l < k; ++l) {
      float of_a[kM][2];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = i * 16 + h * 8 + g;
          of_a[i][h] = kAByK ? a[row * a_pitch + l] : a[l * a_pitch + row];
        }
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const int column = j * 8 + t * 2;
        const float b0 = kBByK ? b[column * b_pitch + l] : b[l * b_pitch + column];
        const float b1 = kBByK ? b[(column + 1) * b_pitch + l] : b[l * b_pitch + column + 1];
#pragma unroll
        for (int i = 0; i < kM; ++i) {
          sums.x[i][j][0] += of_a[i][0] * b0;
          sums.x[i][j][1] += of_a[i][0] * b1;
          sums.x[i][j][2] += of_a[i][1] * b0;
          sums.x[i][j][3] += of_a[i][1] * b1;
        }
      }
    }
  }
}

}  // namespace moe::kernels
