#include "moe/kernels/cuda/cudnn_graph.h"

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::kernels {
namespace {

constexpr int64_t kAlignment = 16;   // of data, in bytes
constexpr int64_t kMostConfigs = 8;  // that the heuristic is asked for

CudnnDims RowMajor(const CudnnDims& dims) {
  CudnnDims strides(dims.size(), 1);
  for (size_t d = dims.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * dims[d];
  return strides;
}

}  // namespace

absl::StatusOr<CudnnDescriptor> CudnnDescriptor::Create(const CudnnApi* cudnn,
                                                        cudnnBackendDescriptorType_t type) {
  CudnnDescriptor d;
  d.cudnn_ = cudnn;
  RETURN_IF_ERROR(cudnn->StatusOf(cudnn->BackendCreateDescriptor(type, &d.descriptor_),
                                  absl::StrCat("a descriptor of type ", static_cast<int>(type))));
  return d;
}

absl::Status CudnnDescriptor::Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                  int64_t count, const void* elements) {
  return cudnn_->StatusOf(cudnn_->BackendSetAttribute(descriptor_, name, type, count, elements),
                          absl::StrCat("attribute ", static_cast<int>(name)));
}

absl::Status CudnnDescriptor::Finalize() {
  return cudnn_->StatusOf(cudnn_->BackendFinalize(descriptor_), "cudnnBackendFinalize");
}

CudnnDescriptor* CudnnGraph::New(cudnnBackendDescriptorType_t type) {
  absl::StatusOr<CudnnDescriptor> d = CudnnDescriptor::Create(cudnn_, type);
  Check(d.status());
  if (!d.ok()) return nullptr;
  descriptors_.push_back(std::make_unique<CudnnDescriptor>(*std::move(d)));
  return descriptors_.back().get();
}

CudnnTensor CudnnGraph::Tensor(int64_t number, cudnnDataType_t type, CudnnDims dims, const CudnnDims& strides,
                               bool inner, bool by_value) {
  CudnnTensor t;
  t.number = number, t.type = type, t.dims = std::move(dims);
  CudnnDescriptor* const d = New(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  if (d == nullptr) return t;
  const int64_t rank = static_cast<int64_t>(t.dims.size());
  Check(d->Set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type));
  Check(d->Set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, rank, t.dims.data()));
  Check(d->Set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, rank, strides.data()));
  Check(d->Set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &number));
  Check(d->Set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &kAlignment));
  if (inner) Check(d->Set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inner));
  if (by_value) Check(d->Set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value));
  Check(d->Finalize());
  t.descriptor = d->get();
  return t;
}

CudnnTensor CudnnGraph::Memory(int64_t number, cudnnDataType_t type, CudnnDims dims,
                               const CudnnDims& strides) {
  return Tensor(number, type, std::move(dims), strides, /*inner=*/false, /*by_value=*/false);
}

CudnnTensor CudnnGraph::Number(float value) {
  numbers_.emplace_back(next_, std::make_unique<float>(value));
  return Tensor(next_++, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, /*inner=*/false, /*by_value=*/true);
}

CudnnTensor CudnnGraph::Inner(cudnnDataType_t type, CudnnDims dims, CudnnDims strides) {
  if (strides.empty()) strides = RowMajor(dims);
  return Tensor(next_++, type, std::move(dims), strides, /*inner=*/true, /*by_value=*/false);
}

void CudnnGraph::Add(
    cudnnBackendDescriptorType_t type,
    absl::Span<const std::pair<cudnnBackendAttributeName_t, cudnnBackendDescriptor_t>> parts) {
  if (!status_.ok()) return;
  CudnnDescriptor* const d = New(type);
  if (d == nullptr) return;
  for (const auto& [name, part] : parts) Check(d->SetDescriptor(name, part));
  Check(Annotate(d->Finalize(), absl::StrCat("operation ", operations_.size())));
  operations_.push_back(d->get());
}

