// Embedding and its gradient.

#include "moe/kernels/cuda/block_reduce.h"
#include "moe/kernels/cuda/families.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/rank.h"
#include "moe/kernels/cuda/vec.h"

namespace moe::kernels {
namespace {

__global__ void EmbedKernel(const int32_t* ids, Reals table, Reals x, int64_t tokens, int64_t v0, int64_t v,
                            int64_t h, bool aligned) {
  for (int64_t token = FirstRow(); token < tokens; token += RowStep()) {
    const int64_t row = ids[token] - v0;
    for (int64_t at = FirstChunk(); at < h; at += ChunkStep()) {
      const int n = ChunkSize(at, h);
      Chunk y = Filled(0);
      if (row >= 0 && row < v) y = Load(table, row * h + at, n, aligned);
      Store(x, token * h + at, n, aligned, y);
    }
  }
}

absl::Status Embed(KernelContext& c) {
  const int64_t tokens = c.in[0].elements(), h = c.Extent("h");
  ASSIGN_OR_RETURN(const Reals table, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals x, RealsOf(c.out[0]));
  const LaunchShape l = ChunkRowLaunch(tokens, h);
  return MOE_LAUNCH(EmbedKernel, GridOf(l), BlockOf(l), 0, CudaStreamOf(c), c.in[0].As<int32_t>(), table, x,
                    tokens, c.Offset("v"), c.Extent("v"), h,
                    HasAlignedRows(c.in[1], h) && HasAlignedRows(c.out[0], h));
}

// Tokens by id: the list of id v begins at starts[v].
__global__ void ListKernel(const int32_t* ids, int64_t v0, const int32_t* rank, const int64_t* starts,
                           int64_t tokens, int32_t* list) {
  for (int64_t i = FirstItem(); i < tokens; i += ItemStep()) {
    if (rank[i] >= 0) list[starts[ids[i] - v0] + rank[i]] = static_cast<int32_t>(i);
  }
}

// Every row of the table adds up its own tokens, in their order.
__global__ void EmbedGradKernel(Reals dy, const int32_t* list, const int64_t* starts, const int32_t* count,
                                Reals dtable, int64_t v, int64_t h, bool aligned) {
  for (int64_t row = FirstRow(); row < v; row += RowStep()) {
    const int32_t tokens = count[row];
    const int32_t* const mine = list + starts[row];
    for (int64_t at = FirstChunk(); at < h; at += ChunkStep()) {
      const int n = ChunkSize(at, h);
      Chunk sum = Filled(0);
#pragma unroll 4
      for (int32_t i = 0; i < tokens; ++i) {
        const Chunk d = Load(dy, mine[i] * h + at, n, aligned);
#pragma unroll
        for (int j = 0; j < kChunk; ++j) sum.x[j] += d.x[j];
      }
      Store(dtable, row * h + at, n, aligned, sum);
    }
  }
}

// Parts: ranks, counters, counts, starts of the lists, lists.
int64_t EmbedGradWorkspace(const Node&, const ShardingRule& rule, absl::Span<const int64_t> extent,
                           absl::Span<const Tensor>, absl::Span<const Tensor>) {
  const int64_t tokens = extent[rule.Find("b")] * extent[rule.Find("s")], v = extent[rule.Find("v")];
  return 2 * WorkspacePart(tokens * 4) + RankWorkspace(RanksOf(1, tokens, v)) + WorkspacePart(v * 4) +
         RaggedWorkspace(v);
}

absl::Status EmbedGrad(KernelContext& c) {
  const int64_t tokens = c.in[0].elements(), v0 = c.Offset("v"), v = c.Extent("v"), h = c.Extent("h");
  ASSIGN_OR_RETURN(const Reals dy, RealsOf(c.in[1]));
  ASSIGN_OR_RETURN(const Reals dtable, RealsOf(c.out[0]));
  const cudaStream_t stream = CudaStreamOf(c);
  const RankShape ranks = RanksOf(1, tokens, v);
  Workspace w(c);
  RankArgs a;
  a.key = c.in[0].As<int32_t>();
  a.first_key = static_cast<int32_t>(v0);
  a.rank = w.Take<int32_t>(tokens);
  int32_t* const list = w.Take<int32_t>(tokens);
  int32_t* const counters = w.Take<int32_t>(ranks.groups * ranks.segments * ranks.keys);
  a.count = w.Take<int32_t>(v);
  RETURN_IF_ERROR(LaunchRanks(stream, a, ranks, counters));
  ASSIGN_OR_RETURN(const RaggedRows lists,
                   PlaceRagged(stream, a.count, v, {}, {}, w.Take<char>(RaggedWorkspace(v))));
  LaunchShape l = FlatLaunch(tokens);
  RETURN_IF_ERROR(MOE_LAUNCH(ListKernel, GridOf(l), BlockOf(l), 0, stream, a.key, v0, a.rank, lists.starts,
                             tokens, list));
  l = ChunkRowLaunch(v, h);
  return MOE_LAUNCH(EmbedGradKernel, GridOf(l), BlockOf(l), 0, stream, dy, list, lists.starts, a.count,
                    dtable, v, h, HasAlignedRows(c.in[1], h) && HasAlignedRows(c.out[0], h));
}

}  // namespace

void RegisterCudaEmbed(KernelRegistry& r) {
  AddForFloats(r, "nn.embed", &Embed);
  AddForFloats(r, "nn.embed_grad", &EmbedGrad, &EmbedGradWorkspace);
}

}  // namespace moe::kernels
