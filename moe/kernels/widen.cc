#include "moe/kernels/widen.h"

#include <sys/mman.h>

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "moe/base/integers.h"
#include "moe/base/status.h"
#include "moe/device/convert.h"
#include "moe/ir/registry.h"

namespace moe::kernels {
namespace {

constexpr int64_t kBlock = 2048;  // elements: some operands and results of 8 KiB each

using Tensors = absl::InlinedVector<Tensor, 10>;

bool IsNarrow(const Tensor& t) { return IsFloat(t.dtype) && ByteSize(t.dtype) < 4; }
bool IsCopied(const Tensor& t, Prepare prepare) { return IsNarrow(t) || (prepare && t.dtype == DType::kF32); }

// Elements of a tensor that its own memory holds.
int64_t Capacity(const Tensor& t) { return t.is_ragged() ? t.capacity_rows * t.row_elements : t.elements(); }

// Elements widened at a time. A ragged value may have more rows than its own memory holds.
int64_t BlockOf(const Tensor& t) { return t.is_ragged() ? kBlock : std::min(kBlock, t.elements()); }

// The op maps elements one by one, so that a part of its operands gives a part of its results.
bool GoesInBlocks(const Node& n) { return n.op().elementwise; }

// Rows beyond a ragged value's bound: address space for as long as the kernel runs.
class Overflow {
 public:
  ~Overflow() {
    for (const auto& [p, bytes] : maps_) munmap(p, bytes);
  }
  absl::StatusOr<float*> Take(int64_t elements) {
    const int64_t bytes = RoundUp(elements * static_cast<int64_t>(sizeof(float)), 64);
    void* p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no ", bytes, " bytes to widen more rows than were planned for"));
    }
    maps_.push_back({p, bytes});
    return static_cast<float*>(p);
  }

 private:
  absl::InlinedVector<std::pair<void*, int64_t>, 4> maps_;
};

class Workspace {
 public:
  explicit Workspace(const KernelContext& c)
      : next_(static_cast<char*>(c.workspace)), end_(next_ + c.workspace_bytes) {}
  absl::StatusOr<void*> Take(int64_t bytes) {
    bytes = RoundUp(bytes, 64);
    if (bytes > end_ - next_) {
      return absl::FailedPreconditionError(
          absl::StrCat("the workspace is ", bytes - (end_ - next_), " bytes too small to widen operands"));
    }
    void* p = next_;
    next_ += bytes;
    return p;
  }

 private:
  char *next_, *end_;
};

Tensor AsF32(Tensor t) {
  if (IsNarrow(t)) t.dtype = DType::kF32;
  return t;
}

absl::Status RunBlocks(const Kernel& wide, KernelContext& c, KernelContext& f32, Workspace& workspace) {
  RETURN_IF_ERROR(PlaceLikeOperand(c));
  const int64_t n = c.out[0].elements();
  const auto narrow_block = [&](const Tensor& t, Tensor* block) -> absl::Status {
    *block = AsF32(t);
    block->ragged = -1;
    if (!IsNarrow(t)) return absl::OkStatus();
    ASSIGN_OR_RETURN(block->data, workspace.Take(BlockOf(t) * sizeof(float)));
    return absl::OkStatus();
  };
  f32.in.resize(c.in.size());
  f32.out.resize(c.out.size());
  for (size_t i = 0; i < c.in.size(); ++i) {
    RETURN_IF_ERROR(narrow_block(c.in[i], &f32.in[i]));
    if (IsScalar(c.in[i]) && IsNarrow(c.in[i]))
      device::ToF32(c.in[i].dtype, c.in[i].data, f32.in[i].As<float>(), 1);
  }
  for (size_t i = 0; i < c.out.size(); ++i) RETURN_IF_ERROR(narrow_block(c.out[i], &f32.out[i]));
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t m = std::min(kBlock, n - begin);
    const auto at = [&](const Tensor& t) { return static_cast<char*>(t.data) + begin * ByteSize(t.dtype); };
    for (size_t i = 0; i < c.in.size(); ++i) {
      if (IsScalar(c.in[i])) continue;
      f32.in[i].dims = {m};
      if (IsNarrow(c.in[i])) {
        device::ToF32(c.in[i].dtype, at(c.in[i]), f32.in[i].As<float>(), m);
      } else {
        f32.in[i].data = at(c.in[i]);
      }
    }
    for (size_t i = 0; i < c.out.size(); ++i) {
      if (IsScalar(c.out[i])) continue;
      f32.out[i].dims = {m};
      if (!IsNarrow(c.out[i])) f32.out[i].data = at(c.out[i]);
    }
    RETURN_IF_ERROR(wide.Run(f32));
    for (size_t i = 0; i < c.out.size(); ++i) {
      if (IsNarrow(c.out[i])) device::FromF32(c.out[i].dtype, f32.out[i].As<float>(), at(c.out[i]), m);
    }
  }
  return absl::OkStatus();
}

