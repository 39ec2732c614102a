#include "moe/kernels/cuda/cudnn_attention.h"

#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::kernels {
namespace {

constexpr int64_t kEngineBytes = 256;  // beside what grows with the shape

enum Number : int64_t { kQ = 1, kK, kV, kO, kLse, kDy, kDq, kDk, kDv, kDelta };

int64_t Up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

cudnnDataType_t TypeOf(DType dtype) { return dtype == DType::kF16 ? CUDNN_DATA_HALF : CUDNN_DATA_BFLOAT16; }

// The tensors of a piece of attention, [batch, heads, s, d], whose rows lie among those of all heads.
class Shapes {
 public:
  Shapes(const CudnnAttention& a, const CudnnPiece& piece)
      : a_(a), batch_(piece.batch), kv_heads_(piece.kv_heads) {}

  CudnnDims Queries() const { return {batch_, kv_heads_ * a_.per_kv, a_.s, a_.d}; }
  CudnnDims QueryStrides() const { return {a_.s * a_.heads() * a_.d, a_.d, a_.heads() * a_.d, 1}; }
  CudnnDims Keys() const { return {batch_, kv_heads_, a_.s, a_.d}; }
  CudnnDims KeyStrides() const { return {a_.s * a_.kv_heads * a_.d, a_.d, a_.kv_heads * a_.d, 1}; }
  CudnnDims Swapped(CudnnDims x) const {
    std::swap(x[2], x[3]);
    return x;
  }
  CudnnDims Scores() const { return {batch_, kv_heads_ * a_.per_kv, a_.s, a_.s}; }
  CudnnDims Rows() const { return {batch_, kv_heads_ * a_.per_kv, a_.s, 1}; }
  CudnnDims RowStrides() const { return {kv_heads_ * a_.per_kv * a_.s, a_.s, 1, 1}; }

