#include "moe/testing/virtual_cluster.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/runtime/local.h"

namespace moe::testing {
namespace {

std::vector<double> GlobalOf(const Type& type, const std::vector<std::vector<double>>& local, int64_t stage,
                             const Mesh& mesh) {
  std::vector<double> global(type.num_elements());
  for (size_t r = local.size(); r-- > 0;) {  // where there are replicas, the first one's
    const int64_t rank = stage * static_cast<int64_t>(local.size()) + static_cast<int64_t>(r);
    runtime::ForEachRun(runtime::LocalBlock(type, mesh, rank), [&](int64_t to, int64_t from, int64_t n) {
      std::copy_n(local[r].begin() + from, n, global.begin() + to);
    });
  }
  return global;
}

// A ragged value as it is padded; others as they are.
Type Padded(Type type) {
  if (type.ragged >= 0) {
    type.dims[type.ragged] = type.ragged_bound;
    type.ragged = -1;
  }
  return type;
}

// What the cells of a ragged value are a tensor of.
Type CellsOf(Type type) {
  type.dims.resize(type.ragged);
  type.placement.dims.resize(type.ragged);
  type.placement.partial.clear();
  type.ragged = -1;
  type.dtype = DType::kS32;
  return type;
}

}  // namespace

Bytes::Bytes(int64_t size)
    : size_(size), data_(::operator new(std::max<int64_t>(size, 64), std::align_val_t(64))) {
  std::memset(data_, 0xff, size);
}
Bytes::~Bytes() { ::operator delete(data_, std::align_val_t(64)); }

std::vector<double> Snapshot::Global(const Mesh& mesh) const { return GlobalOf(type, local, stage, mesh); }

std::vector<double> Snapshot::GlobalSizes(const Mesh& mesh) const {
  return sizes.empty() ? std::vector<double>() : GlobalOf(cells, sizes, stage, mesh);
}

std::string Difference(const Snapshot& got, const std::vector<double>& want, const Mesh& mesh,
                       double tolerance, absl::string_view elsewhere) {
  if (static_cast<int64_t>(want.size()) != got.type.num_elements()) {
    return absl::StrCat("it has ", got.type.num_elements(), " elements, ", elsewhere, " ", want.size());
  }
  double largest = 0;
  for (const double v : want) largest = std::max(largest, std::abs(v));
  std::string what;
  for (size_t r = 0; r < got.local.size() && what.empty(); ++r) {
    const int64_t rank = got.stage * static_cast<int64_t>(got.local.size()) + static_cast<int64_t>(r);
    runtime::ForEachRun(runtime::LocalBlock(got.type, mesh, rank), [&](int64_t global, int64_t local,
                                                                       int64_t n) {
      for (int64_t i = 0; i < n && what.empty(); ++i) {
        const double x = got.local[r][local + i], y = want[global + i];
        if (std::abs(x - y) <= tolerance * largest + 1e-13) continue;
        what = absl::StrCat("element ", global + i, " on rank ", rank, " is ", x, ", ", elsewhere, " ", y);
      }
    });
  }
  return what;
}

VirtualCluster::VirtualCluster(const Mesh& mesh, kernels::Backend backend, Conversions conversions)
    : mesh_(mesh),
      ranks_(mesh.ranks_per_stage()),
      backend_(backend),
      conversions_(conversions),
      planner_(mesh) {}

absl::Status VirtualCluster::CheckDType(const Type& type, absl::string_view name) {
  if (type.dtype == DType::kF64 || type.dtype == DType::kF32 || type.dtype == DType::kBF16 ||
      type.dtype == DType::kF16 || type.dtype == DType::kS32) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("the virtual cluster has no ", DTypeName(type.dtype), ", the dtype of ", name));
}

Placed VirtualCluster::Allocate(const Type& type) const {
  Placed p;
  for (int64_t r = 0; r < ranks_; ++r) p.push_back(std::make_shared<Bytes>(StorageOf(type, mesh_).bytes));
  return p;
}

kernels::Tensor VirtualCluster::TensorOf(const Type& type, const Bytes& bytes) const {
  return runtime::LocalTensor(type, mesh_, bytes.data(), bytes.size());
}

void VirtualCluster::PlaceBlock(const Type& type, const std::vector<double>& global, int64_t rank,
                                const Bytes& bytes) const {
  runtime::ForEachRun(runtime::LocalBlock(type, mesh_, rank), [&](int64_t from, int64_t to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) kernels::StoreElement(type.dtype, bytes.data(), to + i, global[from + i]);
  });
}

bool VirtualCluster::HoldsNothing(const Type& type, int64_t rank) const {
  bool nothing = false;
  for (const Partial& partial : type.placement.partial) {
    nothing |= mesh_.Coordinate(rank, partial.axis) != 0 && partial.kind == Reduction::kSum;
  }
  return nothing;
}

Placed VirtualCluster::Distribute(const Type& type, const std::vector<double>& global, int64_t stage) const {
  Placed p = Allocate(type);
  const std::vector<double> nothing(type.placement.partial.empty() ? 0 : global.size(), 0.0);
  for (int64_t r = 0; r < ranks_; ++r) {
    const int64_t rank = RankOf(stage, r);
    PlaceBlock(type, HoldsNothing(type, rank) ? nothing : global, rank, *p[r]);
  }
  return p;
}

Placed VirtualCluster::DistributeSummands(const Type& type, const std::vector<std::vector<double>>& summands,
                                          int64_t stage) const {
  AxisList axes;
  for (const Partial& p : type.placement.partial) axes.push_back(p.axis);
  Placed p = Allocate(type);
  for (int64_t r = 0; r < ranks_; ++r) {
    const int64_t rank = RankOf(stage, r);
    PlaceBlock(type, summands[mesh_.Index(rank, axes)], rank, *p[r]);
  }
  return p;
}

