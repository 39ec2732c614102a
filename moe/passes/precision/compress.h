// compress: marks the exchanges whose values travel in a narrower format than they have.
//
//   strategy "compress_dispatch=f8 compress_combine=bf16 compress_gather=f8 compress_grad=bf16"
//   after insert-collectives: comm.all_to_all(%d) {axes = [ep], ..., wire = "f8e4m3"}
//
// dispatch: tokens on their way to the experts, and their gradients on the way back. combine: what the
// experts give on its way to the tokens, and its gradient on the way to the experts; both also where tokens
// are gathered before they are dispatched and reduced after they were combined (dispatcher=allgather).
// gather: parameters, or their narrow casts, gathered before use (ZeRO-3). grad: gradients of parameters,
// reduced every microbatch or once a step. The mark is all there is: exchange and cost honour it, the memory
// plan counts its buffers. Sums are in f32, see moe/ir/wire_format.h.
//
// A format that is not narrower than the values changes nothing, and the pass says how many it left.
// So are the working copies of parameters that an update gathers (ZeRO-1 and -2, see mixed_precision.h);
// parameters that it gathers themselves are masters and stay whole.
#pragma once

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::passes {

struct PassContext;

// The strategy has one of the words compress_...=.
bool AsksForCompression(const PassContext& context);

// Error: FailedPrecondition before insert-collectives.
absl::StatusOr<bool> Compress(Program& program, const PassContext& context);

}  // namespace moe::passes
