// bfloat16 of CUDA on the host: kept in 16 bits, computed in f32, rounded to nearest even at every operation.
#pragma once

#include "device_functions.h"
#include "vector_types.h"

struct __nv_bfloat16_raw {
  unsigned short x;
};

namespace emulated {

inline unsigned short BFloat16Bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;  // as cvt.rn.bf16.f32 has it
  return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace emulated

struct alignas(2) __nv_bfloat16 {
  unsigned short bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : bits(emulated::BFloat16Bits(x)) {}
  __nv_bfloat16(double x) : bits(emulated::BFloat16Bits(static_cast<float>(x))) {}
  __nv_bfloat16(int x) : bits(emulated::BFloat16Bits(static_cast<float>(x))) {}
  __nv_bfloat16(__nv_bfloat16_raw raw) : bits(raw.x) {}
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  operator __nv_bfloat16_raw() const { return {bits}; }
};
using nv_bfloat16 = __nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;

  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) : x(a), y(b) {}
};
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __double2bfloat16(double x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {static_cast<float>(v.x), static_cast<float>(v.y)};
}
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __floats2bfloat162_rn(x, x); }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return static_cast<float>(v.x); }
inline float __high2float(__nv_bfloat162 v) { return static_cast<float>(v.y); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline short __bfloat16_as_short(__nv_bfloat16 x) { return static_cast<short>(x.bits); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16_raw{bits}; }
inline __nv_bfloat16 __short_as_bfloat16(short bits) {
  return __nv_bfloat16_raw{static_cast<unsigned short>(bits)};
}

#define MOE_EMULATED_HALF_ARITHMETIC(T, T2)                                                        \
  inline T operator+(T a, T b) { return T(static_cast<float>(a) + static_cast<float>(b)); }        \
  inline T operator-(T a, T b) { return T(static_cast<float>(a) - static_cast<float>(b)); }        \
  inline T operator*(T a, T b) { return T(static_cast<float>(a) * static_cast<float>(b)); }        \
  inline T operator/(T a, T b) { return T(static_cast<float>(a) / static_cast<float>(b)); }        \
  inline T operator-(T a) { return T(-static_cast<float>(a)); }                                    \
  inline T& operator+=(T& a, T b) { return a = a + b; }                                            \
  inline T& operator-=(T& a, T b) { return a = a - b; }                                            \
  inline T& operator*=(T& a, T b) { return a = a * b; }                                            \
  inline T& operator/=(T& a, T b) { return a = a / b; }                                            \
  inline bool operator==(T a, T b) { return static_cast<float>(a) == static_cast<float>(b); }      \
  inline bool operator!=(T a, T b) { return static_cast<float>(a) != static_cast<float>(b); }      \
  inline bool operator<(T a, T b) { return static_cast<float>(a) < static_cast<float>(b); }        \
  inline bool operator>(T a, T b) { return static_cast<float>(a) > static_cast<float>(b); }        \
  inline bool operator<=(T a, T b) { return static_cast<float>(a) <= static_cast<float>(b); }      \
  inline bool operator>=(T a, T b) { return static_cast<float>(a) >= static_cast<float>(b); }      \
  inline T __hadd(T a, T b) { return a + b; }                                                      \
  inline T __hsub(T a, T b) { return a - b; }                                                      \
  inline T __hmul(T a, T b) { return a * b; }                                                      \
  inline T __hdiv(T a, T b) { return a / b; }                                                      \
  inline T __hneg(T a) { return -a; }                                                              \
  inline T __habs(T a) { return T(std::fabs(static_cast<float>(a))); }                             \
  inline T __hmax(T a, T b) { return T(std::fmax(static_cast<float>(a), static_cast<float>(b))); } \
  inline T __hmin(T a, T b) { return T(std::fmin(static_cast<float>(a), static_cast<float>(b))); } \
  inline T __hfma(T a, T b, T c) {                                                                 \
    return T(std::fma(static_cast<float>(a), static_cast<float>(b), static_cast<float>(c)));       \
  }                                                                                                \
  inline bool __hisnan(T a) { return std::isnan(static_cast<float>(a)); }                          \
  inline T2 __hadd2(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }                                 \
  inline T2 __hsub2(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }                                 \
  inline T2 __hmul2(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }                                 \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

MOE_EMULATED_HALF_ARITHMETIC(__nv_bfloat16, __nv_bfloat162)
