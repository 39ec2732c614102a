#include "moe/kernels/cuda/blas_lt.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::kernels {
namespace {

absl::Status StatusOf(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string text = absl::StrCat("cuBLASLt: ", what, ": ", cublasLtGetStatusString(status));
  return status == CUBLAS_STATUS_ALLOC_FAILED ? absl::ResourceExhaustedError(text)
                                              : absl::InternalError(text);
}
#define RETURN_IF_LT_ERROR(expr) RETURN_IF_ERROR(StatusOf((expr), #expr))

cudaDataType_t TypeOf(DType dtype) {
  return dtype == DType::kBF16 ? CUDA_R_16BF : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// Largest power of two up to 256 that divides an address.
int Alignment(const void* p) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  return at % 256 == 0 ? 256 : static_cast<int>(at & (~at + 1));
}

using Key = std::tuple<int, bool, int64_t, int64_t, int64_t, bool, bool, int64_t, int64_t, int64_t, int64_t,
                       int64_t, int64_t, int64_t, DType, DType, int, int, int, int64_t>;

// Column-major, as the library has it: c^T [n, m] = b^T [n, k] a^T [k, m].
struct Algorithm {
  Algorithm() = default;
  Algorithm(const Algorithm&) = delete;
  ~Algorithm() {
    for (cublasLtMatrixLayout_t layout : {first, second, result}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (desc != nullptr) cublasLtMatmulDescDestroy(desc);
  }
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
  cublasLtMatmulAlgo_t algo;
  bool found = false;
};

absl::Status MakeLayout(DType dtype, int64_t rows, int64_t columns, int64_t pitch, int64_t batches,
                        int64_t stride, cublasLtMatrixLayout_t* layout) {
  RETURN_IF_LT_ERROR(cublasLtMatrixLayoutCreate(layout, TypeOf(dtype), rows, columns, pitch));
  if (batches == 1) return absl::OkStatus();
  const int32_t count = static_cast<int32_t>(batches);
  RETURN_IF_LT_ERROR(
      cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)));
  RETURN_IF_LT_ERROR(cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                      &stride, sizeof(stride)));
  return absl::OkStatus();
}

absl::Status Choose(cublasLtHandle_t handle, const LtProduct& p, bool use_tf32, int a_alignment,
                    int b_alignment, int c_alignment, int64_t workspace_bytes, Algorithm* out) {
  RETURN_IF_LT_ERROR(cublasLtMatmulDescCreate(
      &out->desc, use_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const int32_t first = p.b_by_k ? CUBLAS_OP_T : CUBLAS_OP_N, second = p.a_by_k ? CUBLAS_OP_N : CUBLAS_OP_T;
  RETURN_IF_LT_ERROR(
      cublasLtMatmulDescSetAttribute(out->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof(first)));
  RETURN_IF_LT_ERROR(
      cublasLtMatmulDescSetAttribute(out->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof(second)));
  RETURN_IF_ERROR(MakeLayout(p.dtype, p.b_by_k ? p.k : p.n, p.b_by_k ? p.n : p.k, p.b_pitch, p.batches,
                             p.b_stride, &out->first));
  RETURN_IF_ERROR(MakeLayout(p.dtype, p.a_by_k ? p.k : p.m, p.a_by_k ? p.m : p.k, p.a_pitch, p.batches,
                             p.a_stride, &out->second));
  RETURN_IF_ERROR(MakeLayout(p.c_dtype, p.n, p.m, p.c_pitch, p.batches, p.c_stride, &out->result));

  cublasLtMatmulPreference_t preference;
  RETURN_IF_LT_ERROR(cublasLtMatmulPreferenceCreate(&preference));
  const auto destroy = [](cublasLtMatmulPreference_t x) { cublasLtMatmulPreferenceDestroy(x); };
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, decltype(destroy)> owned(
      preference, destroy);
  const uint64_t bytes = static_cast<uint64_t>(workspace_bytes);
  RETURN_IF_LT_ERROR(cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes)));
  const std::pair<cublasLtMatmulPreferenceAttributes_t, int> alignments[] = {
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c_alignment}};
  for (const auto& [attribute, alignment] : alignments) {
    const uint32_t value = static_cast<uint32_t>(alignment);
    RETURN_IF_LT_ERROR(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
  }
  cublasLtMatmulHeuristicResult_t best = {};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, out->desc, out->first, out->second, out->result, out->result, preference, 1, &best, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && count == 0))
    return absl::OkStatus();
  RETURN_IF_LT_ERROR(status);
  out->algo = best.algo;
  out->found = true;
  return absl::OkStatus();
}

// Handles and algorithms of the process; never freed, since the library may be gone at its end.
class Library {
 public:
  static Library& Get() {
    static Library& library = *new Library;
    return library;
  }
  absl::StatusOr<cublasLtHandle_t> HandleOf(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cublasLtHandle_t& handle = handles_[device];
    if (handle == nullptr) RETURN_IF_LT_ERROR(cublasLtCreate(&handle));
    return handle;
  }
  absl::StatusOr<const Algorithm*> AlgorithmOf(cublasLtHandle_t handle, int device, const LtProduct& p,
                                               int a_alignment, int b_alignment, int c_alignment,
                                               int64_t workspace_bytes) {
    const bool use_tf32 = p.dtype == DType::kF32 && p.tf32;
    const Key key(device, use_tf32, p.m, p.n, p.k, p.a_by_k, p.b_by_k, p.a_pitch, p.b_pitch, p.c_pitch,
                  p.batches, p.a_stride, p.b_stride, p.c_stride, p.dtype, p.c_dtype, a_alignment, b_alignment,
                  c_alignment, workspace_bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Algorithm>& known = algorithms_[key];
    if (known == nullptr) {
      auto chosen = std::make_unique<Algorithm>();
      RETURN_IF_ERROR(
          Choose(handle, p, use_tf32, a_alignment, b_alignment, c_alignment, workspace_bytes, chosen.get()));
      known = std::move(chosen);
    }
    return known.get();
  }

 private:
  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<Key, std::unique_ptr<Algorithm>> algorithms_;
};

}  // namespace

absl::StatusOr<bool> MultiplyByLt(const LtProduct& p, const void* a, const void* b, void* c, void* workspace,
                                  int64_t workspace_bytes, cudaStream_t stream) {
  int device = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  Library& library = Library::Get();
  ASSIGN_OR_RETURN(const cublasLtHandle_t handle, library.HandleOf(device));
  ASSIGN_OR_RETURN(
      const Algorithm* const algorithm,
      library.AlgorithmOf(handle, device, p, Alignment(a), Alignment(b), Alignment(c), workspace_bytes));
  if (!algorithm->found) return false;
  const float one = 1, beta = p.accumulate ? 1 : 0;
  RETURN_IF_LT_ERROR(cublasLtMatmul(handle, algorithm->desc, &one, b, algorithm->first, a, algorithm->second,
                                    &beta, c, algorithm->result, c, algorithm->result, &algorithm->algo,
                                    workspace, workspace_bytes, stream));
  return true;
}

// 32 MiB is what NVIDIA advises for Hopper; small products use little of it.
int64_t LtWorkspace(double multiplications) {
  if (multiplications < 1 << 20) return 0;
  return multiplications < 1 << 27 ? int64_t{1} << 20 : int64_t{32} << 20;
}

}  // namespace moe::kernels
