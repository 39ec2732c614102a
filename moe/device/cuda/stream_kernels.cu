#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/device/cuda/stream_kernels.h"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;

// Quotients by a divisor that is not known to the compiler, of numbers below 2^31: Granlund and Montgomery
// 1994, figure 4.1.
struct Divider {
  uint32_t divisor = 1, magic = 1, shift = 0;

  static Divider Of(uint32_t d) {
    Divider r;
    r.divisor = d;
    while ((uint64_t{1} << r.shift) < d) ++r.shift;
    r.magic = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << r.shift) - d)) / d + 1);
    return r;
  }
  __device__ uint32_t Quotient(uint32_t n) const { return (__umulhi(n, magic) + n) >> shift; }
};

// Nested loops over units of memory, innermost first; the first has stride 1 unit on both sides.
constexpr int kMostLoops = 9;
struct Box {
  int loops = 0;
  uint32_t units = 1;
  Divider count[kMostLoops];
  int64_t from_stride[kMostLoops], to_stride[kMostLoops];  // units
};

template <typename U>
__global__ void CopyBox(const U* from, U* to, Box box) {
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < box.units; i += gridDim.x * blockDim.x) {
    uint32_t rest = i;
    int64_t at = 0, at_to = 0;
    for (int k = 0; k < box.loops; ++k) {
      const uint32_t above = box.count[k].Quotient(rest), index = rest - above * box.count[k].divisor;
      at += index * box.from_stride[k];
      at_to += index * box.to_stride[k];
      rest = above;
    }
    to[at_to] = from[at];
  }
}

struct Loop {
  int64_t count, from, to;  // bytes
};

// Loops outermost first, the last of which has the stride of a unit on both sides.
template <typename U>
absl::Status LaunchCopy(cudaStream_t stream, absl::Span<const Loop> loops, const char* from, char* to) {
  int64_t units = 1;
  for (const Loop& l : loops) units *= l.count;
  if (units >= int64_t{1} << 31 || loops.size() > kMostLoops) {
    const Loop& outer = loops[0];
    if (outer.count == 1) return LaunchCopy<U>(stream, loops.subspan(1), from, to);
    // Halves of the outermost loop, or each of its turns where there are too many loops.
    std::vector<Loop> part(loops.begin(), loops.end());
    if (loops.size() > kMostLoops) {
      for (int64_t i = 0; i < outer.count; ++i) {
        RETURN_IF_ERROR(LaunchCopy<U>(stream, loops.subspan(1), from + i * outer.from, to + i * outer.to));
      }
      return absl::OkStatus();
    }
    const int64_t half = outer.count / 2;
    part[0].count = half;
    RETURN_IF_ERROR(LaunchCopy<U>(stream, part, from, to));
    part[0].count = outer.count - half;
    return LaunchCopy<U>(stream, part, from + half * outer.from, to + half * outer.to);
  }
  Box box;
  box.units = static_cast<uint32_t>(units);
  for (auto l = loops.rbegin(); l != loops.rend(); ++l) {
    if (l->count == 1) continue;
    box.count[box.loops] = Divider::Of(static_cast<uint32_t>(l->count));
    box.from_stride[box.loops] = l->from / static_cast<int64_t>(sizeof(U));
    box.to_stride[box.loops] = l->to / static_cast<int64_t>(sizeof(U));
    ++box.loops;
  }
  return MOE_LAUNCH((CopyBox<U>), BlocksFor(units, kThreads), dim3(kThreads), 0, stream,
                    reinterpret_cast<const U*>(from), reinterpret_cast<U*>(to), box);
}

// Several elements that are loaded at once.
template <typename T, int kN>
struct alignas(sizeof(T) * kN) Pack {
  T at[kN];
};

__device__ float Widen(float x) { return x; }
__device__ double Widen(double x) { return x; }
__device__ int32_t Widen(int32_t x) { return x; }
__device__ int64_t Widen(int64_t x) { return x; }
__device__ uint8_t Widen(uint8_t x) { return x; }
__device__ float Widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float Widen(__half x) { return __half2float(x); }

template <typename T>
struct Narrow {
  template <typename A>
  __device__ static T Of(A x) {
    return static_cast<T>(x);
  }
};
template <>
struct Narrow<__nv_bfloat16> {
  __device__ static __nv_bfloat16 Of(float x) {
    const uint32_t bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;  // stays the NaN it is
    return nan ? __ushort_as_bfloat16(static_cast<unsigned short>((bits >> 16) | 0x40))
               : __float2bfloat16_rn(x);
  }
};
template <>
struct Narrow<__half> {
  __device__ static __half Of(float x) { return __float2half_rn(x); }
};

