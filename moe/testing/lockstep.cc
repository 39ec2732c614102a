#include "moe/testing/lockstep.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/local.h"

namespace moe::testing {
namespace {

// A local (or global) array of doubles, whatever the dtype. A ragged value is padded to `ragged_bound` slots
// per cell and carries the sizes of its cells.
struct Array {
  Dims dims;
  std::vector<double> data;
  Dims cell_dims;  // ragged only
  std::vector<int32_t> sizes;
};

int64_t Product(const Dims& dims) {
  int64_t n = 1;
  for (int64_t d : dims) n *= d;
  return n;
}

Dims PaddedDims(const Type& type, const Mesh& mesh) {
  Dims dims = type.LocalDims(mesh);
  if (type.ragged >= 0) dims[type.ragged] = type.ragged_bound;
  return dims;
}

Array Zeros(const Type& type, const Mesh& mesh) {
  Array a;
  a.dims = PaddedDims(type, mesh);
  a.data.assign(Product(a.dims), 0);
  if (type.ragged >= 0) {
    a.cell_dims.assign(a.dims.begin(), a.dims.begin() + type.ragged);
    a.sizes.assign(Product(a.cell_dims), 0);
  }
  return a;
}

void ForEachIndex(const Dims& dims, const std::function<void(const Dims&, int64_t)>& fn) {
  Dims index(dims.size(), 0);
  for (int64_t flat = 0, n = Product(dims); flat < n; ++flat) {
    fn(index, flat);
    for (int d = static_cast<int>(dims.size()) - 1; d >= 0 && ++index[d] == dims[d]; --d) index[d] = 0;
  }
}

// Finds, for an element of a value placed one way, who holds it placed another way.
class Locator {
 public:
  Locator(const Placement& from, const Placement& to, const Mesh& mesh) : from_(from), to_(to), mesh_(mesh) {
    stride_.assign(mesh.num_axes(), 1);
    for (int a = mesh.num_axes() - 2; a >= 0; --a) stride_[a] = stride_[a + 1] * mesh.size(a + 1);
  }
  // `index` in the local array `to_dims` of `rank`; gives the owner, and the flat index in its array
  // `from_dims`.
  int64_t Owner(int64_t rank, const Dims& index, const Dims& to_dims, const Dims& from_dims,
                int64_t* flat) const {
    int64_t owner = rank;
    *flat = 0;
    for (size_t d = 0; d < index.size(); ++d) {
      const int64_t global = mesh_.Index(rank, to_.dims[d]) * to_dims[d] + index[d];
      int64_t block = global / from_dims[d];
      for (int k = static_cast<int>(from_.dims[d].size()) - 1; k >= 0; --k) {
        const AxisId a = from_.dims[d][k];
        owner += (block % mesh_.size(a) - mesh_.Coordinate(rank, a)) * stride_[a];
        block /= mesh_.size(a);
      }
      *flat = *flat * from_dims[d] + global % from_dims[d];
    }
    return owner;
  }

