// The local part of a placed graph: what one rank's kernels see of nodes and values.
//
//   ASSIGN_OR_RETURN(kernels::KernelContext c, LocalContext(node, mesh, rank));
//   c.in.push_back(LocalTensor(node.operand(0).type(), mesh, buffer, bytes, spill));
//   RETURN_IF_ERROR(kernel->Run(c));
//
// Pure functions; no ownership: tensors point at the caller's buffers.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/cost/target.h"
#include "moe/ir/graph.h"
#include "moe/ir/types.h"
#include "moe/ir/wire_format.h"
#include "moe/kernels/kernel.h"

namespace moe::runtime {

// Rule, local extents, offsets and global extents of every factor; no tensors yet. A node without an
// assignment is taken as unsharded.
absl::StatusOr<kernels::KernelContext> LocalContext(const Node& n, const Mesh& mesh, int64_t rank);

// A tensor over `bytes` at `base` (StorageOf(type, mesh).bytes of it, or less for a ragged value with a
// tighter bound). `spill` is room for the worst case of a ragged value, or null. Ragged: PlaceRows() must be
// called once sizes are known.
kernels::Tensor LocalTensor(const Type& type, const Mesh& mesh, void* base, int64_t bytes,
                            void* spill = nullptr);

// The format in which a conversion's values travel (the attribute "wire").
WireFormat WireOf(const Node& n);

// The block of a global array that a rank holds: per dim, first index and extent.
struct Block {
  Dims begin, extent, global;
  // Where the program has another order of equal blocks along a dim than the rest of the world: its block i
  // is the world's block order[i]. Empty: the same.
  std::vector<int64_t> order;
  int ordered_dim = -1;
  int64_t elements() const;
};
Block LocalBlock(const Type& type, const Mesh& mesh, int64_t rank);
// The block of a value whose node says in what `order` it has the batch's routing groups, dim 1.
Block LocalBlockInOrder(const Node& n, const Type& type, const Mesh& mesh, int64_t rank);
// Calls fn(global offset, local offset, count) for each run of consecutive elements of the block, in local
// order.
void ForEachRun(const Block& block, const std::function<void(int64_t, int64_t, int64_t)>& fn);

// Scratch bytes that a node needs on one rank: those of its kernel in this back end, or of its exchange.
// Ragged values count by `overload` as in StorageOf. Error: NotFound if there is no kernel.
absl::StatusOr<int64_t> NodeWorkspace(const Node& n, const Mesh& mesh, kernels::Backend backend,
                                      double overload);
// The back end whose kernels a target runs. Error: InvalidArgument for an unknown device.
absl::StatusOr<kernels::Backend> BackendOf(const cost::Target& target);
// The same as a PassContext::workspace; a node without a kernel counts 0 (the executor reports it when
// it binds).
std::function<int64_t(const Node&, const Mesh&)> WorkspaceHook(kernels::Backend backend, double overload);

}  // namespace moe::runtime
