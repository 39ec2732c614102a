// One step of an exchange in a wire format narrower than its values: encoded, moved as bytes, decoded.
//
//   WireTransfer t(WireFormat::kF8, DType::kF32, group_size);
//   RETURN_IF_ERROR(t.AllToAll(comm, in, send, out, receive, scratch, what));   // counts in elements
//
// A reduction is an all-to-all of encoded blocks and a local sum in f32, in ascending group rank; an
// all-reduce then gathers the encoded parts. A ring would round at every hop. Every rank decodes the same
// bytes, its own block included, so replicas agree bitwise.
//
// `scratch` has WorkspaceBytes for the elements of the call. One thread at a time; counts live as long as the
// call.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"
#include "moe/device/device.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/types.h"
#include "moe/ir/wire_format.h"

namespace moe::runtime {

// Elements of each rank's part of an all-reduce of `count`, the last ones less: whole wire blocks.
int64_t WirePart(int64_t count, int64_t ranks);

class WireTransfer {
 public:
  // Values are in memory of the stream's device, as the communicator's buffers are; null: of the host.
  WireTransfer(WireFormat wire, DType dtype, int group_size, device::Stream* stream = nullptr);

  // Bound for a step that takes `in` elements to `out` elements on each rank.
  static int64_t WorkspaceBytes(WireFormat wire, DType dtype, StepKind kind, int group_size, int64_t in,
                                int64_t out);

  // As in Communicator, counts in elements. Buffers do not overlap, but AllReduce may be in place.
  absl::Status AllToAll(comm::Communicator* c, const char* in, absl::Span<const int64_t> send, char* out,
                        absl::Span<const int64_t> receive, char* scratch, absl::string_view what);
  absl::Status AllGather(comm::Communicator* c, const char* in, int64_t count, char* out,
                         absl::Span<const int64_t> counts, char* scratch, absl::string_view what);
  absl::Status ReduceScatter(comm::Communicator* c, const char* in, absl::Span<const int64_t> counts,
                             char* out, Reduction kind, char* scratch, absl::string_view what);
  absl::Status AllReduce(comm::Communicator* c, const char* in, char* out, int64_t count, Reduction kind,
                         char* scratch, absl::string_view what);

  // Bytes that the last call gave to other ranks.
  int64_t bytes_sent() const { return bytes_sent_; }

 private:
  int64_t Bytes(int64_t n) const { return WireBytes(wire_, dtype_, n); }
  // Blocks of counts[p] elements, packed, to encoded blocks; their sizes in `bytes`. Returns the sum.
  absl::StatusOr<int64_t> Encode(const char* in, absl::Span<const int64_t> counts,
                                 std::vector<int64_t>& bytes, char* to) const;
  absl::Status Decode(const char* in, absl::Span<const int64_t> counts, char* out) const;

  const WireFormat wire_;
  const DType dtype_;
  device::Stream* const stream_;
  std::vector<int64_t> send_, receive_, counts_;  // bytes, bytes, elements; per peer
  std::vector<const char*> sources_;              // per peer
  int64_t bytes_sent_ = 0;
};

}  // namespace moe::runtime
