#include "moe/runtime/wire_transfer.h"

#include <algorithm>

#include "moe/base/integers.h"
#include "moe/base/status.h"
#include "moe/device/host_device.h"

namespace moe::runtime {
namespace {

// At most so many bytes for n elements in any number of `blocks` blocks.
int64_t Bound(WireFormat wire, DType dtype, int64_t n, int64_t blocks) {
  return RoundUp(WireBytes(wire, dtype, n) + 4 * blocks, 64);
}

}  // namespace

int64_t WirePart(int64_t count, int64_t ranks) { return RoundUp(CeilDiv(count, ranks), kWireBlock); }

WireTransfer::WireTransfer(WireFormat wire, DType dtype, int group_size, device::Stream* stream)
    : wire_(wire),
      dtype_(dtype),
      stream_(stream == nullptr ? device::HostStream() : stream),
      send_(group_size),
      receive_(group_size),
      counts_(group_size),
      sources_(group_size) {}

int64_t WireTransfer::WorkspaceBytes(WireFormat wire, DType dtype, StepKind kind, int group_size, int64_t in,
                                     int64_t out) {
  const auto bound = [&](int64_t n) { return Bound(wire, dtype, n, group_size); };
  switch (kind) {
    case StepKind::kZero:
    case StepKind::kSlice:
      return 0;
    case StepKind::kAllGather:
    case StepKind::kAllToAll:
    case StepKind::kPermute:
    case StepKind::kRotate:
      return bound(in) + bound(out);
    case StepKind::kReduceScatter:
      return bound(in) + bound(group_size * out);
    case StepKind::kAllReduce: {
      const int64_t all = group_size * WirePart(in, group_size);
      return 2 * bound(all) + RoundUp(WirePart(in, group_size) * ByteSize(dtype), 64);
    }
  }
  return 0;
}

absl::StatusOr<int64_t> WireTransfer::Encode(const char* in, absl::Span<const int64_t> counts,
                                             std::vector<int64_t>& bytes, char* to) const {
  char* const begin = to;
  for (size_t p = 0; p < counts.size(); ++p) {
    RETURN_IF_ERROR(stream_->Encode(wire_, dtype_, in, counts[p], to));
    bytes[p] = Bytes(counts[p]);
    in += counts[p] * ByteSize(dtype_);
    to += bytes[p];
  }
  return to - begin;
}

absl::Status WireTransfer::Decode(const char* in, absl::Span<const int64_t> counts, char* out) const {
  for (const int64_t n : counts) {
    RETURN_IF_ERROR(stream_->Decode(wire_, {in}, n, Reduction::kSum, dtype_, out));
    in += Bytes(n);
    out += n * ByteSize(dtype_);
  }
  return absl::OkStatus();
}

absl::Status WireTransfer::AllToAll(comm::Communicator* c, const char* in, absl::Span<const int64_t> send,
                                    char* out, absl::Span<const int64_t> receive, char* scratch,
                                    absl::string_view what) {
  ASSIGN_OR_RETURN(const int64_t bytes, Encode(in, send, send_, scratch));
  char* const received = scratch + RoundUp(bytes, 64);
  for (size_t p = 0; p < receive.size(); ++p) receive_[p] = Bytes(receive[p]);
  RETURN_IF_ERROR(c->AllToAllV(scratch, send_, received, receive_, DType::kPred, what));
  bytes_sent_ = bytes - send_[c->rank()];
  return Decode(received, receive, out);
}

absl::Status WireTransfer::AllGather(comm::Communicator* c, const char* in, int64_t count, char* out,
                                     absl::Span<const int64_t> counts, char* scratch,
                                     absl::string_view what) {
  RETURN_IF_ERROR(stream_->Encode(wire_, dtype_, in, count, scratch));
  char* const received = scratch + RoundUp(Bytes(count), 64);
  for (size_t p = 0; p < counts.size(); ++p) receive_[p] = Bytes(counts[p]);
  RETURN_IF_ERROR(c->AllGatherV(scratch, Bytes(count), received, receive_, DType::kPred, what));
  bytes_sent_ = Bytes(count) * (c->size() - 1);
  return Decode(received, counts, out);
}

absl::Status WireTransfer::ReduceScatter(comm::Communicator* c, const char* in,
                                         absl::Span<const int64_t> counts, char* out, Reduction kind,
                                         char* scratch, absl::string_view what) {
  ASSIGN_OR_RETURN(const int64_t bytes, Encode(in, counts, send_, scratch));
  const int64_t mine = counts[c->rank()];
  char* const received = scratch + RoundUp(bytes, 64);
  std::fill(receive_.begin(), receive_.end(), Bytes(mine));
  RETURN_IF_ERROR(c->AllToAllV(scratch, send_, received, receive_, DType::kPred, what));
  bytes_sent_ = bytes - send_[c->rank()];
  for (size_t p = 0; p < sources_.size(); ++p) sources_[p] = received + p * Bytes(mine);
  return stream_->Decode(wire_, sources_, mine, kind, dtype_, out);
}

absl::Status WireTransfer::AllReduce(comm::Communicator* c, const char* in, char* out, int64_t count,
                                     Reduction kind, char* scratch, absl::string_view what) {
  const int64_t part = WirePart(count, c->size());
  for (int p = 0; p < c->size(); ++p) counts_[p] = std::clamp<int64_t>(count - p * part, 0, part);
  const int64_t mine = counts_[c->rank()];
  char* const sum = scratch;
  char* const rest = scratch + RoundUp(part * ByteSize(dtype_), 64);
  RETURN_IF_ERROR(ReduceScatter(c, in, counts_, sum, kind, rest, what));
  const int64_t first = bytes_sent_;
  RETURN_IF_ERROR(AllGather(c, sum, mine, out, counts_, rest, what));
  bytes_sent_ += first;
  return absl::OkStatus();
}

}  // namespace moe::runtime
