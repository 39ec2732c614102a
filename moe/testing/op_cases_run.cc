#include "moe/testing/op_cases_run.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <set>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/device/convert.h"

namespace moe::testing {
namespace {

constexpr int64_t kGuardBytes = 64;
constexpr unsigned char kPoison = 0xff;  // NaN as float and double
constexpr unsigned char kGuard = 0xab;

void Store(DType dtype, double x, char* at) {
  switch (dtype) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16: {
      const float v = static_cast<float>(x);
      device::FromF32(dtype, &v, at, 1);
      return;
    }
    case DType::kS32: {
      const int32_t v = static_cast<int32_t>(x);
      std::memcpy(at, &v, sizeof(v));
      return;
    }
    default:
      std::memcpy(at, &x, sizeof(x));
  }
}

double Load(DType dtype, const char* at) {
  switch (dtype) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16: {
      float v;
      device::ToF32(dtype, at, &v, 1);
      return v;
    }
    case DType::kS32: {
      int32_t v;
      std::memcpy(&v, at, sizeof(v));
      return v;
    }
    default: {
      double v;
      std::memcpy(&v, at, sizeof(v));
      return v;
    }
  }
}

// Aligned memory with a guard behind it: the host's, or a device's with an image of it on the host.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(bytes), image_(bytes + kGuardBytes + 64, kPoison) {
    std::fill_n(host() + bytes, kGuardBytes, static_cast<char>(kGuard));
  }
  char* host() {
    const auto at = reinterpret_cast<uintptr_t>(image_.data());
    return reinterpret_cast<char*>((at + 63) / 64 * 64);
  }
  char* data() { return memory_ == nullptr ? host() : memory_->data(); }  // where kernels find it
  absl::Status PutOn(device::Device* device) {
    if (device == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(memory_, device->Allocate(bytes_ + kGuardBytes));
    return absl::OkStatus();
  }
  absl::Status Upload(device::Stream* stream) {
    return memory_ == nullptr ? absl::OkStatus()
                              : stream->Copy(memory_->data(), host(), bytes_ + kGuardBytes);
  }
  absl::Status Download(device::Stream* stream) {
    return memory_ == nullptr ? absl::OkStatus()
                              : stream->Copy(host(), memory_->data(), bytes_ + kGuardBytes);
  }
  bool GuardIntact() {
    return std::all_of(host() + bytes_, host() + bytes_ + kGuardBytes,
                       [](char c) { return static_cast<unsigned char>(c) == kGuard; });
  }

 private:
  int64_t bytes_;
  std::vector<unsigned char> image_;
  std::unique_ptr<device::DeviceMemory> memory_;
};

struct Bound {             // a tensor and its memory
  kernels::Tensor tensor;  // on the host
  kernels::Tensor seen;    // by kernels
  std::vector<Buffer> buffers;
  bool GuardsIntact() {
    return std::all_of(buffers.begin(), buffers.end(), [](Buffer& b) { return b.GuardIntact(); });
  }
};

// Space for `arena_rows` rows of a ragged value in its arena, and for all in its spill.
absl::StatusOr<Bound> Allocate(const HostValue& shape, int64_t arena_rows, int64_t all_rows,
                               device::Device* device) {
  Bound b;
  kernels::Tensor& t = b.tensor;
  t.dtype = shape.dtype;
  t.dims = shape.dims;
  t.ragged = shape.ragged;
  const int64_t element = ByteSize(shape.dtype);
  if (shape.ragged < 0) {
    b.buffers.emplace_back(t.elements() * element);
  } else {
    t.cells = shape.cells();
    t.row_elements = shape.row_elements();
    t.capacity_rows = arena_rows;
    b.buffers.emplace_back(t.cells * sizeof(int32_t));
    b.buffers.emplace_back(arena_rows * t.row_elements * element);
    b.buffers.emplace_back(all_rows * t.row_elements * element);
  }
  for (Buffer& buffer : b.buffers) RETURN_IF_ERROR(buffer.PutOn(device));
  b.seen = t;
  const auto point = [&](kernels::Tensor& to, auto at) {
    if (shape.ragged < 0) {
      to.data = at(b.buffers[0]);
      return;
    }
    to.sizes = reinterpret_cast<int32_t*>(at(b.buffers[0]));
    to.arena_rows = at(b.buffers[1]);
    if (all_rows > arena_rows) to.spill_rows = at(b.buffers[2]);
  };
  point(b.tensor, [](Buffer& x) { return x.host(); });
  point(b.seen, [](Buffer& x) { return x.data(); });
  return b;
}

}  // namespace

