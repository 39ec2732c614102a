#include "cublasLt.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cblas.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType type;
  int64_t rows, columns, ld;
  int32_t batches = 1;
  int64_t stride = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};  // of a, b, c, d
};

namespace {

using Layout = cublasLtMatrixLayoutOpaque_t;

template <typename T>
bool Read(const void* value, size_t bytes, T* to) {
  if (bytes != sizeof(T)) return false;
  std::memcpy(to, value, sizeof(T));
  return true;
}
cublasStatus_t ReadOr(bool read) { return read ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE; }

size_t BytesOf(cudaDataType type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_64F ? 8 : 2; }

float Load(cudaDataType type, const void* data, int64_t i) {
  if (type == CUDA_R_16BF) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  if (type == CUDA_R_16F) return __half2float(static_cast<const __half*>(data)[i]);
  return static_cast<const float*>(data)[i];
}
void Store(cudaDataType type, void* data, int64_t i, float x) {
  if (type == CUDA_R_16BF) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(x);
  } else if (type == CUDA_R_16F) {
    static_cast<__half*>(data)[i] = __float2half_rn(x);
  } else {
    static_cast<float*>(data)[i] = x;
  }
}

bool IsReal(cudaDataType type) { return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF; }

// What the documentation of cublasLtMatmul allows of it.
cublasStatus_t Check(const cublasLtMatmulDescOpaque_t& desc, const Layout& a, const Layout& b,
                     const Layout& c, const Layout& d) {
  for (const Layout* x : {&a, &b, &c, &d}) {
    if (x->rows <= 0 || x->columns <= 0 || x->ld < x->rows) return CUBLAS_STATUS_INVALID_VALUE;
    if (!IsReal(x->type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (x->batches != d.batches) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool ta = desc.trans_a == CUBLAS_OP_T, tb = desc.trans_b == CUBLAS_OP_T;
  const int64_t m = ta ? a.columns : a.rows, k = ta ? a.rows : a.columns, n = tb ? b.rows : b.columns;
  if ((tb ? b.columns : b.rows) != k || d.rows != m || d.columns != n) return CUBLAS_STATUS_INVALID_VALUE;
  if (c.rows != d.rows || c.columns != d.columns || c.type != d.type) return CUBLAS_STATUS_INVALID_VALUE;
  if (desc.scale != CUDA_R_32F || a.type != b.type) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.type != a.type && d.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a.type != CUDA_R_32F)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

// Rounds to the nearest of TF32, ties away from zero, as the PTX instruction cvt.rna.tf32.f32 does.
float ToTf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // no number, or infinite
  bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

std::vector<float> Wide(const Layout& x, const void* data, int64_t batch) {
  std::vector<float> out(x.rows * x.columns);
  for (int64_t j = 0; j < x.columns; ++j) {
    for (int64_t i = 0; i < x.rows; ++i) {
      out[j * x.rows + i] = Load(x.type, data, batch * x.stride + j * x.ld + i);
    }
  }
  return out;
}

void Multiply(const cublasLtMatmulDescOpaque_t& desc, float alpha, const void* a, const Layout& la,
              const void* b, const Layout& lb, float beta, const void* c, const Layout& lc, void* d,
              const Layout& ld) {
  const bool ta = desc.trans_a == CUBLAS_OP_T, tb = desc.trans_b == CUBLAS_OP_T;
  const int64_t k = ta ? la.rows : la.columns;
  for (int64_t batch = 0; batch < ld.batches; ++batch) {
    std::vector<float> wa = Wide(la, a, batch), wb = Wide(lb, b, batch);
    if (desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32) {
      std::transform(wa.begin(), wa.end(), wa.begin(), ToTf32);
      std::transform(wb.begin(), wb.end(), wb.begin(), ToTf32);
    }
    std::vector<float> wd(ld.rows * ld.columns);
    if (beta != 0) wd = Wide(lc, c, batch);
    cblas_sgemm(CblasColMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, ld.rows,
                ld.columns, k, alpha, wa.data(), la.rows, wb.data(), lb.rows, beta, wd.data(), ld.rows);
    for (int64_t j = 0; j < ld.columns; ++j) {
      for (int64_t i = 0; i < ld.rows; ++i) {
        Store(ld.type, d, batch * ld.stride + j * ld.ld + i, wd[j * ld.rows + i]);
      }
    }
  }
}

}  // namespace

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_OTHER";
  }
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = new cublasLtMatmulDescOpaque_t{compute, scale};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              size_t bytes) {
  return ReadOr(
      Read(value, bytes, attribute == CUBLASLT_MATMUL_DESC_TRANSA ? &desc->trans_a : &desc->trans_b));
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
  *layout = new Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
  return ReadOr(attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT ? Read(value, bytes, &layout->batches)
                                                                : Read(value, bytes, &layout->stride));
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
    return ReadOr(Read(value, bytes, &preference->workspace));
  return ReadOr(
      Read(value, bytes, &preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES]));
}

// The algorithm holds the alignments it relies on and the workspace it wants.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* count) {
  *count = 0;
  if (handle == nullptr || wanted < 1) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status = Check(*desc, *a, *b, *c, *d);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  cublasLtMatmulHeuristicResult_t& r = results[0];
  std::memset(&r, 0, sizeof(r));
  r.state = CUBLAS_STATUS_SUCCESS;
  r.workspaceSize = std::min<uint64_t>(preference->workspace, 4096);
  for (int i = 0; i < 4; ++i) r.algo.data[i] = preference->alignment[i];
  r.algo.data[4] = r.workspaceSize;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  if (handle == nullptr || algo == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status = Check(*desc, *a_layout, *b_layout, *c_layout, *d_layout);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const void* pointers[4] = {a, b, c, d};
  const Layout* layouts[4] = {a_layout, b_layout, c_layout, d_layout};
  for (int i = 0; i < 4; ++i) {
    const auto at = reinterpret_cast<uintptr_t>(pointers[i]);
    if (at == 0 || at % algo->data[i] != 0 || at % BytesOf(layouts[i]->type) != 0)
      return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (workspace_bytes < algo->data[4] || (algo->data[4] > 0 && workspace == nullptr))
    return CUBLAS_STATUS_INVALID_VALUE;
  const auto work = [desc = *desc, alpha = *static_cast<const float*>(alpha), a, la = *a_layout, b,
                     lb = *b_layout, beta = *static_cast<const float*>(beta), c, lc = *c_layout, d,
                     ld = *d_layout, workspace, scratch = algo->data[4]] {
    if (scratch > 0) std::memset(workspace, 0xff, scratch);  // it is the product's to write
    Multiply(desc, alpha, a, la, b, lb, beta, c, lc, d, ld);
    return cudaSuccess;
  };
  return emulated::Enqueue(stream, work) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                        : CUBLAS_STATUS_EXECUTION_FAILED;
}
