#include "moe/kernels/cuda/fused_source.h"

#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace moe::kernels {
namespace {

// Elements as they lie in memory: f32 as float, the others as unsigned short.
constexpr char kBf16[] = R"(
__device__ __forceinline__ float LoadBf16(unsigned short x) { return __int_as_float((int)x << 16); }
__device__ __forceinline__ unsigned short StoreBf16(float x) {
  const unsigned b = (unsigned)__float_as_int(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (unsigned short)((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}
)";
constexpr char kF16[] = R"(
__device__ __forceinline__ float LoadF16(unsigned short x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ __forceinline__ unsigned short StoreF16(float x) {
  unsigned short y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
)";

const char* StoredAs(DType dtype) { return dtype == DType::kF32 ? "float" : "unsigned short"; }
std::string Loaded(DType dtype, const std::string& x) {
  return dtype == DType::kBF16 ? "LoadBf16(" + x + ")" : dtype == DType::kF16 ? "LoadF16(" + x + ")" : x;
}
std::string Stored(DType dtype, const std::string& x) {
  return dtype == DType::kBF16 ? "StoreBf16(" + x + ")" : dtype == DType::kF16 ? "StoreF16(" + x + ")" : x;
}

std::string Constant(double x) {
  const float f = static_cast<float>(x);
  if (!std::isfinite(f)) {
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof(bits));
    return absl::StrFormat("__int_as_float(0x%08x)", bits);
  }
  const std::string digits = absl::StrFormat("%.9g", f);
  return absl::StrCat(digits, digits.find_first_of(".e") == std::string::npos ? ".0f" : "f");
}

std::string Expression(const FusedInstruction& in) {
  const auto name = [](int i) { return i >= 0 ? absl::StrCat("a", i) : absl::StrCat("t", -1 - i); };
  const std::string a = name(in.a), b = name(in.b);
  switch (in.op) {
    case FusedOp::kAdd:
      return absl::StrCat(a, " + ", b);
    case FusedOp::kMul:
      return absl::StrCat(a, " * ", b);
    case FusedOp::kScale:
      return absl::StrCat(a, " * ", Constant(in.constant));
    case FusedOp::kSilu:
      return absl::StrCat(a, " * Sigmoid(", a, ")");
    case FusedOp::kSiluGrad:
      return absl::StrCat(b, " * Sigmoid(", a, ") * (1.0f + ", a, " * (1.0f - Sigmoid(", a, ")))");
    case FusedOp::kLog:
      return absl::StrCat("logf(", a, ")");
    case FusedOp::kReciprocal:
      return absl::StrCat("1.0f / ", a);
    case FusedOp::kAtLeast:
      return absl::StrCat(a, " < ", Constant(in.constant), " ? ", Constant(in.constant), " : ",
                          a);  // NaN stays
  }
  return "";
}

}  // namespace

std::string FusedSource(const FusedKernel& k) {
  const int count = static_cast<int>(k.operands.size());
  bool bf16 = k.result == DType::kBF16, f16 = k.result == DType::kF16;
  for (const FusedOperand& x : k.operands) {
    bf16 = bf16 || x.dtype == DType::kBF16;
    f16 = f16 || x.dtype == DType::kF16;
  }
  std::string s;
  for (const std::string& line : FusedProgramText(k.program)) absl::StrAppend(&s, "// ", line, "\n");
  if (bf16) s += kBf16;
  if (f16) s += kF16;
  s += R"(
__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T>
struct __align__(16) Eight {
  T x[8];
};

)";
  // The program on one element.
  std::string parameters, arguments;
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&parameters, i ? ", " : "", "float a", i);
    const FusedOperand& x = k.operands[i];
    absl::StrAppend(&arguments, i ? ", " : "",
                    x.scalar ? absl::StrCat("s", i) : Loaded(x.dtype, absl::StrCat("x", i, ".x[j]")));
  }
  absl::StrAppend(&s, "__device__ __forceinline__ float Element(", parameters, ") {\n");
  for (size_t i = 0; i < k.program.size(); ++i) {
    absl::StrAppend(&s, "  const float t", i, " = ", Expression(k.program[i]), ";\n");
  }
  absl::StrAppend(&s, "  return t", k.program.size() - 1, ";\n}\n\n");

  absl::StrAppend(&s, "extern \"C\" __global__ void __launch_bounds__(256) fused(");
  for (int i = 0; i < count; ++i) absl::StrAppend(&s, "const void* p", i, ", ");
  absl::StrAppend(
      &s, k.ragged ? "const void* header, long long width) {\n" : "void* y, long long n, int aligned) {\n");
  if (k.ragged) {
    absl::StrAppend(&s, "  const long long n = *(const long long*)header * width;\n",
                    "  void* const* const rows = (void* const*)header + 1;\n");
    int at = 0;
    for (int i = 0; i < count; ++i) {
      if (!k.operands[i].scalar) absl::StrAppend(&s, "  p", i, " = rows[", at++, "];\n");
    }
    absl::StrAppend(&s, "  void* const y = rows[", at, "];\n  const int aligned = ((unsigned long long)y");
    for (int i = 0; i < count; ++i) {
      if (!k.operands[i].scalar) absl::StrAppend(&s, " | (unsigned long long)p", i);
    }
    absl::StrAppend(&s, ") % 16 == 0;\n  if (n == 0) return;\n");
  }
  for (int i = 0; i < count; ++i) {
    const FusedOperand& x = k.operands[i];
    const std::string pointer = absl::StrCat("(const ", StoredAs(x.dtype), "*)p", i);
    if (x.scalar) {
      absl::StrAppend(&s, "  const float s", i, " = ", Loaded(x.dtype, absl::StrCat("*(", pointer, ")")),
                      ";\n");
    } else {
      absl::StrAppend(&s, "  const ", StoredAs(x.dtype), "* const g", i, " = ", pointer, ";\n");
    }
  }
  const char* out = StoredAs(k.result);
  absl::StrAppend(&s, "  ", out, "* const to = (", out, "*)y;\n");
  absl::StrAppend(&s, "  for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < n;\n",
                  "       i += (long long)gridDim.x * blockDim.x * 8) {\n", "    Eight<", out, "> r;\n");
  for (int i = 0; i < count; ++i) {
    if (!k.operands[i].scalar)
      absl::StrAppend(&s, "    Eight<", StoredAs(k.operands[i].dtype), "> x", i, ";\n");
  }
  absl::StrAppend(&s, "    if (aligned && i + 8 <= n) {\n");
  for (int i = 0; i < count; ++i) {
    if (k.operands[i].scalar) continue;
    absl::StrAppend(&s, "      x", i, " = *(const Eight<", StoredAs(k.operands[i].dtype), ">*)(g", i,
                    " + i);\n");
  }
  absl::StrAppend(&s, "#pragma unroll\n      for (int j = 0; j < 8; ++j) r.x[j] = ",
                  Stored(k.result, absl::StrCat("Element(", arguments, ")")), ";\n");
  absl::StrAppend(&s, "      *(Eight<", out, ">*)(to + i) = r;\n    } else {\n",
                  "      for (int j = 0; j < 8 && i + j < n; ++j) {\n");
  for (int i = 0; i < count; ++i) {
    if (!k.operands[i].scalar) absl::StrAppend(&s, "        x", i, ".x[j] = g", i, "[i + j];\n");
  }
  absl::StrAppend(&s, "        to[i + j] = ", Stored(k.result, absl::StrCat("Element(", arguments, ")")),
                  ";\n      }\n    }\n  }\n}\n");
  return s;
}

}  // namespace moe::kernels