// The most rows that routing can give a local ragged value.
int64_t WorstRows(const Type& type, const Tensor& t) {
  int64_t groups = 1;
  for (int d = 1; d < t.ragged; ++d) groups *= t.dims[d];
  return groups * type.ragged_bound;
}

absl::Status RunWhole(const Kernel& wide, KernelContext& c, KernelContext& f32, Workspace& workspace,
                      Prepare prepare) {
  Overflow overflow;
  f32.in = c.in;
  f32.out = c.out;
  for (size_t i = 0; i < c.in.size(); ++i) {
    const Tensor& x = c.in[i];
    if (!IsCopied(x, prepare)) continue;
    Tensor& y = f32.in[i];
    y = AsF32(x);
    if (x.is_ragged() && x.rows() > x.capacity_rows) {
      ASSIGN_OR_RETURN(y.data, overflow.Take(x.elements()));
    } else {
      ASSIGN_OR_RETURN(y.data, workspace.Take(Capacity(x) * sizeof(float)));
    }
    device::ToF32(x.dtype, x.data, y.As<float>(), x.elements());
    if (prepare != nullptr) RETURN_IF_ERROR(prepare(c, static_cast<int>(i), y.As<float>()));
  }
  for (size_t i = 0; i < c.out.size(); ++i) {
    const Tensor& x = c.out[i];
    if (!IsNarrow(x)) continue;
    Tensor& y = f32.out[i];
    y = AsF32(x);
    ASSIGN_OR_RETURN(void* const rows, workspace.Take(Capacity(x) * sizeof(float)));
    if (!x.is_ragged()) {
      y.data = rows;
      continue;
    }
    y.arena_rows = rows;
    y.spill_rows = nullptr;
    if (x.spill_rows != nullptr) {
      ASSIGN_OR_RETURN(y.spill_rows, overflow.Take(WorstRows(c.node->type(i), x) * x.row_elements));
    }
  }
  RETURN_IF_ERROR(wide.Run(f32));
  for (size_t i = 0; i < c.out.size(); ++i) {
    Tensor& x = c.out[i];
    if (!IsNarrow(x)) {
      x.data = f32.out[i].data;  // a ragged result that has been placed
      continue;
    }
    if (x.is_ragged()) RETURN_IF_ERROR(x.PlaceRows());
    device::FromF32(x.dtype, f32.out[i].As<float>(), x.data, x.elements());
  }
  return absl::OkStatus();
}

}  // namespace

int64_t WidenedWorkspace(const Kernel& wide, const Node& n, const ShardingRule& rule,
                         absl::Span<const int64_t> extent, absl::Span<const Tensor> in,
                         absl::Span<const Tensor> out, Prepare prepare) {
  Tensors wide_in, wide_out;
  int64_t bytes = 0;
  const auto add = [&](const Tensor& t, Tensors* to) {
    to->push_back(AsF32(t));
    if (!IsNarrow(t) && !(to == &wide_in && IsCopied(t, prepare))) return;
    const int64_t elements = GoesInBlocks(n) ? BlockOf(t) : Capacity(t);
    bytes += RoundUp(elements * static_cast<int64_t>(sizeof(float)), 64);
  };
  for (const Tensor& t : in) add(t, &wide_in);
  for (const Tensor& t : out) add(t, &wide_out);
  return bytes + RoundUp(wide.WorkspaceBytes(n, rule, extent, wide_in, wide_out), 64);
}

absl::Status RunWidened(const Kernel& wide, KernelContext& c, Prepare prepare) {
  const bool blocks = GoesInBlocks(*c.node);
  if (blocks && prepare != nullptr) {
    return absl::InternalError(
        absl::StrCat(c.node->op_name(), " is computed in blocks, so there are no whole operands to prepare"));
  }
  thread_local KernelContext f32;  // its vectors keep their memory: steps allocate nothing
  f32.node = c.node;
  f32.rule = c.rule;
  f32.extent = c.extent;
  f32.offset = c.offset;
  f32.global_extent = c.global_extent;
  // Of the f32 kernel: by extents alone.
  const int64_t own = RoundUp(wide.WorkspaceBytes(*c.node, *c.rule, c.extent, c.in, c.out), 64);
  f32.workspace = c.workspace;
  f32.workspace_bytes = own;
  Workspace workspace(c);
  RETURN_IF_ERROR(workspace.Take(own).status());
  return blocks ? RunBlocks(wide, c, f32, workspace) : RunWhole(wide, c, f32, workspace, prepare);
}

void RegisterWidenedKernels(KernelRegistry& r) {
  for (const Kernel* k : r.All()) {
    if (k->dtype != DType::kF32 || k->fn == nullptr || k->backend == Backend::kCuda) continue;
    for (DType dtype : {DType::kBF16, DType::kF16}) {
      if (r.Find(k->op, k->backend, dtype) != nullptr) continue;
      Kernel narrow;
      narrow.op = k->op;
      narrow.backend = k->backend;
      narrow.dtype = dtype;
      narrow.wide = k;
      r.Add(narrow);
    }
  }
}

}  // namespace moe::kernels
