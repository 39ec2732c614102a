// NcclGroup: the communicator of one rank in one group and channel, see nccl_world.h.
//
// A call is a few steps: NCCL's calls are given in one group, then the caller waits until NCCL has taken
// them (a communicator that does not block may do so later), so that the stream's order is the order of the
// calls; sums in the canonical order then give work to the stream between two such steps. What was given is
// kept with an event until it is done, for the watcher. The mutex is held around every use of the
// communicator, so that it can be aborted at any time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "moe/comm/call.h"
#include "moe/comm/nccl/nccl_api.h"
#include "moe/comm/nccl/nccl_world.h"
#include "moe/comm/store/store.h"
#include "moe/device/device.h"

namespace moe::comm {

// f8 and pred travel as bytes; a maximum of pred is one of bytes.
ncclDataType_t NcclType(DType dtype);

class NcclGroup : public Communicator {
 public:
  // `name`: of the group in the store, the same on all members and of no other group.
  NcclGroup(const NcclApi* nccl, Store* store, std::string name, std::vector<int64_t> ranks, int me,
            const NcclOptions& options);
  ~NcclGroup() override;

  // Before Connect, and later to change it. Not during a call.
  absl::Status Bind(device::Stream* stream);
  // Begins to connect; the first call waits for it.
  absl::Status Connect(const ncclUniqueId& id);

  int rank() const override { return me_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  absl::Status Run(const Call& call) override;
  void Abort(absl::Status reason) override;

  absl::Status Check();  // what went wrong, as NCCL knows it now
  // Also ends what takes too long, and gives that error.
  absl::Status Watch();

 private:
  // A call that was given and may not be done yet.
  struct Given {
    std::string text;  // as errors show it
    uint64_t number = 0;
    PeerDeadline deadline = {absl::ZeroDuration(), nullptr};
    cudaEvent_t event = nullptr;
    bool waiting = false;
  };
  // To or from each member: where, and how many elements.
  struct Part {
    const void* send = nullptr;
    int64_t send_count = 0;
    void* receive = nullptr;
    int64_t receive_count = 0;
  };

  absl::Status RunAlone(const Call& call);
  absl::Status GiveCall(const Call& call);
  absl::Status Barrier(const Call& call);
  absl::Status ReduceInOrder(const Call& call);
  // Between all members at once; the own part is copied.
  absl::Status ExchangeParts(DType dtype);
  // Gives calls to NCCL as one group, and waits until they are taken. `uses`: what of this rank's memory.
  absl::Status Give(absl::Span<const device::MemoryUse> uses,
                    const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& calls);
  // Until NCCL has nothing in progress. Error of DeadlineExceeded without words: the caller finds them.
  absl::Status AwaitTaken(PeerDeadline& deadline);
  absl::Status Poll(bool* in_progress) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ErrorOf(ncclResult_t result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Fail(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Asks the members what they are in. DeadlineExceeded, or FailedPrecondition if they are in different
  // calls.
  absl::Status ExplainTimeout(const std::string& text, uint64_t number, absl::Duration waited);
  void Track(const std::string& text);
  absl::StatusOr<char*> Scratch(int64_t bytes);
  cudaStream_t native() const { return static_cast<cudaStream_t>(stream_->native()); }

  const NcclApi* const nccl_;
  Store* const store_;
  const std::string name_;
  const std::vector<int64_t> ranks_;
  const int me_;
  const NcclOptions options_;
  device::Stream* stream_ = nullptr;
  int ordinal_ = 0;
  std::vector<Part> parts_;              // by member, of the call that runs
  std::vector<const void*> sources_;     // of a sum, by member
  std::vector<device::MemoryUse> uses_;  // of parts; room for all members
  std::unique_ptr<device::DeviceMemory> scratch_;
  uint64_t number_ = 0;                                      // of the last call
  PeerDeadline deadline_ = {absl::ZeroDuration(), nullptr};  // of the call that runs

  absl::Mutex mutex_;
  ncclComm_t comm_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);  // for good
  std::vector<Given> given_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe::comm
