// The finite check of an optimizer's update, which is part of its pass over the weights: an element whose new
// parameter could not be stored as a finite number stays as it is.
//
//   const double largest = LargestOf(dtype);
//   ...
//   return all_fit ? absl::OkStatus() : UpdateNotFinite(learning_rate);
#pragma once

#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "moe/ir/types.h"

namespace moe::kernels {

// The largest magnitude that rounds to a finite number of this type.
inline double LargestOf(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 65504;
    case DType::kBF16:
      return 3.3895e38;
    case DType::kF64:
      return std::numeric_limits<double>::max();
    default:
      return std::numeric_limits<float>::max();
  }
}

inline absl::Status UpdateNotFinite(double learning_rate) {
  return absl::FailedPreconditionError(
      absl::StrCat("the updated weights are not finite with a learning rate of ", learning_rate,
                   "; those stay as they were. Try a lower one"));
}

}  // namespace moe::kernels
