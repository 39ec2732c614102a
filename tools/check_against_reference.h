// compile_and_train --check_against_reference: does this strategy compute what one device computes?
#pragma once

#include <iosfwd>
#include <string>

#include "absl/status/status.h"
#include "moe/train/config/config.h"

namespace moe::tools {

// Gradients and 20 losses of this model, batch and strategy against the one-device reference in f64, as a
// table. OutOfRange where they differ by more than rounding. `config` is resolved; it is validated here.
absl::Status CheckAgainstReference(const train::RunConfig& config, const std::string& passes,
                                   std::ostream& out);

}  // namespace moe::tools