 private:
  const Placement &from_, &to_;
  const Mesh& mesh_;
  std::vector<int64_t> stride_;
};

// What a conversion means.
std::vector<Array> Convert(const Type& from, const Type& to, const Mesh& mesh, const std::vector<Array>& in) {
  AxisList reduced;
  bool max = false;
  for (const Partial& p : from.placement.partial) {
    if (to.placement.Role(p.axis) == from.placement.Role(p.axis)) continue;
    reduced.push_back(p.axis);
    max = p.kind == Reduction::kMax;
  }
  const Locator locator(from.placement, to.placement, mesh);
  std::vector<Array> out;
  for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
    Array y = Zeros(to, mesh);
    bool zeroed = false;
    for (const Partial& p : to.placement.partial) {
      zeroed |= from.placement.Role(p.axis) == Placement::kNone && mesh.Coordinate(r, p.axis) != 0;
    }
    int64_t there;
    if (!zeroed) {
      ForEachIndex(y.dims, [&](const Dims& index, int64_t flat) {
        const int64_t owner = locator.Owner(r, index, y.dims, in[r].dims, &there);
        bool first = true;
        for (int64_t q : mesh.Group(owner, reduced)) {
          const double v = in[q].data[there];
          y.data[flat] = first ? v : max ? std::max(y.data[flat], v) : y.data[flat] + v;
          first = false;
        }
      });
    }
    if (to.ragged >= 0) {
      ForEachIndex(y.cell_dims, [&](const Dims& index, int64_t flat) {
        const int64_t owner = locator.Owner(r, index, y.cell_dims, in[r].cell_dims, &there);
        y.sizes[flat] = in[owner].sizes[there];
      });
    }
    out.push_back(std::move(y));
  }
  return out;
}

template <typename T>
void Pack(const Array& a, T* out, int64_t row_elements) {
  if (a.sizes.empty() && a.cell_dims.empty()) {
    for (size_t i = 0; i < a.data.size(); ++i) out[i] = static_cast<T>(a.data[i]);
    return;
  }
  const int64_t slots =
      static_cast<int64_t>(a.data.size()) / (static_cast<int64_t>(a.sizes.size()) * row_elements);
  for (size_t c = 0; c < a.sizes.size(); ++c) {
    for (int64_t i = 0; i < a.sizes[c] * row_elements; ++i) {
      *out++ = static_cast<T>(a.data[c * slots * row_elements + i]);
    }
  }
}

template <typename T>
void Unpack(const T* in, Array* a, int64_t row_elements) {
  if (a->sizes.empty() && a->cell_dims.empty()) {
    for (size_t i = 0; i < a->data.size(); ++i) a->data[i] = static_cast<double>(in[i]);
    return;
  }
  const int64_t slots =
      static_cast<int64_t>(a->data.size()) / (static_cast<int64_t>(a->sizes.size()) * row_elements);
  for (size_t c = 0; c < a->sizes.size(); ++c) {
    for (int64_t i = 0; i < a->sizes[c] * row_elements; ++i) {
      a->data[c * slots * row_elements + i] = static_cast<double>(*in++);
    }
  }
}

// Storage for one kernel operand or result.
struct Buffer {
  std::vector<double> storage;  // aligned enough for any dtype
  kernels::Tensor tensor;

  Buffer(const Type& type, const Mesh& mesh) {
    const int64_t bytes = StorageOf(type, mesh).bytes;
    storage.assign(bytes / 8 + 2, std::nan(""));
    tensor = runtime::LocalTensor(type, mesh, storage.data(), bytes);
  }
  absl::Status Fill(const Array& a) {
    if (tensor.is_ragged()) {
      std::copy(a.sizes.begin(), a.sizes.end(), tensor.sizes);
      RETURN_IF_ERROR(tensor.PlaceRows());
    }
    return ForDType([&](auto* p) { Pack(a, p, tensor.row_elements); });
  }
  absl::Status Read(Array* a) {
    if (tensor.is_ragged()) std::copy(tensor.sizes, tensor.sizes + tensor.cells, a->sizes.begin());
    return ForDType([&](auto* p) { Unpack(p, a, tensor.row_elements); });
  }
  template <typename Fn>
  absl::Status ForDType(Fn fn) {
    switch (tensor.dtype) {
      case DType::kF64:
        fn(static_cast<double*>(tensor.data));
        return absl::OkStatus();
      case DType::kF32:
        fn(static_cast<float*>(tensor.data));
        return absl::OkStatus();
      case DType::kS32:
        fn(static_cast<int32_t*>(tensor.data));
        return absl::OkStatus();
      default:
        return absl::UnimplementedError(absl::StrCat("lockstep of ", DTypeName(tensor.dtype)));
    }
  }
};

using Values = std::map<Value, std::vector<Array>>;  // one array per rank

class Machine {
 public:
  explicit Machine(const Mesh& mesh) : mesh_(mesh) {}

  const Mesh& mesh() const { return mesh_; }

