#include "moe/runtime/exchange.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/integers.h"
#include "moe/base/status.h"
#include "moe/comm/compute_gate.h"
#include "moe/device/host_device.h"

namespace moe::runtime {
namespace {

constexpr int32_t kOneRow = 1;  // the sizes of a dense value

int64_t SizesBytes(int64_t cells) { return cells * static_cast<int64_t>(sizeof(int32_t)); }

// Rows before each cell.
void Accumulate(const int32_t* sizes, std::vector<int64_t>& rows) {
  rows[0] = 0;
  for (size_t c = 0; c + 1 < rows.size(); ++c) rows[c + 1] = rows[c] + sizes[c];
}

int64_t RowsOf(absl::Span<const CellRun> runs, absl::Span<const int64_t> rows) {
  int64_t n = 0;
  for (const CellRun& r : runs) n += rows[r.first + r.count] - rows[r.first];
  return n;
}

absl::Span<const CellRun> Runs(const std::vector<CellRun>& runs, const std::vector<int>& begin, int peer) {
  return absl::MakeConstSpan(runs).subspan(begin[peer], begin[peer + 1] - begin[peer]);
}

absl::Status Place(kernels::Tensor& t, int64_t rows) {
  t.data = rows <= t.capacity_rows ? t.arena_rows : t.spill_rows;
  if (t.data == nullptr && rows > 0) {
    return absl::ResourceExhaustedError("ragged value exceeds its bound and has no spill");
  }
  return absl::OkStatus();
}

}  // namespace

int64_t ExchangeWorkspaceBytes(const ConversionLayout& layout, WireFormat wire, double overload) {
  int64_t encoded = 0;
  const int64_t element = ByteSize(layout.src.dtype);
  for (int i = 0; wire != WireFormat::kNone && i < static_cast<int>(layout.steps.size()); ++i) {
    const StepLayout& l = layout.steps[i];
    encoded = std::max(encoded, WireTransfer::WorkspaceBytes(wire, layout.src.dtype, l.kind, l.group_size(),
                                                             layout.ValueBytes(i, overload) / element,
                                                             layout.ValueBytes(i + 1, overload) / element));
  }
  return layout.WorkspaceBytes(overload) + encoded;
}

device::Stream* MeetingStream(device::Stream* stream) {
  return stream->device()->host_accessible() ? nullptr : stream;
}

absl::Status AwaitStream(device::Stream* stream) {
  if (stream->device()->host_accessible()) return stream->Synchronize();
  comm::ComputeGate::Released others_compute;
  return stream->Synchronize();
}

// Copies the block of `peer` out of a value (packed end to end at `to`); returns the elements written.
absl::StatusOr<int64_t> Exchange::PackBlock(const StepLayout& l, int peer, absl::Span<const int64_t> rows,
                                            const char* from, char* to) const {
  int64_t at = 0;
  for (const CellRun& r : Runs(l.pack_cells, l.pack_begin, peer)) {
    const int64_t n = rows[r.first + r.count] - rows[r.first];
    RETURN_IF_ERROR(stream_->CopyRows(l.pack_row, n,
                                      from + (rows[r.first] * l.row_in + l.pack_offset[peer]) * element_,
                                      l.row_in, to + at * element_, l.row_block, element_));
    at += n * l.row_block;
  }
  return at;
}

absl::StatusOr<int64_t> Exchange::UnpackBlock(const StepLayout& l, int peer, absl::Span<const int64_t> rows,
                                              const char* from, char* to) const {
  int64_t at = 0;
  for (const CellRun& r : Runs(l.unpack_cells, l.unpack_begin, peer)) {
    const int64_t n = rows[r.first + r.count] - rows[r.first];
    RETURN_IF_ERROR(stream_->CopyRows(l.unpack_row, n, from + at * element_, l.row_block,
                                      to + (rows[r.first] * l.row_out + l.unpack_offset[peer]) * element_,
                                      l.row_out, element_));
    at += n * l.row_block;
  }
  return at;
}

absl::StatusOr<std::unique_ptr<Exchange>> Exchange::Create(const Type& src, const Type& dst,
                                                           absl::Span<const ConversionStep> steps,
                                                           const Mesh& mesh, int64_t rank, comm::World* world,
                                                           absl::string_view channel, WireFormat wire,
                                                           device::Stream* stream) {
  std::unique_ptr<Exchange> e(new Exchange());
  e->stream_ = stream == nullptr ? device::HostStream() : stream;
  e->on_host_ = e->stream_->device()->host_accessible();
  e->wire_ = wire;
  ASSIGN_OR_RETURN(e->layout_, LayoutConversion(src, dst, mesh, rank, steps));
  e->element_ = ByteSize(src.dtype);
  e->steps_.resize(e->layout_.steps.size());
  for (size_t i = 0; i < e->steps_.size(); ++i) {
    const StepLayout& l = e->layout_.steps[i];
    Step& s = e->steps_[i];
    if (!IsLocal(l.kind)) {
      ASSIGN_OR_RETURN(s.communicator, world->Group(l.group, channel, MeetingStream(e->stream_)));
      if (wire != WireFormat::kNone) {
        s.wire = std::make_unique<WireTransfer>(wire, src.dtype, l.group_size(), e->stream_);
      }
    }
    const int n = l.group_size();
    s.rows_in.resize(l.cells_in + 1);
    s.rows_out.resize(l.cells_out + 1);
    s.send.assign(n, 0);
    s.receive.assign(n, 0);
    s.send_cells.assign(n, 0);
    s.receive_cells.assign(n, 0);
    if (l.kind == StepKind::kPermute) {
      s.send_cells[l.send_to] = l.cells_in;
      s.receive_cells[l.receive_from] = l.cells_out;
    }
  }
  if (e->ragged()) RETURN_IF_ERROR(e->LaySizes());
  return e;
}

absl::Status Exchange::LaySizes() {
  int64_t total = layout_.steps[0].cells_in, most_in = 0, most_out = 0;
  for (const StepLayout& l : layout_.steps) {
    const int64_t packed = l.group_size() * l.cells_block;
    total += 2 * packed + l.cells_out;
    most_in = std::max({most_in, packed, l.cells_in});
    most_out = std::max({most_out, packed, l.cells_out});
  }
  device::Device* const device = stream_->device();
  ASSIGN_OR_RETURN(host_sizes_, device->AllocateStaging(SizesBytes(total)));
  auto* at = reinterpret_cast<int32_t*>(host_sizes_->data()) + layout_.steps[0].cells_in;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const StepLayout& l = layout_.steps[i];
    const int64_t packed = l.group_size() * l.cells_block;
    steps_[i].packed_sizes = at;
    steps_[i].received_sizes = at + packed;
    steps_[i].sizes_out = at + 2 * packed;
    at += 2 * packed + l.cells_out;
  }
  if (on_host_) return absl::OkStatus();
  device_sizes_in_ = RoundUp(most_in * sizeof(int32_t), 64);
  ASSIGN_OR_RETURN(device_sizes_,
                   device->Allocate(device_sizes_in_ + RoundUp(most_out * sizeof(int32_t), 64)));
  return absl::OkStatus();
}

