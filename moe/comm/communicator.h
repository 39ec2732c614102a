// Communicator: collectives among the ranks of one group. Blocking; a queue of the runtime gives each its own
// thread.
//
// Buffers are host memory of `count` elements unless stated. Reductions add (or take the maximum of) the
// contributions in ascending group rank, in f32 or wider whatever the wire type is, and give identical bits
// on every rank. All ranks of a group must call the same operations in the same order with the same sizes; a
// back end reports a mismatch (FailedPrecondition, naming both calls) where it can see one. After Abort every
// pending and later call returns Aborted with the given reason.
//
//   comm->AllReduce(x, x, n, DType::kF32, Reduction::kSum, "layers.0.attn.out");
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/ir/types.h"

namespace moe::comm {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // in the group
  virtual int size() const = 0;

  // `what` names the node for error messages and flight records. in == out is allowed here; below, in and out
  // do not overlap unless it is said.
  virtual absl::Status AllReduce(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                                 absl::string_view what) = 0;
  // in: size() blocks of `count`, in group order; out: this rank's block, reduced.
  virtual absl::Status ReduceScatter(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                                     absl::string_view what) = 0;
  // in: `count`; out: size() blocks of `count`, in group order.
  virtual absl::Status AllGather(const void* in, void* out, int64_t count, DType dtype,
                                 absl::string_view what) = 0;
  // in, out: size() blocks of `count`.
  virtual absl::Status AllToAll(const void* in, void* out, int64_t count, DType dtype,
                                absl::string_view what) = 0;
  // Blocks of different sizes, packed in group order. Counts in elements; the caller knows what it receives.
  virtual absl::Status AllToAllV(const void* in, absl::Span<const int64_t> send_counts, void* out,
                                 absl::Span<const int64_t> recv_counts, DType dtype,
                                 absl::string_view what) = 0;
  // Blocks of different sizes from every rank to every rank: `count` elements of mine; counts[p] is p's
  // `count`. out: the blocks packed in group order. `in` may be this rank's block of `out`.
  virtual absl::Status AllGatherV(const void* in, int64_t count, void* out, absl::Span<const int64_t> counts,
                                  DType dtype, absl::string_view what) = 0;
  // in: blocks of counts[p] elements, packed in group order, the same counts on every rank; out: this rank's
  // block, reduced. `out` may be this rank's block of `in`.
  virtual absl::Status ReduceScatterV(const void* in, absl::Span<const int64_t> counts, void* out,
                                      DType dtype, Reduction kind, absl::string_view what) = 0;
  virtual absl::Status Broadcast(void* data, int64_t count, DType dtype, int root,
                                 absl::string_view what) = 0;
  // Rendezvous between two ranks of the group; `tag` tells messages of one pair apart.
  virtual absl::Status Send(const void* data, int64_t bytes, int peer, int64_t tag,
                            absl::string_view what) = 0;
  virtual absl::Status Recv(void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) = 0;
  virtual absl::Status Barrier(absl::string_view what) = 0;
  virtual void Abort(absl::Status reason) = 0;
};

}  // namespace moe::comm
