#include "moe/comm/gloo/gloo_group.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/comm/compute_gate.h"
#include "moe/device/reduce.h"

namespace moe::comm {
namespace {

enum SlotKind { kHeaderSlot, kFirstSlot, kSecondSlot, kSenderSlot, kReceiverSlot, kMessageSlot };
constexpr int kKindBits = 4, kTagBits = 20;
constexpr uint32_t kMagic = 0x6d6f6531;
constexpr int kNameBytes = 128;

uint64_t HashCounts(absl::Span<const int64_t> counts) {
  return StableHash({reinterpret_cast<const char*>(counts.data()), counts.size() * sizeof(int64_t)});
}

const char* At(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
char* At(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

void Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

// A name as a peer shows it: cut where it is long, and then told apart by its hash.
struct Name {
  uint64_t hash;
  uint32_t bytes;
  char text[kNameBytes];

  void Set(absl::string_view name) {
    hash = StableHash(name);
    bytes = static_cast<uint32_t>(std::min<size_t>(name.size(), kNameBytes));
    std::memcpy(text, name.data(), bytes);
  }
  bool Is(absl::string_view name) const { return hash == StableHash(name); }
  absl::string_view view() const { return absl::string_view(text, std::min<size_t>(bytes, kNameBytes)); }
};

// What the two sides of a message tell each other before it.
struct Offer {
  int64_t bytes;
  Name what;
};

}  // namespace

struct GlooGroup::Header {
  uint64_t sequence;
  int64_t count;
  int64_t sends, expects;  // bytes, to and from the member that reads this
  uint64_t counts_hash;
  int32_t root;
  uint8_t op, dtype, kind;
  uint8_t inlined;  // what it sends to the reader stands behind this header
  Name what;
  uint32_t magic;  // last: when it is there, all is
};

struct GlooGroup::Peer {
  Peer(GlooTransport* transport, int64_t rank, int64_t bytes)
      : in(bytes),
        out(bytes),
        incoming(transport, rank, in.data(), bytes),
        outgoing(transport, rank, out.data(), bytes) {}
  Header* received() { return reinterpret_cast<Header*>(in.data()); }
  char* payload() { return in.data() + sizeof(Header); }
  // Read while Gloo may be writing: an aligned word, which is there or not.
  bool entered() { return __atomic_load_n(&received()->magic, __ATOMIC_ACQUIRE) == kMagic; }
  std::vector<char> in, out;
  GlooTransport::Message incoming, outgoing;
  bool posted = false;
};

GlooGroup::GlooGroup(GlooTransport* transport, std::vector<int64_t> ranks, int me, uint64_t id)
    : transport_(transport),
      ranks_(std::move(ranks)),
      me_(me),
      id_(id),
      peers_(ranks_.size()),
      blocks_(ranks_.size()),
      inputs_(ranks_.size()) {
  const int64_t bytes = static_cast<int64_t>(sizeof(Header)) + transport->options().eager_bytes;
  for (int p = 0; p < size(); ++p) {
    if (p == me_) continue;
    peers_[p] = std::make_unique<Peer>(transport, ranks_[p], bytes);
    PostHeader(*peers_[p]);
  }
  moving_.reserve(2 * ranks_.size());
}

GlooGroup::~GlooGroup() = default;

uint64_t GlooGroup::Slot(int kind, int64_t tag) const {
  return (id_ << (kTagBits + kKindBits)) | (static_cast<uint64_t>(tag) << kKindBits) |
         static_cast<uint64_t>(kind);
}

void GlooGroup::PostHeader(Peer& peer) {
  peer.received()->magic = 0;
  // A peer that has finished may be gone already; that matters only when something is wanted of it.
  peer.posted = peer.incoming.Receive(Slot(kHeaderSlot));
}

void GlooGroup::Abort(absl::Status reason) {
  transport_->Fail(absl::AbortedError(absl::StrCat(GroupName(ranks_), " was aborted: ", reason.ToString())));
}

char* GlooGroup::Scratch(int64_t bytes) {
  if (static_cast<int64_t>(scratch_.size()) < bytes) scratch_.resize(bytes);
  return scratch_.data();
}

absl::Status GlooGroup::Run(const Call& call) {
  RETURN_IF_ERROR(CheckCall(call, ranks_, me_));
  if (IsMessage(call)) return Exchange(call);
  if (!failed_.ok()) return failed_;
  RETURN_IF_ERROR(transport_->failed());
  absl::Status status = Collective(call);
  // After a mismatch all members are where they were; anything else leaves messages behind.
  if (!status.ok() && !absl::IsFailedPrecondition(status)) failed_ = status;
  return status;
}

// What goes where in the first round, straight into the result or, to be reduced, into scratch memory.
void GlooGroup::LayOut(const Call& call) {
  const int64_t element = ByteSize(call.dtype);
  const bool whole = call.op == Call::kAllReduce && call.count * element <= transport_->options().eager_bytes;
  for (int p = 0; p < size(); ++p) {
    const Range from = whole ? Range{0, call.count} : SendRange(call, me_, p, size());
    const Range to = whole ? Range{0, call.count} : ReceiveRange(call, me_, p, size());
    blocks_[p] = {At(call.in, from.begin * element), At(call.out, to.begin * element), from.count * element,
                  to.count * element};
  }
}

void GlooGroup::FillHeader(const Call& call, int peer, Header* h) const {
  h->sequence = sequence_;
  h->count = call.count;
  h->sends = blocks_[peer].send_bytes;
  h->expects = blocks_[peer].receive_bytes;
  h->counts_hash = 0;
  if (call.op == Call::kAllGatherV || call.op == Call::kReduceScatterV) {
    h->counts_hash = HashCounts(call.counts);
  }
  h->root = call.peer;
  h->op = call.op;
  h->dtype = static_cast<uint8_t>(call.dtype);
  h->kind = static_cast<uint8_t>(call.kind);
  h->inlined = h->sends <= transport_->options().eager_bytes;
  h->what.Set(call.what);
  h->magic = kMagic;
}

// The call of a peer as far as its header tells. Counts that are known to be this member's are shown as such.
Call GlooGroup::CallOf(const Header& h, const Call& mine) const {
  Call c;
  c.op = static_cast<Call::Op>(std::min<int>(h.op, Call::kBarrier));
  c.dtype = static_cast<DType>(h.dtype);
  c.kind = static_cast<Reduction>(h.kind);
  c.count = h.count;
  c.peer = h.root;
  c.what = h.what.view();
  if (mine.op == c.op && (c.op == Call::kAllGatherV || c.op == Call::kReduceScatterV) &&
      h.counts_hash == HashCounts(mine.counts)) {
    c.counts = mine.counts;
  }
  return c;
}

absl::Status GlooGroup::ExchangeHeaders(const Call& call, PeerDeadline& deadline) {
  for (int p = 0; p < size(); ++p) {
    if (p == me_) continue;
    Peer& peer = *peers_[p];
    Header* h = reinterpret_cast<Header*>(peer.out.data());
    FillHeader(call, p, h);
    const int64_t payload = h->inlined ? blocks_[p].send_bytes : 0;
    Copy(peer.out.data() + sizeof(Header), blocks_[p].from, payload);
    RETURN_IF_ERROR(
        Explain(peer.outgoing.Send(Slot(kHeaderSlot), static_cast<int64_t>(sizeof(Header)) + payload), call,
                "calls", ranks_[p], deadline));
  }
  for (int p = 0; p < size(); ++p) {
    if (p == me_) continue;
    Peer& peer = *peers_[p];
    if (!peer.posted) return Explain(peer.incoming.Lost(), call, "waits for", ranks_[p], deadline);
    const absl::Status status = peer.incoming.WaitReceived(deadline);
    if (absl::IsDeadlineExceeded(status)) {
      std::vector<Call> calls(size());
      std::vector<const Call*> entered(size(), nullptr);
      for (int q = 0; q < size(); ++q) {
        if (q != me_ && !peers_[q]->entered()) continue;
        calls[q] = q == me_ ? call : CallOf(*peers_[q]->received(), call);
        entered[q] = &calls[q];
      }
      return TimeoutError(ranks_, deadline.limit(), entered);
    }
    RETURN_IF_ERROR(Explain(status, call, "waits for", ranks_[p], deadline));
  }
  for (int p = 0; p < size(); ++p) {
    if (p != me_)
      RETURN_IF_ERROR(Explain(peers_[p]->outgoing.WaitSent(deadline), call, "sends to", ranks_[p], deadline));
  }
  return absl::OkStatus();
}

absl::Status GlooGroup::Compare(const Call& call) {
  // By rank, so that all members name the same two.
  const auto call_of = [&](int p) { return p == me_ ? call : CallOf(*peers_[p]->received(), call); };
  const auto sequence_of = [&](int p) { return p == me_ ? sequence_ : peers_[p]->received()->sequence; };
  const Call first = call_of(0);
  for (int p = 1; p < size(); ++p) {
    Call other = call_of(p);
    const bool same_name = p == me_   ? peers_[0]->received()->what.Is(call.what)
                           : me_ == 0 ? peers_[p]->received()->what.Is(call.what)
                                      : peers_[p]->received()->what.hash == peers_[0]->received()->what.hash;
    if (same_name) other.what = first.what;  // or one of them is cut
    if (!same_name || !SameShape(first, other) || sequence_of(0) != sequence_of(p)) {
      return MismatchError(ranks_, 0, first, p, call_of(p));
    }
  }
  for (int p = 0; p < size(); ++p) {
    if (p == me_) continue;
    const Header& h = *peers_[p]->received();
    if (h.sends == blocks_[p].receive_bytes && h.expects == blocks_[p].send_bytes) continue;
    const auto says = [](int64_t from, int64_t sends, int64_t to, int64_t expects) {
      return absl::StrCat("rank ", from, " sends ", sends, " bytes to rank ", to, ", which expects ",
                          expects);
    };
    return absl::FailedPreconditionError(
        absl::StrCat("calls of ", GroupName(ranks_), " do not match in ", CallToString(call), ": ",
                     says(ranks_[p], h.sends, ranks_[me_], blocks_[p].receive_bytes), "; ",
                     says(ranks_[me_], blocks_[p].send_bytes, ranks_[p], h.expects)));
  }
  return absl::OkStatus();
}

absl::Status GlooGroup::Explain(const absl::Status& status, const Call& call, const char* doing, int64_t peer,
                                const PeerDeadline& deadline) {
  if (status.ok()) return status;
  if (absl::IsDeadlineExceeded(status)) {
    return absl::DeadlineExceededError(absl::StrCat(
        GroupName(ranks_), ": rank ", ranks_[me_], " waited ", absl::FormatDuration(deadline.limit()), " in ",
        CallToString(call), ": rank ", peer, " entered it and then stopped"));
  }
  if (!absl::IsUnavailable(status)) return status;
  return Annotate(status,
                  absl::StrCat("rank ", ranks_[me_], " ", doing, " rank ", peer, " in ", CallToString(call)));
}

// Sends and receives what blocks_ say, without what has come with the headers.
absl::Status GlooGroup::Move(const Call& call, int kind, bool inlined, PeerDeadline& deadline) {
  moving_.clear();
  std::vector<std::unique_ptr<GlooTransport::Message>>& moving = moving_;
  int received = 0;
  const auto skip = [&](int p, int64_t bytes) {
    return p == me_ || bytes == 0 || (inlined && bytes <= transport_->options().eager_bytes);
  };
  for (int i = 1; i < size(); ++i) {
    const int p = (me_ + size() - i) % size();
    Block& b = blocks_[p];
    if (skip(p, b.receive_bytes)) continue;
    moving.push_back(std::make_unique<GlooTransport::Message>(transport_, ranks_[p], b.to, b.receive_bytes));
    if (!moving.back()->Receive(Slot(kind)))
      return Explain(moving.back()->Lost(), call, "receives from", ranks_[p], deadline);
    ++received;
  }
  for (int i = 1; i < size(); ++i) {
    const int p = (me_ + i) % size();
    Block& b = blocks_[p];
    if (skip(p, b.send_bytes)) continue;
    moving.push_back(std::make_unique<GlooTransport::Message>(transport_, ranks_[p],
                                                              const_cast<void*>(b.from), b.send_bytes));
    RETURN_IF_ERROR(
        Explain(moving.back()->Send(Slot(kind), b.send_bytes), call, "sends to", ranks_[p], deadline));
  }
  for (size_t i = 0; i < moving.size(); ++i) {
    const bool receive = static_cast<int>(i) < received;
    RETURN_IF_ERROR(Explain(receive ? moving[i]->WaitReceived(deadline) : moving[i]->WaitSent(deadline), call,
                            receive ? "receives from" : "sends to", moving[i]->peer(), deadline));
  }
  return absl::OkStatus();
}

absl::Status GlooGroup::Collective(const Call& call) {
  PeerDeadline deadline = transport_->Deadline();
  const int64_t element = ByteSize(call.dtype);
  ++sequence_;
  LayOut(call);
  const bool reduces = Reduces(call);
  const int64_t block = blocks_[me_].receive_bytes;  // what this member reduces
  if (reduces) {
    char* scratch = Scratch(block * size());
    for (int p = 0; p < size(); ++p) {
      blocks_[p].to = scratch + p * block;
      inputs_[p] = p == me_ ? blocks_[p].from : blocks_[p].to;
    }
  }
  {
    ComputeGate::Released released;
    RETURN_IF_ERROR(ExchangeHeaders(call, deadline));
    const absl::Status same = Compare(call);
    for (int p = 0; p < size(); ++p) {
      if (p == me_) continue;
      if (same.ok() && peers_[p]->received()->inlined)
        Copy(blocks_[p].to, peers_[p]->payload(), blocks_[p].receive_bytes);
      PostHeader(*peers_[p]);
    }
    RETURN_IF_ERROR(same);
    RETURN_IF_ERROR(Move(call, kFirstSlot, /*inlined=*/true, deadline));
  }
  if (!reduces) {
    if (call.op != Call::kBroadcast) Copy(blocks_[me_].to, blocks_[me_].from, block);
    return absl::OkStatus();
  }
  const bool in_segments =
      call.op == Call::kAllReduce && call.count * element > transport_->options().eager_bytes;
  const int64_t begin = in_segments ? ReceiveRange(call, me_, me_, size()).begin : 0;
  char* const reduced = At(call.out, begin * element);
  device::ReduceInOrder(inputs_, reduced, block / element, call.dtype, call.kind);
  if (!in_segments) return absl::OkStatus();
  for (int p = 0; p < size(); ++p) {
    const Range segment = SendRange(call, me_, p, size());
    blocks_[p] = {reduced, At(call.out, segment.begin * element), block, segment.count * element};
  }
  ComputeGate::Released released;
  PeerDeadline second = transport_->Deadline();
  return Move(call, kSecondSlot, /*inlined=*/false, second);
}

absl::Status GlooGroup::Exchange(const Call& call) {
  const int64_t tag = call.tag, bytes = call.count;
  if (tag < 0 || tag >= int64_t{1} << kTagBits) {
    return absl::InvalidArgumentError(
        absl::StrCat(MessageToString(call, ranks_, me_), ": legal tags are 0 to ", (1 << kTagBits) - 1));
  }
  const bool send = call.op == Call::kSend;
  const int64_t peer = ranks_[call.peer];
  PeerDeadline deadline = transport_->Deadline();
  const auto explain = [&](const absl::Status& status, bool came) {
    if (absl::IsDeadlineExceeded(status)) {
      return absl::DeadlineExceededError(absl::StrCat(
          MessageToString(call, ranks_, me_), " in ", GroupName(ranks_), " waited ",
          absl::FormatDuration(deadline.limit()), "; rank ", peer, came ? " stopped in it" : " never came"));
    }
    return absl::IsUnavailable(status) ? Annotate(status, MessageToString(call, ranks_, me_)) : status;
  };
  ComputeGate::Released released;
  Offer mine{bytes, {}}, theirs{};
  mine.what.Set(call.what);
  GlooTransport::Message outgoing(transport_, peer, &mine, sizeof(mine)),
      incoming(transport_, peer, &theirs, sizeof(theirs));
  if (!incoming.Receive(Slot(send ? kReceiverSlot : kSenderSlot, tag)))
    return explain(incoming.Lost(), false);
  RETURN_IF_ERROR(explain(outgoing.Send(Slot(send ? kSenderSlot : kReceiverSlot, tag), sizeof(mine)), false));
  RETURN_IF_ERROR(explain(incoming.WaitReceived(deadline), false));
  RETURN_IF_ERROR(explain(outgoing.WaitSent(deadline), true));
  if (theirs.bytes != bytes) {
    Call other = call;
    other.op = send ? Call::kReceive : Call::kSend;
    other.what = theirs.what.view();
    other.count = theirs.bytes;
    other.peer = me_;
    return absl::FailedPreconditionError(absl::StrCat(MessageToString(call, ranks_, me_), " meets ",
                                                      MessageToString(other, ranks_, call.peer)));
  }
  if (bytes == 0) return absl::OkStatus();
  GlooTransport::Message message(transport_, peer, send ? const_cast<void*>(call.in) : call.out, bytes);
  if (send) {
    RETURN_IF_ERROR(explain(message.Send(Slot(kMessageSlot, tag), bytes), true));
    return explain(message.WaitSent(deadline), true);
  }
  if (!message.Receive(Slot(kMessageSlot, tag))) return explain(message.Lost(), true);
  return explain(message.WaitReceived(deadline), true);
}

}  // namespace moe::comm