__device__ float Add(float a, float b) { return __fadd_rn(a, b); }
__device__ double Add(double a, double b) { return a + b; }
__device__ int32_t Add(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
__device__ int64_t Add(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
__device__ uint8_t Add(uint8_t a, uint8_t b) { return static_cast<uint8_t>(a + b); }

template <typename A>
__device__ A Max(A a, A b) {
  return a < b || b != b ? b : a;  // a NaN in `a` fails both tests and stays
}

struct Sources {
  const void* at[kMostSources];
};

template <typename T, int kN, bool kMax>
__global__ void ReduceSources(Sources sources, int n, T* to, int64_t packs) {
  using A = decltype(Widen(T{}));
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < packs;
       i += int64_t{blockDim.x} * gridDim.x) {
    A acc[kN];
    Pack<T, kN> x = static_cast<const Pack<T, kN>*>(sources.at[0])[i];
    for (int j = 0; j < kN; ++j) acc[j] = Widen(x.at[j]);
    for (int k = 1; k < n; ++k) {
      x = static_cast<const Pack<T, kN>*>(sources.at[k])[i];
      for (int j = 0; j < kN; ++j) acc[j] = kMax ? Max(acc[j], Widen(x.at[j])) : Add(acc[j], Widen(x.at[j]));
    }
    for (int j = 0; j < kN; ++j) x.at[j] = Narrow<T>::Of(acc[j]);
    reinterpret_cast<Pack<T, kN>*>(to)[i] = x;
  }
}

template <typename T>
absl::Status LaunchReduce(cudaStream_t stream, absl::Span<const void* const> from, void* to, int64_t count,
                          Reduction kind) {
  constexpr int kN = 16 / sizeof(T);
  Sources sources;
  bool aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0;
  for (size_t k = 0; k < from.size(); ++k) {
    sources.at[k] = from[k];
    aligned = aligned && reinterpret_cast<uintptr_t>(from[k]) % 16 == 0;
  }
  const int n = static_cast<int>(from.size());
  const int64_t packs = aligned ? count / kN : 0, done = packs * kN, rest = count - done;
  T* const out = static_cast<T*>(to);
  const bool max = kind == Reduction::kMax;
  RETURN_IF_ERROR(max ? MOE_LAUNCH((ReduceSources<T, kN, true>), BlocksFor(packs, kThreads), dim3(kThreads),
                                   0, stream, sources, n, out, packs)
                      : MOE_LAUNCH((ReduceSources<T, kN, false>), BlocksFor(packs, kThreads), dim3(kThreads),
                                   0, stream, sources, n, out, packs));
  for (size_t k = 0; k < from.size(); ++k) sources.at[k] = static_cast<const T*>(from[k]) + done;
  return max ? MOE_LAUNCH((ReduceSources<T, 1, true>), BlocksFor(rest, kThreads), dim3(kThreads), 0, stream,
                          sources, n, out + done, rest)
             : MOE_LAUNCH((ReduceSources<T, 1, false>), BlocksFor(rest, kThreads), dim3(kThreads), 0, stream,
                          sources, n, out + done, rest);
}

// Wire formats.

constexpr float kLargest = 448;  // of e4m3
constexpr int kWarp = 32, kPerLane = static_cast<int>(kWireBlock) / kWarp;

// |y| <= 448; see wire_codec.cc.
__device__ uint8_t ToE4M3(float y) {
  const uint32_t bits = __float_as_uint(y), sign = bits >> 31, magnitude = bits & 0x7fffffff;
  const uint32_t rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
  const uint32_t normal = (rounded >> 20) - (120u << 3);
  const float shifted = __fadd_rn(__uint_as_float(magnitude), 0x1p14f);
  const uint32_t subnormal = __float_as_uint(shifted) - __float_as_uint(0x1p14f);
  return static_cast<uint8_t>(sign << 7 | (magnitude < __float_as_uint(0x1p-6f) ? subnormal : normal));
}

__device__ float FromE4M3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code >> 7) << 31;
  const uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 127) == 127) return __uint_as_float(sign | 0x7fc00000);
  if (exponent == 0) return __uint_as_float(sign | __float_as_uint(static_cast<float>(mantissa) * 0x1p-9f));
  return __uint_as_float(sign | (exponent + 120) << 23 | mantissa << 20);
}

__device__ float AsFloat(float x) { return x; }
__device__ float AsFloat(double x) { return static_cast<float>(x); }
__device__ float AsFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float AsFloat(__half x) { return __half2float(x); }

