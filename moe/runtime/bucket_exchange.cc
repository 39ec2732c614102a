#include "moe/runtime/bucket_exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/integers.h"
#include "moe/base/status.h"
#include "moe/device/host_device.h"
#include "moe/runtime/exchange.h"
#include "moe/runtime/wire_transfer.h"

namespace moe::runtime {
namespace {

// Does the step send each peer a block of its own? Otherwise it sends the value.
bool Scatters(StepKind kind) { return kind == StepKind::kReduceScatter || kind == StepKind::kAllToAll; }
// Does a block come from each peer? Otherwise the result comes whole.
bool Gathers(StepKind kind) { return kind == StepKind::kAllGather || kind == StepKind::kAllToAll; }

// Elements of an encoded all-reduce of `count` that a peer adds up.
int64_t PartOfPeer(int64_t count, int peer, int ranks) {
  const int64_t part = WirePart(count, ranks);
  return std::clamp<int64_t>(count - peer * part, 0, part);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BucketExchange>> BucketExchange::Plan(absl::Span<const ConversionPart> parts,
                                                                     const Mesh& mesh, int64_t rank,
                                                                     WireFormat wire) {
  std::unique_ptr<BucketExchange> e(new BucketExchange());
  e->wire_ = wire;
  if (parts.empty()) return absl::InvalidArgumentError("a bucket without parts");
  e->dtype_ = parts[0].to.dtype;
  e->element_ = ByteSize(e->dtype_);
  for (const ConversionPart& p : parts) {
    const Type& type = p.from.type();
    if (type.ragged >= 0 || type.dtype != e->dtype_ || p.steps.size() != parts[0].steps.size() ||
        p.steps.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "all parts of a bucket must be dense and have the same dtype and number of steps; %", p.from.name(),
          " is ", TypeToString(type, mesh), ", converted in ", p.steps.size(), " steps"));
    }
    ASSIGN_OR_RETURN(ConversionLayout layout, LayoutConversion(type, p.to, mesh, rank, p.steps));
    e->layouts_.push_back(std::move(layout));
  }
  for (size_t i = 0; i < parts[0].steps.size(); ++i) {
    Step& s = e->steps_.emplace_back();
    const StepLayout& first = e->layouts_[0].steps[i];
    s.kind = first.kind;
    s.reduction = first.reduction;
    s.group_size = first.group_size();
    s.me = first.me;
    if (IsLocal(s.kind) || s.kind == StepKind::kPermute) {
      return absl::InvalidArgumentError(absl::StrCat("a bucket has no step ", StepKindName(s.kind)));
    }
    for (const ConversionLayout& layout : e->layouts_) {
      const StepLayout& l = layout.steps[i];
      if (l.kind != s.kind || l.reduction != s.reduction || l.group != first.group) {
        return absl::InvalidArgumentError(
            absl::StrCat("parts of a bucket are of one kind, in one group; step ", i, " is ",
                         StepKindName(l.kind), " in [", absl::StrJoin(l.group, ", "), "] and ",
                         StepKindName(s.kind), " in [", absl::StrJoin(first.group, ", "), "]"));
      }
      s.parts.push_back(&l);
      s.all_in += l.row_in;
      s.all_out += l.row_out;
      s.all_block += Gathers(s.kind) || Scatters(s.kind) ? l.row_block : 0;
    }
    for (int p = 0; wire != WireFormat::kNone && s.kind == StepKind::kAllReduce && p < s.group_size; ++p) {
      int64_t bytes = 0;
      for (const StepLayout* l : s.parts) bytes += e->Encoded(PartOfPeer(l->row_in, p, s.group_size));
      s.encoded.push_back(bytes);
    }
    if (!s.encoded.empty()) s.own.assign(s.group_size, s.encoded[s.me]);
  }
  e->scratch_ = e->LayScratch();
  e->from_.resize(parts.size());
  e->to_.resize(parts.size());
  for (const Step& s : e->steps_) e->sources_.resize(std::max<size_t>(e->sources_.size(), s.group_size));
  return e;
}

BucketExchange::Scratch BucketExchange::LayScratch() const {
  int64_t send = 0, receive = 0, block = 0, value = 0;  // bytes
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& s = steps_[i];
    if (i + 1 < steps_.size()) value = std::max(value, s.all_out * element_);
    if (wire_ == WireFormat::kNone) {
      send = std::max(send, s.all_in * element_);
      if (s.kind != StepKind::kAllReduce) {  // which reduces in place
        receive = std::max(receive, s.all_out * element_);
      }
      continue;
    }
    int64_t to_one = 0, to_all = 0;
    for (const StepLayout* l : s.parts) {
      const bool reduces = s.kind == StepKind::kAllReduce;
      const int64_t elements = reduces                          ? PartOfPeer(l->row_in, 0, s.group_size)
                               : s.kind == StepKind::kAllGather ? l->row_in
                                                                : l->row_block;
      to_one += Encoded(elements);
      block = std::max(block, elements * element_);
    }
    to_all = s.group_size * to_one;
    send = std::max(send, s.kind == StepKind::kAllGather ? to_one : to_all);
    receive = std::max(receive, to_all);
  }
  Scratch out;
  int64_t at = 0;
  const auto take = [&](int64_t bytes) { return std::exchange(at, at + RoundUp(bytes, 64)); };
  out.send = take(send);
  out.receive = take(receive);
  out.block = take(block);
  out.values[0] = take(value);
  out.values[1] = take(steps_.size() > 2 ? value : 0);
  out.bytes = at;
  return out;
}

