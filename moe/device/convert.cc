#include "moe/device/convert.h"

#include <cstring>

#include "glog/logging.h"

// This order is Highway's: the file includes itself once per instruction set.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "moe/device/convert.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::device {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using U16 = hn::Rebind<uint16_t, F32>;
using F16 = hn::Rebind<hwy::float16_t, F32>;

HWY_INLINE hn::Vec<F32> Widen(hn::Vec<U16> x, bool is_bf16) {
  const F32 d;
  if (is_bf16) return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(U32(), x)));
  return hn::PromoteTo(d, hn::BitCast(F16(), x));
}

HWY_INLINE hn::Vec<U16> Narrow(hn::Vec<F32> x, bool is_bf16) {
  if (!is_bf16) return hn::BitCast(U16(), hn::DemoteTo(F16(), x));
  const U32 du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));  // a NaN may not round to infinity
  const auto nan = hn::BitCast(du, hn::VecFromMask(F32(), hn::IsNaN(x)));
  const auto chosen = hn::IfVecThenElse(nan, quiet, rounded);
  return hn::TruncateTo(U16(), hn::ShiftRight<16>(chosen));
}

HWY_ATTR void WidenRow(const uint16_t* x, float* y, int64_t n, bool is_bf16) {
  const F32 d;
  const U16 d16;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(Widen(hn::LoadU(d16, x + i), is_bf16), d, y + i);
  if (i == n) return;
  HWY_ALIGN uint16_t in[HWY_MAX_BYTES / 2] = {};
  HWY_ALIGN float out[HWY_MAX_BYTES / 4];
  std::memcpy(in, x + i, (n - i) * sizeof(uint16_t));
  hn::Store(Widen(hn::LoadU(d16, in), is_bf16), d, out);
  std::memcpy(y + i, out, (n - i) * sizeof(float));
}

HWY_ATTR void NarrowRow(const float* x, uint16_t* y, int64_t n, bool is_bf16) {
  const F32 d;
  const U16 d16;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(Narrow(hn::LoadU(d, x + i), is_bf16), d16, y + i);
  if (i == n) return;
  HWY_ALIGN float in[HWY_MAX_BYTES / 4] = {};
  HWY_ALIGN uint16_t out[HWY_MAX_BYTES / 2];
  std::memcpy(in, x + i, (n - i) * sizeof(float));
  hn::StoreU(Narrow(hn::Load(d, in), is_bf16), d16, out);
  std::memcpy(y + i, out, (n - i) * sizeof(uint16_t));
}

}  // namespace HWY_NAMESPACE
}  // namespace moe::device
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::device {

HWY_EXPORT(WidenRow);
HWY_EXPORT(NarrowRow);

namespace {

bool IsHalf(DType d) { return d == DType::kBF16 || d == DType::kF16; }

}  // namespace

void ToF32(DType from, const void* x, float* y, int64_t n) {
  if (n == 0) return;
  CHECK(IsHalf(from) || from == DType::kF32) << DTypeName(from);
  if (from == DType::kF32) {
    std::memcpy(y, x, n * sizeof(float));
    return;
  }
  HWY_DYNAMIC_DISPATCH(WidenRow)(static_cast<const uint16_t*>(x), y, n, from == DType::kBF16);
}

void FromF32(DType to, const float* x, void* y, int64_t n) {
  if (n == 0) return;
  CHECK(IsHalf(to) || to == DType::kF32) << DTypeName(to);
  if (to == DType::kF32) {
    std::memcpy(y, x, n * sizeof(float));
    return;
  }
  HWY_DYNAMIC_DISPATCH(NarrowRow)(x, static_cast<uint16_t*>(y), n, to == DType::kBF16);
}

}  // namespace moe::device
#endif  // HWY_ONCE
