// World: one rank's way to its communicators. A back end gives one World per rank; the rest of the runtime
// asks it for the group of each step and knows no back end.
//
//   ASSIGN_OR_RETURN(Communicator* tp, world->Group(mesh.Group(rank, tp_axes), "comm"));
//   RETURN_IF_ERROR(tp->AllReduce(x, y, n, DType::kF32, Reduction::kSum, "layers.0.attn.out"));
//
// A World owns its communicators; they live as long as it does. Group and Abort may be called from any
// thread. One communicator serves one thread of a rank at a time, hence the channels: queues that run
// concurrently use a channel each, and never wait for one another's collectives.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"
#include "moe/device/device.h"

namespace moe::comm {

class World {
 public:
  virtual ~World() = default;
  virtual int64_t rank() const = 0;
  virtual int64_t num_ranks() const = 0;

  // The communicator of this rank in the group of `ranks`, in that order (group rank i is ranks[i]). The same
  // group and channel give the same communicator. Every member asks for the same groups in the same order; a
  // back end may connect its members here, so ask while loading. Error: InvalidArgument if this rank is no
  // member, or a rank is out of range or listed twice; Unimplemented if the back end cannot work on the
  // stream's memory.
  //
  // With a stream, buffers are memory of its device, and a call returns when its work is given to the stream,
  // or later. Without one they are the host's. All members agree. A group that is asked for again with
  // another stream works on that one from then on.
  virtual absl::StatusOr<Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                              device::Stream* stream = nullptr) = 0;

  // What went wrong with work that was given to streams by calls that have returned. Ask after
  // Stream::Synchronize and before results are believed.
  virtual absl::Status Failure() { return absl::OkStatus(); }

  // Why the run has ended, if this rank was told so, by whoever met an error first. Never waits, also while a
  // call does not come back; by any thread.
  virtual absl::Status Ended() { return absl::OkStatus(); }

  // Fails every pending and later call of every communicator, of all ranks where the back end can reach them.
  virtual void Abort(absl::Status reason) = 0;
};

}  // namespace moe::comm
