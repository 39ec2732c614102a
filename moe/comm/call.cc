#include "moe/comm/call.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/device/reduce.h"

namespace moe::comm {
namespace {

constexpr const char* kOpNames[] = {"all_reduce",   "reduce_scatter", "reduce_scatter_v",
                                    "all_gather",   "all_gather_v",   "all_to_all",
                                    "all_to_all_v", "broadcast",      "barrier"};

bool Reduces(Call::Op op) {
  return op == Call::kAllReduce || op == Call::kReduceScatter || op == Call::kReduceScatterV;
}

}  // namespace

std::string CallToString(const Call& call) {
  std::vector<std::string> parts;
  if (Reduces(call.op)) parts.push_back(call.kind == Reduction::kSum ? "sum" : "max");
  if (call.op != Call::kBarrier) parts.push_back(std::string(DTypeName(call.dtype)));
  if (call.op == Call::kAllToAllV) {
    parts.push_back(absl::StrCat("send ", absl::StrJoin(call.counts, " ")));
    parts.push_back(absl::StrCat("receive ", absl::StrJoin(call.receive_counts, " ")));
  } else if (!call.counts.empty()) {
    parts.push_back(absl::StrCat("counts ", absl::StrJoin(call.counts, " ")));
  } else if (call.op != Call::kBarrier) {
    parts.push_back(absl::StrCat("count ", call.count));
  }
  if (call.op == Call::kBroadcast) parts.push_back(absl::StrCat("root ", call.root));
  return absl::StrCat(kOpNames[call.op], "(", absl::StrJoin(parts, ", "), ") for '", call.what, "'");
}

absl::Status CheckCall(const Call& call, int size) {
  if (Reduces(call.op)) RETURN_IF_ERROR(device::CheckReducible(call.dtype, call.kind));
  if (call.count < 0) return absl::InvalidArgumentError("negative count");
  if (call.op == Call::kBroadcast && (call.root < 0 || call.root >= size)) {
    return absl::InvalidArgumentError(absl::StrCat("root ", call.root, " in a group of ", size));
  }
  const bool v =
      call.op == Call::kAllGatherV || call.op == Call::kReduceScatterV || call.op == Call::kAllToAllV;
  if (v && static_cast<int>(call.counts.size()) != size) {
    return absl::InvalidArgumentError(absl::StrCat(call.counts.size(), " counts in a group of ", size));
  }
  if (call.op == Call::kAllToAllV && static_cast<int>(call.receive_counts.size()) != size) {
    return absl::InvalidArgumentError(
        absl::StrCat(call.receive_counts.size(), " receive counts in a group of ", size));
  }
  for (const absl::Span<const int64_t> counts : {call.counts, call.receive_counts}) {
    for (int64_t n : counts) {
      if (n < 0) return absl::InvalidArgumentError("negative count");
    }
  }
  return absl::OkStatus();
}

std::pair<int64_t, int64_t> CallExtents(const Call& call, int rank, int size) {
  const auto sum = [](absl::Span<const int64_t> counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  };
  switch (call.op) {
    case Call::kReduceScatter:
      return {call.count * size, call.count};
    case Call::kReduceScatterV:
      return {sum(call.counts), rank < static_cast<int>(call.counts.size()) ? call.counts[rank] : 0};
    case Call::kAllGather:
      return {call.count, call.count * size};
    case Call::kAllGatherV:
      return {call.count, sum(call.counts)};
    case Call::kAllToAll:
      return {call.count * size, call.count * size};
    case Call::kAllToAllV:
      return {sum(call.counts), sum(call.receive_counts)};
    default:
      return {call.count, call.count};
  }
}

absl::Status ForwardCall(const Call& c, Communicator* to, const void* in, void* out) {
  switch (c.op) {
    case Call::kAllReduce:
      return to->AllReduce(in, out, c.count, c.dtype, c.kind, c.what);
    case Call::kReduceScatter:
      return to->ReduceScatter(in, out, c.count, c.dtype, c.kind, c.what);
    case Call::kReduceScatterV:
      return to->ReduceScatterV(in, c.counts, out, c.dtype, c.kind, c.what);
    case Call::kAllGather:
      return to->AllGather(in, out, c.count, c.dtype, c.what);
    case Call::kAllGatherV:
      return to->AllGatherV(in, c.count, out, c.counts, c.dtype, c.what);
    case Call::kAllToAll:
      return to->AllToAll(in, out, c.count, c.dtype, c.what);
    case Call::kAllToAllV:
      return to->AllToAllV(in, c.counts, out, c.receive_counts, c.dtype, c.what);
    case Call::kBroadcast:
      return to->Broadcast(out, c.count, c.dtype, c.root, c.what);
    case Call::kBarrier:
      return to->Barrier(c.what);
  }
  return absl::InternalError("no such call");
}

bool SameShape(const Call& a, const Call& b) {
  if (a.op != b.op || a.dtype != b.dtype || a.what != b.what) return false;
  if (Reduces(a.op) && a.kind != b.kind) return false;
  if (a.op == Call::kBroadcast && a.root != b.root) return false;
  if (a.op == Call::kAllToAllV) return true;
  if (a.op == Call::kAllGatherV || a.op == Call::kReduceScatterV) return a.counts == b.counts;
  return a.count == b.count;
}

std::string GroupName(absl::Span<const int64_t> ranks) {
  return absl::StrCat("group [", absl::StrJoin(ranks, ", "), "]");
}

absl::Status MismatchError(absl::Span<const int64_t> ranks, int a, const Call& call_a, int b,
                           const Call& call_b) {
  return absl::FailedPreconditionError(absl::StrCat("calls of ", GroupName(ranks), " do not match: rank ",
                                                    ranks[a], " is in ", CallToString(call_a), ", rank ",
                                                    ranks[b], " in ", CallToString(call_b)));
}

absl::Status TimeoutError(absl::Span<const int64_t> ranks, absl::Duration timeout,
                          absl::Span<const Call* const> calls) {
  std::vector<std::string> in;
  std::vector<int64_t> missing;
  for (size_t r = 0; r < ranks.size(); ++r) {
    if (calls[r] != nullptr) {
      in.push_back(absl::StrCat("rank ", ranks[r], " in ", CallToString(*calls[r])));
    } else {
      missing.push_back(ranks[r]);
    }
  }
  return absl::DeadlineExceededError(absl::StrCat(GroupName(ranks), " waited ", absl::FormatDuration(timeout),
                                                  " for all to enter; ", absl::StrJoin(in, ", "),
                                                  "; never entered: ", absl::StrJoin(missing, ", ")));
}

std::string MessageToString(bool send, int64_t bytes, int64_t from, int64_t to, int64_t tag,
                            absl::string_view what) {
  return absl::StrCat(send ? "send" : "receive", " of ", bytes, " bytes from rank ", from, " to rank ", to,
                      ", tag ", tag, ", for '", what, "'");
}

absl::StatusOr<int> PositionInGroup(int64_t rank, int64_t num_ranks, absl::Span<const int64_t> ranks) {
  const auto at = std::find(ranks.begin(), ranks.end(), rank);
  const std::set<int64_t> distinct(ranks.begin(), ranks.end());
  if (at == ranks.end() || distinct.size() != ranks.size() || *distinct.begin() < 0 ||
      *distinct.rbegin() >= num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank, " asks for the group [", absl::StrJoin(ranks, ", "),
                     "]; a group names its caller and each rank below ", num_ranks, " at most once"));
  }
  return static_cast<int>(at - ranks.begin());
}