 private:
  const CudnnAttention& a_;
  const int64_t batch_, kv_heads_;
};

float ScaleOf(const CudnnAttention& a) { return static_cast<float>(1 / std::sqrt(static_cast<double>(a.d))); }

// Scores of which a query's own index and those before it are left.
CudnnTensor Causal(CudnnGraph& g, const CudnnTensor& scores) {
  const CudnnTensor row = g.Inner(CUDNN_DATA_INT32, scores.dims),
                    column = g.Inner(CUDNN_DATA_INT32, scores.dims),
                    sees = g.Inner(CUDNN_DATA_BOOLEAN, scores.dims),
                    masked = g.Inner(CUDNN_DATA_FLOAT, scores.dims);
  g.Index(2, scores, row);
  g.Index(3, scores, column);
  g.Pointwise(CUDNN_POINTWISE_CMP_GE, row, column, sees);
  g.Select(sees, scores, g.Number(-std::numeric_limits<float>::infinity()), masked);
  return masked;
}

CudnnGraph ForwardGraph(const CudnnApi* cudnn, const CudnnAttention& a) {
  CudnnGraph g(cudnn);
  const Shapes x(a, {a.batch, a.kv_heads});
  const cudnnDataType_t type = TypeOf(a.dtype), f32 = CUDNN_DATA_FLOAT;
  const CudnnTensor q = g.Memory(kQ, type, x.Queries(), x.QueryStrides()),
                    k = g.Memory(kK, type, x.Swapped(x.Keys()), x.Swapped(x.KeyStrides())),
                    v = g.Memory(kV, type, x.Keys(), x.KeyStrides()),
                    o = g.Memory(kO, type, x.Queries(), x.QueryStrides()),
                    lse = g.Memory(kLse, f32, x.Rows(), {a.s * a.heads(), 1, a.heads(), 1});
  const CudnnTensor products = g.Inner(f32, x.Scores()), scores = g.Inner(f32, x.Scores());
  g.MatMul(q, k, products);
  g.Pointwise(CUDNN_POINTWISE_MUL, products, g.Number(ScaleOf(a)), scores);
  const CudnnTensor masked = Causal(g, scores);
  const CudnnTensor most = g.Inner(f32, x.Rows()), sum = g.Inner(f32, x.Rows()), log = g.Inner(f32, x.Rows()),
                    less = g.Inner(f32, x.Scores()), e = g.Inner(f32, x.Scores()),
                    p = g.Inner(type, x.Scores());
  g.Reduce(CUDNN_REDUCE_TENSOR_MAX, masked, most);
  g.Pointwise(CUDNN_POINTWISE_SUB, masked, most, less);
  g.Pointwise(CUDNN_POINTWISE_EXP, less, e);
  g.Reduce(CUDNN_REDUCE_TENSOR_ADD, e, sum);
  g.Pointwise(CUDNN_POINTWISE_LOG, sum, log);
  g.Pointwise(CUDNN_POINTWISE_ADD, most, log, lse);
  g.Pointwise(CUDNN_POINTWISE_DIV, e, sum, p);
  g.MatMul(p, v, o);
  return g;
}

CudnnGraph BackwardGraph(const CudnnApi* cudnn, const CudnnAttention& a, const CudnnPiece& piece) {
  CudnnGraph g(cudnn);
  const Shapes x(a, piece);
  const cudnnDataType_t type = TypeOf(a.dtype), f32 = CUDNN_DATA_FLOAT;
  const auto queries = [&](Number n) { return g.Memory(n, type, x.Queries(), x.QueryStrides()); };
  const auto keys = [&](Number n) { return g.Memory(n, type, x.Keys(), x.KeyStrides()); };
  const auto swapped = [&](Number n) {
    return g.Memory(n, type, x.Swapped(x.Keys()), x.Swapped(x.KeyStrides()));
  };
  const auto rows = [&](Number n) { return g.Memory(n, f32, x.Rows(), x.RowStrides()); };
  const auto scores = [&] { return g.Inner(f32, x.Scores()); };
  // A matrix of scores with queries as columns.
  const auto turned = [&](const CudnnTensor& from) {
    CudnnDims strides = {x.Scores()[1] * a.s * a.s, a.s * a.s, 1, a.s};
    const CudnnTensor to = g.Inner(type, x.Scores(), strides);
    g.Reshape(from, to);
    return to;
  };
  // matrix^T by, summed over the heads that share keys.
  const auto to_keys = [&](const CudnnTensor& matrix, const CudnnTensor& by, Number n) {
    if (a.per_kv == 1) return g.MatMul(matrix, by, keys(n));
    const CudnnTensor of_heads = g.Inner(type, x.Queries());
    g.MatMul(matrix, by, of_heads);
    g.Reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, keys(n));
  };
  const CudnnTensor q = queries(kQ), k = swapped(kK), v = swapped(kV), o = queries(kO), dy = queries(kDy),
                    lse = rows(kLse), delta = rows(kDelta), scale = g.Number(ScaleOf(a));

  // delta = the sum over d of dy o.
  const CudnnTensor dy_o = g.Inner(f32, x.Queries()), sums = g.Inner(f32, x.Rows());
  g.Pointwise(CUDNN_POINTWISE_MUL, dy, o, dy_o);
  g.Reduce(CUDNN_REDUCE_TENSOR_ADD, dy_o, sums);
  g.Pointwise(CUDNN_POINTWISE_MUL, sums, g.Number(1), delta);

  // p = exp(q k^T scale - lse) where a query sees a key; dv = p^T dy.
  const CudnnTensor products = scores(), scaled = scores(), less = scores(), p = scores();
  g.MatMul(q, k, products);
  g.Pointwise(CUDNN_POINTWISE_MUL, products, scale, scaled);
  g.Pointwise(CUDNN_POINTWISE_SUB, scaled, lse, less);
  g.Pointwise(CUDNN_POINTWISE_EXP, Causal(g, less), p);
  to_keys(turned(p), dy, kDv);