absl::StatusOr<std::vector<HostValue>> RunNode(const Node& n, const kernels::Kernel& kernel,
                                               const std::vector<HostValue>& operands,
                                               const RunNodeOptions& options) {
  ASSIGN_OR_RETURN(const ShardingRule* rule, n.Rule());
  return RunNodeOnRank(n, kernel, FactorAssignment(rule->num_factors()), Mesh(), 0, operands, options);
}

absl::StatusOr<std::vector<HostValue>> RunNodeOnRank(const Node& n, const kernels::Kernel& kernel,
                                                     const FactorAssignment& assignment, const Mesh& mesh,
                                                     int64_t rank, const std::vector<HostValue>& operands,
                                                     const RunNodeOptions& options) {
  kernels::KernelContext c;
  c.node = &n;
  ASSIGN_OR_RETURN(c.rule, n.Rule());
  ASSIGN_OR_RETURN(c.global_extent, FactorExtents(n));
  for (size_t f = 0; f < c.global_extent.size(); ++f) {
    c.extent.push_back(c.global_extent[f] / mesh.Size(assignment[f]));
    c.offset.push_back(c.extent[f] * mesh.Index(rank, assignment[f]));
  }
  std::vector<Bound> in, out;
  const auto arena_rows = [&](int64_t rows) {
    return options.spill_from_row >= 0 ? std::min(rows, options.spill_from_row) : rows;
  };
  for (const HostValue& v : operands) {
    const int64_t rows = v.ragged < 0 || v.row_elements() == 0 ? 0 : v.data.size() / v.row_elements();
    ASSIGN_OR_RETURN(Bound bound, Allocate(v, arena_rows(rows), rows, options.device));
    kernels::Tensor& t = bound.tensor;
    for (size_t i = 0; i < v.sizes.size(); ++i) t.sizes[i] = v.sizes[i];
    if (t.is_ragged()) RETURN_IF_ERROR(t.PlaceRows());
    for (size_t i = 0; i < v.data.size(); ++i)
      Store(v.dtype, v.data[i], static_cast<char*>(t.data) + i * ByteSize(v.dtype));
    c.in.push_back(options.device == nullptr ? t : bound.seen);
    in.push_back(std::move(bound));
  }
  for (int r = 0; r < n.num_results(); ++r) {
    HostValue shape;
    shape.dtype = n.type(r).dtype;
    shape.ragged = n.type(r).ragged;
    for (const FactorDim& dim : c.rule->results[r]) {
      int64_t size = 1;
      for (FactorId f : dim) size *= c.extent[f];
      shape.dims.push_back(size);
    }
    int64_t rows = 0;
    if (shape.ragged >= 0) rows = shape.dims[1] * shape.dims[2] * n.type(r).ragged_bound;
    ASSIGN_OR_RETURN(Bound bound, Allocate(shape, arena_rows(rows), rows, options.device));
    const int alias = InPlaceOperand(n, r);
    if (options.in_place && alias >= 0) {
      bound.tensor.data = in[alias].tensor.data;
      bound.seen.data = in[alias].seen.data;
    }
    c.out.push_back(options.device == nullptr ? bound.tensor : bound.seen);
    out.push_back(std::move(bound));
  }
  c.workspace_bytes = kernel.WorkspaceBytes(n, *c.rule, c.extent, c.in, c.out);
  Bound workspace;
  workspace.buffers.emplace_back(c.workspace_bytes);
  RETURN_IF_ERROR(workspace.buffers[0].PutOn(options.device));
  c.workspace = c.workspace_bytes > 0 ? workspace.buffers[0].data() : nullptr;

  std::vector<Bound*> all = {&workspace};
  for (Bound& b : in) all.push_back(&b);
  for (Bound& b : out) all.push_back(&b);
  c.stream = options.stream;
  c.tf32 = options.tf32;
  for (Bound* b : all) {
    for (Buffer& buffer : b->buffers) RETURN_IF_ERROR(buffer.Upload(c.stream));
  }
  RETURN_IF_ERROR(Annotate(kernel.Prepare(c), n.op_name()));
  std::unique_ptr<device::WorkGraph> graph;
  if (options.as_graph) RETURN_IF_ERROR(c.stream->BeginGraph());
  RETURN_IF_ERROR(Annotate(kernel.Run(c), n.op_name()));
  if (options.as_graph) {
    ASSIGN_OR_RETURN(graph, c.stream->EndGraph());
    RETURN_IF_ERROR(Annotate(c.stream->Launch(graph.get()), n.op_name()));
  }
  if (options.device != nullptr) RETURN_IF_ERROR(Annotate(c.stream->Synchronize(), n.op_name()));
  for (Bound* b : all) {
    for (Buffer& buffer : b->buffers) RETURN_IF_ERROR(buffer.Download(c.stream));
  }
  if (options.device != nullptr) RETURN_IF_ERROR(c.stream->Synchronize());

  if (!workspace.GuardsIntact())
    return absl::InternalError(absl::StrCat(n.op_name(), " writes beyond its workspace"));
  for (size_t i = 0; i < in.size(); ++i) {
    if (!in[i].GuardsIntact())
      return absl::InternalError(absl::StrCat(n.op_name(), " writes beyond operand ", i));
  }
  std::vector<HostValue> results;
  for (size_t r = 0; r < out.size(); ++r) {
    if (!out[r].GuardsIntact())
      return absl::InternalError(absl::StrCat(n.op_name(), " writes beyond result ", r));
    kernels::Tensor& t = out[r].tensor;
    if (t.is_ragged()) RETURN_IF_ERROR(t.PlaceRows());
    HostValue v;
    v.dtype = t.dtype;
    v.dims = t.dims;
    v.ragged = t.ragged;
    v.ragged_bound = n.type(r).ragged_bound;
    if (t.is_ragged()) v.sizes.assign(t.sizes, t.sizes + t.cells);
    v.data.resize(t.elements());
    for (size_t i = 0; i < v.data.size(); ++i) {
      v.data[i] = Load(t.dtype, static_cast<const char*>(t.data) + i * ByteSize(t.dtype));
    }
    results.push_back(std::move(v));
  }
  return results;
}

