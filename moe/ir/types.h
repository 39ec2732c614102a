// Types of the IR: dtype, mesh, placement, tensor type.
//
// A value's type is its dtype, its *global* dims and its placement: for each dim the ordered mesh axes that
// shard it (major first), and the axes over which it is an unreduced partial. Over every axis it does not
// name, the value is replicated. The local shape is derived.
//
//   mesh<pp=2, b=2, a=2; dp=b, tp=a>
//   f32[32@dp, 8@tp, 64, 1024]            batch over dp, second dim over tp
//   f32[1024, 64] partial(dp)             every dp rank holds a summand
//   f32[64@ep, 32, 8, ~40, 1024]          dim 3 is ragged: 40 is the *expected* extent, see Type::ragged
//   future<f32[1024, 64]>                 what an exchange in flight will have written
//
// All of these are value types, safe to copy and to share between threads.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace moe {

enum class DType : uint8_t { kPred, kS32, kS64, kBF16, kF16, kF32, kF64, kF8E4M3 };

int64_t ByteSize(DType dtype);                            // bytes of one element
absl::string_view DTypeName(DType dtype);                 // "f32"
std::optional<DType> ParseDType(absl::string_view name);  // inverse of DTypeName
bool IsFloat(DType dtype);

// Index of an axis in Mesh::axes().
using AxisId = int8_t;
using AxisList = absl::InlinedVector<AxisId, 6>;
using Dims = absl::InlinedVector<int64_t, 6>;

struct MeshAxis {
  std::string name;
  int64_t size = 1;
  friend bool operator==(const MeshAxis& a, const MeshAxis& b) {
    return a.name == b.name && a.size == b.size;
  }
};

// Named axes, major first; ranks are numbered row-major over them. An axis called "pp" is the pipeline axis:
// it is outermost, and no placement names it (one program per stage). An alias (dp, tp, ep, ...) is a list of
// axes.
class Mesh {
 public:
  Mesh() = default;
  explicit Mesh(std::vector<MeshAxis> axes, std::map<std::string, AxisList> aliases = {});

  const std::vector<MeshAxis>& axes() const { return axes_; }
  const std::map<std::string, AxisList>& aliases() const { return aliases_; }
  int num_axes() const { return static_cast<int>(axes_.size()); }
  int64_t num_ranks() const;   // product of all axes
  int64_t num_stages() const;  // size of "pp", or 1
  int64_t ranks_per_stage() const { return num_ranks() / num_stages(); }
  AxisList SpmdAxes() const;  // every axis but "pp", major first

  int64_t size(AxisId axis) const { return axes_[axis].size; }
  int64_t Size(absl::Span<const AxisId> axes) const;  // product; 1 for none
  const std::string& name(AxisId axis) const { return axes_[axis].name; }
  std::optional<AxisId> Find(absl::string_view name) const;
  // The axes of an axis or alias name; {} if there is none of that name (or the alias is empty).
  AxisList Alias(absl::string_view name) const;

  int64_t Coordinate(int64_t rank, AxisId axis) const;
  // Mixed-radix index of `rank` over `axes`, major first.
  int64_t Index(int64_t rank, absl::Span<const AxisId> axes) const;
  // Ranks that differ from `rank` only in `axes`, ordered by Index over `axes`. `rank` is one of them.
  std::vector<int64_t> Group(int64_t rank, absl::Span<const AxisId> axes) const;
  int64_t Stage(int64_t rank) const { return rank / ranks_per_stage(); }

  // "tp" if the axes are exactly an alias (of tp dp cp ep etp edp kvh, then any), else names joined by '.'.
  std::string Show(absl::Span<const AxisId> axes) const;
  // Inverse of Show: axis and alias names joined by '.'.
  absl::StatusOr<AxisList> ParseAxes(absl::string_view text) const;
  std::string ToString() const;  // mesh<a=2, b=4; dp=a.b>

  friend bool operator==(const Mesh& a, const Mesh& b) {
    return a.axes_ == b.axes_ && a.aliases_ == b.aliases_;
  }

 private:
  std::vector<MeshAxis> axes_;
  std::map<std::string, AxisList> aliases_;
};

enum class Reduction : uint8_t { kSum, kMax };

