// InProcessGroup: the rendezvous of one group of virtual ranks, see in_process.h.
//
// A collective is a round: every member calls Run with its Call; the last to arrive compares the calls and
// forms the round; from then on all members finish it, whatever else happens, because peers read each other's
// buffers. Abort and timeouts therefore only reach members of rounds that are not formed yet. Point-to-point
// messages meet in a queue per (source, destination, tag); the side that comes second copies.
//
// With streams the threads meet in the same way, and then only give work to the streams: each member records
// an event when it enters, the work of a round waits for those, and what the members give to their streams
// afterwards waits for the work. While a thread is inside a call, its stream belongs to the group: who does
// the work makes the others' streams wait for it. On one device the last to arrive gives all the work to its
// stream; on several each member its share.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "moe/comm/call.h"
#include "moe/comm/communicator.h"
#include "moe/comm/compute_gate.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/device/device.h"

namespace moe::comm {

class InProcessGroup {
 public:
  InProcessGroup(std::vector<int64_t> ranks, InProcessOptions options);
  InProcessGroup(const InProcessGroup&) = delete;
  InProcessGroup& operator=(const InProcessGroup&) = delete;

  int size() const { return static_cast<int>(ranks_.size()); }
  Communicator* member(int rank) { return members_[rank].get(); }

  // From now on buffers of this member are memory of the stream's device; all members do so or none. Not
  // while the member is in a call.
  absl::Status Bind(int rank, device::Stream* stream);

  absl::Status Run(int rank, const Call& call);
  void Abort(absl::Status reason);

 private:
  // One side of a message, on the stack of the thread that waits.
  struct Post {
    const Call* call = nullptr;
    int rank = 0;
    bool taken = false;  // the other side copies now
    bool done = false;
    absl::Status status;
    ComputeGate::Condition changed;
  };

  absl::Status Collective(int rank, const Call& call);
  absl::Status Exchange(int rank, const Call& message);
  // Waits until the round of `epoch` is over or handed out (*split), or, if it is not formed yet, the group
  // fails.
  absl::Status WaitForRound(int rank, uint64_t epoch, bool* split) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until every member of the formed round has come here. leave: the member is done with the round.
  void FinishShare(int rank, bool leave) ABSL_LOCKS_EXCLUDED(mutex_);
  void NextEpoch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckCalls() const;  // do the calls of a full round fit together?
  int64_t RoundBytes() const;       // read by all members together
  // Work: how data are moved and reduced, see group.cc.
  template <typename Work>
  void Share(int rank, Work& work) const;  // the part of `rank` in the round's work
  template <typename Work>
  void Gather(int rank, Work& work) const;  // second part of an all_reduce
  void DoAllOnHost() const;                 // the parts of all ranks
  absl::Status DoAllOnStream(int rank) const;
  absl::Status ShareOnStreams(int rank);
  bool on_streams() const { return sides_[0].stream != nullptr; }
  absl::Status CopyMessage(int rank, const Call& message, const Post& other);
  absl::Status WaitedTooLong() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fail(absl::Status reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Name() const;  // "group [0, 2, 4]"

  // A member's side of the device.
  struct Side {
    device::Stream* stream = nullptr;
    std::unique_ptr<device::Event> entered;  // what came before the call is done
    std::unique_ptr<device::Event> done;     // its work, or its share, is done
    std::unique_ptr<device::Event> gathered;
  };

  const std::vector<int64_t> ranks_;
  const InProcessOptions options_;
  std::vector<std::unique_ptr<Communicator>> members_;
  std::vector<Side> sides_;  // each written by its member, before it enters

  absl::Mutex mutex_;
  ComputeGate::Condition epoch_changed_;
  // Written by its member under the lock before the round is formed, read by all after; hence not guarded.
  std::vector<Call> calls_;
  std::vector<bool> entered_ ABSL_GUARDED_BY(mutex_);
  int arrived_ ABSL_GUARDED_BY(mutex_) = 0;  // in the current epoch
  bool formed_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  bool split_ ABSL_GUARDED_BY(mutex_) = false;  // every member works on the round that has just been formed
  absl::Status round_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);  // aborted or timed out: for good
  // Entries stay when they are empty: the next step has the same keys, and steps allocate nothing.
  std::map<std::tuple<int, int, int64_t>, absl::InlinedVector<Post*, 2>> posts_
      ABSL_GUARDED_BY(mutex_);  // (from, to, tag)
};

}  // namespace moe::comm
