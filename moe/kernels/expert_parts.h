// Kernels of moe.split_experts and moe.join_experts: they only copy, so the reference and the CPU share them.
//
//   add("moe.split_experts", &SplitExperts<T>);
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "moe/base/status.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

// Calls copy(part, elements) for the runs of the whole value in the order in which they lie there; what a
// part gets, it gets in the order in which it lies in the part. `sizes`: rows of the cells of the whole
// value; null for dense ones.
template <typename Copy>
void ForEachExpertRun(const KernelContext& c, const Tensor& whole, const int32_t* sizes, Copy copy) {
  const int64_t blocks = c.Extent("r"), parts = c.Extent("p"), experts = c.Extent("l");
  const int64_t runs = std::max<int64_t>(1, blocks * parts);
  const int64_t cells = whole.cells / runs;  // of a run
  const int64_t dense =
      sizes == nullptr ? whole.elements() / std::max<int64_t>(1, runs * experts) * experts : 0;
  for (int64_t i = 0; i < blocks * parts; ++i) {
    int64_t elements = dense;
    if (sizes != nullptr) {
      int64_t rows = 0;
      for (int64_t j = 0; j < cells; ++j) rows += sizes[i * cells + j];
      elements = rows * whole.row_elements;
    }
    copy(static_cast<int>(i % parts), elements, i / parts, cells);
  }
}

template <typename T>
absl::Status SplitExperts(KernelContext& c) {
  const Tensor& whole = c.in[0];
  if (whole.is_ragged()) {
    const int32_t* sizes = whole.sizes;
    ForEachExpertRun(c, whole, whole.sizes, [&](int part, int64_t, int64_t block, int64_t cells) {
      std::copy_n(sizes, cells, c.out[part].sizes + block * cells);
      sizes += cells;
    });
    for (Tensor& part : c.out) RETURN_IF_ERROR(part.PlaceRows());
  }
  const T* from = whole.As<T>();
  absl::InlinedVector<int64_t, 16> done(c.Extent("p"), 0);
  ForEachExpertRun(c, whole, whole.sizes, [&](int part, int64_t elements, int64_t, int64_t) {
    if (elements > 0) std::memcpy(c.out[part].As<T>() + done[part], from, elements * sizeof(T));
    done[part] += elements;
    from += elements;
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status JoinExperts(KernelContext& c) {
  Tensor& whole = c.out[0];
  if (whole.is_ragged()) {
    const int64_t blocks = c.Extent("r"), parts = c.Extent("p"), cells = whole.cells / (blocks * parts);
    int32_t* sizes = whole.sizes;
    for (int64_t i = 0; i < blocks * parts; ++i, sizes += cells) {
      std::copy_n(c.in[i % parts].sizes + i / parts * cells, cells, sizes);
    }
    RETURN_IF_ERROR(whole.PlaceRows());
  }
  T* to = whole.As<T>();
  absl::InlinedVector<int64_t, 16> done(c.Extent("p"), 0);
  ForEachExpertRun(c, whole, whole.sizes, [&](int part, int64_t elements, int64_t, int64_t) {
    if (elements > 0) std::memcpy(to, c.in[part].As<T>() + done[part], elements * sizeof(T));
    done[part] += elements;
    to += elements;
  });
  return absl::OkStatus();
}

}  // namespace moe::kernels