struct Partial {
  AxisId axis;
  Reduction kind = Reduction::kSum;
  friend bool operator==(const Partial& a, const Partial& b) { return a.axis == b.axis && a.kind == b.kind; }
  friend bool operator<(const Partial& a, const Partial& b) {
    return std::pair(a.axis, a.kind) < std::pair(b.axis, b.kind);
  }
  template <typename H>
  friend H AbslHashValue(H h, const Partial& p) {
    return H::combine(std::move(h), p.axis, p.kind);
  }
};

struct Placement {
  absl::InlinedVector<AxisList, 6> dims;    // per dim, major first
  absl::InlinedVector<Partial, 4> partial;  // sorted

  static Placement Replicated(int rank) {
    Placement p;
    p.dims.resize(rank);
    return p;
  }
  bool IsReplicated() const;
  // What an axis does to this value: the dim it shards (>= 0), or one of the constants below.
  static constexpr int kNone = -1, kSum = -2, kMax = -3;
  int Role(AxisId axis) const;
  void AddPartial(Partial p);  // keeps `partial` sorted and unique

  friend bool operator==(const Placement& a, const Placement& b) {
    return a.dims == b.dims && a.partial == b.partial;
  }
  template <typename H>
  friend H AbslHashValue(H h, const Placement& p) {
    return H::combine(std::move(h), p.dims, p.partial);
  }
};

struct Type {
  DType dtype = DType::kF32;
  Dims dims;            // global extents
  Placement placement;  // dims.size() == placement.dims.size()
  // Index of the ragged dim, or -1. A ragged value [E, B, C, ~P, H] is stored packed: a header of s32 sizes
  // for the local [E, B, C] cells, then rows of H in (e, b, c, slot) order. dims[ragged] is the expected
  // extent P, from which costs follow; `ragged_bound` is the most rows that one (b, c) group can have in all
  // experts together (tokens x k), from which the worst case follows.
  int ragged = -1;
  int64_t ragged_bound = 0;
  // future<T>: a value that an exchange in flight writes. Only comm.start makes one, only comm.done takes it.
  bool future = false;

  Type() = default;
  Type(DType dtype, absl::Span<const int64_t> dims)
      : dtype(dtype), dims(dims.begin(), dims.end()), placement(Placement::Replicated(dims.size())) {}
  Type(DType dtype, absl::Span<const int64_t> dims, Placement placement)
      : dtype(dtype), dims(dims.begin(), dims.end()), placement(std::move(placement)) {}

  int rank() const { return static_cast<int>(dims.size()); }
  int64_t num_elements() const;  // global
  Dims LocalDims(const Mesh& mesh) const;
  int64_t LocalElements(const Mesh& mesh) const;

  friend bool operator==(const Type& a, const Type& b) {
    return a.dtype == b.dtype && a.dims == b.dims && a.placement == b.placement && a.ragged == b.ragged &&
           a.ragged_bound == b.ragged_bound && a.future == b.future;
  }
  template <typename H>
  friend H AbslHashValue(H h, const Type& t) {
    return H::combine(std::move(h), t.dtype, t.dims, t.placement, t.ragged, t.ragged_bound, t.future);
  }
};

// Storage of one local value. Dense: `bytes` = elements x element size. Ragged: `header_bytes` of s32 cell
// sizes (rounded up to 64), then at most `rows` rows of `row_elements`; `worst_rows` is what routing can
// reach at all.
struct LocalStorage {
  Dims dims;                 // local extents (expected extent in the ragged dim)
  int64_t header_bytes = 0;  // 0 for dense values
  int64_t cells = 0;         // ragged: number of local (e, b, c) cells
  int64_t rows = 0, worst_rows = 0;
  int64_t row_elements = 0;
  int64_t bytes = 0;        // header and rows, within the bound
  int64_t spill_bytes = 0;  // header and worst_rows; 0 for dense values
};
// overload: the arena holds rows = min(worst, ceil(overload x expected)) of a ragged value; <= 0 means the
// worst case.
LocalStorage StorageOf(const Type& type, const Mesh& mesh, double overload = 0);

// Text of a type, axes by name: "f32[8@dp, 16] partial(tp, max:cp)". Ragged: "f32[8, 4, 1, ~5<=32, 16]";
// in flight: "future<f32[8]>".
std::string TypeToString(const Type& type, const Mesh& mesh);
std::string PlacementToString(const Placement& placement, const Mesh& mesh);  // "[dp, -, tp] partial(a)"

}  // namespace moe
