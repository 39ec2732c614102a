#include "moe/ir/types.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/integers.h"

namespace moe {
namespace {

struct DTypeInfo {
  DType dtype;
  const char* name;
  int64_t bytes;
};
constexpr DTypeInfo kDTypes[] = {
    {DType::kPred, "pred", 1}, {DType::kS32, "s32", 4},       {DType::kS64, "s64", 8},
    {DType::kBF16, "bf16", 2}, {DType::kF16, "f16", 2},       {DType::kF32, "f32", 4},
    {DType::kF64, "f64", 8},   {DType::kF8E4M3, "f8e4m3", 1},
};

}  // namespace

int64_t ByteSize(DType dtype) { return kDTypes[static_cast<int>(dtype)].bytes; }
absl::string_view DTypeName(DType dtype) { return kDTypes[static_cast<int>(dtype)].name; }

std::optional<DType> ParseDType(absl::string_view name) {
  for (const DTypeInfo& i : kDTypes) {
    if (name == i.name) return i.dtype;
  }
  return std::nullopt;
}

bool IsFloat(DType d) { return d >= DType::kBF16; }
DType AtLeastF32(DType d) { return IsFloat(d) && ByteSize(d) < 4 ? DType::kF32 : d; }

Mesh::Mesh(std::vector<MeshAxis> axes, std::map<std::string, AxisList> aliases)
    : axes_(std::move(axes)), aliases_(std::move(aliases)) {}

int64_t Mesh::num_ranks() const {
  int64_t n = 1;
  for (const MeshAxis& a : axes_) n *= a.size;
  return n;
}

int64_t Mesh::num_stages() const {
  const std::optional<AxisId> pp = Find("pp");
  return pp ? size(*pp) : 1;
}

AxisList Mesh::SpmdAxes() const {
  AxisList out;
  for (int i = 0; i < num_axes(); ++i) {
    if (axes_[i].name != "pp") out.push_back(static_cast<AxisId>(i));
  }
  return out;
}

int64_t Mesh::Size(absl::Span<const AxisId> axes) const {
  int64_t n = 1;
  for (AxisId a : axes) n *= size(a);
  return n;
}

std::optional<AxisId> Mesh::Find(absl::string_view name) const {
  for (int i = 0; i < num_axes(); ++i) {
    if (axes_[i].name == name) return static_cast<AxisId>(i);
  }
  return std::nullopt;
}

AxisList Mesh::Alias(absl::string_view name) const {
  if (std::optional<AxisId> a = Find(name)) return AxisList{*a};
  auto it = aliases_.find(std::string(name));
  return it == aliases_.end() ? AxisList() : it->second;
}

int64_t Mesh::Coordinate(int64_t rank, AxisId axis) const {
  for (int i = num_axes() - 1; i > axis; --i) rank /= axes_[i].size;
  return rank % axes_[axis].size;
}

int64_t Mesh::Index(int64_t rank, absl::Span<const AxisId> axes) const {
  int64_t index = 0;
  for (AxisId a : axes) index = index * size(a) + Coordinate(rank, a);
  return index;
}

std::vector<int64_t> Mesh::Group(int64_t rank, absl::Span<const AxisId> axes) const {
  std::vector<int64_t> stride(axes_.size(), 1);
  for (int i = num_axes() - 2; i >= 0; --i) stride[i] = stride[i + 1] * axes_[i + 1].size;
  int64_t base = rank;
  for (AxisId a : axes) base -= Coordinate(rank, a) * stride[a];
  std::vector<int64_t> out = {base};
  for (AxisId a : axes) {
    std::vector<int64_t> next;
    for (int64_t r : out) {
      for (int64_t c = 0; c < size(a); ++c) next.push_back(r + c * stride[a]);
    }
    out = std::move(next);
  }
  return out;
}

std::string Mesh::Show(absl::Span<const AxisId> axes) const {
  if (axes.empty()) return "";
  const AxisList list(axes.begin(), axes.end());
  for (const char* name : {"tp", "dp", "cp", "ep", "etp", "edp", "kvh"}) {
    auto it = aliases_.find(name);
    if (it != aliases_.end() && it->second == list) return name;
  }
  for (const auto& [name, value] : aliases_) {
    if (value == list) return name;
  }
  return absl::StrJoin(axes, ".", [this](std::string* s, AxisId a) { absl::StrAppend(s, name(a)); });
}

std::string Mesh::ShowSet(absl::Span<const AxisId> axes) const {
  std::vector<AxisId> left(axes.begin(), axes.end());
  std::sort(left.begin(), left.end());
  std::map<AxisId, std::string> parts;  // by the most major axis of each
  while (!left.empty()) {
    const char* best = nullptr;
    std::vector<AxisId> covered;
    for (const char* name : {"tp", "dp", "cp", "ep", "etp", "edp", "kvh"}) {
      const AxisList list = Alias(name);
      std::vector<AxisId> of(list.begin(), list.end());
      std::sort(of.begin(), of.end());
      if (of.size() <= covered.size() || !std::includes(left.begin(), left.end(), of.begin(), of.end())) {
        continue;
      }
      best = name;
      covered = std::move(of);
    }
    if (best == nullptr) covered = {left.front()};
    parts[covered.front()] = best != nullptr ? best : name(covered.front());
    std::vector<AxisId> rest;
    std::set_difference(left.begin(), left.end(), covered.begin(), covered.end(), std::back_inserter(rest));
    left = std::move(rest);
  }
  return absl::StrJoin(parts, ".", [](std::string* s, const auto& part) { absl::StrAppend(s, part.second); });
}

absl::StatusOr<AxisList> Mesh::ParseAxes(absl::string_view text) const {
  AxisList out;
  for (absl::string_view part : absl::StrSplit(text, '.')) {
    if (!Find(part) && !aliases_.count(std::string(part))) {
      std::vector<std::string> names;
      for (const MeshAxis& a : axes_) names.push_back(a.name);
      for (const auto& [name, _] : aliases_) names.push_back(name);
      return absl::InvalidArgumentError(
          absl::StrCat("no mesh axis or alias '", part, "'; there are: ", absl::StrJoin(names, ", ")));
    }
    for (AxisId a : Alias(part)) out.push_back(a);
  }
  return out;
}

std::string Mesh::ToString() const {
  std::string s = "mesh<";
  for (int i = 0; i < num_axes(); ++i) absl::StrAppend(&s, i ? ", " : "", axes_[i].name, "=", axes_[i].size);
  bool first = true;
  for (const auto& [name, axes] : aliases_) {
    if (axes.empty()) continue;
    absl::StrAppend(
        &s, first ? "; " : ", ", name, "=",
        absl::StrJoin(axes, ".", [this](std::string* t, AxisId a) { absl::StrAppend(t, this->name(a)); }));
    first = false;
  }
  return s + ">";
}

bool Placement::IsReplicated() const {
  return partial.empty() &&
         std::all_of(dims.begin(), dims.end(), [](const AxisList& a) { return a.empty(); });
}

int Placement::Role(AxisId axis) const {
  for (size_t d = 0; d < dims.size(); ++d) {
    if (std::find(dims[d].begin(), dims[d].end(), axis) != dims[d].end()) return static_cast<int>(d);
  }
  for (const Partial& p : partial) {
    if (p.axis == axis) return p.kind == Reduction::kSum ? kSum : kMax;
  }
  return kNone;
}

void Placement::AddPartial(Partial p) {
  auto it = std::lower_bound(partial.begin(), partial.end(), p);
  if (it == partial.end() || !(*it == p)) partial.insert(it, p);
}

int64_t Type::num_elements() const {
  int64_t n = 1;
  for (int64_t d : dims) n *= d;
  return n;
}

Dims Type::LocalDims(const Mesh& mesh) const {
  Dims out = dims;
  for (size_t d = 0; d < out.size(); ++d) out[d] /= mesh.Size(placement.dims[d]);
  return out;
}

int64_t Type::LocalElements(const Mesh& mesh) const {
  int64_t n = 1;
  for (int64_t d : LocalDims(mesh)) n *= d;
  return n;
}

LocalStorage StorageOf(const Type& type, const Mesh& mesh, double overload) {
  LocalStorage s;
  s.dims = type.LocalDims(mesh);
  const int64_t element = ByteSize(type.dtype);
  if (type.ragged < 0) {
    s.row_elements = 1;
    s.bytes = element;
    for (int64_t d : s.dims) s.bytes *= d;
    return s;
  }
  // [E, B, C, ~P, H...]: a token of a local group reaches at most min(k, E_local) local experts. ragged_bound
  // is tokens x k for all experts; the tokens of one group are not known here, so the bound per group is the
  // whole of it (one rank may own all the experts that a token chose).
  s.cells = 1;
  for (int d = 0; d < type.ragged; ++d) s.cells *= s.dims[d];
  s.row_elements = 1;
  for (int d = type.ragged + 1; d < type.rank(); ++d) s.row_elements *= s.dims[d];
  int64_t groups = 1;
  for (int d = 1; d < type.ragged; ++d) groups *= s.dims[d];
  s.worst_rows = groups * type.ragged_bound;
  const int64_t expected = s.cells * s.dims[type.ragged];
  s.rows = overload > 0
               ? std::min<int64_t>(s.worst_rows, static_cast<int64_t>(std::ceil(overload * expected)))
               : s.worst_rows;
  s.header_bytes = RoundUp(s.cells * 4, 64);
  s.bytes = s.header_bytes + s.rows * s.row_elements * element;
  s.spill_bytes = s.rows < s.worst_rows ? RoundUp(s.worst_rows * s.row_elements * element, 64) : 0;
  return s;
}

std::string PlacementToString(const Placement& p, const Mesh& mesh) {
  std::string s = "[";
  for (size_t d = 0; d < p.dims.size(); ++d) {
    absl::StrAppend(&s, d ? ", " : "", p.dims[d].empty() ? "-" : mesh.Show(p.dims[d]));
  }
  s += "]";
  if (!p.partial.empty()) {
    absl::StrAppend(&s, " partial(",
                    absl::StrJoin(p.partial, ", ",
                                  [&](std::string* t, const Partial& x) {
                                    absl::StrAppend(t, x.kind == Reduction::kMax ? "max:" : "",
                                                    mesh.name(x.axis));
                                  }),
                    ")");
  }
  return s;
}

std::string TypeToString(const Type& t, const Mesh& mesh) {
  std::string s = absl::StrCat(t.future ? "future<" : "", DTypeName(t.dtype), "[");
  for (int d = 0; d < t.rank(); ++d) {
    absl::StrAppend(&s, d ? ", " : "", d == t.ragged ? "~" : "", t.dims[d]);
    if (d == t.ragged) absl::StrAppend(&s, "<=", t.ragged_bound);
    if (!t.placement.dims[d].empty()) absl::StrAppend(&s, "@", mesh.Show(t.placement.dims[d]));
  }
  s += "]";
  if (!t.placement.partial.empty()) {
    absl::StrAppend(&s, " partial(",
                    absl::StrJoin(t.placement.partial, ", ",
                                  [&](std::string* o, const Partial& x) {
                                    absl::StrAppend(o, x.kind == Reduction::kMax ? "max:" : "",
                                                    mesh.name(x.axis));
                                  }),
                    ")");
  }
  if (t.future) s += ">";
  return s;
}

}  // namespace moe
