// split-experts: cuts the experts of a rank in parts that are exchanged and computed one after the other, so
// that `overlap` can let one part travel while another is computed (strategy word moe_chunks=).
//
//   %r = comm.all_to_all(%d)                 %d0, %d1 = moe.split_experts(%d)
//   %h = math.einsum(%r, %w)                 %w0, %w1 = moe.split_experts(%w)
//   %b = comm.all_to_all(%h)           ->    %r0 = comm.all_to_all(%d0)    %r1 = ...
//                                            %h0 = math.einsum(%r0, %w0)   %h1 = ...
//                                            %b0 = comm.all_to_all(%h0)    %b1 = ...
//                                            %b = moe.join_experts(%b0, %b1)
//
// What is cut lies between exchanges that bring tokens to the ranks of their experts and those that take them
// back, in the forward and in the backward: nodes for which experts are a batch. Each expert computes what it
// did, so results are bitwise the same. Weights are cut where they are used, once per phase, and not saved.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// The strategy has moe_chunks above 1.
bool AsksForExpertParts(const PassContext& context);

// The chunks must be placed and their collectives lowered. Error (InvalidArgument): parts that do not divide
// the experts of a rank, with those that do.
absl::StatusOr<bool> SplitExperts(Program& program, const PassContext& context);

}  // namespace moe::passes