VirtualCluster::Local VirtualCluster::ReadLocal(const Type& type, const Bytes& bytes) const {
  Local l;
  l.data.assign(Padded(type).LocalElements(mesh_), 0);
  const kernels::Tensor t = TensorOf(type, bytes);
  if (!t.is_ragged()) {
    for (size_t i = 0; i < l.data.size(); ++i)
      l.data[i] = kernels::LoadElement(type.dtype, t.data, static_cast<int64_t>(i));
    return l;
  }
  l.sizes.assign(t.sizes, t.sizes + t.cells);
  const int64_t padded = static_cast<int64_t>(l.data.size()) / std::max<int64_t>(t.cells, 1);
  int64_t at = 0;
  for (int64_t c = 0; c < t.cells; ++c) {
    for (int64_t i = 0; i < t.sizes[c] * t.row_elements; ++i) {
      l.data[c * padded + i] = kernels::LoadElement(type.dtype, t.arena_rows, at++);
    }
  }
  return l;
}

absl::Status VirtualCluster::WriteLocal(const Type& type, const Local& local, const Bytes& bytes) const {
  kernels::Tensor t = TensorOf(type, bytes);
  if (!t.is_ragged()) {
    for (size_t i = 0; i < local.data.size(); ++i)
      kernels::StoreElement(type.dtype, t.data, static_cast<int64_t>(i), local.data[i]);
    return absl::OkStatus();
  }
  std::copy(local.sizes.begin(), local.sizes.end(), t.sizes);
  RETURN_IF_ERROR(t.PlaceRows());
  const int64_t padded = static_cast<int64_t>(local.data.size()) / std::max<int64_t>(t.cells, 1);
  int64_t at = 0;
  for (int64_t c = 0; c < t.cells; ++c) {
    for (int64_t i = 0; i < t.sizes[c] * t.row_elements; ++i) {
      kernels::StoreElement(type.dtype, t.data, at++, local.data[c * padded + i]);
    }
  }
  return absl::OkStatus();
}

Snapshot VirtualCluster::Read(const Type& type, const Placed& value, int64_t stage) const {
  Snapshot s;
  s.stage = stage;
  s.type = Padded(type);
  s.type.placement.partial.clear();
  if (type.ragged >= 0) s.cells = CellsOf(type);
  std::vector<std::vector<double>> own;
  for (int64_t r = 0; r < ranks_; ++r) {
    Local l = ReadLocal(type, *value[r]);
    own.push_back(std::move(l.data));
    if (type.ragged >= 0) s.sizes.push_back(std::move(l.sizes));
  }
  if (type.placement.partial.empty()) {
    s.local = std::move(own);
    return s;
  }
  AxisList axes;
  for (const Partial& partial : type.placement.partial) axes.push_back(partial.axis);
  const bool max = type.placement.partial[0].kind == Reduction::kMax;
  for (int64_t r = 0; r < ranks_; ++r) {
    std::vector<double> sum;
    for (const int64_t q : mesh_.Group(RankOf(stage, r), axes)) {
      const std::vector<double>& part = own[q - stage * ranks_];
      if (sum.empty()) {
        sum = part;
        continue;
      }
      for (size_t i = 0; i < sum.size(); ++i) sum[i] = max ? std::max(sum[i], part[i]) : sum[i] + part[i];
    }
    s.local.push_back(std::move(sum));
  }
  return s;
}

absl::StatusOr<std::vector<Placed>> VirtualCluster::Run(const Node& n, absl::Span<const Placed> in,
                                                        int64_t stage) {
  std::vector<Placed> out;
  const absl::Status status = [&]() -> absl::Status {
    for (int i = 0; i < n.num_results(); ++i) {
      RETURN_IF_ERROR(CheckDType(n.type(i), "its result"));
      out.push_back(Allocate(n.type(i)));
    }
    return absl::StartsWith(n.op_name(), "comm.") ? Convert(n, in, stage, &out)
                                                  : RunKernels(n, in, stage, &out);
  }();
  if (status.ok()) return out;
  return Annotate(status,
                  absl::StrCat("%", n.result_name(), " = ", n.op_name(), " in @", n.function()->name()));
}

absl::Status VirtualCluster::RunKernels(const Node& n, absl::Span<const Placed> in, int64_t stage,
                                        std::vector<Placed>* out) {
  ASSIGN_OR_RETURN(const kernels::Kernel* kernel, kernels::Kernels().Lookup(n, backend_));
  for (int64_t r = 0; r < ranks_; ++r) {
    ASSIGN_OR_RETURN(kernels::KernelContext c, runtime::LocalContext(n, mesh_, RankOf(stage, r)));
    for (int i = 0; i < n.num_operands(); ++i) {
      c.in.push_back(TensorOf(n.operand(i).type(), *in[i][r]));
      if (c.in.back().is_ragged()) RETURN_IF_ERROR(c.in.back().PlaceRows());
    }
    for (int i = 0; i < n.num_results(); ++i) c.out.push_back(TensorOf(n.type(i), *(*out)[i][r]));
    c.workspace_bytes = kernel->WorkspaceBytes(n, *c.rule, c.extent, c.in, c.out);
    if (c.workspace_bytes > 0) {
      if (workspace_ == nullptr || workspace_->size() < c.workspace_bytes) {
        workspace_ = std::make_shared<Bytes>(c.workspace_bytes);
      }
      c.workspace = workspace_->data();
    }
    RETURN_IF_ERROR(kernel->Run(c));
  }
  return absl::OkStatus();
}

}  // namespace moe::testing
