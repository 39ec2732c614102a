// What kernels call: qualifiers, barriers, warp primitives, atomics, intrinsics. Warp primitives and barriers
// are switches between fibers (block_runner.h); intrinsics with less accuracy on a GPU have the host's here.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>

#include "block_runner.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local
#define __align__(n) alignas(n)

inline constexpr int warpSize = 32;

// Barriers.

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulated::SyncThreads(where);
}
inline int __syncthreads_count(int predicate, std::source_location where = std::source_location::current()) {
  return emulated::SyncThreadsCount(predicate != 0, where);
}
inline int __syncthreads_or(int predicate, std::source_location where = std::source_location::current()) {
  return emulated::SyncThreadsCount(predicate != 0, where) > 0;
}
inline int __syncthreads_and(int predicate, std::source_location where = std::source_location::current()) {
  return emulated::SyncThreadsCount(predicate == 0, where) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(std::source_location where = std::source_location::current()) {
  emulated::Trap(where);
}

// Warp primitives.

namespace emulated {

template <typename T>
uint64_t Bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T FromBits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline WarpRequest Exchange(unsigned mask, uint64_t value, int argument,
                            void (*complete)(WarpRequest* const*, uint32_t), std::source_location where) {
  WarpRequest r;
  r.mask = mask;
  r.value = value;
  r.argument = argument;
  r.complete = complete;
  r.where = where;
  WarpExchange(r);
  return r;
}

// `argument` is the source lane. What a lane reads from one that takes no part is undefined: a NaN.
inline void CompleteShuffle(WarpRequest* const* lanes, uint32_t arrived) {
  for (int i = 0; i < 32; ++i) {
    if (lanes[i] == nullptr) continue;
    const WarpRequest* const from = lanes[lanes[i]->argument];
    lanes[i]->result = from == nullptr ? ~uint64_t{0} : from->value;
  }
}
inline void CompleteBallot(WarpRequest* const* lanes, uint32_t) {
  uint64_t ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= lanes[i] != nullptr && lanes[i]->value != 0 ? uint64_t{1} << i : 0;
  for (int i = 0; i < 32; ++i) {
    if (lanes[i] != nullptr) lanes[i]->result = ballot;
  }
}
inline void CompleteMatch(WarpRequest* const* lanes, uint32_t) {
  for (int i = 0; i < 32; ++i) {
    if (lanes[i] == nullptr) continue;
    for (int j = 0; j < 32; ++j) {
      if (lanes[j] != nullptr && lanes[j]->value == lanes[i]->value) lanes[i]->result |= uint64_t{1} << j;
    }
  }
}
template <typename T, typename Op>
void CompleteReduce(WarpRequest* const* lanes, uint32_t) {
  bool first = true;
  T all{};
  for (int i = 0; i < 32; ++i) {
    if (lanes[i] == nullptr) continue;
    const T x = FromBits<T>(lanes[i]->value);
    all = first ? x : static_cast<T>(Op()(all, x));
    first = false;
  }
  for (int i = 0; i < 32; ++i) {
    if (lanes[i] != nullptr) lanes[i]->result = Bits(all);
  }
}
struct Minimum {
  template <typename T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Maximum {
  template <typename T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

}  // namespace emulated

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  emulated::Exchange(
      mask, 0, 0, [](emulated::WarpRequest* const*, uint32_t) {}, where);
}
inline unsigned __activemask() { return emulated::LiveLanes(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              std::source_location where = std::source_location::current()) {
  const int from = (emulated::Lane() & ~(width - 1)) | (lane & (width - 1));
  return emulated::FromBits<T>(
      emulated::Exchange(mask, emulated::Bits(value), from, &emulated::CompleteShuffle, where).result);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 std::source_location where = std::source_location::current()) {
  const int self = emulated::Lane(), base = self & ~(width - 1), at = self - static_cast<int>(delta);
  return emulated::FromBits<T>(emulated::Exchange(mask, emulated::Bits(value), at < base ? self : at,
                                                  &emulated::CompleteShuffle, where)
                                   .result);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
  const int self = emulated::Lane(), end = (self & ~(width - 1)) + width, at = self + static_cast<int>(delta);
  return emulated::FromBits<T>(emulated::Exchange(mask, emulated::Bits(value), at >= end ? self : at,
                                                  &emulated::CompleteShuffle, where)
                                   .result);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  std::source_location where = std::source_location::current()) {
  const int self = emulated::Lane(), end = (self & ~(width - 1)) + width, at = self ^ lanes;
  return emulated::FromBits<T>(emulated::Exchange(mask, emulated::Bits(value), at >= end ? self : at,
                                                  &emulated::CompleteShuffle, where)
                                   .result);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  return static_cast<unsigned>(
      emulated::Exchange(mask, predicate != 0, 0, &emulated::CompleteBallot, where).result);
}
inline int __any_sync(unsigned mask, int predicate,
                      std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, !predicate, where) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value,
                          std::source_location where = std::source_location::current()) {
  return static_cast<unsigned>(
      emulated::Exchange(mask, emulated::Bits(value), 0, &emulated::CompleteMatch, where).result);
}

#define MOE_EMULATED_REDUCE(name, T, Op)                                                                     \
  inline T name(unsigned mask, T value, std::source_location where = std::source_location::current()) {      \
    return emulated::FromBits<T>(                                                                            \
        emulated::Exchange(mask, emulated::Bits(value), 0, &emulated::CompleteReduce<T, Op>, where).result); \
  }
MOE_EMULATED_REDUCE(__reduce_add_sync, unsigned, std::plus<unsigned>)
MOE_EMULATED_REDUCE(__reduce_min_sync, unsigned, emulated::Minimum)
MOE_EMULATED_REDUCE(__reduce_max_sync, unsigned, emulated::Maximum)
MOE_EMULATED_REDUCE(__reduce_and_sync, unsigned, std::bit_and<unsigned>)
MOE_EMULATED_REDUCE(__reduce_or_sync, unsigned, std::bit_or<unsigned>)
MOE_EMULATED_REDUCE(__reduce_xor_sync, unsigned, std::bit_xor<unsigned>)
MOE_EMULATED_REDUCE(__reduce_min_sync, int, emulated::Minimum)
MOE_EMULATED_REDUCE(__reduce_max_sync, int, emulated::Maximum)
#undef MOE_EMULATED_REDUCE
inline int __reduce_add_sync(unsigned mask, int value,
                             std::source_location where = std::source_location::current()) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value), where));
}