void CudnnGraph::MatMul(const CudnnTensor& a, const CudnnTensor& b, const CudnnTensor& y) {
  CudnnDescriptor* const how = New(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  if (how == nullptr) return;
  const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
  Check(how->Set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums));
  Check(how->Finalize());
  Add(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, {{CUDNN_ATTR_OPERATION_MATMUL_ADESC, a.descriptor},
                                                  {CUDNN_ATTR_OPERATION_MATMUL_BDESC, b.descriptor},
                                                  {CUDNN_ATTR_OPERATION_MATMUL_CDESC, y.descriptor},
                                                  {CUDNN_ATTR_OPERATION_MATMUL_DESC, how->get()}});
}

CudnnDescriptor* CudnnGraph::PointwiseOf(cudnnPointwiseMode_t f, cudnnDataType_t computes_in, int64_t axis) {
  CudnnDescriptor* const how = New(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  if (how == nullptr) return nullptr;
  Check(how->Set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &f));
  Check(how->Set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &computes_in));
  if (axis >= 0) Check(how->Set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis));
  Check(how->Finalize());
  return how;
}

void CudnnGraph::Pointwise(cudnnPointwiseMode_t f, const CudnnTensor& x, const CudnnTensor& y) {
  CudnnDescriptor* const how = PointwiseOf(f, CUDNN_DATA_FLOAT);
  if (how == nullptr) return;
  Add(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
      {{CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how->get()},
       {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor},
       {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor}});
}

void CudnnGraph::Pointwise(cudnnPointwiseMode_t f, const CudnnTensor& x, const CudnnTensor& b,
                           const CudnnTensor& y) {
  CudnnDescriptor* const how =
      PointwiseOf(f, y.type == CUDNN_DATA_BOOLEAN ? CUDNN_DATA_BOOLEAN : CUDNN_DATA_FLOAT);
  if (how == nullptr) return;
  Add(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
      {{CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how->get()},
       {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor},
       {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b.descriptor},
       {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor}});
}

void CudnnGraph::Index(int64_t axis, const CudnnTensor& x, const CudnnTensor& y) {
  CudnnDescriptor* const how = PointwiseOf(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, axis);
  if (how == nullptr) return;
  Add(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
      {{CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how->get()},
       {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor},
       {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor}});
}

void CudnnGraph::Select(const CudnnTensor& where, const CudnnTensor& x, const CudnnTensor& otherwise,
                        const CudnnTensor& y) {
  CudnnDescriptor* const how = PointwiseOf(CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT);
  if (how == nullptr) return;
  Add(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
      {{CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how->get()},
       {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor},
       {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, otherwise.descriptor},
       {CUDNN_ATTR_OPERATION_POINTWISE_TDESC, where.descriptor},
       {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.descriptor}});
}

void CudnnGraph::Reduce(cudnnReduceTensorOp_t f, const CudnnTensor& x, const CudnnTensor& y) {
  CudnnDescriptor* const how = New(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  if (how == nullptr) return;
  const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
  Check(how->Set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums));
  Check(how->Set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &f));
  const bool deterministic = true;
  Check(how->Set(CUDNN_ATTR_REDUCTION_IS_DETERMINISTIC, CUDNN_TYPE_BOOLEAN, 1, &deterministic));
  Check(how->Finalize());
  Add(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, {{CUDNN_ATTR_OPERATION_REDUCTION_DESC, how->get()},
                                                     {CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x.descriptor},
                                                     {CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y.descriptor}});
}

void CudnnGraph::Reshape(const CudnnTensor& x, const CudnnTensor& y) {
  Add(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, {{CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x.descriptor},
                                                   {CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y.descriptor}});
}

