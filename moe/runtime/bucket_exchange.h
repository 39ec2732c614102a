// BucketExchange: executes several comm.* conversions of one kind as one, on one rank: what each part sends
// to a peer is packed together, one collective moves it, and the parts are taken apart again. Every element
// meets the summands that it would meet alone, in the same order, so the results are bitwise those of the
// parts one by one. In a wire format each block of each part is encoded as it would be alone, with scales of
// its own, and the codes travel together.
//
//   ASSIGN_OR_RETURN(auto e, BucketExchange::Create(parts, mesh, rank, world, "comm"));
//   RETURN_IF_ERROR(e->Run(in, out, workspace, workspace_bytes, "%bucket"));
//
// Built once per node and rank. All ranks of a group run the same exchanges in the same order. Used by one
// thread at a time; the World outlives it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/comm/communicator.h"
#include "moe/comm/world.h"
#include "moe/device/device.h"
#include "moe/ir/conversion_layout.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/wire_format.h"
#include "moe/kernels/kernel.h"

namespace moe::runtime {

class BucketExchange {
 public:
  // Tensors are in memory of the stream's device, where the work is done; null: the host.
  // Errors (InvalidArgument): parts of different dtypes, groups or kinds of steps, ragged parts, steps other
  // than all_reduce, reduce_scatter, all_gather and all_to_all; as of LayoutConversion.
  static absl::StatusOr<std::unique_ptr<BucketExchange>> Create(absl::Span<const ConversionPart> parts,
                                                                const Mesh& mesh, int64_t rank,
                                                                comm::World* world, absl::string_view channel,
                                                                WireFormat wire = WireFormat::kNone,
                                                                device::Stream* stream = nullptr);
  // Scratch bytes of such an exchange, the same on every rank.
  static absl::StatusOr<int64_t> WorkspaceBytes(absl::Span<const ConversionPart> parts, const Mesh& mesh,
                                                WireFormat wire = WireFormat::kNone);

  // in[i] becomes out[i]; they do not overlap. Error: FailedPrecondition if tensors or the workspace do not
  // fit; those of the communicator.
  absl::Status Run(absl::Span<const kernels::Tensor> in, absl::Span<const kernels::Tensor> out,
                   void* workspace, int64_t workspace_bytes, absl::string_view what);
  // Bytes that this rank gave to other ranks in the last run (a reduction counts as in a ring).
  int64_t bytes_sent() const { return bytes_sent_; }

 private:
  // One step of all parts. Elements; the values between two steps lie in scratch, one behind the other.
  struct Step {
    StepKind kind = StepKind::kAllReduce;
    Reduction reduction = Reduction::kSum;
    int group_size = 1, me = 0;
    comm::Communicator* communicator = nullptr;
    std::vector<const StepLayout*> parts;
    int64_t all_in = 0, all_block = 0, all_out = 0;
    std::vector<int64_t> encoded,
        own;  // bytes of an all-reduce: of each peer's part; of this rank's, per peer
  };

  BucketExchange() = default;
  static absl::StatusOr<std::unique_ptr<BucketExchange>> Plan(absl::Span<const ConversionPart> parts,
                                                              const Mesh& mesh, int64_t rank,
                                                              WireFormat wire);
  // Byte of the scratch where it stands: what is sent, what is received, one block of a part before it is
  // encoded or after it was decoded, two homes for values between steps.
  struct Scratch {
    int64_t send = 0, receive = 0, block = 0, values[2] = {0, 0}, bytes = 0;
  };
  Scratch LayScratch() const;
  absl::Status RunStep(const Step& s, absl::Span<const char* const> from, absl::Span<char* const> to,
                       char* send, char* receive, absl::string_view what);
  // The same in a wire format; `block` has room for one block of any part.
  absl::Status RunEncoded(const Step& s, absl::Span<const char* const> from, absl::Span<char* const> to,
                          char* send, char* receive, char* block, absl::string_view what);
  int64_t Encoded(int64_t elements) const { return WireBytes(wire_, dtype_, elements); }

  std::vector<ConversionLayout> layouts_;
  std::vector<Step> steps_;
  WireFormat wire_ = WireFormat::kNone;
  device::Stream* stream_ = nullptr;
  DType dtype_ = DType::kF32;
  int64_t element_ = 0;  // bytes
  Scratch scratch_;
  std::vector<const char*> from_;  // of the step that runs; reserved when the plan is loaded
  std::vector<char*> to_;
  std::vector<const char*> sources_;  // encoded blocks of one part, per peer
  int64_t bytes_sent_ = 0;
};

}  // namespace moe::runtime
