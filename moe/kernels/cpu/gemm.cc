#include "moe/kernels/cpu/gemm.h"

#include <cblas.h>
#include <dnnl.h>

#include <algorithm>
#include <type_traits>

#include "glog/logging.h"
#include "moe/kernels/cpu/threads.h"

namespace moe::kernels {
namespace {

void CallLibrary(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                 int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  const dnnl_status_t status =
      dnnl_sgemm(trans_a ? 'T' : 'N', trans_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  CHECK_EQ(status, dnnl_success) << "sgemm " << m << " " << n << " " << k << " ld " << lda << " " << ldb
                                 << " " << ldc;
}

void CallLibrary(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
                 int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  cblas_dgemm(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, m, n,
              k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // namespace

template <typename T>
void Gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0 ? T(0) : beta * c[i * ldc + j];
    }
    return;
  }
  UseOneThreadInThisThread();
  CallLibrary(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
template void Gemm<float>(bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*,
                          int64_t, float, float*, int64_t);
template void Gemm<double>(bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t,
                           const double*, int64_t, double, double*, int64_t);

namespace {

// Factors merged to one matrix dim: its extent, and its stride in the two terms that have it.
struct Group {
  int64_t extent = 1;
  int64_t x = 0, y = 0;
};

// Merges the innermost factors (by the stride in y) that are contiguous in both terms; the others become
// loops. `x` and `y` select the strides.
template <typename GetX, typename GetY>
Group Merge(ContractionFactors group, GetX x, GetY y, ContractionFactors& loops) {
  Group g;
  std::sort(group.begin(), group.end(),
            [&](const ContractionFactor& a, const ContractionFactor& b) { return y(a) < y(b); });
  for (const ContractionFactor& f : group) {
    if (g.x == 0 && g.y == 0) {
      g = {f.extent, x(f), y(f)};
    } else if (x(f) == g.x * g.extent && y(f) == g.y * g.extent) {
      g.extent *= f.extent;
    } else {
      loops.push_back(f);
    }
  }
  return g;
}

// Storage of a rows x cols matrix with these strides: plain, transposed, or neither.
struct Layout {
  bool ok = false, transposed = false;
  int64_t ld = 1;
};
Layout LayoutOf(int64_t rows, int64_t row_stride, int64_t cols, int64_t col_stride) {
  if (cols == 1) col_stride = 1;
  if (rows == 1 && col_stride == 1) return {true, false, cols};
  if (rows == 1) row_stride = 1;
  if (col_stride == 1 && row_stride >= cols) return {true, false, row_stride};
  if (row_stride == 1 && (col_stride >= rows || cols == 1)) return {true, true, std::max(col_stride, rows)};
  return {};
}

// False: nothing was done.
template <typename In, typename Out>
bool Multiply(MatrixProduct p, const In* a, const In* b, Out* c) {
  if constexpr (std::is_same_v<In, Bf16>) {
    p.wide = std::is_same_v<Out, float>;
    const Bf16Product product = ChosenBf16Product();
    if (product == nullptr || (p.accumulate && !p.wide)) return false;
    return p.m == 0 || p.n == 0 || product(p, a, b, c);
  } else {
    Gemm<In>(p.trans_a, p.trans_b, p.m, p.n, p.k, In(1), a, p.lda, b, p.ldb, In(p.accumulate), c, p.ldc);
    return true;
  }
}

template <typename In, typename Out>
bool Loop(const ContractionFactors& loops, size_t depth, const In* a, const In* b, Out* c, bool accumulate,
          bool swapped, bool trans_a, bool trans_b, const int64_t (&size)[3], const int64_t (&ld)[3]) {
  if (depth == loops.size()) {
    if (swapped) {
      return Multiply({size[1], size[0], size[2], !trans_b, !trans_a, ld[1], ld[0], ld[2], accumulate}, b, a,
                      c);
    }
    return Multiply({size[0], size[1], size[2], trans_a, trans_b, ld[0], ld[1], ld[2], accumulate}, a, b, c);
  }
  const ContractionFactor& f = loops[depth];
  for (int64_t i = 0; i < f.extent; ++i) {
    // A loop over a reduced factor adds to what its first turn wrote.
    if (!Loop(loops, depth + 1, a + i * f.a, b + i * f.b, c + i * f.c, accumulate || (f.c == 0 && i > 0),
              swapped, trans_a, trans_b, size, ld)) {
      return false;
    }
  }
  return true;
}

}  // namespace

template <typename In, typename Out>
bool ContractByGemm(const ContractionFactors& factors, const In* a, const In* b, Out* c, bool accumulate,
                    int64_t least) {
  ContractionFactors m, n, k, loops;
  for (const ContractionFactor& f : factors) {
    if (f.extent == 1) continue;
    const int in = (f.a != 0) + (f.b != 0) + (f.c != 0);
    if (in < 2) return false;
    (in == 3 ? loops : f.c == 0 ? k : f.a != 0 ? m : n).push_back(f);
  }
  const auto sa = [](const ContractionFactor& f) { return f.a; };
  const auto sb = [](const ContractionFactor& f) { return f.b; };
  const auto sc = [](const ContractionFactor& f) { return f.c; };
  // Reduced loops go inside: their first turn must come before the others of the same result.
  ContractionFactors reduced;
  const Group gm = Merge(m, sa, sc, loops), gn = Merge(n, sb, sc, loops), gk = Merge(k, sa, sb, reduced);
  loops.insert(loops.end(), reduced.begin(), reduced.end());
  if (gm.extent * gn.extent * gk.extent < least) return false;
  const Layout la = LayoutOf(gm.extent, gm.x, gk.extent, gk.x),
               lb = LayoutOf(gk.extent, gk.y, gn.extent, gn.x),
               lc = LayoutOf(gm.extent, gm.y, gn.extent, gn.y);
  if (!la.ok || !lb.ok || !lc.ok) return false;
  const int64_t size[3] = {gm.extent, gn.extent, gk.extent}, ld[3] = {la.ld, lb.ld, lc.ld};
  return Loop(loops, 0, a, b, c, accumulate, lc.transposed, la.transposed, lb.transposed, size, ld);
}
template bool ContractByGemm(const ContractionFactors&, const float*, const float*, float*, bool, int64_t);
template bool ContractByGemm(const ContractionFactors&, const double*, const double*, double*, bool, int64_t);
template bool ContractByGemm(const ContractionFactors&, const Bf16*, const Bf16*, float*, bool, int64_t);
template bool ContractByGemm(const ContractionFactors&, const Bf16*, const Bf16*, Bf16*, bool, int64_t);

}  // namespace moe::kernels
