// use-libraries: gives nodes to kernels of the libraries that the target names, where they compute the same.
//
//   %o, %l = nn.attention(%q, %k, %v, %p, %p)  ->  %o, %l = nn.attention(%q, %k, %v, %p, %p) {library =
//   "cudnn"}
//
// cuDNN knows a causal mask by index. It is what nn.attention computes where the positions of queries and
// keys are one value that ascends: the batch's own positions, as they come. Where context parallelism gathers
// keys, turns them round or orders the sequence in a zig-zag, queries and keys have positions of their own,
// and the target's kernel stays. So it does for other dtypes than bf16 and f16, heads that are not a multiple
// of 8 or beyond 256, and sequences so long that one head's matrix of the deterministic backward (2 bytes s^2
// for each of the heads that share keys) would take more than 1 GiB of scratch. A note counts both, with the
// reasons.
#pragma once

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::passes {

struct PassContext;

// Wants placed functions, whose types are final. Nothing to do where the target names no library. Error:
// InvalidArgument for a library that there is not.
absl::StatusOr<bool> UseLibraries(Program& program, const PassContext& context);

}  // namespace moe::passes
