// CudnnGraph: operations on tensors of four dims, and CudnnPlan, by which cuDNN computes them as one kernel
// or a few.
//
//   CudnnGraph g(cudnn);
//   const CudnnTensor a = g.Memory(1, CUDNN_DATA_BFLOAT16, {b, h, m, k}, strides), ...;
//   const CudnnTensor c = g.Inner(CUDNN_DATA_FLOAT, {b, h, m, n});
//   g.MatMul(a, b, c);
//   g.Pointwise(CUDNN_POINTWISE_MUL, c, g.Number(scale), y);
//   ASSIGN_OR_RETURN(auto plan, CudnnPlan::Make(std::move(g), {.handle = handle}, most_workspace));
//   RETURN_IF_ERROR(plan->Run(handle, {{1, a_data}, ...}, workspace));
//
// A tensor is memory of the caller's, which the plan is given by its number when it runs, a number of f32
// that is part of the graph, or inner: between two operations, never in memory. What the library refuses is
// remembered by the graph and said by Make. A graph is used by one thread; a plan by one at a time. The
// CudnnApi outlives both.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "moe/kernels/cuda/cudnn_api.h"

namespace moe::kernels {

using CudnnDims = std::vector<int64_t>;

// A descriptor and its end.
class CudnnDescriptor {
 public:
  CudnnDescriptor() = default;
  static absl::StatusOr<CudnnDescriptor> Create(const CudnnApi* cudnn, cudnnBackendDescriptorType_t type);
  CudnnDescriptor(CudnnDescriptor&& other) noexcept { *this = std::move(other); }
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept {
    std::swap(cudnn_, other.cudnn_);
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~CudnnDescriptor() {
    if (descriptor_ != nullptr) cudnn_->BackendDestroyDescriptor(descriptor_);
  }

  cudnnBackendDescriptor_t get() const { return descriptor_; }
  absl::Status Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                   const void* elements);
  absl::Status SetDescriptor(cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t to) {
    return Set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &to);
  }
  absl::Status Finalize();

 private:
  const CudnnApi* cudnn_ = nullptr;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

struct CudnnTensor {
  cudnnBackendDescriptor_t descriptor = nullptr;  // the graph's
  int64_t number = 0;
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
  CudnnDims dims;
};

class CudnnGraph {
 public:
  explicit CudnnGraph(const CudnnApi* cudnn) : cudnn_(cudnn) {}

  // Numbers of memory are from 1 to 99. Data begins at multiples of 16 bytes.
  CudnnTensor Memory(int64_t number, cudnnDataType_t type, CudnnDims dims, const CudnnDims& strides);
  CudnnTensor Number(float value);  // [1, 1, 1, 1]
  // Row-major, or with the strides given.
  CudnnTensor Inner(cudnnDataType_t type, CudnnDims dims, CudnnDims strides = {});

  // y[.., m, n] = a[.., m, k] b[.., k, n], sums in f32. A head of b serves as many consecutive heads of a.
  void MatMul(const CudnnTensor& a, const CudnnTensor& b, const CudnnTensor& y);
  // y = f(x), computed in f32; y = f(x, b), b broadcast along dims of 1.
  void Pointwise(cudnnPointwiseMode_t f, const CudnnTensor& x, const CudnnTensor& y);
  void Pointwise(cudnnPointwiseMode_t f, const CudnnTensor& x, const CudnnTensor& b, const CudnnTensor& y);
  // y = the index along `axis`, in the shape of x.
  void Index(int64_t axis, const CudnnTensor& x, const CudnnTensor& y);
  // y = where ? x : otherwise
  void Select(const CudnnTensor& where, const CudnnTensor& x, const CudnnTensor& otherwise,
              const CudnnTensor& y);
  // Over the dims that y has fewer of: to 1, or of heads to one of so many consecutive ones.
  void Reduce(cudnnReduceTensorOp_t f, const CudnnTensor& x, const CudnnTensor& y);
  // y is x with the last two dims swapped, by strides or by dims, or as another type.
  void Reshape(const CudnnTensor& x, const CudnnTensor& y);

 private:
  friend class CudnnPlan;
  CudnnDescriptor* New(cudnnBackendDescriptorType_t type);
  void Check(const absl::Status& status) { status_.Update(status); }
  CudnnTensor Tensor(int64_t number, cudnnDataType_t type, CudnnDims dims, const CudnnDims& strides,
                     bool inner, bool by_value);
  CudnnDescriptor* PointwiseOf(cudnnPointwiseMode_t f, cudnnDataType_t computes_in, int64_t axis = -1);
  // An operation with these descriptors, finalised.
  void Add(cudnnBackendDescriptorType_t type,
           absl::Span<const std::pair<cudnnBackendAttributeName_t, cudnnBackendDescriptor_t>> parts);

  const CudnnApi* cudnn_;
  absl::Status status_;
  std::vector<std::unique_ptr<CudnnDescriptor>> descriptors_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  std::vector<std::pair<int64_t, std::unique_ptr<float>>> numbers_;
  int64_t next_ = 100;
};

// For what device a plan is: that of a handle, or one that is described only, which cannot run it.
struct CudnnDevice {
  cudnnHandle_t handle = nullptr;
  cudnnBackendDescriptor_t properties = nullptr;
};

class CudnnPlan {
 public:
  // The first that the library suggests and whose workspace is no more. Errors: what an operation was refused
  // for; Unimplemented if there is no plan for the graph; ResourceExhausted if all need more workspace.
  static absl::StatusOr<std::unique_ptr<CudnnPlan>> Make(CudnnGraph graph, const CudnnDevice& device,
                                                         int64_t most_workspace);

  int64_t workspace_bytes() const { return workspace_bytes_; }
  // Puts its work on the handle's stream. `memory`: by number, of all that the graph has.
  absl::Status Run(cudnnHandle_t handle, absl::Span<const std::pair<int64_t, void*>> memory,
                   void* workspace) const;

 private:
  explicit CudnnPlan(CudnnGraph graph) : graph_(std::move(graph)) {}
  CudnnGraph graph_;
  std::vector<CudnnDescriptor> configs_;
  CudnnDescriptor operations_, heuristic_, plan_;
  int64_t workspace_bytes_ = 0;
};

}  // namespace moe::kernels