HostValue ShardOf(const HostValue& global, const Placement& placement, const Mesh& mesh, int64_t rank) {
  const int num_dims = static_cast<int>(global.dims.size());
  HostValue local = global;
  local.sizes.clear();
  local.data.clear();
  std::vector<int64_t> begin(num_dims);
  for (int d = 0; d < num_dims; ++d) {
    local.dims[d] = global.dims[d] / mesh.Size(placement.dims[d]);
    begin[d] = local.dims[d] * mesh.Index(rank, placement.dims[d]);
  }
  std::vector<int64_t> starts;  // of the global cells, in rows
  int64_t start = 0;
  for (int32_t size : global.sizes) {
    starts.push_back(start);
    start += size;
  }
  const int64_t row = global.ragged >= 0 ? global.row_elements() : 0;
  // Visits all dims; at a ragged one, `at` so far is the cell.
  auto visit = [&](auto& self, int d, int64_t at) -> void {
    if (d == num_dims) {
      local.data.push_back(global.data[at]);
      return;
    }
    if (d == global.ragged) {
      local.sizes.push_back(global.sizes[at]);
      for (int64_t i = 0; i < global.sizes[at]; ++i) {
        auto in_row = [&](auto& inner, int e, int64_t offset) -> void {
          if (e == num_dims) {
            local.data.push_back(global.data[(starts[at] + i) * row + offset]);
            return;
          }
          for (int64_t j = 0; j < local.dims[e]; ++j)
            inner(inner, e + 1, offset * global.dims[e] + begin[e] + j);
        };
        in_row(in_row, d + 1, 0);
      }
      return;
    }
    for (int64_t i = 0; i < local.dims[d]; ++i) self(self, d + 1, at * global.dims[d] + begin[d] + i);
  };
  visit(visit, 0, 0);
  return local;
}

