#include "moe/kernels/rounded_operands.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/device/wire_codec.h"
#include "moe/ir/wire_format.h"

namespace moe::kernels {
namespace {

using Term = absl::InlinedVector<FactorId, 8>;
using Side = GroupedProduct::Side;

Term Flat(const FactorTerm& term) {
  Term out;
  for (const FactorDim& dim : term) out.insert(out.end(), dim.begin(), dim.end());
  return out;
}

template <typename Factors>
bool Has(const Factors& factors, FactorId f) {
  return std::find(factors.begin(), factors.end(), f) != factors.end();
}

// What is left of `term` behind `skip` factors is `first`, then `second`.
bool IsFirstThenSecond(const Term& term, size_t skip, const Side& first, const Side& second) {
  return term.size() == skip + first.size() + second.size() &&
         std::equal(first.begin(), first.end(), term.begin() + skip) &&
         std::equal(second.begin(), second.end(), term.begin() + skip + first.size());
}

// One run of `count` values, at most kWireBlock, in each of `columns` columns, at most kColumns, that lie
// beside one another; rows are `stride` apart.
constexpr int64_t kColumns = 16;  // a line of the cache
template <typename T>
void RoundRuns(T* x, int64_t count, int64_t columns, int64_t stride) {
  float values[kColumns][kWireBlock];
  std::fill_n(values[0], columns * kWireBlock, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < columns; ++j) values[j][i] = static_cast<float>(x[i * stride + j]);
  }
  for (int64_t j = 0; j < columns; ++j) {
    char wire[kWireBlock + sizeof(float)];
    device::EncodeWire(WireFormat::kF8, DType::kF32, values[j], count, wire);
    device::DecodeWire(WireFormat::kF8, wire, count, 0, count, values[j]);
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < columns; ++j) x[i * stride + j] = static_cast<T>(values[j][i]);
  }
}

// [outer, k, inner]
template <typename T>
void RoundAll(T* x, int64_t outer, int64_t k, int64_t inner) {
  for (int64_t o = 0; o < outer; ++o, x += k * inner) {
    for (int64_t l = 0; l < k; l += kWireBlock) {
      const int64_t count = std::min(kWireBlock, k - l);
      for (int64_t j = 0; j < inner; j += kColumns) {
        RoundRuns(x + l * inner + j, count, std::min(kColumns, inner - j), inner);
      }
    }
  }
}

}  // namespace

absl::StatusOr<GroupedProduct> GroupedProductOf(const ShardingRule& rule) {
  const auto no = [&](auto... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", rule.ToString(), "\" is not a grouped matrix product: ", what...));
  };
  if (rule.operands.size() != 2 || rule.results.size() != 1)
    return no("it must have two operands and one result");
  const Term a = Flat(rule.operands[0]), b = Flat(rule.operands[1]), c = Flat(rule.results[0]);
  GroupedProduct p;
  for (size_t i = 0; i < std::min({a.size(), b.size(), c.size()}) && a[i] == b[i] && a[i] == c[i]; ++i) {
    p.g.push_back(a[i]);
  }
  const size_t g = p.g.size();
  for (size_t i = g; i < a.size(); ++i) {
    const bool in_b = Has(b, a[i]), in_c = Has(c, a[i]);
    if (in_b == in_c) {
      return no("'", rule.factors[a[i]], "' is in ", in_b ? "all terms, but not first" : "one term alone");
    }
    (in_b ? p.k : p.m).push_back(a[i]);
  }
  for (size_t i = g; i < b.size(); ++i) {
    if (!Has(a, b[i])) p.n.push_back(b[i]);
  }
  if (p.k.empty()) return no("it sums over no factor");
  p.a_by_k = IsFirstThenSecond(a, g, p.m, p.k);
  p.b_by_k = IsFirstThenSecond(b, g, p.n, p.k);
  p.c_by_n = IsFirstThenSecond(c, g, p.m, p.n);
  if ((!p.a_by_k && !IsFirstThenSecond(a, g, p.k, p.m)) ||
      (!p.b_by_k && !IsFirstThenSecond(b, g, p.k, p.n)) ||
      (!p.c_by_n && !IsFirstThenSecond(c, g, p.n, p.m))) {
    return no("rows, columns and the summed side do not each stand together in one order");
  }
  return p;
}

bool RoundsOperands(const Node& n) { return !n.StringOr("multiply", "").empty(); }

template <typename T>
absl::Status RoundOperand(const KernelContext& c, int operand, T* x) {
  ASSIGN_OR_RETURN(const GroupedProduct p, GroupedProductOf(*c.rule));
  const Side& side = operand == 0 ? p.m : p.n;
  const bool by_k = operand == 0 ? p.a_by_k : p.b_by_k;
  const Tensor& t = c.in[operand];
  const FactorId ragged = t.is_ragged() ? c.rule->operands[operand][t.ragged][0] : FactorId{-1};
  // Of a side with ragged rows: what is behind them.
  const auto extent = [&](const Side& factors) {
    int64_t n = 1;
    for (const FactorId f : factors) n = f == ragged ? 1 : n * c.extent[f];
    return n;
  };
  const int64_t g = extent(p.g), s = extent(side), k = extent(p.k);
  if (!t.is_ragged()) {
    if (by_k) {
      RoundAll(x, g * s, k, 1);
    } else {
      RoundAll(x, g, k, s);
    }
    return absl::OkStatus();
  }
  if (Has(side, ragged) && by_k) {
    RoundAll(x, t.rows() * s, k, 1);
    return absl::OkStatus();
  }
  if (!Has(p.k, ragged) || by_k) {
    return absl::InvalidArgumentError(absl::StrCat(
        "multiply = \"f8e4m3\": \"", c.rule->ToString(),
        "\": the ragged rows of an operand must either be summed and come before all its other factors, "
        "or be kept in the result"));
  }
  const int64_t cells = g > 0 ? t.cells / g : 0;
  for (int64_t i = 0; i < g; ++i) {
    int64_t rows = 0;
    for (int64_t cell = 0; cell < cells; ++cell) rows += t.sizes[i * cells + cell];
    RoundAll(x, 1, rows * k, s);
    x += rows * k * s;
  }
  return absl::OkStatus();
}
template absl::Status RoundOperand<float>(const KernelContext& c, int operand, float* x);
template absl::Status RoundOperand<double>(const KernelContext& c, int operand, double* x);

template <typename T>
absl::Status RunOnRounded(KernelContext& c, absl::Status (*product)(KernelContext& c)) {
  if (c.in.size() != 2) return GroupedProductOf(*c.rule).status();
  std::vector<T> copies[2];
  void* const data[2] = {c.in[0].data, c.in[1].data};
  for (int i = 0; i < 2; ++i) {
    copies[i].assign(c.in[i].As<T>(), c.in[i].As<T>() + c.in[i].elements());
    RETURN_IF_ERROR(RoundOperand(c, i, copies[i].data()));
  }
  for (int i = 0; i < 2; ++i) c.in[i].data = copies[i].data();
  const absl::Status done = product(c);
  for (int i = 0; i < 2; ++i) c.in[i].data = data[i];
  return done;
}
template absl::Status RunOnRounded<float>(KernelContext& c, absl::Status (*product)(KernelContext& c));
template absl::Status RunOnRounded<double>(KernelContext& c, absl::Status (*product)(KernelContext& c));

}  // namespace moe::kernels
