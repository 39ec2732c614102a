// Kernels: what an op does with local data. Looked up by (op, backend, dtype of the op, see Kernel::dtype).
//
// A kernel sees local shapes, the offset and the extent of every factor of its node's rule, never mesh axes.
// It writes every element of its results (buffers arrive poisoned in tests), allocates nothing, and is
// deterministic: the same inputs give the same bits on every rank. Scratch memory is asked for in advance
// through `workspace`.
//
//   template <typename T>
//   absl::Status Silu(KernelContext& c);   // reads c.in[0].As<T>(), writes c.out[0].As<T>()
//
//   registry.Add({"math.silu", Backend::kCpu, DType::kF32, &Silu<float>});
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/base/status.h"
#include "moe/ir/graph.h"
#include "moe/ir/registry.h"

namespace moe::device {
class Stream;  // moe/device/device.h
}

namespace moe::kernels {

// A local tensor, row-major. Ragged values ([E, B, C, ~P, H...]) carry the sizes of their (e, b, c) cells,
// and rows packed in (e, b, c, slot) order: rows of one expert are contiguous.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Dims dims;        // local; the expected extent in the ragged dim
  int ragged = -1;  // index of the ragged dim
  // Ragged only.
  int32_t* sizes = nullptr;  // one per cell
  int64_t cells = 0;
  int64_t row_elements = 0;   // elements of one row
  int64_t capacity_rows = 0;  // rows that fit at arena_rows
  void* arena_rows = nullptr;
  // Used when the rows do not fit in the arena; may be null when capacity is the worst case.
  void* spill_rows = nullptr;

  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
  bool is_ragged() const { return ragged >= 0; }
  int64_t elements() const {  // dense: all; ragged: of the actual rows
    if (is_ragged()) return rows() * row_elements;
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    return n;
  }
  int64_t rows() const {  // ragged: the sum of sizes
    int64_t n = 0;
    for (int64_t i = 0; i < cells; ++i) n += sizes[i];
    return n;
  }
  // Points `data` at the rows, once sizes are known: for results after the kernel has filled `sizes`, for
  // operands before the kernel runs (the caller does it).
  absl::Status PlaceRows() {
    const int64_t n = rows();
    data = n <= capacity_rows ? arena_rows : spill_rows;
    if (data == nullptr && n > 0)
      return absl::ResourceExhaustedError("ragged value exceeds its bound and has no spill");
    return absl::OkStatus();
  }
};

// One element as a number, whatever the dtype: for host access and casts, not for hot loops. CHECK-fails for
// dtypes without arithmetic on the host; HasElementAccess tells.
bool HasElementAccess(DType dtype);
double LoadElement(DType dtype, const void* data, int64_t i);
void StoreElement(DType dtype, void* data, int64_t i, double value);

struct KernelContext {
  const Node* node = nullptr;
  const ShardingRule* rule = nullptr;
  // Per factor of the rule: local extent, global offset of the local part, global extent.
  std::vector<int64_t> extent, offset, global_extent;
  std::vector<Tensor> in, out;
  void* workspace = nullptr;  // workspace_bytes, 64-byte aligned
  int64_t workspace_bytes = 0;
  // Where a kernel of Backend::kCuda puts its work, all of it on memory of the stream's device, sizes of
  // ragged values among it: it returns before they are known, and finds its rows by itself
  // (moe/kernels/cuda). Null for the others.
  device::Stream* stream = nullptr;
  // Whether dense products of f32 may round their operands to TF32, which has 10 bits of mantissa. Kernels of
  // Backend::kCuda alone look at it.
  bool tf32 = false;

  int64_t Extent(absl::string_view factor) const { return extent[rule->Find(factor)]; }
  int64_t ExtentOr(absl::string_view factor, int64_t otherwise) const {
    const int f = rule->Find(factor);
    return f < 0 ? otherwise : extent[f];
  }
  int64_t Offset(absl::string_view factor) const { return offset[rule->Find(factor)]; }
};

// Gives every ragged result the cell sizes of the first ragged operand, and places its rows.
inline absl::Status PlaceLikeOperand(KernelContext& c) {
  const Tensor* like = nullptr;
  for (const Tensor& t : c.in) {
    if (t.is_ragged() && like == nullptr) like = &t;
  }
  for (Tensor& t : c.out) {
    if (!t.is_ragged()) continue;
    if (like == nullptr || like->cells != t.cells) {
      return absl::InternalError("a ragged result without an operand of the same cells");
    }
    for (int64_t i = 0; i < t.cells; ++i) t.sizes[i] = like->sizes[i];
    RETURN_IF_ERROR(t.PlaceRows());
  }
  return absl::OkStatus();
}

inline bool IsScalar(const Tensor& t) { return t.dims.empty(); }

// kBlas: the reference with whole matrix products, for models whose naive reference takes too long. It is
// held against kReference like the others.
enum class Backend : uint8_t { kReference, kBlas, kCpu, kCuda };
absl::string_view BackendName(Backend b);

using KernelFn = absl::Status (*)(KernelContext& c);
// Scratch bytes for a node whose operands and results have these local extents. Null: none.
using WorkspaceFn = int64_t (*)(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                                absl::Span<const Tensor> in, absl::Span<const Tensor> out);

struct Kernel {
  std::string op;
  Backend backend = Backend::kReference;
  // The narrowest float among the node's operands and results; kS32 for ops without any float (moe.slots).
  DType dtype = DType::kF32;
  KernelFn fn = nullptr;
  WorkspaceFn workspace = nullptr;
  // Instead of `fn`: the f32 kernel that computes for this one, see widen.h. Of the same registry.
  const Kernel* wide = nullptr;
  // Called once when a node is bound, before anything runs: says what is missing here for it, and does once
  // what takes long. Run does without. Null: nothing to prepare.
  KernelFn prepare = nullptr;

  absl::Status Run(KernelContext& c) const;
  absl::Status Prepare(KernelContext& c) const { return prepare == nullptr ? absl::OkStatus() : prepare(c); }
  int64_t WorkspaceBytes(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                         absl::Span<const Tensor> in, absl::Span<const Tensor> out) const;
};

DType ComputeDType(const Node& n);

class KernelRegistry {
 public:
  const Kernel* Add(Kernel kernel);  // CHECK-fails on a duplicate; the pointer stays valid
  const Kernel* Find(absl::string_view op, Backend backend, DType dtype) const;
  // Error: NotFound, naming op, backend and dtype, and what there is for the op.
  absl::StatusOr<const Kernel*> Lookup(const Node& n, Backend backend) const;
  std::vector<const Kernel*> All() const;

 private:
  std::map<std::tuple<std::string, Backend, DType>, Kernel> kernels_;
};

// Registration, one function per family and backend: moe/kernels/{reference,cpu}/<family>.cc.
void RegisterReferenceKernels(KernelRegistry& r);  // f64, f32
void RegisterBlasKernels(KernelRegistry& r);       // f64, f32
void RegisterCpuKernels(KernelRegistry& r);        // f32, f64
// bf16 and f16, for every op that has a kernel of the host in f32 and none of its own in them.
void RegisterWidenedKernels(KernelRegistry& r);
const KernelRegistry& Kernels();  // all that are linked in or loaded; built once

// How kernels that a program may or may not have make themselves known, when they are linked in (alwayslink)
// or loaded before the first use of Kernels(): one object at namespace scope. Kernels() calls it.
struct KernelRegistration {
  explicit KernelRegistration(void (*add)(KernelRegistry&));
};
void RegisterLinkedKernels(KernelRegistry& r);

}  // namespace moe::kernels