template <typename F>
absl::Status Exchange::TalkSizes(const int32_t* in, int64_t n_in, int32_t* out, int64_t n_out, const F& f) {
  if (on_host_) return f(in, out);
  char* const sent = device_sizes_->data();
  char* const received = sent + device_sizes_in_;
  RETURN_IF_ERROR(stream_->Copy(sent, in, SizesBytes(n_in)));
  RETURN_IF_ERROR(f(sent, received));
  RETURN_IF_ERROR(stream_->Copy(out, received, SizesBytes(n_out)));
  RETURN_IF_ERROR(AwaitStream(stream_));
  stream_->device()->HostUses("sizes that were received", {{out, SizesBytes(n_out), false}});
  return absl::OkStatus();
}

absl::StatusOr<char*> Exchange::Take(Scratch& scratch, int64_t bytes) {
  bytes = RoundUp(bytes, 64);
  const int end = scratch.at_end ? 1 : 0;
  scratch.at_end = !scratch.at_end;
  scratch.live[end] = 0;
  if (scratch.live[0] + scratch.live[1] + bytes <= scratch.bytes) {
    scratch.live[end] = bytes;
    return end == 0 ? scratch.base : scratch.base + scratch.bytes - bytes;
  }
  if (!ragged()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the workspace has ", scratch.bytes, " bytes, not ", WorkspaceBytes()));
  }
  if (overflow_ == nullptr) {
    for (int i = 0; i <= static_cast<int>(steps_.size()); ++i) {
      overflow_half_ = std::max(overflow_half_, RoundUp(layout_.ValueBytes(i, 0), 64));
    }
    absl::StatusOr<std::unique_ptr<device::DeviceMemory>> memory =
        stream_->device()->Allocate(2 * overflow_half_, 0);
    if (!memory.ok()) return Annotate(memory.status(), "an exchange of more rows than planned");
    overflow_ = *std::move(memory);
  }
  if (bytes > overflow_half_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "an exchange of ", bytes, " bytes; the bound of the ragged value allows ", overflow_half_));
  }
  overflow_used_ = true;
  return overflow_->data() + end * overflow_half_;
}