absl::StatusOr<std::unique_ptr<CudnnPlan>> CudnnPlan::Make(CudnnGraph graph, const CudnnDevice& device,
                                                           int64_t most_workspace) {
  RETURN_IF_ERROR(graph.status_);
  std::unique_ptr<CudnnPlan> p(new CudnnPlan(std::move(graph)));
  const CudnnApi* const cudnn = p->graph_.cudnn_;
  const auto& operations = p->graph_.operations_;

  ASSIGN_OR_RETURN(p->operations_, CudnnDescriptor::Create(cudnn, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR));
  RETURN_IF_ERROR(p->operations_.Set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                     static_cast<int64_t>(operations.size()), operations.data()));
  if (device.handle != nullptr) {
    RETURN_IF_ERROR(
        p->operations_.Set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &device.handle));
  }
  RETURN_IF_ERROR(p->operations_.Finalize());

  ASSIGN_OR_RETURN(p->heuristic_, CudnnDescriptor::Create(cudnn, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR));
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  RETURN_IF_ERROR(p->heuristic_.SetDescriptor(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, p->operations_.get()));
  RETURN_IF_ERROR(p->heuristic_.Set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode));
  if (device.properties != nullptr) {
    RETURN_IF_ERROR(p->heuristic_.SetDescriptor(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device.properties));
  }
  RETURN_IF_ERROR(p->heuristic_.Finalize());
  std::vector<cudnnBackendDescriptor_t> configs;
  for (int64_t i = 0; i < kMostConfigs; ++i) {
    ASSIGN_OR_RETURN(CudnnDescriptor config,
                     CudnnDescriptor::Create(cudnn, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    configs.push_back(config.get());
    p->configs_.push_back(std::move(config));
  }
  int64_t count = 0;
  RETURN_IF_ERROR(cudnn->StatusOf(
      cudnn->BackendGetAttribute(p->heuristic_.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, kMostConfigs, &count, configs.data()),
      "what the heuristic suggests"));
  absl::Status why = absl::UnimplementedError(
      absl::StrCat("cuDNN ", CudnnVersionName(cudnn->version), " suggests no engine for this graph"));
  for (int64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(p->plan_, CudnnDescriptor::Create(cudnn, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR));
    RETURN_IF_ERROR(p->plan_.SetDescriptor(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]));
    if (device.handle != nullptr) {
      RETURN_IF_ERROR(p->plan_.Set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &device.handle));
    }
    if (const absl::Status status = p->plan_.Finalize(); !status.ok()) {
      why = status;
      continue;
    }
    int64_t one = 0;
    RETURN_IF_ERROR(
        cudnn->StatusOf(cudnn->BackendGetAttribute(p->plan_.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                                   CUDNN_TYPE_INT64, 1, &one, &p->workspace_bytes_),
                        "the workspace of a plan"));
    if (p->workspace_bytes_ <= most_workspace) return p;
    why = absl::ResourceExhaustedError(absl::StrCat("cuDNN ", CudnnVersionName(cudnn->version), " needs ",
                                                    p->workspace_bytes_, " bytes of workspace; the plan has ",
                                                    most_workspace));
  }
  return why;
}

absl::Status CudnnPlan::Run(cudnnHandle_t handle, absl::Span<const std::pair<int64_t, void*>> memory,
                            void* workspace) const {
  const CudnnApi* const cudnn = graph_.cudnn_;
  std::vector<int64_t> numbers;
  std::vector<void*> pointers;
  for (const auto& [number, pointer] : memory) {
    numbers.push_back(number);
    pointers.push_back(pointer);
  }
  for (const auto& [number, value] : graph_.numbers_) {
    numbers.push_back(number);
    pointers.push_back(value.get());
  }
  const int64_t count = static_cast<int64_t>(numbers.size());
  ASSIGN_OR_RETURN(CudnnDescriptor pack,
                   CudnnDescriptor::Create(cudnn, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR));
  RETURN_IF_ERROR(pack.Set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, numbers.data()));
  RETURN_IF_ERROR(
      pack.Set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers.data()));
  RETURN_IF_ERROR(pack.Set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace));
  RETURN_IF_ERROR(pack.Finalize());
  return cudnn->StatusOf(cudnn->BackendExecute(handle, plan_.get(), pack.get()), "cudnnBackendExecute");
}

}  // namespace moe::kernels
