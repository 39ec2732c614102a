#include "moe/device/reduce.h"

#include <glog/logging.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace moe::device {
namespace {

// Blocks keep the accumulator in the first-level cache, and give the compiler loops of a known length.
constexpr int kBlock = 1024;

struct BF16 {
  uint16_t bits;
};

float Widen(float x) { return x; }
double Widen(double x) { return x; }
int32_t Widen(int32_t x) { return x; }
int64_t Widen(int64_t x) { return x; }
uint8_t Widen(uint8_t x) { return x; }
float Widen(BF16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
float Widen(_Float16 x) { return static_cast<float>(x); }

template <typename T, typename A>
T Narrow(A x) {
  if constexpr (std::is_same_v<T, BF16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return BF16{static_cast<uint16_t>(nan ? (bits >> 16) | 0x40 : rounded)};  // a quiet NaN stays one
  } else {
    return static_cast<T>(x);
  }
}

template <typename A>
A Add(A a, A b) {
  if constexpr (std::is_integral_v<A>) {
    using U = std::make_unsigned_t<A>;  // wraps where signed overflow would be undefined
    return static_cast<A>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

template <typename A>
A Max(A a, A b) {
  if constexpr (std::is_integral_v<A>) {
    return a < b ? b : a;
  } else {
    return (a < b || b != b) ? b : a;  // NaN in `a` fails both tests and stays
  }
}

template <typename T, bool kMax>
void ReduceBlock(absl::Span<const void* const> in, T* out, int64_t begin, int n) {
  using A = decltype(Widen(T{}));
  A acc[kBlock];
  const T* first = static_cast<const T*>(in[0]) + begin;
  for (int i = 0; i < n; ++i) acc[i] = Widen(first[i]);
  for (size_t k = 1; k < in.size(); ++k) {
    const T* x = static_cast<const T*>(in[k]) + begin;
    for (int i = 0; i < n; ++i) acc[i] = kMax ? Max<A>(acc[i], Widen(x[i])) : Add<A>(acc[i], Widen(x[i]));
  }
  for (int i = 0; i < n; ++i) out[begin + i] = Narrow<T>(acc[i]);
}

template <typename T>
void Reduce(absl::Span<const void* const> in, void* out, int64_t count, Reduction kind) {
  T* const to = static_cast<T*>(out);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, count - begin));
    if (kind == Reduction::kMax) {
      ReduceBlock<T, true>(in, to, begin, n);
    } else {
      ReduceBlock<T, false>(in, to, begin, n);
    }
  }
}

}  // namespace

absl::Status CheckReducible(DType dtype, Reduction kind) {
  if (dtype == DType::kF8E4M3 || (dtype == DType::kPred && kind == Reduction::kSum)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no reduction by ", kind == Reduction::kSum ? "sum" : "max", " of ", DTypeName(dtype),
                     "; f64, f32, bf16, f16, s32 and s64 can be reduced"));
  }
  return absl::OkStatus();
}

void ReduceInOrder(absl::Span<const void* const> in, void* out, int64_t count, DType dtype, Reduction kind) {
  CHECK(!in.empty());
  if (count == 0) return;
  if (in.size() == 1) {
    if (in[0] != out) std::memcpy(out, in[0], count * ByteSize(dtype));
    return;
  }
  switch (dtype) {
    case DType::kF32:
      return Reduce<float>(in, out, count, kind);
    case DType::kF64:
      return Reduce<double>(in, out, count, kind);
    case DType::kBF16:
      return Reduce<BF16>(in, out, count, kind);
    case DType::kF16:
      return Reduce<_Float16>(in, out, count, kind);
    case DType::kS32:
      return Reduce<int32_t>(in, out, count, kind);
    case DType::kS64:
      return Reduce<int64_t>(in, out, count, kind);
    case DType::kPred:
      return Reduce<uint8_t>(in, out, count, kind);
    case DType::kF8E4M3:
      break;
  }
  LOG(FATAL) << "cannot reduce " << DTypeName(dtype);
}

}  // namespace moe::device