absl::Status Exchange::CheckTensor(const kernels::Tensor& t, const Dims& dims, int64_t cells,
                                   int64_t row_elements) const {
  const bool fits = t.dtype == layout_.src.dtype && t.dims == dims && t.ragged == layout_.src.ragged &&
                    (!ragged() || (t.cells == cells && t.row_elements == row_elements));
  if (fits) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("a local tensor ", DTypeName(t.dtype), "[", absl::StrJoin(t.dims, ","), "] where ",
                   DTypeName(layout_.src.dtype), "[", absl::StrJoin(dims, ","), "] belongs"));
}

absl::Status Exchange::ConvertSizes(const StepLayout& l, Step& s, const int32_t* in, int32_t* out,
                                    absl::string_view what) {
  const auto pack = [&](int peer, int32_t* to) {
    for (const CellRun& r : Runs(l.pack_cells, l.pack_begin, peer))
      to = std::copy_n(in + r.first, r.count, to);
  };
  const auto unpack = [&](int peer, const int32_t* from) {
    for (const CellRun& r : Runs(l.unpack_cells, l.unpack_begin, peer)) {
      std::copy_n(from, r.count, out + r.first);
      from += r.count;
    }
  };
  switch (l.kind) {
    case StepKind::kZero:
    case StepKind::kAllReduce:  // summands have the same cells
      std::copy_n(in, l.cells_in, out);
      return absl::OkStatus();
    case StepKind::kPermute:
    case StepKind::kRotate:
      return TalkSizes(in, l.cells_in, out, l.cells_out, [&](const void* from, void* to) {
        return s.communicator->AllToAllV(from, s.send_cells, to, s.receive_cells, DType::kS32, what);
      });
    case StepKind::kSlice:
    case StepKind::kReduceScatter:
      pack(l.me, out);
      return absl::OkStatus();
    case StepKind::kAllGather:
    case StepKind::kAllToAll:
      break;
  }
  const int n = l.group_size();
  if (!l.exchanges_sizes) {  // everyone has these cells, and a part of each row
    pack(l.me, s.packed_sizes);
    unpack(l.me, s.packed_sizes);
    return absl::OkStatus();
  }
  int32_t* const received = s.received_sizes;
  if (l.kind == StepKind::kAllGather) {
    RETURN_IF_ERROR(
        TalkSizes(in, l.cells_block, received, n * l.cells_block, [&](const void* from, void* to) {
          return s.communicator->AllGather(from, to, l.cells_block, DType::kS32, what);
        }));
  } else {
    stream_->device()->HostUses("sizes to send", {{s.packed_sizes, SizesBytes(n * l.cells_block), true}});
    for (int p = 0; p < n; ++p) pack(p, s.packed_sizes + p * l.cells_block);
    RETURN_IF_ERROR(TalkSizes(s.packed_sizes, n * l.cells_block, received, n * l.cells_block,
                              [&](const void* from, void* to) {
                                return s.communicator->AllToAll(from, to, l.cells_block, DType::kS32, what);
                              }));
  }
  for (int p = 0; p < n; ++p) unpack(p, received + p * l.cells_block);
  return absl::OkStatus();
}

void Exchange::CountRows(const StepLayout& l, Step& s, const int32_t* in, const int32_t* out) const {
  Accumulate(in, s.rows_in);
  Accumulate(out, s.rows_out);
  const int64_t all_in = s.rows_in.back() * l.row_in, all_out = s.rows_out.back() * l.row_out;
  const int n = l.group_size();
  switch (l.kind) {
    case StepKind::kPermute:
      s.send[l.send_to] = all_in;
      s.receive[l.receive_from] = all_out;
      break;
    case StepKind::kReduceScatter:
    case StepKind::kAllToAll:
      for (int p = 0; p < n; ++p)
        s.send[p] = RowsOf(Runs(l.pack_cells, l.pack_begin, p), s.rows_in) * l.row_block;
      break;
    default:
      std::fill(s.send.begin(), s.send.end(), all_in);
  }
  if (l.kind == StepKind::kAllGather || l.kind == StepKind::kAllToAll) {
    for (int p = 0; p < n; ++p) {
      s.receive[p] = RowsOf(Runs(l.unpack_cells, l.unpack_begin, p), s.rows_out) * l.row_block;
    }
  }
}