std::vector<HostValue> SplitByPlacement(const HostValue& global, const Placement& placement, const Mesh& mesh,
                                        std::mt19937_64& rng) {
  AxisList axes;
  for (const Partial& p : placement.partial) axes.push_back(p.axis);
  std::normal_distribution<double> normal;
  const int64_t parts = mesh.Size(axes);
  std::vector<HostValue> summands(parts, global);
  for (int64_t p = 1; p < parts; ++p) {
    for (size_t i = 0; i < global.data.size(); ++i) {
      const double x = IsFloat(global.dtype) ? normal(rng) : std::round(3 * normal(rng));
      summands[p].data[i] = x;
      summands[0].data[i] -= x;
    }
  }
  std::vector<HostValue> locals;
  for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
    locals.push_back(ShardOf(summands[mesh.Index(r, axes)], placement, mesh, r));
  }
  return locals;
}

double RelativeError(const HostValue& got, const HostValue& want) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (got.dims != want.dims || got.sizes != want.sizes || got.data.size() != want.data.size())
    return kInfinite;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.data.size(); ++i) {
    const double d = got.data[i] - want.data[i];
    difference += d * d;
    norm += want.data[i] * want.data[i];
  }
  if (std::isnan(difference)) return kInfinite;
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1.0);
}

double AssembledError(const std::vector<HostValue>& locals, const Placement& placement, const HostValue& want,
                      const Mesh& mesh) {
  AxisList axes;
  bool max = false;
  for (const Partial& p : placement.partial) {
    axes.push_back(p.axis);
    max = max || p.kind == Reduction::kMax;
  }
  double worst = 0;
  for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
    const HostValue expected = ShardOf(want, placement, mesh, r);
    HostValue sum;
    for (int64_t peer : mesh.Group(r, axes)) {
      const HostValue& part = locals[peer];
      if (sum.dims.empty() && sum.data.empty()) {
        sum = part;
        continue;
      }
      if (part.data.size() != sum.data.size() || part.sizes != sum.sizes)
        return std::numeric_limits<double>::infinity();
      for (size_t i = 0; i < sum.data.size(); ++i) {
        sum.data[i] = max ? std::max(sum.data[i], part.data[i]) : sum.data[i] + part.data[i];
      }
    }
    worst = std::max(worst, RelativeError(sum, expected));
  }
  return worst;
}

absl::Status RunFunction(const Function& f, const kernels::KernelRegistry& kernels, kernels::Backend backend,
                         std::map<Value, HostValue>* values) {
  for (const std::unique_ptr<Node>& n : f.body()) {
    ASSIGN_OR_RETURN(const kernels::Kernel* kernel, kernels.Lookup(*n, backend));
    std::vector<HostValue> in;
    for (const Value& v : n->operands()) in.push_back(values->at(v));
    ASSIGN_OR_RETURN(std::vector<HostValue> out, RunNode(*n, *kernel, in));
    for (int r = 0; r < n->num_results(); ++r) (*values)[n->result(r)] = std::move(out[r]);
  }
  return absl::OkStatus();
}

}  // namespace moe::testing