template <typename T>
__global__ void EncodeBF16(const T* from, int64_t n, uint8_t* to) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{blockDim.x} * gridDim.x) {
    const unsigned short bits = __bfloat16_as_ushort(Narrow<__nv_bfloat16>::Of(AsFloat(from[i])));
    to[2 * i] = static_cast<uint8_t>(bits);  // blocks follow one another without padding
    to[2 * i + 1] = static_cast<uint8_t>(bits >> 8);
  }
}

__device__ void StoreFloat(uint8_t* to, float x) {
  const uint32_t bits = __float_as_uint(x);
  for (int b = 0; b < 4; ++b) to[b] = static_cast<uint8_t>(bits >> (8 * b));
}

__device__ float LoadFloat(const uint8_t* from) {
  uint32_t bits = 0;
  for (int b = 0; b < 4; ++b) bits |= static_cast<uint32_t>(from[b]) << (8 * b);
  return __uint_as_float(bits);
}

// A warp per block of kWireBlock values.
template <typename T>
__global__ void EncodeF8(const T* from, int64_t n, int64_t blocks, uint8_t* to) {
  uint8_t* const codes = to + blocks * 4;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t warps = int64_t{gridDim.x} * (blockDim.x / kWarp);
  for (int64_t b = blockIdx.x * int64_t{blockDim.x / kWarp} + threadIdx.x / kWarp; b < blocks; b += warps) {
    float x[kPerLane];
    uint32_t largest = 0;  // of the bits of magnitudes, which order like them; NaN above all
    for (int j = 0; j < kPerLane; ++j) {
      const int64_t i = b * kWireBlock + j * kWarp + lane;
      x[j] = i < n ? AsFloat(from[i]) : 0.0f;
      const uint32_t magnitude = __float_as_uint(x[j]) & 0x7fffffff;
      largest = magnitude > largest ? magnitude : largest;
    }
    for (int delta = kWarp / 2; delta > 0; delta /= 2) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, delta);
      largest = other > largest ? other : largest;
    }
    const bool finite = largest < 0x7f800000;
    // A subnormal scale would have no inverse.
    const float scale = fmaxf(__fdiv_rn(__uint_as_float(largest), kLargest), 0x1p-124f);
    const float inverse = __fdiv_rn(1.0f, scale);
    for (int j = 0; j < kPerLane; ++j) {
      const int64_t i = b * kWireBlock + j * kWarp + lane;
      const float y = fminf(kLargest, fmaxf(-kLargest, __fmul_rn(x[j], inverse)));
      if (i < n) codes[i] = finite ? ToE4M3(y) : 0;
    }
    if (lane == 0) StoreFloat(to + b * 4, finite ? scale : __uint_as_float(0x7fc00000));
  }
}

__device__ float DecodeOne(WireFormat wire, const uint8_t* from, int64_t n, int64_t i) {
  if (wire == WireFormat::kBF16) {
    return __uint_as_float((static_cast<uint32_t>(from[2 * i]) | static_cast<uint32_t>(from[2 * i + 1]) << 8)
                           << 16);
  }
  const int64_t blocks = (n + kWireBlock - 1) / kWireBlock;
  return __fmul_rn(FromE4M3(from[blocks * 4 + i]), LoadFloat(from + i / kWireBlock * 4));
}

template <typename T>
__global__ void DecodeSources(WireFormat wire, Sources sources, int count, int64_t n, bool max, T* to) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{blockDim.x} * gridDim.x) {
    float acc = DecodeOne(wire, static_cast<const uint8_t*>(sources.at[0]), n, i);
    for (int k = 1; k < count; ++k) {
      const float x = DecodeOne(wire, static_cast<const uint8_t*>(sources.at[k]), n, i);
      acc = max ? (x > acc || x != x ? x : acc) : __fadd_rn(acc, x);
    }
    to[i] = Narrow<T>::Of(acc);
  }
}

template <typename T>
absl::Status LaunchEncode(cudaStream_t stream, WireFormat wire, const void* from, int64_t n, char* to) {
  uint8_t* const out = reinterpret_cast<uint8_t*>(to);
  const T* const x = static_cast<const T*>(from);
  if (wire == WireFormat::kBF16) {
    return MOE_LAUNCH((EncodeBF16<T>), BlocksFor(n, kThreads), dim3(kThreads), 0, stream, x, n, out);
  }
  const int64_t blocks = (n + kWireBlock - 1) / kWireBlock;
  return MOE_LAUNCH((EncodeF8<T>), BlocksFor(blocks, kThreads / kWarp), dim3(kThreads), 0, stream, x, n,
                    blocks, out);
}

absl::Status TooMany(size_t sources) {
  return absl::UnimplementedError(
      absl::StrCat("a reduction of ", sources, " values on a GPU; at most ", kMostSources));
}