// Encoded values go between the two buffers that are live: the rest of the workspace.
absl::Status Exchange::CommunicateEncoded(const StepLayout& l, Step& s, const char* in, char* out,
                                          const Scratch& scratch, absl::string_view what) {
  const int64_t need =
      WireTransfer::WorkspaceBytes(wire_, layout_.src.dtype, l.kind, l.group_size(),
                                   s.rows_in.back() * l.row_in, s.rows_out.back() * l.row_out);
  char* encoded = scratch.base + scratch.live[0];
  std::unique_ptr<device::DeviceMemory> more;  // of a ragged value with more rows than planned
  if (need > scratch.bytes - scratch.live[0] - scratch.live[1]) {
    if (!ragged()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the workspace has ", scratch.bytes, " bytes, not ", WorkspaceBytes()));
    }
    absl::StatusOr<std::unique_ptr<device::DeviceMemory>> memory = stream_->device()->Allocate(need, 0);
    if (!memory.ok()) return Annotate(memory.status(), "an exchange of more rows than planned");
    more = *std::move(memory);
    encoded = more->data();
  }
  absl::Status status;
  switch (l.kind) {
    case StepKind::kAllReduce:
      status = s.wire->AllReduce(s.communicator, in, out, s.send[0], l.reduction, encoded, what);
      break;
    case StepKind::kReduceScatter:
      status = s.wire->ReduceScatter(s.communicator, in, s.send, out, l.reduction, encoded, what);
      break;
    case StepKind::kAllGather:
      status = s.wire->AllGather(s.communicator, in, s.send[0], out, s.receive, encoded, what);
      break;
    case StepKind::kAllToAll:
    case StepKind::kPermute:
    case StepKind::kRotate:  // laid out as a permute
      status = s.wire->AllToAll(s.communicator, in, s.send, out, s.receive, encoded, what);
      break;
    case StepKind::kZero:
    case StepKind::kSlice:
      break;
  }
  bytes_sent_ += s.wire->bytes_sent();
  if (more != nullptr) status.Update(AwaitStream(stream_));  // before it goes
  return status;
}

absl::Status Exchange::Communicate(const StepLayout& l, Step& s, const char* in, char* out,
                                   const Scratch& scratch, absl::string_view what) {
  if (s.wire != nullptr) return CommunicateEncoded(l, s, in, out, scratch, what);
  const DType dtype = layout_.src.dtype;
  const int64_t n = l.group_size();
  int64_t sent = 0;  // elements
  absl::Status status;
  switch (l.kind) {
    case StepKind::kAllReduce:
      sent = 2 * s.send[0] / n * (n - 1);
      status = s.communicator->AllReduce(in, out, s.send[0], dtype, l.reduction, what);
      break;
    case StepKind::kReduceScatter:
      for (int p = 0; p < n; ++p) sent += p == l.me ? 0 : s.send[p];
      status = ragged() ? s.communicator->ReduceScatterV(in, s.send, out, dtype, l.reduction, what)
                        : s.communicator->ReduceScatter(in, out, s.send[0], dtype, l.reduction, what);
      break;
    case StepKind::kAllGather:
      sent = s.send[0] * (n - 1);
      status = ragged() ? s.communicator->AllGatherV(in, s.send[0], out, s.receive, dtype, what)
                        : s.communicator->AllGather(in, out, s.send[0], dtype, what);
      break;
    case StepKind::kAllToAll:
    case StepKind::kPermute:
    case StepKind::kRotate:  // laid out as a permute
      for (int p = 0; p < n; ++p) sent += p == l.me ? 0 : s.send[p];
      status = ragged() || l.kind == StepKind::kPermute
                   ? s.communicator->AllToAllV(in, s.send, out, s.receive, dtype, what)
                   : s.communicator->AllToAll(in, out, s.send[0], dtype, what);
      break;
    case StepKind::kZero:
    case StepKind::kSlice:
      break;
  }
  bytes_sent_ += sent * element_;
  return status;
}

