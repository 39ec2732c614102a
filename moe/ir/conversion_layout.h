// Layout of a conversion on one rank: which data its steps copy, exchange and reduce, and the scratch memory
// for it.
//
//   ASSIGN_OR_RETURN(ConversionLayout layout, LayoutConversion(x.type(), y.type(), mesh, rank, steps));
//   int64_t bytes = layout.WorkspaceBytes(overload);
//
// A local value is seen as cells of rows. A ragged value [E, B, C, ~P, H...] has its (e, b, c) cells, each
// with so many rows as its size says; a dense value is one cell with one row. Every moved axis is a sub-dim
// of the cells or of the row, so that what a member of the group sends to a peer is: of each cell of the
// peer's block, in order, of each row, the peer's part. Copies are nested loops of strides, cells are runs of
// consecutive indices, both computed here once.
//
// The memory plan takes the workspace from here and the runtime executes the same numbers. Plain data,
// immutable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/types.h"

namespace moe {

// Copies runs of consecutive elements; loops outermost first, strides in elements.
struct StridedCopy {
  struct Loop {
    int64_t count, from_stride, to_stride;
  };
  absl::InlinedVector<Loop, 6> loops;
  int64_t run = 1;

  bool IsContiguous() const { return loops.empty(); }
};

// Cells [first, first + count).
struct CellRun {
  int64_t first, count;
};

struct StepLayout {
  StepKind kind = StepKind::kZero;
  Reduction reduction = Reduction::kSum;  // of kReduceScatter and kAllReduce
  std::vector<int64_t> group;             // ranks, by index over the moved axes; not used by local steps
  int me = 0;                             // index in the group
  bool keeps = true;                      // kZero: this rank keeps the value
  int send_to = 0, receive_from = 0;      // kPermute: group indices; a rotation is laid out as one

  int64_t cells_in = 1, cells_block = 1, cells_out = 1;
  int64_t row_in = 1, row_block = 1, row_out = 1;  // elements of a row
  Dims dims_in, dims_out;                          // local extents of the whole value

  // What goes to peer p: the cells pack_cells[pack_begin[p] .. pack_begin[p + 1]), of each row `pack_row`
  // from element pack_offset[p] on. packs: the blocks, in group order, are not simply the value as it is
  // stored.
  bool packs = false;
  StridedCopy pack_row;
  std::vector<int64_t> pack_offset;
  std::vector<CellRun> pack_cells;
  std::vector<int> pack_begin;
  // Where what comes from peer p lands, likewise.
  bool unpacks = false;
  StridedCopy unpack_row;
  std::vector<int64_t> unpack_offset;
  std::vector<CellRun> unpack_cells;
  std::vector<int> unpack_begin;
  // The sizes of the cells that come are not known from the sizes here.
  bool exchanges_sizes = false;

  int group_size() const { return static_cast<int>(group.size()); }
};

struct ConversionLayout {
  Type src, dst;
  std::vector<StepLayout> steps;

  // Bytes of the value before step i (i == steps.size(): the result), in rows only; ragged values: at most
  // overload x expected rows (see StorageOf), or the worst case if overload <= 0.
  int64_t ValueBytes(int i, double overload) const;
  // Two scratch buffers that the steps use in turn, 64-byte aligned.
  struct Buffers {
    int64_t bytes[2] = {0, 0};
  };
  Buffers ScratchBuffers(double overload) const;
  int64_t WorkspaceBytes(double overload) const;

  // Bytes that one rank sends (and receives) in step i in a ring, at the expected rows; 0 for local steps.
  int64_t ExpectedTraffic(int i) const;
};

// Errors (InvalidArgument): shapes or dtypes differ, a move does not fit its kind or the placement at that
// point, the steps do not end at dst, an extent is not divisible, a ragged dim is sharded, one dim both loses
// and gains axes without being a permute.
absl::StatusOr<ConversionLayout> LayoutConversion(const Type& src, const Type& dst, const Mesh& mesh,
                                                  int64_t rank, absl::Span<const ConversionStep> steps);

// Scratch bytes of a conversion, the same on every rank.
absl::StatusOr<int64_t> ConversionWorkspaceBytes(const Type& src, const Type& dst, const Mesh& mesh,
                                                 absl::Span<const ConversionStep> steps, double overload);

}  // namespace moe
