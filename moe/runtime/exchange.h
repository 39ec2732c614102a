// Exchange: executes one comm.* conversion on local buffers, on one rank.
//
//   ASSIGN_OR_RETURN(auto e, Exchange::Create(x.type(), y.type(), steps, mesh, rank, world, "comm"));
//   RETURN_IF_ERROR(e->Run(in, out, workspace, workspace_bytes, "layers.0.moe %dispatched"));
//
// Built once per node and rank when a plan is loaded: copies, groups and counts are computed there
// (conversion_layout.h) and Run only executes them. Blocks that lie in storage as they travel are neither
// packed nor unpacked; a reduction to replicated never is. Ragged values send their cell sizes first, where
// the receiver cannot know them, and then only the rows there are.
//
// On a device Run gives its work to the stream and returns, except that a ragged value makes it wait for the
// sizes, which the host must know because they decide how much is sent.
//
// With a wire format, what travels is narrower than the value (wire_transfer.h); sizes of ragged values
// travel unchanged.
//
// All ranks of a group build and run the same exchanges in the same order; `what` has to be the same on all.
// An Exchange is used by one thread at a time, and the World outlives it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"
#include "moe/comm/world.h"
#include "moe/device/device.h"
#include "moe/ir/conversion_layout.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/wire_format.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/wire_transfer.h"

namespace moe::runtime {

// Scratch bytes of an exchange: its layout's, and what travels in a narrower wire format.
int64_t ExchangeWorkspaceBytes(const ConversionLayout& layout, WireFormat wire, double overload);

// What a World is told of an exchange's stream: nothing where the host has the values.
device::Stream* MeetingStream(device::Stream* stream);

// Stream::Synchronize; where that may take, other threads compute meanwhile (ComputeGate).
absl::Status AwaitStream(device::Stream* stream);

class Exchange {
 public:
  // Tensors are in memory of the stream's device, where the work is done; null: the host.
  // Errors: InvalidArgument as of LayoutConversion; those of World::Group.
  static absl::StatusOr<std::unique_ptr<Exchange>> Create(const Type& src, const Type& dst,
                                                          absl::Span<const ConversionStep> steps,
                                                          const Mesh& mesh, int64_t rank, comm::World* world,
                                                          absl::string_view channel,
                                                          WireFormat wire = WireFormat::kNone,
                                                          device::Stream* stream = nullptr);
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // The bytes of workspace that Run needs; see StorageOf about `overload`. Run never touches more. A ragged
  // value with more rows goes through memory of the exchange's own, given back after the run.
  int64_t WorkspaceBytes(double overload = 0) const {
    return ExchangeWorkspaceBytes(layout_, wire_, overload);
  }

  // Converts. Ragged: in.data points at the rows; out.sizes are filled and its rows placed. `workspace` is
  // 64-byte aligned, and null if workspace_bytes is 0. in and out do not overlap, but a lone all_reduce or
  // zero may be in place. Errors: FailedPrecondition if a tensor or the workspace does not fit the types;
  // ResourceExhausted if a ragged result has no room; those of the communicator.
  absl::Status Run(const kernels::Tensor& in, kernels::Tensor& out, void* workspace, int64_t workspace_bytes,
                   absl::string_view what);

  // Bytes that this rank gave to other ranks in the last run (a reduction counts as in a ring).
  int64_t bytes_sent() const { return bytes_sent_; }
  const ConversionLayout& layout() const { return layout_; }

 private:
  struct Step {  // what a step of the layout needs besides
    comm::Communicator* communicator = nullptr;
    std::unique_ptr<WireTransfer> wire;                                                // null: as it is
    int32_t *packed_sizes = nullptr, *received_sizes = nullptr, *sizes_out = nullptr;  // of a ragged value
    std::vector<int64_t> rows_in, rows_out;          // before each cell; one more entry: all
    std::vector<int64_t> send, receive;              // elements per peer
    std::vector<int64_t> send_cells, receive_cells;  // kPermute
  };
  // Where a value is now. Dense values have one cell of size 1.
  struct Local {
    const int32_t* sizes;
    const char* rows;
  };
  // The workspace and its overflow; buffers alternate between its two ends, so two are live at a time.
  struct Scratch {
    char* base;
    int64_t bytes;
    bool at_end = false;
    int64_t live[2] = {0, 0};
  };

  Exchange() = default;
  bool ragged() const { return layout_.src.ragged >= 0; }
  absl::Status LaySizes();
  // Calls f with two buffers that the communicator can use, for n_in sizes at `in` and n_out at `out`.
  template <typename F>
  absl::Status TalkSizes(const int32_t* in, int64_t n_in, int32_t* out, int64_t n_out, const F& f);
  absl::StatusOr<int64_t> PackBlock(const StepLayout& l, int peer, absl::Span<const int64_t> rows,
                                    const char* from, char* to) const;
  absl::StatusOr<int64_t> UnpackBlock(const StepLayout& l, int peer, absl::Span<const int64_t> rows,
                                      const char* from, char* to) const;
  absl::StatusOr<char*> Take(Scratch& scratch, int64_t bytes);
  absl::Status CheckTensor(const kernels::Tensor& t, const Dims& dims, int64_t cells,
                           int64_t row_elements) const;
  absl::Status ConvertSizes(const StepLayout& l, Step& s, const int32_t* in, int32_t* out,
                            absl::string_view what);
  absl::Status Communicate(const StepLayout& l, Step& s, const char* in, char* out, const Scratch& scratch,
                           absl::string_view what);
  absl::Status CommunicateEncoded(const StepLayout& l, Step& s, const char* in, char* out,
                                  const Scratch& scratch, absl::string_view what);
  absl::Status RunStep(int i, Local& value, kernels::Tensor& out, Scratch& scratch, absl::string_view what);
  void CountRows(const StepLayout& l, Step& s, const int32_t* in, const int32_t* out) const;

  ConversionLayout layout_;
  int64_t element_ = 0;  // bytes
  WireFormat wire_ = WireFormat::kNone;
  std::vector<Step> steps_;
  int64_t bytes_sent_ = 0;
  device::Stream* stream_ = nullptr;
  bool on_host_ = true;  // can read and write the tensors
  std::unique_ptr<device::DeviceMemory>
      host_sizes_;  // of a ragged value: the source's, and those of the steps
  std::unique_ptr<device::DeviceMemory> device_sizes_;  // to send, to receive
  int64_t device_sizes_in_ = 0;                         // bytes of the first part
  std::unique_ptr<device::DeviceMemory> overflow_;      // made at the first overflow; two halves
  int64_t overflow_half_ = 0;
  bool overflow_used_ = false;
};

}  // namespace moe::runtime
