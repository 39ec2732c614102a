// moe.split_experts and moe.join_experts: runs of experts between a whole value and its parts, as
// moe/kernels/expert_parts.h has it. Run i of the whole is run i / parts of part i % parts.

#include <algorithm>

#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {
namespace {

constexpr int kMaxParts = 16;

struct PartsShape {
  int64_t runs, parts;            // of the whole; parts divides runs
  int64_t cells;                  // ragged: of a run
  int64_t bytes;                  // ragged: of a row; dense: of a run
  bool split;                     // from the whole
  int unit;                       // bytes that move at once
  char *whole, *part[kMaxParts];  // dense
  int32_t *whole_sizes, *part_sizes[kMaxParts];
  RaggedRows whole_rows, part_rows[kMaxParts];
};

__global__ void PartSizesKernel(PartsShape s) {
  for (int64_t i = FirstItem(); i < s.runs * s.cells; i += ItemStep()) {
    const int64_t run = i / s.cells;
    int32_t& whole = s.whole_sizes[i];
    int32_t& part = s.part_sizes[run % s.parts][run / s.parts * s.cells + i - run * s.cells];
    if (s.split) {
      part = whole;
    } else {
      whole = part;
    }
  }
}

template <typename Unit>
__device__ void CopyUnits(const char* from, char* to, int64_t bytes) {
  for (int64_t i = FirstItem(); i < bytes / static_cast<int64_t>(sizeof(Unit)); i += ItemStep())
    reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
}

// Blocks along y take runs.
__global__ void CopyPartsKernel(PartsShape s) {
  for (int64_t run = blockIdx.y; run < s.runs; run += gridDim.y) {
    const int64_t p = run % s.parts, at = run / s.parts;
    char *whole = s.whole + run * s.bytes, *part = s.part[p] + at * s.bytes;
    int64_t bytes = s.bytes;
    if (s.whole_rows.header != nullptr) {
      const RaggedRows &w = s.whole_rows, &q = s.part_rows[p];
      const int64_t first = run * s.cells, end = first + s.cells;
      const int64_t begin = w.starts[first];
      const int64_t rows = (end < w.cells ? w.starts[end] : w.header->rows) - begin;
      whole = static_cast<char*>(w.header->data[0]) + begin * s.bytes;
      part = static_cast<char*>(q.header->data[0]) + q.starts[at * s.cells] * s.bytes;
      bytes = rows * s.bytes;
    }
    const char* const from = s.split ? whole : part;
    char* const to = s.split ? part : whole;
    if (s.unit == 16) {
      CopyUnits<uint4>(from, to, bytes);
    } else if (s.unit == 4) {
      CopyUnits<uint32_t>(from, to, bytes);
    } else {
      CopyUnits<uint16_t>(from, to, bytes);
    }
  }
}

// The whole value's header first, then one per part.
int64_t PartsWorkspace(const Node& n, const ShardingRule&, absl::Span<const int64_t>,
                       absl::Span<const Tensor> in, absl::Span<const Tensor> out) {
  int64_t bytes = 0;
  for (const auto& tensors : {in, out}) {
    for (const Tensor& t : tensors) {
      if (t.is_ragged()) bytes += RaggedWorkspace(t.cells);
    }
  }
  return bytes;
}

absl::Status MoveParts(KernelContext& c, Tensor& whole, absl::Span<Tensor> parts, bool split) {
  const cudaStream_t stream = CudaStreamOf(c);
  PartsShape s = {};
  s.parts = c.Extent("p");
  s.runs = c.Extent("r") * s.parts;
  s.split = split;
  if (s.parts > kMaxParts) return absl::InvalidArgumentError(absl::StrCat(s.parts, " parts of experts"));
  if (s.runs == 0 || (whole.is_ragged() && whole.cells == 0)) return absl::OkStatus();
  const int64_t element = ByteSize(whole.dtype);
  int64_t likely = 0;  // bytes of a run
  bool aligned =
      whole.is_ragged() ? IsAligned(whole.arena_rows) && IsAligned(whole.spill_rows) : IsAligned(whole.data);
  for (const Tensor& t : parts)
    aligned =
        aligned && (t.is_ragged() ? IsAligned(t.arena_rows) && IsAligned(t.spill_rows) : IsAligned(t.data));
  if (whole.is_ragged()) {
    s.cells = whole.cells / s.runs;
    s.bytes = whole.row_elements * element;
    s.whole_sizes = whole.sizes;
    for (size_t p = 0; p < parts.size(); ++p) s.part_sizes[p] = parts[p].sizes;
    const LaunchShape l = FlatLaunch(whole.cells);
    RETURN_IF_ERROR(MOE_LAUNCH(PartSizesKernel, GridOf(l), BlockOf(l), 0, stream, s));
    Workspace w(c);
    const auto place = [&](const Tensor& t) {
      return PlaceRagged(stream, t.sizes, t.cells, {&t}, {}, w.Take<char>(RaggedWorkspace(t.cells)));
    };
    ASSIGN_OR_RETURN(s.whole_rows, place(whole));
    for (size_t p = 0; p < parts.size(); ++p) {
      ASSIGN_OR_RETURN(s.part_rows[p], place(parts[p]));
    }
    likely = CeilDiv(whole.capacity_rows, s.runs) * s.bytes;
  } else {
    s.bytes = whole.elements() / s.runs * element;
    s.whole = whole.As<char>();
    for (size_t p = 0; p < parts.size(); ++p) s.part[p] = parts[p].As<char>();
    likely = s.bytes;
  }
  s.unit = aligned && s.bytes % 16 == 0 ? 16 : s.bytes % 4 == 0 ? 4 : 2;
  const LaunchShape l = FlatLaunch(CeilDiv(likely, s.unit));
  const dim3 grid(static_cast<unsigned>(l.blocks), static_cast<unsigned>(std::min(s.runs, kMaxGridY)));
  return MOE_LAUNCH(CopyPartsKernel, grid, BlockOf(l), 0, stream, s);
}

absl::Status SplitExperts(KernelContext& c) { return MoveParts(c, c.in[0], absl::MakeSpan(c.out), true); }
absl::Status JoinExperts(KernelContext& c) { return MoveParts(c, c.out[0], absl::MakeSpan(c.in), false); }

}  // namespace

void RegisterCudaExpertParts(KernelRegistry& r) {
  AddForFloats(r, "moe.join_experts", &JoinExperts, &PartsWorkspace);
  AddForFloats(r, "moe.split_experts", &SplitExperts, &PartsWorkspace);
}

}  // namespace moe::kernels
