#include "moe/runtime/local.h"

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_layout.h"
#include "moe/ir/conversion_parts.h"
#include "moe/runtime/bucket_exchange.h"
#include "moe/runtime/exchange.h"

namespace moe::runtime {

absl::StatusOr<kernels::KernelContext> LocalContext(const Node& n, const Mesh& mesh, int64_t rank) {
  kernels::KernelContext c;
  c.node = &n;
  ASSIGN_OR_RETURN(c.rule, n.Rule());
  ASSIGN_OR_RETURN(c.global_extent, FactorExtents(n));
  c.extent = c.global_extent;
  c.offset.assign(c.extent.size(), 0);
  if (n.assignment.empty()) return c;
  for (size_t f = 0; f < c.extent.size(); ++f) {
    c.extent[f] /= mesh.Size(n.assignment[f]);
    c.offset[f] = c.extent[f] * mesh.Index(rank, n.assignment[f]);
  }
  return c;
}

kernels::Tensor LocalTensor(const Type& type, const Mesh& mesh, void* base, int64_t bytes, void* spill) {
  kernels::Tensor t;
  t.dtype = type.dtype;
  t.dims = type.LocalDims(mesh);
  t.data = base;
  if (type.ragged < 0) return t;
  const LocalStorage s = StorageOf(type, mesh);
  t.ragged = type.ragged;
  t.sizes = static_cast<int32_t*>(base);
  t.cells = s.cells;
  t.row_elements = s.row_elements;
  t.arena_rows = static_cast<char*>(base) + s.header_bytes;
  t.capacity_rows = (bytes - s.header_bytes) / (s.row_elements * ByteSize(type.dtype));
  t.spill_rows = spill;
  t.data = nullptr;
  return t;
}

WireFormat WireOf(const Node& n) {
  return ParseWireFormat(n.StringOr("wire", "")).value_or(WireFormat::kNone);
}

int64_t Block::elements() const {
  int64_t n = 1;
  for (int64_t e : extent) n *= e;
  return n;
}

Block LocalBlock(const Type& type, const Mesh& mesh, int64_t rank) {
  Block b;
  b.global = type.dims;
  b.extent = type.LocalDims(mesh);
  for (int d = 0; d < type.rank(); ++d) {
    b.begin.push_back(b.extent[d] * mesh.Index(rank, type.placement.dims[d]));
  }
  return b;
}

Block LocalBlockInOrder(const Node& n, const Type& type, const Mesh& mesh, int64_t rank) {
  Block b = LocalBlock(type, mesh, rank);
  if (n.Has("order")) b.order = n.Ints("order"), b.ordered_dim = 1;
  return b;
}

void ForEachRun(const Block& b, const std::function<void(int64_t, int64_t, int64_t)>& fn) {
  const int rank = static_cast<int>(b.extent.size());
  if (rank == 0) return fn(0, 0, 1);
  if (b.elements() == 0) return;
  // Trailing dims that are whole belong to one run.
  int inner = rank - 1;
  int64_t run = b.extent[inner];
  while (inner > 0 && inner - 1 != b.ordered_dim && b.extent[inner] == b.global[inner])
    run *= b.extent[--inner];
  Dims stride(rank, 1);
  for (int d = rank - 2; d >= 0; --d) stride[d] = stride[d + 1] * b.global[d + 1];
  Dims index(rank, 0);
  int64_t local = 0;
  for (;;) {
    int64_t global = 0;
    for (int d = 0; d < rank; ++d) {
      int64_t at = b.begin[d] + index[d];
      if (d == b.ordered_dim) {
        const int64_t size = b.global[d] / static_cast<int64_t>(b.order.size());
        at = b.order[at / size] * size + at % size;
      }
      global += at * stride[d];
    }
    fn(global, local, run);
    local += run;
    int d = inner - 1;
    while (d >= 0 && ++index[d] == b.extent[d]) index[d--] = 0;
    if (d < 0) return;
  }
}

absl::StatusOr<int64_t> NodeWorkspace(const Node& n, const Mesh& mesh, kernels::Backend backend,
                                      double overload) {
  if (n.Is("comm.stage_reduce") || n.Is("comm.done")) return 0;
  if (HasConversionParts(n)) {
    ASSIGN_OR_RETURN(const std::vector<ConversionPart> parts, ConversionParts(n, mesh));
    if (parts.size() > 1) return BucketExchange::WorkspaceBytes(parts, mesh, WireOf(n));
    ASSIGN_OR_RETURN(ConversionLayout layout,
                     LayoutConversion(parts[0].from.type(), parts[0].to, mesh, 0, parts[0].steps));
    return ExchangeWorkspaceBytes(layout, WireOf(n), overload);
  }
  ASSIGN_OR_RETURN(const kernels::Kernel* kernel, kernels::Kernels().Lookup(n, backend));
  ASSIGN_OR_RETURN(kernels::KernelContext c, LocalContext(n, mesh, 0));
  for (Value v : n.operands()) {
    c.in.push_back(LocalTensor(v.type(), mesh, nullptr, StorageOf(v.type(), mesh, overload).bytes));
  }
  for (int i = 0; i < n.num_results(); ++i) {
    c.out.push_back(LocalTensor(n.type(i), mesh, nullptr, StorageOf(n.type(i), mesh, overload).bytes));
  }
  return kernel->WorkspaceBytes(n, *c.rule, c.extent, c.in, c.out);
}

absl::StatusOr<kernels::Backend> BackendOf(const cost::Target& target) {
  if (target.device == "cpu") return kernels::Backend::kCpu;
  if (target.device == "cuda") return kernels::Backend::kCuda;
  return absl::InvalidArgumentError(
      absl::StrCat("target ", target.name, " has device '", target.device, "'; legal are cpu and cuda"));
}

std::function<int64_t(const Node&, const Mesh&)> WorkspaceHook(kernels::Backend backend, double overload) {
  return [=](const Node& n, const Mesh& mesh) -> int64_t {
    absl::StatusOr<int64_t> bytes = NodeWorkspace(n, mesh, backend, overload);
    return bytes.ok() ? *bytes : 0;
  };
}

}  // namespace moe::runtime