  // dp = dy v^T, ds = p (dp - delta) scale; dk = ds^T q, dq = ds k.
  const CudnnTensor dp = scores(), centred = scores(), by_p = scores(), ds = scores();
  g.MatMul(dy, v, dp);
  g.Pointwise(CUDNN_POINTWISE_SUB, dp, delta, centred);
  g.Pointwise(CUDNN_POINTWISE_MUL, centred, p, by_p);
  g.Pointwise(CUDNN_POINTWISE_MUL, by_p, scale, ds);
  to_keys(turned(ds), q, kDk);
  const CudnnTensor k_rows = g.Inner(f32, x.Keys(), x.KeyStrides());
  g.Reshape(k, k_rows);
  g.MatMul(ds, k_rows, queries(kDq));
  return g;
}

// What the engine of sm_90 asks for in 9.19 and 9.26: dP in the narrow type, padded to its tiles, gradients
// of keys and values of every head where heads share them, and a few bytes.
int64_t EngineBytes(const CudnnAttention& a, const CudnnPiece& piece) {
  const int64_t heads = piece.batch * piece.kv_heads * a.per_kv;
  const int64_t dp = heads * Up(a.s, 64) * Up(a.s, 128) * 2;
  const int64_t of_heads = a.per_kv == 1 ? 0 : 2 * heads * a.s * a.d * 2;
  return dp + of_heads + kEngineBytes;
}

int64_t DeltaBytes(const CudnnAttention& a, const CudnnPiece& piece) {
  return piece.batch * piece.kv_heads * a.per_kv * a.s * static_cast<int64_t>(sizeof(float));
}

// Handles and plans of the process; never freed, since the library may be gone at its end.
class Library {
 public:
  static Library& Get() {
    static Library& library = *new Library;
    return library;
  }

  // Calls `use` with the plan and the device's handle, one call at a time.
  template <typename F>
  absl::Status With(const CudnnAttention& a, bool backward, F use) {
    int device = 0;
    RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
    ASSIGN_OR_RETURN(const CudnnApi* const cudnn, LoadCudnn());
    const std::lock_guard<std::mutex> lock(mutex_);
    cudnnHandle_t& handle = handles_[device];
    if (handle == nullptr) RETURN_IF_ERROR(cudnn->StatusOf(cudnn->Create(&handle), "cudnnCreate"));
    std::unique_ptr<CudnnPlan>& plan = plans_[{device, backward, a}];
    if (plan == nullptr) {
      ASSIGN_OR_RETURN(plan, backward ? CudnnBackwardPlan(cudnn, a, {.handle = handle})
                                      : CudnnForwardPlan(cudnn, a, {.handle = handle}));
    }
    return use(*cudnn, *plan, handle);
  }

 private:
  std::mutex mutex_;
  std::map<int, cudnnHandle_t> handles_;
  std::map<std::tuple<int, bool, CudnnAttention>, std::unique_ptr<CudnnPlan>> plans_;
};

}  // namespace

absl::Status CheckCudnnAttention(const CudnnAttention& a) {
  if (a.dtype != DType::kBF16 && a.dtype != DType::kF16) {
    return absl::UnimplementedError(
        absl::StrCat("attention by cuDNN in ", DTypeName(a.dtype), "; it takes bf16 and f16"));
  }
  if (a.d % 8 != 0 || a.d > 256) {
    return absl::UnimplementedError(
        absl::StrCat("attention by cuDNN with heads of ", a.d, "; it takes multiples of 8 up to 256"));
  }
  return absl::OkStatus();
}

CudnnPiece CudnnPieceOf(const CudnnAttention& a) {
  const auto fits = [&](const CudnnPiece& p) { return EngineBytes(a, p) <= a.piece_bytes; };
  for (int64_t batch = a.batch; batch >= 1; --batch) {
    const CudnnPiece p = {batch, a.kv_heads};
    if (a.batch % batch == 0 && fits(p)) return p;
  }
  for (int64_t heads = a.kv_heads; heads > 1; --heads) {
    const CudnnPiece p = {1, heads};
    if (a.kv_heads % heads == 0 && fits(p)) return p;
  }
  return {1, 1};
}

