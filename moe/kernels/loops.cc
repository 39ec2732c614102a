#include "moe/kernels/loops.h"

#include <algorithm>

#include "moe/kernels/larger.h"

namespace moe::kernels {
namespace {

constexpr int kMaxTerms = 8;

// The nest. `order` has the factors of the result, then the reduced ones. Offsets of all terms are kept per
// depth, so that the innermost loop only adds strides.
template <typename T>
class Nest {
 public:
  Nest(KernelContext& c, Reduce reduce) : c_(c), reduce_(reduce) {}

  absl::Status Run() {
    const ShardingRule& rule = *c_.rule;
    num_in_ = static_cast<int>(c_.in.size());
    if (num_in_ + 1 > kMaxTerms) return absl::InvalidArgumentError("too many operands");
    for (int i = 0; i <= num_in_; ++i) {
      const Tensor& t = i < num_in_ ? c_.in[i] : c_.out[0];
      terms_.push_back(StridesOf(i < num_in_ ? rule.operands[i] : rule.results[0], c_.extent, t.ragged));
      if (terms_.back().ragged_factor >= 0) ragged_factor_ = terms_.back().ragged_factor;
      if (t.is_ragged() && ragged_ == nullptr) {
        ragged_ = &t;
        ragged_term_ = i;
      }
    }
    if (ragged_ != nullptr) {
      starts_.resize(ragged_->cells);  // the heap only where there are many cells
      int64_t start = 0;
      for (int64_t i = 0; i < ragged_->cells; start += ragged_->sizes[i++]) starts_[i] = start;
    }
    absl::InlinedVector<bool, 16> seen(rule.num_factors(), false);
    auto take = [&](const FactorTerm& term) {
      for (const FactorDim& dim : term) {
        for (FactorId f : dim) {
          if (!seen[f]) order_.push_back(f);
          seen[f] = true;
        }
      }
    };
    take(rule.results[0]);
    num_outer_ = order_.size();
    for (const FactorTerm& term : rule.operands) take(term);
    Offsets zero{};
    Outer(0, zero, 0);
    return absl::OkStatus();
  }

 private:
  using Offsets = std::array<int64_t, kMaxTerms>;

  int64_t ExtentOf(int factor, int64_t cell) const {
    return factor == ragged_factor_ ? ragged_->sizes[cell] : c_.extent[factor];
  }

  // Offsets at the start of a factor's loop: the ragged factor starts at its cell's first row.
  void Enter(int factor, int64_t cell, Offsets& offset) const {
    if (factor != ragged_factor_) return;
    for (int i = 0; i <= num_in_; ++i) {
      if (terms_[i].ragged_factor >= 0) offset[i] += starts_[cell] * terms_[i].row_elements;
    }
  }

  void Step(int factor, Offsets& offset, int64_t& cell) const {
    for (int i = 0; i <= num_in_; ++i) {
      offset[i] += factor == terms_[i].ragged_factor ? terms_[i].row_elements : terms_[i].element[factor];
    }
    if (ragged_ != nullptr) cell += terms_[ragged_term_].cell[factor];
  }

  // Strides of a factor per term, at the innermost loop, where the cell no longer matters.
  Offsets Strides(int factor) const {
    Offsets strides{};
    for (int i = 0; i <= num_in_; ++i) {
      strides[i] = factor == terms_[i].ragged_factor ? terms_[i].row_elements : terms_[i].element[factor];
    }
    return strides;
  }

  // f(x) for the products x along the innermost factor.
  template <int kIn, typename F>
  void Products(const Offsets& offset, const Offsets& stride, int64_t n, F f) {
    const T* in[kMaxTerms];
    const int num_in = kIn > 0 ? kIn : num_in_;
    for (int j = 0; j < num_in; ++j) in[j] = c_.in[j].As<T>() + offset[j];
    for (int64_t i = 0; i < n; ++i) {
      double x = 1;
      for (int j = 0; j < num_in; ++j) x *= static_cast<double>(in[j][i * stride[j]]);
      f(x);
    }
  }
  template <typename F>
  void ForEachProduct(const Offsets& offset, const Offsets& stride, int64_t n, F f) {
    switch (num_in_) {
      case 1:
        return Products<1>(offset, stride, n, f);
      case 2:
        return Products<2>(offset, stride, n, f);
      case 3:
        return Products<3>(offset, stride, n, f);
      default:
        return Products<0>(offset, stride, n, f);
    }
  }