  absl::StatusOr<std::vector<std::vector<Array>>> Run(Node* n, const Values& values) const {
    std::vector<std::vector<Array>> results(n->num_results());
    if (n->Is("comm.rotate")) {
      const std::vector<Array>& in = values.at(n->operand(0));
      for (int64_t r = 0; r < mesh_.num_ranks(); ++r) {
        const std::vector<int64_t> ring = mesh_.Group(r, n->axes());
        results[0].push_back(in[ring[(mesh_.Index(r, n->axes()) + ring.size() - 1) % ring.size()]]);
      }
      return results;
    }
    if (absl::StartsWith(n->op_name(), "comm.")) {
      const Value x = n->operand(0);
      results[0] = Convert(x.type(), n->type(), mesh_, values.at(x));
      return results;
    }
    ASSIGN_OR_RETURN(const kernels::Kernel* kernel,
                     kernels::Kernels().Lookup(*n, kernels::Backend::kReference));
    for (int64_t r = 0; r < mesh_.num_ranks(); ++r) {
      ASSIGN_OR_RETURN(kernels::KernelContext c, runtime::LocalContext(*n, mesh_, r));
      std::vector<Buffer> in, out;
      for (const Value& v : n->operands()) {
        in.emplace_back(v.type(), mesh_);
        RETURN_IF_ERROR(in.back().Fill(values.at(v)[r]));
      }
      for (int i = 0; i < n->num_results(); ++i) out.emplace_back(n->type(i), mesh_);
      for (Buffer& b : in) c.in.push_back(b.tensor);
      for (Buffer& b : out) c.out.push_back(b.tensor);
      std::vector<double> workspace;
      c.workspace_bytes = kernel->WorkspaceBytes(*n, *c.rule, c.extent, c.in, c.out);
      if (c.workspace_bytes > 0) {
        workspace.assign(c.workspace_bytes / 8 + 16, std::nan(""));
        c.workspace = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64);
      }
      RETURN_IF_ERROR(Annotate(kernel->Run(c), n->op_name()));
      for (int i = 0; i < n->num_results(); ++i) {
        Array a = Zeros(n->type(i), mesh_);
        out[i].tensor = c.out[i];
        RETURN_IF_ERROR(out[i].Read(&a));
        results[i].push_back(std::move(a));
      }
    }
    return results;
  }

 private:
  const Mesh& mesh_;
};

// The global value of an argument, by what it is bound to.
Array RandomArgument(const Node& arg, const LockstepOptions& options, std::mt19937_64* rng) {
  const Mesh one;
  Type type = arg.type();
  type.placement = Placement::Replicated(type.rank());
  Array a = Zeros(type, one);
  const std::string& name = arg.binding.name;
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  int64_t i = 0;
  for (double& x : a.data) {
    if (name == "positions") {
      x = static_cast<double>(i++);
    } else if (name == "mask") {
      x = uniform(*rng) < options.masked ? 0 : 1;
    } else if (type.dtype == DType::kS32) {
      x = static_cast<double>((*rng)() % static_cast<uint64_t>(options.vocab));
    } else if (arg.binding.kind == Binding::kScalar) {
      x = 0.05 + 0.1 * uniform(*rng);
    } else if (absl::StartsWith(name, "adam.v.")) {
      x = 0.01 + 0.1 * uniform(*rng);
    } else {
      x = 0.4 * normal(*rng);
    }
  }
  return a;
}

// A rank's part of a global value; partial axes hold random summands.
std::vector<Array> Split(const Array& global, const Type& type, const Mesh& mesh, std::mt19937_64* rng) {
  AxisList partial;
  for (const Partial& p : type.placement.partial) partial.push_back(p.axis);
  const int64_t parts = mesh.Size(partial);
  std::vector<Array> summands(parts, global);
  std::normal_distribution<double> normal;
  for (int64_t k = 1; k < parts; ++k) {
    for (size_t i = 0; i < global.data.size(); ++i) {
      summands[k].data[i] = normal(*rng);
      summands[0].data[i] -= summands[k].data[i];
    }
  }
  Placement whole = Placement::Replicated(type.rank()), dims = type.placement;
  dims.partial.clear();
  const Locator locator(whole, dims, mesh);
  std::vector<Array> out;
  for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
    Array a = Zeros(type, mesh);
    const Array& from = summands[mesh.Index(r, partial)];
    int64_t there;
    ForEachIndex(a.dims, [&](const Dims& index, int64_t flat) {
      locator.Owner(r, index, a.dims, from.dims, &there);
      a.data[flat] = from.data[there];
    });
    out.push_back(std::move(a));
  }
  return out;
}

}  // namespace