int64_t CudnnForwardWorkspace(const CudnnAttention& a) { return kEngineBytes; }

int64_t CudnnBackwardWorkspace(const CudnnAttention& a) {
  const CudnnPiece piece = CudnnPieceOf(a);
  return Up(DeltaBytes(a, piece), 256) + EngineBytes(a, piece);
}

absl::StatusOr<std::unique_ptr<CudnnPlan>> CudnnForwardPlan(const CudnnApi* cudnn, const CudnnAttention& a,
                                                            const CudnnDevice& device) {
  RETURN_IF_ERROR(CheckCudnnAttention(a));
  return CudnnPlan::Make(ForwardGraph(cudnn, a), device, CudnnForwardWorkspace(a));
}

absl::StatusOr<std::unique_ptr<CudnnPlan>> CudnnBackwardPlan(const CudnnApi* cudnn, const CudnnAttention& a,
                                                             const CudnnDevice& device) {
  RETURN_IF_ERROR(CheckCudnnAttention(a));
  const CudnnPiece piece = CudnnPieceOf(a);
  return CudnnPlan::Make(BackwardGraph(cudnn, a, piece), device, EngineBytes(a, piece));
}

absl::Status PrepareCudnnAttention(const CudnnAttention& a, bool backward) {
  return Library::Get().With(a, backward, [](const auto&...) { return absl::OkStatus(); });
}

absl::Status RunCudnnAttention(const CudnnAttention& a, const CudnnForwardData& x, void* workspace,
                               cudaStream_t stream) {
  return Library::Get().With(
      a, /*backward=*/false, [&](const CudnnApi& cudnn, const CudnnPlan& plan, cudnnHandle_t handle) {
        RETURN_IF_ERROR(cudnn.StatusOf(cudnn.SetStream(handle, stream), "cudnnSetStream"));
        return plan.Run(handle, {{kQ, x.q}, {kK, x.k}, {kV, x.v}, {kO, x.o}, {kLse, x.lse}}, workspace);
      });
}

absl::Status RunCudnnAttentionGrad(const CudnnAttention& a, const CudnnBackwardData& x, void* workspace,
                                   cudaStream_t stream) {
  const CudnnPiece piece = CudnnPieceOf(a);
  const int64_t size = ByteSize(a.dtype);
  char* const delta = static_cast<char*>(workspace);
  char* const engine = delta + Up(DeltaBytes(a, piece), 256);
  return Library::Get().With(
      a, /*backward=*/true, [&](const CudnnApi& cudnn, const CudnnPlan& plan, cudnnHandle_t handle) {
        RETURN_IF_ERROR(cudnn.StatusOf(cudnn.SetStream(handle, stream), "cudnnSetStream"));
        for (int64_t sample = 0; sample < a.batch; sample += piece.batch) {
          for (int64_t head = 0; head < a.kv_heads; head += piece.kv_heads) {
            const auto queries = [&](void* p) -> void* {
              return static_cast<char*>(p) + (sample * a.s * a.heads() + head * a.per_kv) * a.d * size;
            };
            const auto keys = [&](void* p) -> void* {
              return static_cast<char*>(p) + (sample * a.s * a.kv_heads + head) * a.d * size;
            };
            void* const lse = static_cast<float*>(x.lse) + (sample * a.heads() + head * a.per_kv) * a.s;
            RETURN_IF_ERROR(plan.Run(handle,
                                     {{kQ, queries(x.q)},
                                      {kK, keys(x.k)},
                                      {kV, keys(x.v)},
                                      {kO, queries(x.o)},
                                      {kLse, lse},
                                      {kDy, queries(x.dy)},
                                      {kDq, queries(x.dq)},
                                      {kDk, keys(x.dk)},
                                      {kDv, keys(x.dv)},
                                      {kDelta, delta}},
                                     engine));
          }
        }
        return absl::OkStatus();
      });
}

}  // namespace moe::kernels
