// Reals on the device: f32, bf16 or f16 in memory, f32 in registers, in chunks of 8 elements that are one or
// two 16-byte accesses.
//
//   for (int64_t at = first; at < width; at += step) {
//     const int n = ChunkSize(at, width);
//     Chunk x = Load(a, row * width + at, n, aligned);
//     ...
//     Store(b, row * width + at, n, aligned, x);
//   }
//
// The storage type is a value and not a template parameter: operands of an op may differ in it, and a branch
// that all threads take alike costs nothing beside the memory it touches. `aligned` says that all chunks
// begin on 16 bytes; elsewhere elements go one by one. Memory may be read and written by the same kernel (ops
// in place), so nothing goes through the read-only cache.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "moe/device/cuda/cuda.h"
#include "moe/ir/types.h"
#include "moe/kernels/cuda/launch.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

enum class Storage : int32_t { kF32, kBF16, kF16 };

struct Reals {
  void* data = nullptr;
  Storage storage = Storage::kF32;
};

// Error: Unimplemented for dtypes that are not reals on CUDA.
inline absl::StatusOr<Storage> StorageOfReals(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return Storage::kF32;
    case DType::kBF16:
      return Storage::kBF16;
    case DType::kF16:
      return Storage::kF16;
    default:
      return absl::UnimplementedError(
          absl::StrCat("a CUDA kernel takes f32, bf16 and f16, not ", DTypeName(dtype)));
  }
}
inline absl::StatusOr<Reals> RealsOf(const Tensor& t) {
  absl::StatusOr<Storage> storage = StorageOfReals(t.dtype);
  if (!storage.ok()) return storage.status();
  return Reals{t.data, *storage};
}

inline bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
// Whether chunks of a tensor's rows of `width` elements begin on 16 bytes.
inline bool HasAlignedRows(const Tensor& t, int64_t width) {
  if (width % kChunk != 0) return false;
  return t.is_ragged() ? IsAligned(t.arena_rows) && IsAligned(t.spill_rows) : IsAligned(t.data);
}

struct alignas(16) Chunk {
  float x[kChunk];
};
struct RawChunk {  // a chunk as it lies in memory; of 16-bit storage `low` alone
  uint4 low, high;
};

__device__ inline int ChunkSize(int64_t at, int64_t width) {
  return width - at < kChunk ? static_cast<int>(width - at) : kChunk;
}

// The chunks of a row that a thread of RowLaunch has, as elements.
__device__ inline int64_t FirstChunk() { return int64_t{threadIdx.x} * kChunk; }
__device__ inline int64_t ChunkStep() { return int64_t{blockDim.x} * kChunk; }

__device__ inline float Widen16(Storage s, uint16_t bits) {
  if (s == Storage::kBF16) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  return __half2float(reinterpret_cast<const __half&>(bits));
}
__device__ inline uint16_t Narrow16(Storage s, float x) {
  if (s == Storage::kBF16) {
    const __nv_bfloat16 y = __float2bfloat16_rn(x);
    return reinterpret_cast<const uint16_t&>(y);
  }
  const __half y = __float2half_rn(x);
  return reinterpret_cast<const uint16_t&>(y);
}

__device__ inline float LoadOne(const Reals& r, int64_t i) {
  if (r.storage == Storage::kF32) return static_cast<const float*>(r.data)[i];
  return Widen16(r.storage, static_cast<const uint16_t*>(r.data)[i]);
}
__device__ inline void StoreOne(const Reals& r, int64_t i, float x) {
  if (r.storage == Storage::kF32) {
    static_cast<float*>(r.data)[i] = x;
  } else {
    static_cast<uint16_t*>(r.data)[i] = Narrow16(r.storage, x);
  }
}
// What a store of x would leave to be loaded.
__device__ inline float Rounded(Storage s, float x) {
  return s == Storage::kF32 ? x : Widen16(s, Narrow16(s, x));
}

// The aligned chunk that begins with element `at`.
__device__ inline RawChunk LoadRaw(const Reals& r, int64_t at) {
  RawChunk raw;
  if (r.storage == Storage::kF32) {
    const uint4* p = reinterpret_cast<const uint4*>(static_cast<const float*>(r.data) + at);
    raw.low = p[0];
    raw.high = p[1];
  } else {
    raw.low = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(r.data) + at);
    raw.high = raw.low;
  }
  return raw;
}
__device__ inline void StoreRaw(const Reals& r, int64_t at, const RawChunk& raw) {
  if (r.storage == Storage::kF32) {
    uint4* p = reinterpret_cast<uint4*>(static_cast<float*>(r.data) + at);
    p[0] = raw.low;
    p[1] = raw.high;
  } else {
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(r.data) + at) = raw.low;
  }
}

__device__ inline Chunk Widen(Storage s, const RawChunk& raw) {
  Chunk c;
  const uint32_t low[4] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w};
  if (s == Storage::kF32) {
    const uint32_t high[4] = {raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      c.x[i] = __uint_as_float(low[i]);
      c.x[4 + i] = __uint_as_float(high[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      c.x[2 * i] = Widen16(s, static_cast<uint16_t>(low[i]));
      c.x[2 * i + 1] = Widen16(s, static_cast<uint16_t>(low[i] >> 16));
    }
  }
  return c;
}
__device__ inline RawChunk Narrow(Storage s, const Chunk& c) {
  RawChunk raw;
  if (s == Storage::kF32) {
    raw.low = make_uint4(__float_as_uint(c.x[0]), __float_as_uint(c.x[1]), __float_as_uint(c.x[2]),
                         __float_as_uint(c.x[3]));
    raw.high = make_uint4(__float_as_uint(c.x[4]), __float_as_uint(c.x[5]), __float_as_uint(c.x[6]),
                          __float_as_uint(c.x[7]));
  } else {
    uint32_t low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] = Narrow16(s, c.x[2 * i]) | static_cast<uint32_t>(Narrow16(s, c.x[2 * i + 1])) << 16;
    }
    raw.low = make_uint4(low[0], low[1], low[2], low[3]);
    raw.high = raw.low;
  }
  return raw;
}

// n of the 8 elements; the others are 0, and are not written.
__device__ inline Chunk Load(const Reals& r, int64_t at, int n, bool aligned) {
  if (aligned && n == kChunk) return Widen(r.storage, LoadRaw(r, at));
  Chunk c;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) c.x[i] = i < n ? LoadOne(r, at + i) : 0.0f;
  return c;
}
__device__ inline void Store(const Reals& r, int64_t at, int n, bool aligned, const Chunk& c) {
  if (aligned && n == kChunk) return StoreRaw(r, at, Narrow(r.storage, c));
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    if (i < n) StoreOne(r, at + i, c.x[i]);
  }
}
__device__ inline Chunk Filled(float x) {
  Chunk c;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) c.x[i] = x;
  return c;
}

}  // namespace moe::kernels
