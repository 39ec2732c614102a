// Call: what one member of a group asks for, as a value, so that back ends can compare the calls of the
// members and say in the same words what is wrong with them.
//
//   class MyCommunicator : public CallCommunicator {
//     absl::Status Run(const Call& call) override;      // one function instead of nine
//   };
//
// A Call views memory of the caller and is valid while the caller is inside Run. Plain functions otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"

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
  };
  Op op = kBarrier;
  DType dtype = DType::kPred;
  Reduction kind = Reduction::kSum;
  int64_t count = 0;                         // as in the interface; kAllGatherV: of this rank
  int root = 0;                              // kBroadcast
  absl::Span<const int64_t> counts;          // kAllGatherV, kReduceScatterV; kAllToAllV: to send
  absl::Span<const int64_t> receive_counts;  // kAllToAllV
  const void* in = nullptr;
  void* out = nullptr;
  absl::string_view what;
};

// "all_reduce(sum, f32, count 4) for 'x'"
std::string CallToString(const Call& call);

// A call by itself. Two members may both be wrong, so this comes before they are compared.
absl::Status CheckCall(const Call& call, int group_size);

// Elements of `in` and `out`, of member `rank` of `size`.
std::pair<int64_t, int64_t> CallExtents(const Call& call, int rank, int size);

// The call to another communicator of the same group, with buffers of its own.
absl::Status ForwardCall(const Call& call, Communicator* to, const void* in, void* out);

// Whether two members may meet in these calls. The counts of all_to_all_v differ by design and are compared
// pairwise, by the back end.
bool SameShape(const Call& a, const Call& b);

// "group [0, 2, 4]"
std::string GroupName(absl::Span<const int64_t> ranks);

// The errors that all back ends give, in the same words.
absl::Status MismatchError(absl::Span<const int64_t> ranks, int a, const Call& call_a, int b,
                           const Call& call_b);
// calls[i] is null if member i has not entered.
absl::Status TimeoutError(absl::Span<const int64_t> ranks, absl::Duration timeout,
                          absl::Span<const Call* const> calls);
// One side of a message: "send of 8 bytes from rank 0 to rank 1, tag 3, for 'act.0'".
std::string MessageToString(bool send, int64_t bytes, int64_t from, int64_t to, int64_t tag,
                            absl::string_view what);

// Where `rank` stands in the group `ranks`. InvalidArgument if it does not, or if a rank is out of range or
// listed twice.
absl::StatusOr<int> PositionInGroup(int64_t rank, int64_t num_ranks, absl::Span<const int64_t> ranks);

// Member r of n reduces [first, second) of an all_reduce. Whole cache lines, so that neighbours do not share
// one.
std::pair<int64_t, int64_t> ReduceSegment(int64_t count, int n, int r);

// A Communicator whose collectives all end in one function.
class CallCommunicator : public Communicator {
 public:
  absl::Status AllReduce(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                         absl::string_view what) final;
  absl::Status ReduceScatter(const void* in, void* out, int64_t count, DType dtype, Reduction kind,
                             absl::string_view what) final;
  absl::Status ReduceScatterV(const void* in, absl::Span<const int64_t> counts, void* out, DType dtype,
                              Reduction kind, absl::string_view what) final;
  absl::Status AllGather(const void* in, void* out, int64_t count, DType dtype, absl::string_view what) final;
  absl::Status AllGatherV(const void* in, int64_t count, void* out, absl::Span<const int64_t> counts,
                          DType dtype, absl::string_view what) final;
  absl::Status AllToAll(const void* in, void* out, int64_t count, DType dtype, absl::string_view what) final;
  absl::Status AllToAllV(const void* in, absl::Span<const int64_t> send_counts, void* out,
                         absl::Span<const int64_t> recv_counts, DType dtype, absl::string_view what) final;
  absl::Status Broadcast(void* data, int64_t count, DType dtype, int root, absl::string_view what) final;
  absl::Status Barrier(absl::string_view what) final;
  absl::Status Send(const void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) final;
  absl::Status Recv(void* data, int64_t bytes, int peer, int64_t tag, absl::string_view what) final;

 protected:
  virtual absl::Status Run(const Call& call) = 0;
  // One side of a message; `data` is only read by a sender.
  virtual absl::Status Exchange(bool send, void* data, int64_t bytes, int peer, int64_t tag,
                                absl::string_view what) = 0;
};

}  // namespace moe::comm
