#include "moe/comm/call.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/device/reduce.h"

namespace moe::comm {
namespace {

int64_t Sum(absl::Span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

absl::Status CheckCollective(const Call& call, int size) {
  if (Reduces(call)) RETURN_IF_ERROR(device::CheckReducible(call.dtype, call.kind));
  if (call.count < 0) return absl::InvalidArgumentError("negative count");
  if (call.op == Call::kBroadcast && (call.peer < 0 || call.peer >= size)) {
    return absl::InvalidArgumentError(absl::StrCat("root ", call.peer, " in a group of ", size));
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

// What member `member` of `size` reduces of an all_reduce.
Range Segment(int64_t count, int member, int size) {
  constexpr int64_t kLine = 64;
  const int64_t each = ((count + size - 1) / size + kLine - 1) / kLine * kLine;
  const int64_t begin = std::min(count, member * each);
  return {begin, std::min(count, (member + 1) * each) - begin};
}

Range Block(absl::Span<const int64_t> counts, int member) {
  return {Sum(counts.subspan(0, member)), counts[member]};
}

}  // namespace

absl::string_view CallName(Call::Op op) {
  constexpr absl::string_view kNames[] = {"all_reduce",   "reduce_scatter", "reduce_scatter_v", "all_gather",
                                          "all_gather_v", "all_to_all",     "all_to_all_v",     "broadcast",
                                          "barrier",      "send",           "receive"};
  return kNames[op];
}

bool Reduces(const Call& call) {
  return call.op == Call::kAllReduce || call.op == Call::kReduceScatter || call.op == Call::kReduceScatterV;
}

std::string CallToString(const Call& call) {
  std::vector<std::string> parts;
  if (Reduces(call)) parts.push_back(call.kind == Reduction::kSum ? "sum" : "max");
  if (call.op != Call::kBarrier) parts.push_back(std::string(DTypeName(call.dtype)));
  if (call.op == Call::kAllToAllV) {
    parts.push_back(absl::StrCat("send ", absl::StrJoin(call.counts, " ")));
    parts.push_back(absl::StrCat("receive ", absl::StrJoin(call.receive_counts, " ")));
  } else if (!call.counts.empty()) {
    parts.push_back(absl::StrCat("counts ", absl::StrJoin(call.counts, " ")));
  } else if (call.op != Call::kBarrier) {
    parts.push_back(absl::StrCat("count ", call.count));
  }
  if (call.op == Call::kBroadcast) parts.push_back(absl::StrCat("root ", call.peer));
  return absl::StrCat(CallName(call.op), "(", absl::StrJoin(parts, ", "), ") for '", call.what, "'");
}

absl::Status CheckCall(const Call& call, absl::Span<const int64_t> ranks, int me) {
  const int size = static_cast<int>(ranks.size());
  if (!IsMessage(call)) {
    const absl::Status status = CheckCollective(call, size);
    return status.ok() ? status : Annotate(status, CallToString(call));
  }
  if (call.count >= 0 && call.peer >= 0 && call.peer < size && call.peer != me) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("rank ", ranks[me], " of ", GroupName(ranks), ", '",
                                                 call.what, "': ", call.count,
                                                 " bytes to or from group rank ", call.peer));
}

std::pair<int64_t, int64_t> CallExtents(const Call& call, int me, int size) {
  switch (call.op) {
    case Call::kReduceScatter:
      return {call.count * size, call.count};
    case Call::kReduceScatterV:
      return {Sum(call.counts), call.counts[me]};
    case Call::kAllGather:
      return {call.count, call.count * size};
    case Call::kAllGatherV:
      return {call.count, Sum(call.counts)};
    case Call::kAllToAll:
      return {call.count * size, call.count * size};
    case Call::kAllToAllV:
      return {Sum(call.counts), Sum(call.receive_counts)};
    case Call::kSend:
      return {call.count, 0};
    case Call::kReceive:
      return {0, call.count};
    case Call::kAllReduce:
    case Call::kBroadcast:
    case Call::kBarrier:
      break;
  }
  return {call.count, call.count};
}

Range SendRange(const Call& call, int me, int peer, int size) {
  switch (call.op) {
    case Call::kAllReduce:
      return Segment(call.count, peer, size);
    case Call::kReduceScatter:
    case Call::kAllToAll:
      return {peer * call.count, call.count};
    case Call::kReduceScatterV:
    case Call::kAllToAllV:
      return Block(call.counts, peer);
    case Call::kBroadcast:
      return {0, me == call.peer ? call.count : 0};
    default:
      return {0, call.count};
  }
}

Range ReceiveRange(const Call& call, int me, int peer, int size) {
  switch (call.op) {
    case Call::kAllReduce:
      return Segment(call.count, me, size);
    case Call::kReduceScatterV:
      return {0, call.counts[me]};
    case Call::kAllGather:
    case Call::kAllToAll:
      return {peer * call.count, call.count};
    case Call::kAllGatherV:
      return Block(call.counts, peer);
    case Call::kAllToAllV:
      return Block(call.receive_counts, peer);
    case Call::kBroadcast:
      return {0, peer == call.peer ? call.count : 0};
    default:
      return {0, call.count};
  }
}

bool SameShape(const Call& a, const Call& b) {
  if (a.op != b.op || a.dtype != b.dtype || a.what != b.what) return false;
  if (Reduces(a) && a.kind != b.kind) return false;
  if (a.op == Call::kBroadcast && a.peer != b.peer) return false;
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

std::string MessageToString(const Call& m, absl::Span<const int64_t> ranks, int me) {
  const bool send = m.op == Call::kSend;
  return absl::StrCat(CallName(m.op), " of ", m.count, " bytes from rank ", ranks[send ? me : m.peer],
                      " to rank ", ranks[send ? m.peer : me], ", tag ", m.tag, ", for '", m.what, "'");
}

uint64_t StableHash(absl::string_view bytes) {
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
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

}  // namespace moe::comm