absl::Status NoSuch(DType dtype) {
  return absl::UnimplementedError(absl::StrCat("a stream of CUDA has no such work for ", DTypeName(dtype)));
}

}  // namespace

absl::Status CopyRows(cudaStream_t stream, const StridedCopy& copy, int64_t rows, const void* from,
                      int64_t from_row, void* to, int64_t to_row, int64_t element) {
  std::vector<Loop> loops = {{rows, from_row * element, to_row * element}};
  const int64_t bytes = copy.run * element;
  // The largest unit that fits every address.
  uintptr_t all = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | bytes | 16;
  if (rows > 1) all |= loops[0].from | loops[0].to;
  for (const StridedCopy::Loop& l : copy.loops) {
    loops.push_back({l.count, l.from_stride * element, l.to_stride * element});
    if (l.count > 1) all |= loops.back().from | loops.back().to;
  }
  const int64_t unit = static_cast<int64_t>(all & -all);
  loops.push_back({bytes / unit, unit, unit});
  for (const Loop& l : loops) {
    if (l.count == 0) return absl::OkStatus();
  }
  const char* const x = static_cast<const char*>(from);
  char* const y = static_cast<char*>(to);
  switch (unit) {
    case 16:
      return LaunchCopy<uint4>(stream, loops, x, y);
    case 8:
      return LaunchCopy<uint2>(stream, loops, x, y);
    case 4:
      return LaunchCopy<uint32_t>(stream, loops, x, y);
    case 2:
      return LaunchCopy<uint16_t>(stream, loops, x, y);
    default:
      return LaunchCopy<uint8_t>(stream, loops, x, y);
  }
}

absl::Status Reduce(cudaStream_t stream, absl::Span<const void* const> from, void* to, int64_t count,
                    DType dtype, Reduction kind) {
  if (from.size() > kMostSources) return TooMany(from.size());
  if (count == 0) return absl::OkStatus();
  if (from.size() == 1) {
    if (from[0] == to) return absl::OkStatus();
    RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(to, from[0], count * ByteSize(dtype), cudaMemcpyDeviceToDevice, stream));
    return absl::OkStatus();
  }
  switch (dtype) {
    case DType::kF64:
      return LaunchReduce<double>(stream, from, to, count, kind);
    case DType::kF32:
      return LaunchReduce<float>(stream, from, to, count, kind);
    case DType::kBF16:
      return LaunchReduce<__nv_bfloat16>(stream, from, to, count, kind);
    case DType::kF16:
      return LaunchReduce<__half>(stream, from, to, count, kind);
    case DType::kS32:
      return LaunchReduce<int32_t>(stream, from, to, count, kind);
    case DType::kS64:
      return LaunchReduce<int64_t>(stream, from, to, count, kind);
    case DType::kPred:
      return LaunchReduce<uint8_t>(stream, from, to, count, kind);
    case DType::kF8E4M3:
      break;
  }
  return NoSuch(dtype);
}

absl::Status Encode(cudaStream_t stream, WireFormat wire, DType dtype, const void* from, int64_t n,
                    char* to) {
  switch (dtype) {
    case DType::kF64:
      return LaunchEncode<double>(stream, wire, from, n, to);
    case DType::kF32:
      return LaunchEncode<float>(stream, wire, from, n, to);
    case DType::kBF16:
      return LaunchEncode<__nv_bfloat16>(stream, wire, from, n, to);
    case DType::kF16:
      return LaunchEncode<__half>(stream, wire, from, n, to);
    default:
      return NoSuch(dtype);
  }
}

absl::Status Decode(cudaStream_t stream, WireFormat wire, absl::Span<const char* const> from, int64_t n,
                    Reduction kind, DType dtype, void* to) {
  if (from.size() > kMostSources) return TooMany(from.size());
  Sources sources;
  for (size_t k = 0; k < from.size(); ++k) sources.at[k] = from[k];
  const int count = static_cast<int>(from.size());
  const bool max = kind == Reduction::kMax;
  const auto launch = [&](auto kernel, auto* out) {
    return MOE_LAUNCH(kernel, BlocksFor(n, kThreads), dim3(kThreads), 0, stream, wire, sources, count, n, max,
                      out);
  };
  switch (dtype) {
    case DType::kF64:
      return launch(&DecodeSources<double>, static_cast<double*>(to));
    case DType::kF32:
      return launch(&DecodeSources<float>, static_cast<float*>(to));
    case DType::kBF16:
      return launch(&DecodeSources<__nv_bfloat16>, static_cast<__nv_bfloat16*>(to));
    case DType::kF16:
      return launch(&DecodeSources<__half>, static_cast<__half*>(to));
    default:
      return NoSuch(dtype);
  }
}

}  // namespace moe::cuda
