// Highway's exponential, but NaN of NaN, of which Highway's makes 0. Included once for each instruction set,
// as Highway's own headers are.

#if defined(MOE_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_CPU_EXP_INL_H_
#undef MOE_KERNELS_CPU_EXP_INL_H_
#else
#define MOE_KERNELS_CPU_EXP_INL_H_
#endif

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moe::kernels {
namespace HWY_NAMESPACE {

template <class D, class V>
HWY_INLINE V ExpOrNaN(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

}  // namespace HWY_NAMESPACE
}  // namespace moe::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target guard