// Atomics, over all ranks of the process.

namespace emulated {

template <typename T, typename F>
T AtomicUpdate(T* at, F update) {
  T old;
  __atomic_load(at, &old, __ATOMIC_RELAXED);
  for (;;) {
    T next = update(old);
    if (__atomic_compare_exchange(at, &old, &next, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return old;
  }
}

}  // namespace emulated

#define MOE_EMULATED_ATOMIC(name, T, expression)                                          \
  inline T name(T* at, T x) {                                                             \
    return emulated::AtomicUpdate(at, [x](T old) { return static_cast<T>(expression); }); \
  }
#define MOE_EMULATED_ATOMICS(T)                                                              \
  MOE_EMULATED_ATOMIC(atomicMin, T, (x < old ? x : old))                                     \
  MOE_EMULATED_ATOMIC(atomicMax, T, (old < x ? x : old))                                     \
  MOE_EMULATED_ATOMIC(atomicAnd, T, (old & x))                                               \
  MOE_EMULATED_ATOMIC(atomicOr, T, (old | x))                                                \
  MOE_EMULATED_ATOMIC(atomicXor, T, (old ^ x))                                               \
  MOE_EMULATED_ATOMIC(atomicExch, T, x)                                                      \
  inline T atomicCAS(T* at, T expected, T x) {                                               \
    __atomic_compare_exchange(at, &expected, &x, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED); \
    return expected;                                                                         \
  }
MOE_EMULATED_ATOMICS(int)
MOE_EMULATED_ATOMICS(unsigned)
MOE_EMULATED_ATOMICS(long long)
MOE_EMULATED_ATOMICS(unsigned long long)
MOE_EMULATED_ATOMIC(atomicAdd, int, (static_cast<unsigned>(old) + static_cast<unsigned>(x)))
MOE_EMULATED_ATOMIC(atomicSub, int, (static_cast<unsigned>(old) - static_cast<unsigned>(x)))
MOE_EMULATED_ATOMIC(atomicAdd, unsigned, (old + x))
MOE_EMULATED_ATOMIC(atomicSub, unsigned, (old - x))
MOE_EMULATED_ATOMIC(atomicAdd, unsigned long long, (old + x))
MOE_EMULATED_ATOMIC(atomicAdd, float, (old + x))
MOE_EMULATED_ATOMIC(atomicAdd, double, (old + x))
MOE_EMULATED_ATOMIC(atomicExch, float, x)
MOE_EMULATED_ATOMIC(atomicInc, unsigned, (old >= x ? 0 : old + 1))
MOE_EMULATED_ATOMIC(atomicDec, unsigned, (old == 0 || old > x ? x : old - 1))
#undef MOE_EMULATED_ATOMICS
#undef MOE_EMULATED_ATOMIC

// Loads and stores with hints for the cache.

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
T __ldca(const T* at) {
  return *at;
}
template <typename T>
void __stcs(T* at, T x) {
  *at = x;
}
template <typename T>
void __stcg(T* at, T x) {
  *at = x;
}

// Numbers.

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __ffsll(long long x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<long long>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline void __sincosf(float x, float* s, float* c) {
  *s = std::sin(x);
  *c = std::cos(x);
}
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678118654752f); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(std::ceil(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

#define MOE_EMULATED_ORDER(T)                                \
  inline constexpr T min(T a, T b) { return b < a ? b : a; } \
  inline constexpr T max(T a, T b) { return a < b ? b : a; }
MOE_EMULATED_ORDER(int)
MOE_EMULATED_ORDER(unsigned)
MOE_EMULATED_ORDER(long)
MOE_EMULATED_ORDER(unsigned long)
MOE_EMULATED_ORDER(long long)
MOE_EMULATED_ORDER(unsigned long long)
#undef MOE_EMULATED_ORDER
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline long long clock64() { return 0; }
