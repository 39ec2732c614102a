// Where the rows of ragged tensors lie, found on the device: the sizes of their cells are device memory, and
// the host goes on before they are known.
//
//   Workspace w(c);
//   ASSIGN_OR_RETURN(const RaggedRows rows, PlaceLikeOperand(c, w));
//   MOE_LAUNCH(kernel, ..., rows, RaggedOperandIndex(c, 0));   // rows.header->data[index], rows.header->rows
//
// A small kernel sums and scans the sizes and writes a header into the workspace; kernels after it on the
// stream read it. Rows lie in the arena if they fit there, else in the spill, as Tensor::PlaceRows has it; a
// value that fits nowhere traps, since a plan gives spill to all that may overflow.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/kernels/cuda/context.h"

namespace moe::kernels {

inline constexpr int kMaxRagged = 20;  // ragged tensors of one node

struct RaggedHeader {  // device memory
  int64_t rows;        // the sum of all sizes
  void* data[kMaxRagged];
};

struct RaggedRows {  // what kernels take
  const RaggedHeader* header = nullptr;
  const int64_t* starts = nullptr;  // the first row of each cell
  int64_t cells = 0;
};

// Bytes of the header and the starts of the cells.
int64_t RaggedWorkspace(int64_t cells);
// The same, for the cells of the first ragged operand or result of a node; 0 if there is none. A WorkspaceFn.
int64_t RaggedWorkspaceOf(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                          absl::Span<const Tensor> in, absl::Span<const Tensor> out);

// Places tensors with the sizes `sizes`: the rows of known[i] will be at header->data[i], those of fresh[i]
// at header->data[known.size() + i], and the sizes are copied to fresh tensors. `memory`:
// RaggedWorkspace(cells) bytes. Error: InvalidArgument for more than kMaxRagged tensors or other numbers of
// cells.
absl::StatusOr<RaggedRows> PlaceRagged(cudaStream_t stream, const int32_t* sizes, int64_t cells,
                                       absl::Span<const Tensor* const> known,
                                       absl::Span<const Tensor* const> fresh, void* memory);

// Places all ragged operands of a node, in order, and then its ragged results, which get the sizes of the
// first ragged operand. A null header if nothing is ragged.
absl::StatusOr<RaggedRows> PlaceLikeOperand(KernelContext& c, Workspace& w);
// The place of an operand or result in the header that PlaceLikeOperand fills; -1 for dense ones.
int RaggedOperandIndex(const KernelContext& c, int operand);
int RaggedResultIndex(const KernelContext& c, int result);

}  // namespace moe::kernels
