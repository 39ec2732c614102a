// math.einsum: dense products through cuBLASLt, those of experts with ragged rows and what the library
// refuses through the back end's own products, rounded operands through those of e4m3, everything else by
// loops.
#include <algorithm>
#include <array>

#include "moe/kernels/cuda/blas_lt.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/contraction.h"
#include "moe/kernels/cuda/einsum_loops.h"
#include "moe/kernels/cuda/f8_product.h"
#include "moe/kernels/cuda/matrix_product.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/vec.h"
#include "moe/kernels/loops.h"
#include "moe/kernels/rounded_operands.h"

namespace moe::kernels {
namespace {

constexpr int64_t kMostCalls = 16;  // of cuBLASLt for one einsum; with more, the own kernel does all in one

Contraction PlanOf(const ShardingRule& rule, const std::vector<int64_t>& extent, absl::Span<const Tensor> in,
                   absl::Span<const Tensor> out) {
  std::array<int, 2> ragged = {-1, -1};
  if (in.size() != 2) return Contraction();
  for (int i = 0; i < 2; ++i) ragged[i] = in[i].ragged;
  return PlanContraction(rule, extent, ragged, out[0].ragged);
}

int64_t EinsumWorkspace(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                        absl::Span<const Tensor> in, absl::Span<const Tensor> out) {
  const int64_t ragged = RaggedWorkspaceOf(n, rule, extent, in, out);
  if (RoundsOperands(n)) return ragged + F8Workspace(rule, extent, in, out);
  if (ragged > 0) return ragged;
  const Contraction c = PlanOf(rule, std::vector<int64_t>(extent.begin(), extent.end()), in, out);
  if (c.kind != ContractionKind::kDense) return 0;
  double multiplications = static_cast<double>(c.m) * static_cast<double>(c.n) * static_cast<double>(c.k);
  for (const ContractionLoop& loop : c.batches) multiplications *= static_cast<double>(loop.extent);
  return LtWorkspace(multiplications);
}

// The most rows that a node's ragged values can have here.
int64_t MostRows(const KernelContext& c) {
  for (size_t i = 0; i < c.in.size(); ++i) {
    const Tensor& t = c.in[i];
    if (!t.is_ragged()) continue;
    if (t.spill_rows == nullptr) return t.capacity_rows;
    int64_t groups = 1;
    for (int d = 1; d < t.ragged; ++d) groups *= t.dims[d];
    return std::max(t.capacity_rows, groups * c.node->operand(static_cast<int>(i)).type().ragged_bound);
  }
  return 0;
}

// False where the library does not take it.
absl::StatusOr<bool> ByLt(const KernelContext& c, const Contraction& s, const Tensor& a, const Tensor& b,
                          const Tensor& y) {
  if (a.dtype != b.dtype || (y.dtype != a.dtype && y.dtype != DType::kF32)) return false;
  if (s.outer_k.extent > 1) return false;
  LtProduct p;
  p.m = s.m, p.n = s.n, p.k = s.k;
  p.a_by_k = s.a_k == 1, p.b_by_k = s.b_k == 1;
  p.a_pitch = p.a_by_k ? s.a_m : s.a_k;
  p.b_pitch = p.b_by_k ? s.b_n : s.b_k;
  p.c_pitch = s.c_m;
  p.dtype = a.dtype, p.c_dtype = y.dtype;
  p.tf32 = c.tf32;
  if (p.a_pitch < (p.a_by_k ? p.k : p.m) || p.b_pitch < (p.b_by_k ? p.k : p.n) || p.c_pitch < p.n)
    return false;
  // The longest loop is the library's batch, the others are calls.
  const ContractionLoop* batch = nullptr;
  int64_t calls = 1;
  for (const ContractionLoop& loop : s.batches) {
    if (batch == nullptr || loop.extent > batch->extent) batch = &loop;
    calls *= loop.extent;
  }
  if (batch != nullptr) {
    p.batches = batch->extent;
    p.a_stride = batch->a, p.b_stride = batch->b, p.c_stride = batch->c;
    calls /= std::max<int64_t>(1, batch->extent);
  }
  if (calls > kMostCalls) return false;
  for (int64_t call = 0; call < calls; ++call) {
    int64_t left = call, at_a = 0, at_b = 0, at_c = 0;
    for (const ContractionLoop& loop : s.batches) {
      if (&loop == batch) continue;
      at_a += left % loop.extent * loop.a;
      at_b += left % loop.extent * loop.b;
      at_c += left % loop.extent * loop.c;
      left /= loop.extent;
    }
    ASSIGN_OR_RETURN(const bool done, MultiplyByLt(p, a.As<char>() + at_a * ByteSize(a.dtype),
                                                   b.As<char>() + at_b * ByteSize(b.dtype),
                                                   y.As<char>() + at_c * ByteSize(y.dtype), c.workspace,
                                                   c.workspace_bytes, CudaStreamOf(c)));
    if (!done) return false;  // the first: the others are of the same shape
  }
  return true;
}

absl::Status ByOwnProduct(const KernelContext& c, const Contraction& s, const RaggedRows& rows) {
  MatrixProduct p;
  p.shape = s;
  p.rows = rows;
  p.most_rows = MostRows(c);
  const auto operand = [&](const Tensor& t, int ragged) -> absl::StatusOr<MatrixOperand> {
    ASSIGN_OR_RETURN(const Storage storage, StorageOfReals(t.dtype));
    const bool aligned =
        t.is_ragged() ? IsAligned(t.arena_rows) && IsAligned(t.spill_rows) : IsAligned(t.data);
    return MatrixOperand{t.is_ragged() ? nullptr : t.data, ragged, storage, aligned};
  };
  const int a = s.swapped ? 1 : 0, b = 1 - a;
  ASSIGN_OR_RETURN(p.a, operand(c.in[a], RaggedOperandIndex(c, a)));
  ASSIGN_OR_RETURN(p.b, operand(c.in[b], RaggedOperandIndex(c, b)));
  ASSIGN_OR_RETURN(p.c, operand(c.out[0], RaggedResultIndex(c, 0)));
  return LaunchProduct(p, CudaStreamOf(c));
}

absl::Status ByLoops(const KernelContext& c, const RaggedRows& rows) {
  const ShardingRule& rule = *c.rule;
  const int num_in = static_cast<int>(c.in.size());
  if (num_in + 1 > kMaxLoopTerms || rule.num_factors() > kMaxLoopFactors) {
    return absl::UnimplementedError(absl::StrCat("an einsum of ", num_in, " operands and ",
                                                 rule.num_factors(), " factors; CUDA takes ",
                                                 kMaxLoopTerms - 1, " and ", kMaxLoopFactors));
  }
  EinsumLoops p;
  p.num_in = num_in;
  p.rows = rows;
  p.most_rows = MostRows(c);
  p.result_is_ragged = c.out[0].is_ragged();
  absl::InlinedVector<TermStrides, 5> strides;
  int ragged_factor = -1, ragged_term = -1;
  for (int t = 0; t <= num_in; ++t) {
    const Tensor& x = t < num_in ? c.in[t] : c.out[0];
    strides.push_back(StridesOf(t < num_in ? rule.operands[t] : rule.results[0], c.extent, x.ragged));
    ASSIGN_OR_RETURN(p.term[t].storage, StorageOfReals(x.dtype));
    if (x.is_ragged()) {
      p.term[t].ragged = t < num_in ? RaggedOperandIndex(c, t) : RaggedResultIndex(c, 0);
      p.term[t].row_elements = strides[t].row_elements;
      ragged_factor = strides[t].ragged_factor;
      ragged_term = t;
    } else {
      p.term[t].data = x.data;
    }
  }
  const auto factor = [&](int f) {
    LoopFactor out;
    out.extent = c.extent[f];
    for (int t = 0; t <= num_in; ++t) out.stride[t] = strides[t].element[f];
    if (ragged_term >= 0) out.cell = strides[ragged_term].cell[f];
    return out;
  };
  absl::InlinedVector<bool, 16> seen(rule.num_factors(), false);
  const FactorTerm& result = rule.results[0];
  for (int d = 0; d < static_cast<int>(result.size()); ++d) {
    for (const FactorId f : result[d]) {
      seen[f] = true;
      if (f == ragged_factor && p.result_is_ragged) continue;
      (p.result_is_ragged && d > c.out[0].ragged ? p.num_inner : p.num_outer) += 1;
      p.of_result[p.num_outer + p.num_inner - 1] = factor(f);
    }
  }
  for (int f = 0; f < rule.num_factors(); ++f) {
    if (seen[f]) continue;
    if (f == ragged_factor) {
      p.reduces_rows = true;
    } else {
      p.reduced[p.num_reduced++] = factor(f);
    }
  }
  return LaunchEinsumLoops(p, CudaStreamOf(c));
}

absl::Status Einsum(KernelContext& c) {
  Workspace w(c);
  ASSIGN_OR_RETURN(const RaggedRows rows, PlaceLikeOperand(c, w));
  if (RoundsOperands(*c.node)) return F8Einsum(c, rows, MostRows(c), w.Take<char>(0));
  const Contraction s = PlanOf(*c.rule, c.extent, c.in, c.out);
  if (s.kind == ContractionKind::kLoops) return ByLoops(c, rows);
  if (s.kind == ContractionKind::kDense) {
    ASSIGN_OR_RETURN(const bool done, ByLt(c, s, c.in[s.swapped ? 1 : 0], c.in[s.swapped ? 0 : 1], c.out[0]));
    if (done) return absl::OkStatus();
  }
  return ByOwnProduct(c, s, rows);
}

void Register(KernelRegistry& r) { AddForFloats(r, "math.einsum", &Einsum, &EinsumWorkspace); }
const KernelRegistration registration(&Register);

}  // namespace
}  // namespace moe::kernels
