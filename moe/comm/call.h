// The code that all back ends of Communicator share: where the blocks of a Call lie, whether a call is valid
// in itself and matches the calls of the other members, and the texts of their errors.
//
//   RETURN_IF_ERROR(CheckCall(call, ranks, me));
//   for (int peer = 0; peer < size; ++peer) Send(peer, call.in, SendRange(call, me, peer, size));
//
// Plain functions; `ranks` are those of the group, and members are numbered by their position in it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"

namespace moe::comm {

absl::string_view CallName(Call::Op op);     // "all_to_all_v"
std::string CallToString(const Call& call);  // "all_reduce(sum, f32, count 4) for 'x'"; no message
inline bool IsMessage(const Call& call) { return call.op == Call::kSend || call.op == Call::kReceive; }
bool Reduces(const Call& call);

// A call by itself. Two members may both be wrong, so this comes before they are compared.
absl::Status CheckCall(const Call& call, absl::Span<const int64_t> ranks, int me);

// Elements of `in` and `out`, of member `me` of `size`.
std::pair<int64_t, int64_t> CallExtents(const Call& call, int me, int size);

// Elements [begin, begin + count) of a buffer.
struct Range {
  int64_t begin = 0, count = 0;
};
// What of `in` goes from member `me` to member `peer`, in a checked call that is not a message. Of an
// all_reduce, each member reduces a segment: whole cache lines, so that neighbours do not share one.
Range SendRange(const Call& call, int me, int peer, int size);
// Where in `out` it goes; of a reduction, where the block goes that member `me` reduces.
Range ReceiveRange(const Call& call, int me, int peer, int size);

// Whether two members may meet in these calls. The counts of all_to_all_v differ by design and are compared
// pairwise, by the back end.
bool SameShape(const Call& a, const Call& b);

std::string GroupName(absl::Span<const int64_t> ranks);  // "group [0, 2, 4]"
// "send of 8 bytes from rank 0 to rank 1, tag 3, for 'act.0'"
std::string MessageToString(const Call& message, absl::Span<const int64_t> ranks, int me);

// The errors that all back ends give, in the same words.
absl::Status MismatchError(absl::Span<const int64_t> ranks, int a, const Call& call_a, int b,
                           const Call& call_b);
// calls[i] is null if member i has not entered.
absl::Status TimeoutError(absl::Span<const int64_t> ranks, absl::Duration timeout,
                          absl::Span<const Call* const> calls);

// The same in all processes: FNV-1a.
uint64_t StableHash(absl::string_view bytes);

// Where `rank` stands in the group `ranks`. InvalidArgument if it does not, or if a rank is out of range or
// listed twice.
absl::StatusOr<int> PositionInGroup(int64_t rank, int64_t num_ranks, absl::Span<const int64_t> ranks);

}  // namespace moe::comm