absl::StatusOr<std::unique_ptr<BucketExchange>> BucketExchange::Create(
    absl::Span<const ConversionPart> parts, const Mesh& mesh, int64_t rank, comm::World* world,
    absl::string_view channel, WireFormat wire, device::Stream* stream) {
  ASSIGN_OR_RETURN(std::unique_ptr<BucketExchange> e, Plan(parts, mesh, rank, wire));
  e->stream_ = stream == nullptr ? device::HostStream() : stream;
  for (Step& s : e->steps_) {
    ASSIGN_OR_RETURN(s.communicator, world->Group(s.parts[0]->group, channel, MeetingStream(e->stream_)));
  }
  return e;
}

absl::StatusOr<int64_t> BucketExchange::WorkspaceBytes(absl::Span<const ConversionPart> parts,
                                                       const Mesh& mesh, WireFormat wire) {
  ASSIGN_OR_RETURN(const std::unique_ptr<BucketExchange> e, Plan(parts, mesh, 0, wire));
  return e->scratch_.bytes;
}

absl::Status BucketExchange::RunStep(const Step& s, absl::Span<const char* const> from,
                                     absl::Span<char* const> to, char* send, char* receive,
                                     absl::string_view what) {
  const int n = s.group_size;
  int64_t at = 0;
  for (int p = 0; p < (Scatters(s.kind) ? n : 1); ++p) {
    for (size_t j = 0; j < s.parts.size(); ++j) {
      const StepLayout& l = *s.parts[j];
      if (!Scatters(s.kind)) {
        RETURN_IF_ERROR(stream_->Copy(send + at, from[j], l.row_in * element_));
        at += l.row_in * element_;
        continue;
      }
      RETURN_IF_ERROR(stream_->CopyRows(l.pack_row, 1, from[j] + l.pack_offset[p] * element_, l.row_in,
                                        send + at, l.row_block, element_));
      at += l.row_block * element_;
    }
  }
  switch (s.kind) {
    case StepKind::kAllReduce:
      bytes_sent_ += 2 * s.all_in / n * (n - 1) * element_;
      receive = send;
      RETURN_IF_ERROR(s.communicator->AllReduce(send, send, s.all_in, dtype_, s.reduction, what));
      break;
    case StepKind::kReduceScatter:
      bytes_sent_ += s.all_block * (n - 1) * element_;
      RETURN_IF_ERROR(s.communicator->ReduceScatter(send, receive, s.all_block, dtype_, s.reduction, what));
      break;
    case StepKind::kAllGather:
      bytes_sent_ += s.all_in * (n - 1) * element_;
      RETURN_IF_ERROR(s.communicator->AllGather(send, receive, s.all_in, dtype_, what));
      break;
    default:
      bytes_sent_ += s.all_block * (n - 1) * element_;
      RETURN_IF_ERROR(s.communicator->AllToAll(send, receive, s.all_block, dtype_, what));
      break;
  }
  at = 0;
  for (int p = 0; p < (Gathers(s.kind) ? n : 1); ++p) {
    for (size_t j = 0; j < s.parts.size(); ++j) {
      const StepLayout& l = *s.parts[j];
      if (!Gathers(s.kind)) {
        RETURN_IF_ERROR(stream_->Copy(to[j], receive + at, l.row_out * element_));
        at += l.row_out * element_;
        continue;
      }
      RETURN_IF_ERROR(stream_->CopyRows(l.unpack_row, 1, receive + at, l.row_block,
                                        to[j] + l.unpack_offset[p] * element_, l.row_out, element_));
      at += l.row_block * element_;
    }
  }
  return absl::OkStatus();
}

