#include "moe/ir/conversion_layout.h"

#include <glog/logging.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/integers.h"
#include "moe/base/status.h"

namespace moe {
namespace {

constexpr int kRest = -1;  // axis of the sub-dim that no move touches

// A dim is seen as one sub-dim per axis that leaves it or comes to it, major first, and the rest.
struct SubDim {
  int dim;
  int axis;
  int64_t extent;
};

using SubDims = std::vector<SubDim>;

int64_t Volume(const SubDims& subs) {
  int64_t n = 1;
  for (const SubDim& s : subs) n *= s.extent;
  return n;
}

std::vector<int64_t> Strides(const SubDims& subs) {
  std::vector<int64_t> strides(subs.size(), 1);
  for (int i = static_cast<int>(subs.size()) - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * subs[i + 1].extent;
  return strides;
}

int Find(const SubDims& subs, int dim, AxisId axis) {
  for (size_t i = 0; i < subs.size(); ++i) {
    if (subs[i].dim == dim && subs[i].axis == axis) return static_cast<int>(i);
  }
  return -1;
}

// Loops over `block`, merged where both sides are contiguous.
StridedCopy MakeCopy(const SubDims& block, absl::Span<const int64_t> from, absl::Span<const int64_t> to) {
  StridedCopy copy;
  for (size_t i = 0; i < block.size(); ++i) {
    if (block[i].extent == 1) continue;
    const StridedCopy::Loop loop = {block[i].extent, from[i], to[i]};
    if (!copy.loops.empty()) {
      StridedCopy::Loop& outer = copy.loops.back();
      if (outer.from_stride == loop.count * loop.from_stride &&
          outer.to_stride == loop.count * loop.to_stride) {
        outer = {outer.count * loop.count, loop.from_stride, loop.to_stride};
        continue;
      }
    }
    copy.loops.push_back(loop);
  }
  if (!copy.loops.empty() && copy.loops.back().from_stride == 1 && copy.loops.back().to_stride == 1) {
    copy.run = copy.loops.back().count;
    copy.loops.pop_back();
  }
  return copy;
}

// Appends the cells of `block` (a box within an array of the given strides, starting at `base`), in order.
void AppendCells(const SubDims& block, absl::Span<const int64_t> strides, int64_t base,
                 std::vector<CellRun>* runs) {
  const size_t first_run = runs->size();
  std::vector<int64_t> index(block.size(), 0);
  const int64_t volume = Volume(block);
  for (int64_t k = 0; k < volume; ++k) {
    int64_t cell = base;
    for (size_t i = 0; i < block.size(); ++i) cell += index[i] * strides[i];
    if (runs->size() > first_run && runs->back().first + runs->back().count == cell) {
      ++runs->back().count;
    } else {
      runs->push_back({cell, 1});
    }
    for (int i = static_cast<int>(block.size()) - 1; i >= 0 && ++index[i] == block[i].extent; --i)
      index[i] = 0;
  }
}

bool IsIota(absl::Span<const CellRun> runs) {
  int64_t next = 0;
  for (const CellRun& r : runs) {
    if (r.first != next) return false;
    next += r.count;
  }
  return true;
}

class Planner {
 public:
  Planner(const Type& src, const Type& dst, const Mesh& mesh, int64_t rank)
      : src_(src), dst_(dst), mesh_(mesh), rank_(rank) {}

  absl::StatusOr<ConversionLayout> Plan(absl::Span<const ConversionStep> steps) {
    RETURN_IF_ERROR(Annotate(CheckTypes(), Describe()));
    ConversionLayout layout;
    layout.src = src_;
    layout.dst = dst_;
    if (steps.size() == 1 && (steps[0].kind == StepKind::kPermute || steps[0].kind == StepKind::kRotate)) {
      ASSIGN_OR_RETURN(StepLayout step,
                       steps[0].kind == StepKind::kPermute ? Permute(steps[0]) : Rotate(steps[0]));
      layout.steps.push_back(std::move(step));
      return layout;
    }
    RETURN_IF_ERROR(Refine());
    for (const ConversionStep& step : steps) {
      ASSIGN_OR_RETURN(StepLayout s, Step(step));
      layout.steps.push_back(std::move(s));
    }
    for (AxisId a = 0; a < mesh_.num_axes(); ++a) {
      if (roles_[a] != dst_.placement.Role(a)) {
        return Error(absl::StrCat("the steps leave axis ", mesh_.name(a), " at the wrong place"));
      }
    }
    return layout;
  }

 private:
  std::string Describe() const {
    return absl::StrCat("conversion ", TypeToString(src_, mesh_), " -> ", TypeToString(dst_, mesh_));
  }
  absl::Status Error(absl::string_view why) const {
    return absl::InvalidArgumentError(absl::StrCat(Describe(), ": ", why));
  }

  absl::Status CheckTypes() const {
    if (src_.dtype != dst_.dtype || src_.dims != dst_.dims || src_.ragged != dst_.ragged ||
        src_.ragged_bound != dst_.ragged_bound) {
      return absl::InvalidArgumentError("only the placement may differ");
    }
    for (const Type* t : {&src_, &dst_}) {
      if (static_cast<int>(t->placement.dims.size()) != t->rank()) {
        return absl::InvalidArgumentError("a placement of another rank");
      }
      for (int d = 0; d < t->rank(); ++d) {
        if (t->dims[d] % mesh_.Size(t->placement.dims[d]) != 0) {
          return absl::InvalidArgumentError(absl::StrCat("dim ", d, " of extent ", t->dims[d],
                                                         " is not divisible by ",
                                                         mesh_.Show(t->placement.dims[d])));
        }
      }
      if (t->ragged >= 0 && !t->placement.dims[t->ragged].empty()) {
        return absl::InvalidArgumentError("a ragged dim cannot be sharded");
      }
    }
    return absl::OkStatus();
  }

  // Splits dims into sub-dims, and these into those of the cells and those of the row.
  absl::Status Refine() {
    for (AxisId a = 0; a < mesh_.num_axes(); ++a) roles_.push_back(src_.placement.Role(a));
    const Dims local = src_.LocalDims(mesh_);
    for (int d = 0; d < src_.rank(); ++d) {
      if (d == src_.ragged) continue;
      const AxisList &from = src_.placement.dims[d], &to = dst_.placement.dims[d];
      size_t prefix = 0;
      while (prefix < from.size() && prefix < to.size() && from[prefix] == to[prefix]) ++prefix;
      if (prefix < from.size() && prefix < to.size()) {
        return Error(absl::StrCat("dim ", d, " both loses and gains axes; convert through ",
                                  "a placement that has only their common prefix"));
      }
      SubDims& subs = d < src_.ragged ? cells_ : row_;
      for (size_t i = prefix; i < from.size(); ++i) subs.push_back({d, from[i], 1});
      int64_t rest = local[d];
      for (size_t i = prefix; i < to.size(); ++i) {
        subs.push_back({d, to[i], mesh_.size(to[i])});
        rest /= mesh_.size(to[i]);
      }
      subs.push_back({d, kRest, rest});
    }
    return absl::OkStatus();
  }

  SubDims& Subs(int dim) { return dim < src_.ragged ? cells_ : row_; }

  Dims LocalDims() const {
    Dims dims(src_.rank(), 1);
    if (src_.ragged >= 0) dims[src_.ragged] = src_.dims[src_.ragged];
    for (const SubDims* subs : {&cells_, &row_}) {
      for (const SubDim& s : *subs) dims[s.dim] *= s.extent;
    }
    return dims;
  }

  absl::Status CheckMove(StepKind kind, const Move& m) {
    const std::string text = PrintSteps({{kind, {m}}}, mesh_);
    if (!Performs(kind, m.from, m.to)) return Error(absl::StrCat("'", text, "' is not a step of this kind"));
    if (roles_[m.axis] != m.from) return Error(absl::StrCat("'", text, "' starts where the axis is not"));
    for (int role : {m.from, m.to}) {
      if (role >= 0 && (role >= src_.rank() || role == src_.ragged || Find(Subs(role), role, m.axis) < 0)) {
        return Error(
            absl::StrCat("'", text, "': dim ", role, " neither loses nor gains this axis in the end"));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<StepLayout> Step(const ConversionStep& step) {
    if (step.moves.empty()) return Error("a step moves no axis");
    StepLayout s;
    s.kind = step.kind;
    const AxisList axes = step.axes();
    for (const Move& m : step.moves) {
      if (m.axis < 0 || m.axis >= mesh_.num_axes() || std::count(axes.begin(), axes.end(), m.axis) != 1) {
        return Error("a step moves an axis twice, or one that the mesh does not have");
      }
      RETURN_IF_ERROR(CheckMove(step.kind, m));
      if (m.from < 0 && m.from != step.moves[0].from) return Error("a step reduces by sum and max at once");
      s.exchanges_sizes |= m.from >= 0 && m.from < src_.ragged;
    }
    s.reduction = step.moves[0].from == Placement::kMax ? Reduction::kMax : Reduction::kSum;
    s.group = mesh_.Group(rank_, axes);
    s.me = static_cast<int>(mesh_.Index(rank_, axes));
    // The maximum of equal values is their value; a sum keeps one summand.
    for (const Move& m : step.moves) {
      if (s.kind == StepKind::kZero && m.to == Placement::kSum && mesh_.Coordinate(rank_, m.axis) != 0)
        s.keeps = false;
    }

    s.cells_in = Volume(cells_);
    s.row_in = Volume(row_);
    s.dims_in = LocalDims();
    const std::vector<int64_t> cells_from = Strides(cells_), row_from = Strides(row_);
    for (const Move& m : step.moves) {
      if (m.to >= 0) At(m.to, m.axis).extent = 1;
    }
    const SubDims cells_block = cells_, row_block = row_;
    s.cells_block = Volume(cells_);
    s.row_block = Volume(row_);
    const std::vector<int64_t> row_packed = Strides(row_);
    for (const Move& m : step.moves) {
      if (m.from >= 0) At(m.from, m.axis).extent = mesh_.size(m.axis);
      roles_[m.axis] = m.to;
    }
    s.cells_out = Volume(cells_);
    s.row_out = Volume(row_);
    s.dims_out = LocalDims();
    const std::vector<int64_t> cells_to = Strides(cells_), row_to = Strides(row_);

    s.pack_row = MakeCopy(row_block, row_from, row_packed);
    s.unpack_row = MakeCopy(row_block, row_packed, row_to);
    for (int64_t p = 0; p < s.group_size(); ++p) {
      int64_t pack_cell = 0, pack_row = 0, unpack_cell = 0, unpack_row = 0, rest = p;
      for (auto m = step.moves.rbegin(); m != step.moves.rend(); ++m) {
        const int64_t coordinate = rest % mesh_.size(m->axis);
        rest /= mesh_.size(m->axis);
        if (m->to >= 0) {
          const int at = Find(Subs(m->to), m->to, m->axis);
          (m->to < src_.ragged ? pack_cell : pack_row) +=
              coordinate * (m->to < src_.ragged ? cells_from : row_from)[at];
        }
        if (m->from >= 0) {
          const int at = Find(Subs(m->from), m->from, m->axis);
          (m->from < src_.ragged ? unpack_cell : unpack_row) +=
              coordinate * (m->from < src_.ragged ? cells_to : row_to)[at];
        }
      }
      s.pack_begin.push_back(static_cast<int>(s.pack_cells.size()));
      AppendCells(cells_block, cells_from, pack_cell, &s.pack_cells);
      s.pack_offset.push_back(pack_row);
      s.unpack_begin.push_back(static_cast<int>(s.unpack_cells.size()));
      AppendCells(cells_block, cells_to, unpack_cell, &s.unpack_cells);
      s.unpack_offset.push_back(unpack_row);
    }
    s.pack_begin.push_back(static_cast<int>(s.pack_cells.size()));
    s.unpack_begin.push_back(static_cast<int>(s.unpack_cells.size()));
    const bool sends_blocks = s.kind == StepKind::kReduceScatter || s.kind == StepKind::kAllToAll;
    const bool receives_blocks = s.kind == StepKind::kAllGather || s.kind == StepKind::kAllToAll;
    s.packs = sends_blocks && !InOrder(s.pack_cells, s.pack_row, s.pack_offset, s.row_block, s.row_in);
    s.unpacks =
        receives_blocks && !InOrder(s.unpack_cells, s.unpack_row, s.unpack_offset, s.row_block, s.row_out);
    return s;
  }

  // Are the blocks of all peers, one after the other, the stored value?
  bool InOrder(absl::Span<const CellRun> cells, const StridedCopy& row, absl::Span<const int64_t> offset,
               int64_t block, int64_t whole) const {
    if (!row.IsContiguous()) return false;
    if (src_.ragged >= 0) return block == whole && IsIota(cells);
    for (size_t p = 0; p < offset.size(); ++p) {
      if (offset[p] != static_cast<int64_t>(p) * block) return false;
    }
    return true;
  }

  SubDim& At(int dim, AxisId axis) { return Subs(dim)[Find(Subs(dim), dim, axis)]; }

  absl::StatusOr<StepLayout> Permute(const ConversionStep& step) const {
    if (src_.placement.partial != dst_.placement.partial) return Error("a permute cannot change partials");
    const AxisList axes = step.axes();
    std::vector<int> changed;
    for (int d = 0; d < src_.rank(); ++d) {
      AxisList from = src_.placement.dims[d], to = dst_.placement.dims[d];
      if (from == to) continue;
      changed.push_back(d);
      // What stands alike at both ends does not move; all between does.
      size_t begin = 0, end = std::min(from.size(), to.size());
      while (begin < end && from[begin] == to[begin]) ++begin;
      while (end > begin && from.size() == to.size() && from[end - 1] == to[end - 1]) --end;
      for (size_t i = begin; i < end; ++i) {
        if (std::count(axes.begin(), axes.end(), from[i]) != 1) {
          return Error(absl::StrCat("a permute of dim ", d, " has to move ", mesh_.name(from[i])));
        }
      }
      std::sort(from.begin(), from.end());
      std::sort(to.begin(), to.end());
      if (from != to) return Error(absl::StrCat("a permute keeps the set of axes, but dim ", d, " does not"));
    }
    for (const Move& m : step.moves) {
      if (m.from != m.to || m.from < 0 || src_.placement.Role(m.axis) != m.from) {
        return Error("a permute moves axes within their dim");
      }
    }
    StepLayout s = WholeParts(axes);
    // The member whose block before the permute is the block of `rank` after it, or the other way round.
    const auto partner = [&](const Placement& mine, const Placement& theirs) {
      for (int p = 0; p < s.group_size(); ++p) {
        if (std::all_of(changed.begin(), changed.end(), [&](int d) {
              return mesh_.Index(rank_, mine.dims[d]) == mesh_.Index(s.group[p], theirs.dims[d]);
            })) {
          return p;
        }
      }
      return -1;
    };
    s.receive_from = partner(dst_.placement, src_.placement);
    s.send_to = partner(src_.placement, dst_.placement);
    CHECK(s.receive_from >= 0 && s.send_to >= 0);
    return s;
  }

  // Every rank's whole part goes to one other rank of the group.
  StepLayout WholeParts(const AxisList& axes) const {
    StepLayout s;
    s.kind = StepKind::kPermute;
    s.group = mesh_.Group(rank_, axes);
    s.me = static_cast<int>(mesh_.Index(rank_, axes));
    s.dims_in = s.dims_out = src_.LocalDims(mesh_);
    for (int d = 0; d < src_.rank(); ++d) {
      if (d != src_.ragged) (d < src_.ragged ? s.cells_in : s.row_in) *= s.dims_in[d];
    }
    s.cells_block = s.cells_out = s.cells_in;
    s.row_block = s.row_out = s.row_in;
    s.exchanges_sizes = src_.ragged >= 0;
    return s;
  }

  absl::StatusOr<StepLayout> Rotate(const ConversionStep& step) const {
    const AxisList axes = step.axes();
    if (!(src_.placement == dst_.placement)) return Error("a rotation must keep the placement");
    const int d = step.moves.empty() ? -1 : step.moves[0].from;
    if (d < 0 || d >= src_.rank() || d == src_.ragged)
      return Error("a rotation must go along a dim that is not ragged");
    for (const Move& m : step.moves) {
      if (m.from != d || m.to != d) return Error("a rotation must go along one dim only");
    }
    const AxisList& dim = src_.placement.dims[d];
    if (axes.size() > dim.size() || !std::equal(axes.begin(), axes.end(), dim.begin())) {
      return Error(absl::StrCat("a rotation goes over the major axes of dim ", d));
    }
    StepLayout s = WholeParts(axes);
    s.send_to = (s.me + 1) % s.group_size();
    s.receive_from = (s.me + s.group_size() - 1) % s.group_size();
    return s;
  }

  const Type &src_, &dst_;
  const Mesh& mesh_;
  const int64_t rank_;
  SubDims cells_, row_;     // as the value is stored now
  std::vector<int> roles_;  // of every axis now
};

}  // namespace

absl::StatusOr<ConversionLayout> LayoutConversion(const Type& src, const Type& dst, const Mesh& mesh,
                                                  int64_t rank, absl::Span<const ConversionStep> steps) {
  return Planner(src, dst, mesh, rank).Plan(steps);
}

int64_t ConversionLayout::ValueBytes(int i, double overload) const {
  if (steps.empty()) return 0;
  const Dims& dims = i < static_cast<int>(steps.size()) ? steps[i].dims_in : steps[i - 1].dims_out;
  Type local(src.dtype, dims);
  local.ragged = src.ragged;
  local.ragged_bound = src.ragged_bound;
  const LocalStorage storage = StorageOf(local, Mesh(), overload);
  return storage.bytes - storage.header_bytes;
}

ConversionLayout::Buffers ConversionLayout::ScratchBuffers(double overload) const {
  Buffers buffers;
  int turn = 0;
  const auto use = [&](int64_t bytes) {
    buffers.bytes[turn] = std::max(buffers.bytes[turn], RoundUp(bytes, 64));
    turn = 1 - turn;
  };
  for (int i = 0; i < static_cast<int>(steps.size()); ++i) {
    if (steps[i].packs) use(ValueBytes(i, overload));
    if (steps[i].unpacks) use(ValueBytes(i + 1, overload));
    if (i + 1 < static_cast<int>(steps.size())) use(ValueBytes(i + 1, overload));
  }
  return buffers;
}

int64_t ConversionLayout::WorkspaceBytes(double overload) const {
  const Buffers buffers = ScratchBuffers(overload);
  return buffers.bytes[0] + buffers.bytes[1];
}

int64_t ConversionLayout::ExpectedTraffic(int i) const {
  const StepLayout& s = steps[i];
  if (IsLocal(s.kind)) return 0;
  const auto bytes = [&](const Dims& dims) {
    int64_t n = ByteSize(src.dtype);
    for (int64_t d : dims) n *= d;
    return n;
  };
  if (s.kind == StepKind::kPermute) return s.send_to == s.me ? 0 : bytes(s.dims_in);
  const int64_t n = s.group_size();
  const int64_t larger = s.kind == StepKind::kAllGather ? bytes(s.dims_out) : bytes(s.dims_in);
  return (s.kind == StepKind::kAllReduce ? 2 : 1) * larger / n * (n - 1);
}

absl::StatusOr<int64_t> ConversionWorkspaceBytes(const Type& src, const Type& dst, const Mesh& mesh,
                                                 absl::Span<const ConversionStep> steps, double overload) {
  ASSIGN_OR_RETURN(const ConversionLayout layout, LayoutConversion(src, dst, mesh, 0, steps));
  return layout.WorkspaceBytes(overload);
}

}  // namespace moe