absl::Status Lockstep::Compare(const Function& logical, const Function& placed) const {
  const Mesh one, &mesh = placed.module()->mesh();
  const Machine single(one), all(mesh);
  std::mt19937_64 rng(options_.seed);

  Values reference, values;
  std::map<std::string, std::pair<const Node*, const Array*>> by_name;
  for (Node* arg : logical.args()) {
    reference[arg->result()] = {RandomArgument(*arg, options_, &rng)};
    const State* state = arg->binding.IsState() ? logical.module()->FindState(arg->binding.name) : nullptr;
    const bool accumulates = state && AttrString(state->attributes, "reset") == "step" &&
                             logical.role().kind != FunctionKind::kUpdate &&
                             logical.role().kind != FunctionKind::kReport;
    if (accumulates) {
      std::vector<double>& data = reference[arg->result()][0].data;
      std::fill(data.begin(), data.end(), 0);
    }
    by_name[arg->result_name()] = {arg, &reference[arg->result()][0]};
  }
  for (const auto& n : logical.body()) {
    ASSIGN_OR_RETURN(auto results, single.Run(n.get(), reference));
    for (int i = 0; i < n->num_results(); ++i) {
      std::vector<Array>& kept = reference[n->result(i)] = std::move(results[i]);
      by_name[n->result_name(i)] = {n.get(), &kept[0]};
    }
  }

  for (Node* arg : placed.args()) {
    const auto it = by_name.find(arg->result_name());
    if (it == by_name.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("argument %", arg->result_name(), " has no counterpart"));
    }
    values[arg->result()] = Split(*it->second.second, arg->type(), mesh, &rng);
  }
  constexpr char kAnew[] = "placed anew instead of converting %";
  std::map<Value, std::string> counterpart;  // of conversions: the value converted
  for (const auto& n : placed.body()) {
    absl::StatusOr<std::vector<std::vector<Array>>> results = all.Run(n.get(), values);
    RETURN_IF_ERROR(Annotate(results.status(), absl::StrCat("%", n->result_name())));
    for (int i = 0; i < n->num_results(); ++i) {
      const Value v = n->result(i);
      std::string name = v.name();
      if (absl::StartsWith(n->op_name(), "comm.") && !by_name.count(name)) {
        const auto it = counterpart.find(n->operand(0));
        name = it == counterpart.end() ? n->operand(0).name() : it->second;
      } else if (absl::StartsWith(n->provenance.reason, kAnew)) {
        name = std::string(absl::StripPrefix(n->provenance.reason, kAnew));
      }
      counterpart[v] = name;
      const auto it = by_name.find(name);
      if (it == by_name.end()) {
        return absl::FailedPreconditionError(
            absl::StrCat("%", v.name(), " (", n->op_name(), ") has no counterpart"));
      }
      const Array& want = *it->second.second;
      double scale = 0;
      for (double x : want.data) scale = std::max(scale, std::abs(x));
      const Type& type = v.type();
      Type settled = type;
      settled.placement.partial.clear();
      const std::vector<Array> got = Convert(type, settled, mesh, (*results)[i]);
      const Placement whole = Placement::Replicated(type.rank());
      const Locator locator(whole, settled.placement, mesh);
      for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
        absl::Status status;
        const auto differs = [&](int64_t flat, double x, double y, absl::string_view what) {
          if (!status.ok()) return;
          status = absl::InternalError(
              absl::StrCat("%", v.name(), " = ", n->op_name(), " as ", TypeToString(type, mesh), ": ", what,
                           " ", flat, " on rank ", r, " is ", x, ", on one device ", y,
                           n->provenance.reason.empty() ? "" : "; ", n->provenance.reason));
        };
        int64_t there;
        if (type.ragged >= 0) {
          ForEachIndex(got[r].cell_dims, [&](const Dims& index, int64_t flat) {
            locator.Owner(r, index, got[r].cell_dims, want.cell_dims, &there);
            if (got[r].sizes[flat] != want.sizes[there]) {
              differs(flat, got[r].sizes[flat], want.sizes[there], "size of cell");
            }
          });
        }
        ForEachIndex(got[r].dims, [&](const Dims& index, int64_t flat) {
          locator.Owner(r, index, got[r].dims, want.dims, &there);
          const double x = got[r].data[flat], y = want.data[there];
          if (!(std::abs(x - y) <= options_.tolerance * scale + 1e-13)) differs(flat, x, y, "element");
        });
        RETURN_IF_ERROR(status);
      }
      values[v] = std::move((*results)[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace moe::testing
