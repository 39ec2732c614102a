// Where the rows of dispatched tokens are: [expert, batch, group, slot, hidden], dense or ragged. Shared by
// the reference and the CPU kernels of dispatch and combine.
//
//   const Dispatched d(c, c.out[0]);
//   const int64_t row = d.Row(expert, group, slot);   // global expert; -1 when it is not here
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "moe/base/status.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

// Sizes of a ragged result of dispatch: the number of choices with a slot in each (expert, batch, group).
// Places its rows. Nothing for dense results.
inline absl::Status SizeFromChoices(const KernelContext& c, const Tensor& expert, const Tensor& slot,
                                    Tensor& d) {
  if (!d.is_ragged()) return absl::OkStatus();
  const int64_t e = c.Extent("e"), e0 = c.Offset("e"), groups = c.Extent("b") * c.Extent("c");
  const int64_t choices = c.Extent("t") * c.Extent("k");
  for (int64_t i = 0; i < d.cells; ++i) d.sizes[i] = 0;
  for (int64_t i = 0; i < groups * choices; ++i) {
    const int64_t local = expert.As<int32_t>()[i] - e0;
    if (local >= 0 && local < e && slot.As<int32_t>()[i] >= 0) ++d.sizes[local * groups + i / choices];
  }
  return d.PlaceRows();
}

class Dispatched {
 public:
  // `d` must have its sizes. Its start of cells goes to the workspace if given ((e b c) int64), else to the
  // heap.
  Dispatched(const KernelContext& c, const Tensor& d, int64_t* starts = nullptr)
      : e_(c.Extent("e")),
        e0_(c.Offset("e")),
        groups_(c.Extent("b") * c.Extent("c")),
        d_(d),
        starts_(starts) {
    if (!d.is_ragged()) {
      slots_ = d.dims[3];
      return;
    }
    if (starts_ == nullptr) {
      own_.resize(d.cells);
      starts_ = own_.data();
    }
    int64_t start = 0;
    for (int64_t i = 0; i < d.cells; start += d.sizes[i++]) starts_[i] = start;
  }

  // Row of a choice of the group (b, c) = `group`; -1 if the expert is not local or the choice has no slot.
  int64_t Row(int64_t expert, int64_t group, int64_t slot) const {
    const int64_t local = expert - e0_;
    if (local < 0 || local >= e_ || slot < 0) return -1;
    const int64_t cell = local * groups_ + group;
    if (d_.is_ragged()) return slot < d_.sizes[cell] ? starts_[cell] + slot : -1;
    return slot < slots_ ? cell * slots_ + slot : -1;
  }
  int64_t rows() const { return d_.is_ragged() ? d_.rows() : e_ * groups_ * slots_; }

 private:
  const int64_t e_, e0_, groups_;
  const Tensor& d_;
  int64_t slots_ = 0;
  int64_t* starts_;
  std::vector<int64_t> own_;
};

}  // namespace moe::kernels