absl::Status BucketExchange::RunEncoded(const Step& s, absl::Span<const char* const> from,
                                        absl::Span<char* const> to, char* send, char* receive, char* block,
                                        absl::string_view what) {
  const int n = s.group_size;
  const size_t parts = s.parts.size();
  char* end = send;
  const auto encode = [&](const char* values, int64_t elements) {
    char* const at = std::exchange(end, end + Encoded(elements));
    return stream_->Encode(wire_, dtype_, values, elements, at);
  };
  const auto reduce = [&](const char* received, int64_t stride, int64_t elements, char* out) {
    for (int p = 0; p < n; ++p) sources_[p] = received + p * stride;
    return stream_->Decode(wire_, absl::MakeConstSpan(sources_).first(n), elements, s.reduction, dtype_, out);
  };
  if (s.kind == StepKind::kAllGather) {
    for (size_t j = 0; j < parts; ++j) RETURN_IF_ERROR(encode(from[j], s.parts[j]->row_in));
    RETURN_IF_ERROR(s.communicator->AllGather(send, receive, end - send, DType::kPred, what));
    bytes_sent_ += (end - send) * (n - 1);
  } else if (s.kind == StepKind::kAllReduce) {
    for (int p = 0; p < n; ++p) {
      for (size_t j = 0; j < parts; ++j) {
        const int64_t count = s.parts[j]->row_in;
        RETURN_IF_ERROR(encode(from[j] + p * WirePart(count, n) * element_, PartOfPeer(count, p, n)));
      }
    }
    RETURN_IF_ERROR(s.communicator->AllToAllV(send, s.encoded, receive, s.own, DType::kPred, what));
    bytes_sent_ += end - send - s.own[s.me];
    end = send;
    const char* received = receive;
    for (size_t j = 0; j < parts; ++j) {
      const int64_t mine = PartOfPeer(s.parts[j]->row_in, s.me, n);
      RETURN_IF_ERROR(reduce(received, s.own[s.me], mine, block));
      received += Encoded(mine);
      RETURN_IF_ERROR(encode(block, mine));
    }
    RETURN_IF_ERROR(s.communicator->AllGatherV(send, s.own[s.me], receive, s.encoded, DType::kPred, what));
    bytes_sent_ += s.own[s.me] * (n - 1);
  } else {
    for (int p = 0; p < n; ++p) {
      for (size_t j = 0; j < parts; ++j) {
        const StepLayout& l = *s.parts[j];
        RETURN_IF_ERROR(stream_->CopyRows(l.pack_row, 1, from[j] + l.pack_offset[p] * element_, l.row_in,
                                          block, l.row_block, element_));
        RETURN_IF_ERROR(encode(block, l.row_block));
      }
    }
    const int64_t bytes = (end - send) / n;  // to each peer
    RETURN_IF_ERROR(s.communicator->AllToAll(send, receive, bytes, DType::kPred, what));
    bytes_sent_ += bytes * (n - 1);
    if (s.kind == StepKind::kReduceScatter) {
      for (size_t j = 0; j < parts; ++j) {
        RETURN_IF_ERROR(reduce(receive, bytes, s.parts[j]->row_block, to[j]));
        receive += Encoded(s.parts[j]->row_block);
      }
      return absl::OkStatus();
    }
  }
  for (int p = 0; p < n; ++p) {
    for (size_t j = 0; j < parts; ++j) {
      const StepLayout& l = *s.parts[j];
      if (s.kind == StepKind::kAllReduce) {
        const int64_t count = PartOfPeer(l.row_in, p, n);
        RETURN_IF_ERROR(stream_->Decode(wire_, {receive}, count, s.reduction, dtype_,
                                        to[j] + p * WirePart(l.row_in, n) * element_));
        receive += Encoded(count);
        continue;
      }
      RETURN_IF_ERROR(stream_->Decode(wire_, {receive}, l.row_block, s.reduction, dtype_, block));
      receive += Encoded(l.row_block);
      RETURN_IF_ERROR(stream_->CopyRows(l.unpack_row, 1, block, l.row_block,
                                        to[j] + l.unpack_offset[p] * element_, l.row_out, element_));
    }
  }
  return absl::OkStatus();
}

absl::Status BucketExchange::Run(absl::Span<const kernels::Tensor> in, absl::Span<const kernels::Tensor> out,
                                 void* workspace, int64_t workspace_bytes, absl::string_view what) {
  bytes_sent_ = 0;
  bool fits =
      in.size() == layouts_.size() && out.size() == layouts_.size() && workspace_bytes >= scratch_.bytes;
  for (size_t j = 0; fits && j < layouts_.size(); ++j) {
    const auto is = [&](const kernels::Tensor& t, const Dims& dims) {
      return t.dtype == dtype_ && t.dims == dims;
    };
    fits = is(in[j], layouts_[j].steps.front().dims_in) && is(out[j], layouts_[j].steps.back().dims_out);
  }
  if (!fits) {
    return absl::FailedPreconditionError(absl::StrCat("the tensors, or the workspace of ", workspace_bytes,
                                                      " bytes, do not fit a bucket of ", layouts_.size(),
                                                      " parts that needs ", scratch_.bytes));
  }
  char* const base = static_cast<char*>(workspace);
  for (size_t j = 0; j < in.size(); ++j) from_[j] = static_cast<const char*>(in[j].data);
  for (size_t i = 0; i < steps_.size(); ++i) {
    int64_t at = scratch_.values[i % 2];
    for (size_t j = 0; j < out.size(); ++j) {
      to_[j] = i + 1 == steps_.size() ? static_cast<char*>(out[j].data) : base + at;
      at += steps_[i].parts[j]->row_out * element_;
    }
    char *const send = base + scratch_.send, *const receive = base + scratch_.receive;
    RETURN_IF_ERROR(wire_ == WireFormat::kNone
                        ? RunStep(steps_[i], from_, to_, send, receive, what)
                        : RunEncoded(steps_[i], from_, to_, send, receive, base + scratch_.block, what));
    std::copy(to_.begin(), to_.end(), from_.begin());
  }
  return absl::OkStatus();
}

}  // namespace moe::runtime