absl::Status Exchange::RunStep(int i, Local& value, kernels::Tensor& out, Scratch& scratch,
                               absl::string_view what) {
  const StepLayout& l = layout_.steps[i];
  Step& s = steps_[i];
  const bool last = i + 1 == static_cast<int>(steps_.size());
  const int32_t* sizes = &kOneRow;
  if (ragged()) {
    int32_t* const to = last && on_host_ ? out.sizes : s.sizes_out;
    RETURN_IF_ERROR(ConvertSizes(l, s, value.sizes, to, what));
    sizes = to;
    stream_->device()->HostUses("sizes of a step", {{to, SizesBytes(l.cells_out), true}});
    if (last && !on_host_) {
      RETURN_IF_ERROR(stream_->Copy(out.sizes, to, SizesBytes(l.cells_out)));
    }
  }
  CountRows(l, s, value.sizes, sizes);
  const int64_t bytes_in = s.rows_in.back() * l.row_in * element_;
  const int64_t bytes_out = s.rows_out.back() * l.row_out * element_;

  const char* from = value.rows;
  if (l.packs) {
    ASSIGN_OR_RETURN(char* const packed, Take(scratch, bytes_in));
    int64_t at = 0;
    for (int p = 0; p < l.group_size(); ++p) {
      ASSIGN_OR_RETURN(const int64_t n, PackBlock(l, p, s.rows_in, from, packed + at * element_));
      at += n;
    }
    from = packed;
  }
  // The result of the step, taken only when it is written: until then its half of the workspace is in use.
  const auto result = [&]() -> absl::StatusOr<char*> {
    if (!last) return Take(scratch, bytes_out);
    if (ragged()) RETURN_IF_ERROR(Place(out, s.rows_out.back()));
    return static_cast<char*>(out.data);
  };
  if (l.unpacks) {
    ASSIGN_OR_RETURN(char* const received, Take(scratch, bytes_out));
    RETURN_IF_ERROR(Communicate(l, s, from, received, scratch, what));
    ASSIGN_OR_RETURN(char* const to, result());
    int64_t at = 0;
    for (int p = 0; p < l.group_size(); ++p) {
      ASSIGN_OR_RETURN(const int64_t n, UnpackBlock(l, p, s.rows_out, received + at * element_, to));
      at += n;
    }
    value = {sizes, to};
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(char* const to, result());
  if (l.kind == StepKind::kZero) {
    if (!l.keeps) {
      RETURN_IF_ERROR(stream_->Fill(to, 0, bytes_out));
    } else if (to != from) {
      RETURN_IF_ERROR(stream_->Copy(to, from, bytes_out));
    }
  } else if (l.kind == StepKind::kSlice) {
    RETURN_IF_ERROR(PackBlock(l, l.me, s.rows_in, from, to).status());
  } else {
    RETURN_IF_ERROR(Communicate(l, s, from, to, scratch, what));
  }
  value = {sizes, to};
  return absl::OkStatus();
}

absl::Status Exchange::Run(const kernels::Tensor& in, kernels::Tensor& out, void* workspace,
                           int64_t workspace_bytes, absl::string_view what) {
  bytes_sent_ = 0;
  if (steps_.empty()) {
    return absl::FailedPreconditionError("an exchange without steps converts nothing");
  }
  const StepLayout &first = layout_.steps.front(), &final = layout_.steps.back();
  RETURN_IF_ERROR(CheckTensor(in, first.dims_in, first.cells_in, first.row_in));
  RETURN_IF_ERROR(CheckTensor(out, final.dims_out, final.cells_out, final.row_out));
  Local value = {ragged() ? in.sizes : &kOneRow, static_cast<const char*>(in.data)};
  if (ragged() && !on_host_) {
    auto* const sizes = reinterpret_cast<int32_t*>(host_sizes_->data());
    RETURN_IF_ERROR(stream_->Copy(sizes, in.sizes, SizesBytes(first.cells_in)));
    RETURN_IF_ERROR(AwaitStream(stream_));
    stream_->device()->HostUses("sizes of the source", {{sizes, SizesBytes(first.cells_in), false}});
    kernels::Tensor source = in;
    RETURN_IF_ERROR(Place(source, std::accumulate(sizes, sizes + first.cells_in, int64_t{0})));
    value = {sizes, static_cast<const char*>(source.data)};
  }
  Scratch scratch = {static_cast<char*>(workspace), workspace_bytes / 64 * 64};
  absl::Status status;
  for (int i = 0; i < static_cast<int>(steps_.size()) && status.ok(); ++i) {
    status = RunStep(i, value, out, scratch, what);
  }
  if (overflow_used_) {
    status.Update(AwaitStream(stream_));
    overflow_->Forget(0, overflow_->bytes());
    overflow_used_ = false;
  }
  return status;
}

}  // namespace moe::runtime