  void Outer(size_t depth, Offsets offset, int64_t cell) {
    if (depth + 1 == num_outer_ && num_outer_ == order_.size()) {  // nothing is reduced
      const int f = order_[depth];
      Enter(f, cell, offset);
      const Offsets stride = Strides(f);
      T* out = c_.out[0].As<T>() + offset[num_in_];
      ForEachProduct(offset, stride, ExtentOf(f, cell), [&](double x) {
        *out = static_cast<T>(reduce_ == Reduce::kSum ? x : Larger(-1e30, x));
        out += stride[num_in_];
      });
      return;
    }
    if (depth == num_outer_) {
      double acc = reduce_ == Reduce::kSum ? 0 : -1e30;
      Inner(depth, offset, cell, acc);
      c_.out[0].As<T>()[offset[num_in_]] = static_cast<T>(acc);
      return;
    }
    const int f = order_[depth];
    Enter(f, cell, offset);
    const int64_t n = ExtentOf(f, cell);
    for (int64_t i = 0; i < n; ++i) {
      Outer(depth + 1, offset, cell);
      Step(f, offset, cell);
    }
  }

  void Inner(size_t depth, Offsets offset, int64_t cell, double& acc) {
    if (depth == order_.size()) {
      double x = 1;
      for (int i = 0; i < num_in_; ++i) x *= static_cast<double>(c_.in[i].As<T>()[offset[i]]);
      acc = reduce_ == Reduce::kSum ? acc + x : Larger(acc, x);
      return;
    }
    const int f = order_[depth];
    Enter(f, cell, offset);
    const int64_t n = ExtentOf(f, cell);
    if (depth + 1 == order_.size()) {
      double result = acc;
      if (reduce_ == Reduce::kSum) {
        ForEachProduct(offset, Strides(f), n, [&](double x) { result += x; });
      } else {
        ForEachProduct(offset, Strides(f), n, [&](double x) { result = Larger(result, x); });
      }
      acc = result;
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      Inner(depth + 1, offset, cell, acc);
      Step(f, offset, cell);
    }
  }

  KernelContext& c_;
  const Reduce reduce_;
  int num_in_ = 0;
  absl::InlinedVector<TermStrides, 4> terms_;
  absl::InlinedVector<int, 16> order_;
  size_t num_outer_ = 0;
  int ragged_factor_ = -1;
  const Tensor* ragged_ = nullptr;
  int ragged_term_ = 0;
  absl::InlinedVector<int64_t, 64> starts_;
};

}  // namespace

TermStrides StridesOf(const FactorTerm& term, const std::vector<int64_t>& extent, int ragged_dim) {
  TermStrides s;
  s.element.assign(extent.size(), 0);
  s.cell.assign(extent.size(), 0);
  int64_t stride = 1;
  for (int d = static_cast<int>(term.size()) - 1; d >= 0; --d) {
    if (d == ragged_dim) {
      s.ragged_factor = term[d][0];
      s.row_elements = stride;
      stride = 1;
      continue;
    }
    for (int i = static_cast<int>(term[d].size()) - 1; i >= 0; --i) {
      const FactorId f = term[d][i];
      (d < ragged_dim ? s.cell : s.element)[f] += stride;
      stride *= extent[f];
    }
  }
  return s;
}

template <typename T>
absl::Status ReduceProducts(KernelContext& c, Reduce reduce) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  return Nest<T>(c, reduce).Run();
}
template absl::Status ReduceProducts<float>(KernelContext& c, Reduce reduce);
template absl::Status ReduceProducts<double>(KernelContext& c, Reduce reduce);

}  // namespace moe::kernels
