#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/ragged.h"

namespace moe::kernels {
namespace {

struct PlaceArgs {
  const int32_t* sizes;
  int64_t cells;
  int count;
  struct {
    void *arena, *spill;
    int64_t capacity;
    int32_t* sizes;  // of a fresh tensor
  } tensors[kMaxRagged];
};

// One block. A thread has a run of cells, so that the scan over threads is one over cells.
__global__ void PlaceKernel(PlaceArgs a, RaggedHeader* header, int64_t* starts) {
  const int64_t run = (a.cells + blockDim.x - 1) / blockDim.x;
  const int64_t begin = min(static_cast<long long>(run * threadIdx.x), static_cast<long long>(a.cells));
  const int64_t end = min(static_cast<long long>(begin + run), static_cast<long long>(a.cells));
  int64_t mine = 0;
#pragma unroll 8
  for (int64_t i = begin; i < end; ++i) mine += a.sizes[i];
  int64_t total = 0;
  int64_t start = BlockExclusiveScan(mine, &total);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t size = a.sizes[i];
    starts[i] = start;
    start += size;
    for (int t = 0; t < a.count; ++t) {
      if (a.tensors[t].sizes != nullptr) a.tensors[t].sizes[i] = size;
    }
  }
  if (threadIdx.x != 0) return;
  header->rows = total;
  for (int t = 0; t < a.count; ++t) {
    void* const data = total <= a.tensors[t].capacity ? a.tensors[t].arena : a.tensors[t].spill;
    if (data == nullptr && total > a.tensors[t].capacity) __trap();
    header->data[t] = data;
  }
}

const Tensor* FirstRagged(absl::Span<const Tensor> tensors) {
  for (const Tensor& t : tensors) {
    if (t.is_ragged()) return &t;
  }
  return nullptr;
}

}  // namespace

int64_t RaggedWorkspace(int64_t cells) {
  return WorkspacePart(sizeof(RaggedHeader)) + WorkspacePart(cells * static_cast<int64_t>(sizeof(int64_t)));
}

int64_t RaggedWorkspaceOf(const Node&, const ShardingRule&, absl::Span<const int64_t>,
                          absl::Span<const Tensor> in, absl::Span<const Tensor> out) {
  const Tensor* t = FirstRagged(in);
  if (t == nullptr) t = FirstRagged(out);
  return t == nullptr ? 0 : RaggedWorkspace(t->cells);
}

absl::StatusOr<RaggedRows> PlaceRagged(cudaStream_t stream, const int32_t* sizes, int64_t cells,
                                       absl::Span<const Tensor* const> known,
                                       absl::Span<const Tensor* const> fresh, void* memory) {
  PlaceArgs a = {};
  a.sizes = sizes;
  a.cells = cells;
  if (known.size() + fresh.size() > kMaxRagged) {
    return absl::InvalidArgumentError(
        absl::StrCat("a node with ", known.size() + fresh.size(), " ragged tensors; at most ", kMaxRagged));
  }
  const auto add = [&](const Tensor& t, bool is_fresh) -> absl::Status {
    if (t.cells != cells) {
      return absl::InvalidArgumentError(
          absl::StrCat("a ragged tensor of ", t.cells, " cells beside one of ", cells));
    }
    auto& to = a.tensors[a.count++];
    to.arena = t.arena_rows;
    to.spill = t.spill_rows;
    to.capacity = t.capacity_rows;
    to.sizes = is_fresh && t.sizes != sizes ? t.sizes : nullptr;
    return absl::OkStatus();
  };
  for (const Tensor* t : known) RETURN_IF_ERROR(add(*t, false));
  for (const Tensor* t : fresh) RETURN_IF_ERROR(add(*t, true));
  auto* header = static_cast<RaggedHeader*>(memory);
  auto* starts = reinterpret_cast<int64_t*>(static_cast<char*>(memory) + WorkspacePart(sizeof(RaggedHeader)));
  LaunchShape s = FlatLaunch(cells, kMaxThreads);
  s.blocks = 1;
  RETURN_IF_ERROR(MOE_LAUNCH(PlaceKernel, GridOf(s), BlockOf(s), 0, stream, a, header, starts));
  return RaggedRows{header, starts, cells};
}

absl::StatusOr<RaggedRows> PlaceLikeOperand(KernelContext& c, Workspace& w) {
  const Tensor* like = FirstRagged(c.in);
  if (like == nullptr) {
    if (FirstRagged(c.out) != nullptr) {
      return absl::InternalError("a ragged result without a ragged operand");
    }
    return RaggedRows();
  }
  absl::InlinedVector<const Tensor*, kMaxRagged> known, fresh;
  for (const Tensor& t : c.in) {
    if (t.is_ragged()) known.push_back(&t);
  }
  for (const Tensor& t : c.out) {
    if (t.is_ragged()) fresh.push_back(&t);
  }
  return PlaceRagged(CudaStreamOf(c), like->sizes, like->cells, known, fresh,
                     w.Take<char>(RaggedWorkspace(like->cells)));
}

int RaggedOperandIndex(const KernelContext& c, int operand) {
  if (!c.in[operand].is_ragged()) return -1;
  int index = 0;
  for (int i = 0; i < operand; ++i) index += c.in[i].is_ragged();
  return index;
}

int RaggedResultIndex(const KernelContext& c, int result) {
  if (!c.out[result].is_ragged()) return -1;
  int index = 0;
  for (const Tensor& t : c.in) index += t.is_ragged();
  for (int i = 0; i < result; ++i) index += c.out[i].is_ragged();
  return index;
}

}  // namespace moe::kernels
