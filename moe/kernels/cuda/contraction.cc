#include "moe/kernels/cuda/contraction.h"

#include <algorithm>
#include <utility>

#include "moe/kernels/loops.h"

namespace moe::kernels {
namespace {

constexpr int64_t kLeastProduct = 64;  // multiplications, below which loops do as well

using Factors = absl::InlinedVector<ContractionLoop, 8>;

// One side of a product: factors that lie together in both terms that have them. `x` and `y` select the
// strides.
struct Side {
  int64_t extent = 1, x = 0, y = 0;
};

template <typename X, typename Y>
Side Merge(Factors factors, X x, Y y, Factors& rest) {
  Side side;
  std::sort(factors.begin(), factors.end(), [&](const ContractionLoop& a, const ContractionLoop& b) {
    return std::make_pair(y(a), x(a)) < std::make_pair(y(b), x(b));
  });
  bool first = true;
  for (const ContractionLoop& f : factors) {
    if (first) {
      side = {f.extent, x(f), y(f)};
      first = false;
    } else if (x(f) == side.x * side.extent && y(f) == side.y * side.extent) {
      side.extent *= f.extent;
    } else {
      rest.push_back(f);
    }
  }
  return side;
}

int64_t A(const ContractionLoop& f) { return f.a; }
int64_t B(const ContractionLoop& f) { return f.b; }
int64_t C(const ContractionLoop& f) { return f.c; }

// Splits `factors` (of extent above 1) into the sides of a product. `ragged_m`, `ragged_k`: the rows, a side
// of their own. False if they do not form a product.
bool Sides(const Factors& factors, const ContractionLoop* ragged_m, const ContractionLoop* ragged_k,
           Contraction* out) {
  Factors m, n, k, batches, outer_k;
  for (const ContractionLoop& f : factors) {
    if (f.extent == 1) continue;
    const int in = (f.a != 0) + (f.b != 0) + (f.c != 0);
    if (in < 2) return false;
    (in == 3 ? batches : f.c == 0 ? k : f.a != 0 ? m : n).push_back(f);
  }
  // The rows of ragged terms are a whole side.
  if (ragged_m != nullptr) {
    if (!m.empty()) return false;
    m.push_back(*ragged_m);
  }
  if (ragged_k != nullptr) {
    if (!k.empty()) return false;
    k.push_back(*ragged_k);
  }
  const Side sm = Merge(m, A, C, batches), sn = Merge(n, B, C, batches), sk = Merge(k, A, B, outer_k);
  if (outer_k.size() > 1 || batches.size() > 3) return false;
  if ((ragged_m != nullptr || ragged_k != nullptr) && (!batches.empty() || !outer_k.empty())) return false;
  out->m = sm.extent, out->n = sn.extent, out->k = sk.extent;
  out->a_m = sm.x, out->c_m = sm.y;
  out->b_n = sn.x;
  out->a_k = sk.x, out->b_k = sk.y;
  // A side of extent 1 lies as is convenient.
  const bool one_m = out->m == 1 && ragged_m == nullptr, one_n = out->n == 1,
             one_k = out->k == 1 && ragged_k == nullptr;
  int64_t c_n = sn.y;
  if (one_n) {
    c_n = 1;
    out->b_n = out->b_k == 1 ? std::max<int64_t>(1, out->k) : 1;
  }
  if (one_m) {
    out->c_m = out->n;
    out->a_m = out->a_k == 1 ? std::max<int64_t>(1, out->k) : 1;
  }
  if (one_k) {
    out->a_k = out->a_m == 1 ? std::max<int64_t>(1, out->m) : 1;
    out->b_k = out->b_n == 1 ? std::max<int64_t>(1, out->n) : 1;
  }
  out->batches.assign(batches.begin(), batches.end());
  if (!outer_k.empty()) out->outer_k = outer_k[0];
  return c_n == 1 && (out->a_m == 1 || out->a_k == 1) && (out->b_n == 1 || out->b_k == 1);
}

void Swap(Factors& factors) {
  for (ContractionLoop& f : factors) std::swap(f.a, f.b);
}

}  // namespace

Contraction PlanContraction(const ShardingRule& rule, const std::vector<int64_t>& extent,
                            absl::Span<const int> ragged_in, int ragged_out) {
  const Contraction loops;
  if (ragged_in.size() != 2) return loops;
  const bool ragged[3] = {ragged_in[0] >= 0, ragged_in[1] >= 0, ragged_out >= 0};
  const TermStrides strides[3] = {StridesOf(rule.operands[0], extent, ragged_in[0]),
                                  StridesOf(rule.operands[1], extent, ragged_in[1]),
                                  StridesOf(rule.results[0], extent, ragged_out)};
  const auto loop_of = [&](int f) {
    return ContractionLoop{extent[f], strides[0].element[f], strides[1].element[f], strides[2].element[f]};
  };
  const int num_ragged = ragged[0] + ragged[1] + ragged[2];
  if (num_ragged == 0) {
    Factors factors;
    double products = 1;
    for (int f = 0; f < rule.num_factors(); ++f) {
      factors.push_back(loop_of(f));
      products *= static_cast<double>(extent[f]);
    }
    if (products < kLeastProduct) return loops;
    for (const bool swapped : {false, true}) {
      Contraction c;
      c.swapped = swapped;
      if (swapped) Swap(factors);
      if (!Sides(factors, nullptr, nullptr, &c)) continue;
      // Nothing is reduced, or one number is left: memory bounds it, not arithmetic.
      if (c.k == 1 || (c.m == 1 && c.n == 1)) return loops;
      c.kind = ContractionKind::kDense;
      return c;
    }
    return loops;
  }
  if (num_ragged != 2) return loops;

  // Ragged: the rows of one expert, the first factor of the term, lie together. The dense term may have the
  // expert, but no other factor of the cells.
  const int term = ragged[0] ? 0 : 1;
  const FactorTerm& cells = rule.operands[term];
  if (ragged_in[term] == 0) return loops;
  absl::InlinedVector<bool, 16> in_cells(rule.num_factors(), false);
  int64_t cells_per_group = 1;
  for (int d = 0; d <= ragged_in[term]; ++d) {
    if (cells[d].size() != 1) return loops;
    in_cells[cells[d][0]] = true;
    if (d > 0 && d < ragged_in[term]) cells_per_group *= extent[cells[d][0]];
  }
  const int expert = cells[0][0];
  Factors factors;
  for (int f = 0; f < rule.num_factors(); ++f) {
    for (int t = 0; t < 3; ++t) {
      if (!ragged[t] && in_cells[f] && f != expert && strides[t].element[f] != 0) return loops;
    }
    if (!in_cells[f]) factors.push_back(loop_of(f));
  }
  ContractionLoop rows;
  rows.extent = 0;
  rows.a = strides[0].row_elements, rows.b = strides[1].row_elements, rows.c = strides[2].row_elements;
  int64_t group[3];  // of dense terms
  for (int t = 0; t < 3; ++t) group[t] = ragged[t] ? 0 : strides[t].element[expert];
  const int64_t experts = extent[expert];
  for (const bool swapped : {false, true}) {
    Contraction c;
    c.swapped = swapped;
    if (swapped) {
      Swap(factors);
      std::swap(rows.a, rows.b);
      std::swap(group[0], group[1]);
    }
    const bool a_ragged = ragged[swapped ? 1 : 0];
    if (ragged[2]) {
      // a has the rows, and so has c.
      if (!a_ragged) continue;
      rows.b = 0;
      if (!Sides(factors, &rows, nullptr, &c)) continue;
      c.kind = ContractionKind::kRowsInM;
      c.b_group = group[1];
      // A dense term that all experts share makes one group of all rows.
      const bool shared = experts == 1 || c.b_group == 0;
      c.groups = shared ? 1 : experts;
      c.cells_per_group = shared ? experts * cells_per_group : cells_per_group;
    } else {
      rows.c = 0;
      if (!Sides(factors, nullptr, &rows, &c)) continue;
      c.kind = ContractionKind::kRowsInK;
      c.c_group = group[2];
      const bool shared = experts == 1 || c.c_group == 0;
      c.groups = shared ? 1 : experts;
      c.cells_per_group = shared ? experts * cells_per_group : cells_per_group;
    }
    if (c.groups == 1) c.b_group = c.c_group = 0;
    return c;
  }
  return loops;
}

}  // namespace moe::kernels
