// Communicator: collectives among the ranks of one group. Blocking; a queue of the runtime gives each its own
// thread.
//
//   comm->AllReduce(x, x, n, DType::kF32, Reduction::kSum, "layers.0.attn.out");
//
// Buffers are host memory of `count` elements unless stated. Reductions add (or take the maximum of) the
// contributions in ascending group rank, in f32 or wider whatever the wire type is, and give identical bits
// on every rank. All ranks of a group must call the same operations in the same order with the same sizes; a
// back end reports a mismatch (FailedPrecondition, naming both calls) where it can see one. After Abort every
// pending and later call returns Aborted with the given reason.
//
// What a member asks for is a value, a Call, so that back ends can compare the calls of the members, and so
// that a back end, or a communicator before another one, implements one function:
//
//   class Logged : public Communicator {
//     absl::Status Run(const Call& call) override {
//       LOG(INFO) << call.what;
//       return inner->Run(call);
//     }
//     Communicator* inner;
//   };
//
// A Call views memory of the caller and is valid while the caller is inside Run.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/ir/types.h"

namespace moe::comm {

struct Call {
  enum Op : uint8_t {
    kAllReduce,
    kReduceScatter,
    kReduceScatterV,
    kAllGather,
    kAllGatherV,
    kAllToAll,
    kAllToAllV,
    kBroadcast,
    kBarrier,
    kSend,
    kReceive,
  };
  Op op = kBarrier;
  absl::string_view what;  // names the node for error messages and flight records
  DType dtype = DType::kPred;
  const void* in = nullptr;  // not of kReceive
  void* out = nullptr;       // not of kSend
  int64_t count = 0;         // as in Communicator; kAllGatherV: of this rank; kSend, kReceive: bytes
  Reduction kind = Reduction::kSum;
  absl::Span<const int64_t> counts;          // kAllGatherV, kReduceScatterV; kAllToAllV: to send
  absl::Span<const int64_t> receive_counts;  // kAllToAllV
  int peer = 0;                              // kBroadcast: the root; kSend, kReceive: the other side
  int64_t tag = 0;                           // kSend, kReceive
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // in the group
  virtual int size() const = 0;
  virtual absl::Status Run(const Call& call) = 0;
  virtual void Abort(absl::Status reason) = 0;

  // in == out is allowed here; below, in and out do not overlap unless it is said.
  absl::Status AllReduce(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                         absl::string_view what) {
    return Run({Call::kAllReduce, what, dtype, in, out, count, kind});
  }
  // in: size() blocks of `count`, in group order; out: this rank's block, reduced.
  absl::Status ReduceScatter(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                             absl::string_view what) {
    return Run({Call::kReduceScatter, what, dtype, in, out, count, kind});
  }
  // in: blocks of counts[p] elements, packed in group order, the same counts on every rank; out: this rank's
  // block, reduced. `out` may be this rank's block of `in`.
  absl::Status ReduceScatterV(const void* in, absl::Span<const int64_t> counts, void* out, DType dtype,
                              Reduction kind, absl::string_view what) {
    return Run({Call::kReduceScatterV, what, dtype, in, out, 0, kind, counts});
  }
  // in: `count`; out: size() blocks of `count`, in group order.
  absl::Status AllGather(const void* in, void* out, int64_t count, DType dtype, absl::string_view what) {
    return Run({Call::kAllGather, what, dtype, in, out, count});
  }
  // Blocks of different sizes from every rank to every rank: `count` elements of mine; counts[p] is p's
  // `count`. out: the blocks packed in group order. `in` may be this rank's block of `out`.
  absl::Status AllGatherV(const void* in, int64_t count, void* out, absl::Span<const int64_t> counts,
                          DType dtype, absl::string_view what) {
    return Run({Call::kAllGatherV, what, dtype, in, out, count, {}, counts});
  }
  // in, out: size() blocks of `count`.
  absl::Status AllToAll(const void* in, void* out, int64_t count, DType dtype, absl::string_view what) {
    return Run({Call::kAllToAll, what, dtype, in, out, count});
  }
  // Blocks of different sizes, packed in group order. Counts in elements; the caller knows what it receives.
  absl::Status AllToAllV(const void* in, absl::Span<const int64_t> send_counts, void* out,
                         absl::Span<const int64_t> receive_counts, DType dtype, absl::string_view what) {
    return Run({Call::kAllToAllV, what, dtype, in, out, 0, {}, send_counts, receive_counts});
  }
  absl::Status Broadcast(void* data, int64_t count, DType dtype, int root, absl::string_view what) {
    return Run({Call::kBroadcast, what, dtype, data, data, count, {}, {}, {}, root});
  }
  absl::Status Barrier(absl::string_view what) { return Run({Call::kBarrier, what}); }
  // Rendezvous between two ranks of the group; `tag` tells messages of one pair apart.
  absl::Status Send(const void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) {
    return Run({Call::kSend, what, DType::kPred, data, nullptr, bytes, {}, {}, {}, peer, tag});
  }
  absl::Status Recv(void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) {
    return Run({Call::kReceive, what, DType::kPred, nullptr, data, bytes, {}, {}, {}, peer, tag});
  }
};

}  // namespace moe::comm