std::pair<int64_t, int64_t> ReduceSegment(int64_t count, int n, int r) {
  constexpr int64_t kLine = 64;
  const int64_t each = ((count + n - 1) / n + kLine - 1) / kLine * kLine;
  return {std::min(count, r * each), std::min(count, (r + 1) * each)};
}

absl::Status CallCommunicator::AllReduce(const void* in, void* out, int64_t count, DType dtype,
                                         Reduction kind, absl::string_view what) {
  return Run({.op = Call::kAllReduce,
              .dtype = dtype,
              .kind = kind,
              .count = count,
              .in = in,
              .out = out,
              .what = what});
}

absl::Status CallCommunicator::ReduceScatter(const void* in, void* out, int64_t count, DType dtype,
                                             Reduction kind, absl::string_view what) {
  return Run({.op = Call::kReduceScatter,
              .dtype = dtype,
              .kind = kind,
              .count = count,
              .in = in,
              .out = out,
              .what = what});
}

absl::Status CallCommunicator::ReduceScatterV(const void* in, absl::Span<const int64_t> counts, void* out,
                                              DType dtype, Reduction kind, absl::string_view what) {
  return Run({.op = Call::kReduceScatterV,
              .dtype = dtype,
              .kind = kind,
              .counts = counts,
              .in = in,
              .out = out,
              .what = what});
}

absl::Status CallCommunicator::AllGather(const void* in, void* out, int64_t count, DType dtype,
                                         absl::string_view what) {
  return Run({.op = Call::kAllGather, .dtype = dtype, .count = count, .in = in, .out = out, .what = what});
}

absl::Status CallCommunicator::AllGatherV(const void* in, int64_t count, void* out,
                                          absl::Span<const int64_t> counts, DType dtype,
                                          absl::string_view what) {
  return Run({.op = Call::kAllGatherV,
              .dtype = dtype,
              .count = count,
              .counts = counts,
              .in = in,
              .out = out,
              .what = what});
}

absl::Status CallCommunicator::AllToAll(const void* in, void* out, int64_t count, DType dtype,
                                        absl::string_view what) {
  return Run({.op = Call::kAllToAll, .dtype = dtype, .count = count, .in = in, .out = out, .what = what});
}

absl::Status CallCommunicator::AllToAllV(const void* in, absl::Span<const int64_t> send_counts, void* out,
                                         absl::Span<const int64_t> recv_counts, DType dtype,
                                         absl::string_view what) {
  return Run({.op = Call::kAllToAllV,
              .dtype = dtype,
              .counts = send_counts,
              .receive_counts = recv_counts,
              .in = in,
              .out = out,
              .what = what});
}

absl::Status CallCommunicator::Broadcast(void* data, int64_t count, DType dtype, int root,
                                         absl::string_view what) {
  return Run({.op = Call::kBroadcast,
              .dtype = dtype,
              .count = count,
              .root = root,
              .in = data,
              .out = data,
              .what = what});
}

absl::Status CallCommunicator::Barrier(absl::string_view what) {
  return Run({.op = Call::kBarrier, .what = what});
}

absl::Status CallCommunicator::Send(const void* data, int64_t bytes, int peer, int64_t tag,
                                    absl::string_view what) {
  return Exchange(true, const_cast<void*>(data), bytes, peer, tag, what);
}

absl::Status CallCommunicator::Recv(void* data, int64_t bytes, int peer, int64_t tag,
                                    absl::string_view what) {
  return Exchange(false, data, bytes, peer, tag, what);
}

}  // namespace moe::comm
