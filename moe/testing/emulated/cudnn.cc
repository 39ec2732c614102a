// The part of cuDNN's backend API that the project uses, on the host: a graph is computed operation by
// operation, each as NVIDIA's documentation of it says, in f32, and rounded to the type of its result. There
// is an engine for every graph whose operations fit together. What the real one refuses of attention is
// refused here: descriptors used before they are finalised, attributes of another type, heads that are no
// multiple of 8 or beyond 256, a log-sum-exp that does not lie head by head where it is read, memory that is
// missing or not aligned, a workspace that is missing. The workspace is what cuDNN 9.19 asks for on sm_90.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "moe/device/cuda/cudnn_backend.h"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};

namespace {

using Dims = std::vector<int64_t>;
constexpr auto kOk = CUDNN_STATUS_SUCCESS, kBad = CUDNN_STATUS_BAD_PARAM, kNot = CUDNN_STATUS_NOT_SUPPORTED;

thread_local std::string said;
cudnnStatus_t Say(cudnnStatus_t status, const std::string& what) {
  said = what;
  return status;
}

struct Descriptor;
using Pointer = std::shared_ptr<Descriptor>;

// Attributes as they were set. Finalising looks at what the descriptor's type wants.
struct Descriptor {
  cudnnBackendDescriptorType_t type;
  bool final = false;
  std::map<int, std::vector<char>> values;
  std::map<int, std::vector<Pointer>> parts;

  template <typename T>
  std::vector<T> All(cudnnBackendAttributeName_t name) const {
    const auto it = values.find(name);
    if (it == values.end()) return {};
    std::vector<T> out(it->second.size() / sizeof(T));
    std::memcpy(out.data(), it->second.data(), it->second.size());
    return out;
  }
  template <typename T>
  T One(cudnnBackendAttributeName_t name, T otherwise) const {
    const auto it = values.find(name);
    if (it != values.end()) std::memcpy(&otherwise, it->second.data(), sizeof(T));
    return otherwise;
  }
  const Descriptor* Part(cudnnBackendAttributeName_t name) const {
    const auto it = parts.find(name);
    return it == parts.end() ? nullptr : it->second[0].get();
  }

  // Of a tensor.
  int64_t number() const { return One<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID, -1); }
  int data_type() const { return One<int>(CUDNN_ATTR_TENSOR_DATA_TYPE, -1); }
  Dims dims() const { return All<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS); }
  Dims strides() const { return All<int64_t>(CUDNN_ATTR_TENSOR_STRIDES); }
  bool inner() const { return One<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL, false); }
  bool by_value() const { return One<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE, false); }
  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t d : dims()) n *= d;
    return n;
  }
};

// What a caller holds.
struct Handle {
  Pointer descriptor;
};
const Pointer& Of(cudnnBackendDescriptor_t d) { return static_cast<Handle*>(d)->descriptor; }

size_t BytesOf(int attribute_type) {
  switch (attribute_type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    default:
      return 4;
  }
}

// The type that the documentation gives an attribute.
int TypeOfAttribute(int name) {
  switch (name) {
    case CUDNN_ATTR_POINTWISE_MODE:
      return CUDNN_TYPE_POINTWISE_MODE;
    case CUDNN_ATTR_POINTWISE_MATH_PREC:
    case CUDNN_ATTR_MATMUL_COMP_TYPE:
    case CUDNN_ATTR_REDUCTION_COMP_TYPE:
    case CUDNN_ATTR_TENSOR_DATA_TYPE:
      return CUDNN_TYPE_DATA_TYPE;
    case CUDNN_ATTR_REDUCTION_OPERATOR:
      return CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
    case CUDNN_ATTR_ENGINEHEUR_MODE:
      return CUDNN_TYPE_HEUR_MODE;
    case CUDNN_ATTR_OPERATIONGRAPH_HANDLE:
    case CUDNN_ATTR_EXECUTION_PLAN_HANDLE:
      return CUDNN_TYPE_HANDLE;
    case CUDNN_ATTR_REDUCTION_IS_DETERMINISTIC:
    case CUDNN_ATTR_TENSOR_IS_VIRTUAL:
    case CUDNN_ATTR_TENSOR_IS_BY_VALUE:
      return CUDNN_TYPE_BOOLEAN;
    case CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS:
    case CUDNN_ATTR_VARIANT_PACK_WORKSPACE:
      return CUDNN_TYPE_VOID_PTR;
    case CUDNN_ATTR_POINTWISE_AXIS:
    case CUDNN_ATTR_TENSOR_DIMENSIONS:
    case CUDNN_ATTR_TENSOR_STRIDES:
    case CUDNN_ATTR_TENSOR_UNIQUE_ID:
    case CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT:
    case CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS:
      return CUDNN_TYPE_INT64;
    default:
      return CUDNN_TYPE_BACKEND_DESCRIPTOR;
  }
}

float Load(int type, const void* data, int64_t i) {
  if (type == CUDNN_DATA_BFLOAT16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  if (type == CUDNN_DATA_HALF) return __half2float(static_cast<const __half*>(data)[i]);
  return static_cast<const float*>(data)[i];
}
void Store(int type, void* data, int64_t i, float x) {
  if (type == CUDNN_DATA_BFLOAT16) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(x);
  } else if (type == CUDNN_DATA_HALF) {
    static_cast<__half*>(data)[i] = __float2half_rn(x);
  } else {
    static_cast<float*>(data)[i] = x;
  }
}
float Rounded(int type, float x) {
  if (type == CUDNN_DATA_BFLOAT16) return __bfloat162float(__float2bfloat16_rn(x));
  return type == CUDNN_DATA_HALF ? __half2float(__float2half_rn(x)) : x;
}

// ---- operations: their tensors and whether they fit together

const Descriptor* X(const Descriptor& op) {
  switch (op.type) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
      return op.Part(CUDNN_ATTR_OPERATION_MATMUL_ADESC);
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
      return op.Part(CUDNN_ATTR_OPERATION_REDUCTION_XDESC);
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
      return op.Part(CUDNN_ATTR_OPERATION_RESHAPE_XDESC);
    default:
      return op.Part(CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
  }
}
const Descriptor* B(const Descriptor& op) {
  return op.type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR ? op.Part(CUDNN_ATTR_OPERATION_MATMUL_BDESC)
                                                              : op.Part(CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
}
const Descriptor* T(const Descriptor& op) { return op.Part(CUDNN_ATTR_OPERATION_POINTWISE_TDESC); }
const Descriptor* Y(const Descriptor& op) {
  switch (op.type) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
      return op.Part(CUDNN_ATTR_OPERATION_MATMUL_CDESC);
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
      return op.Part(CUDNN_ATTR_OPERATION_REDUCTION_YDESC);
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
      return op.Part(CUDNN_ATTR_OPERATION_RESHAPE_YDESC);
    default:
      return op.Part(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
  }
}
int ModeOf(const Descriptor& op) {
  return op.Part(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR)->One<int>(CUDNN_ATTR_POINTWISE_MODE, -1);
}

cudnnStatus_t CheckOperation(const Descriptor& op) {
  const Descriptor *x = X(op), *y = Y(op);
  if (x == nullptr || y == nullptr) return Say(kBad, "an operation without x or y");
  const Dims from = x->dims(), to = y->dims();
  if (op.type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
    if (B(op) == nullptr || op.Part(CUDNN_ATTR_OPERATION_MATMUL_DESC) == nullptr)
      return Say(kBad, "a product without b or its descriptor");
    const Dims b = B(op)->dims();
    for (int d = 0; d < 2; ++d) {
      if (from[d] != to[d] || from[d] % b[d] != 0) return Say(kBad, "batches of a product that do not fit");
    }
    if (from[3] != b[2] || to[2] != from[2] || to[3] != b[3])
      return Say(kBad, "matrices of a product that do not fit");
  } else if (op.type == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) {
    if (op.Part(CUDNN_ATTR_OPERATION_REDUCTION_DESC) == nullptr)
      return Say(kBad, "a reduction without its descriptor");
    for (int d = 0; d < 4; ++d) {
      if (from[d] % to[d] != 0) return Say(kBad, "a reduction of dims that do not divide");
    }
  } else if (op.type == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR) {
    if (x->elements() != y->elements()) return Say(kBad, "a reshape to another number of elements");
  } else {
    if (op.Part(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR) == nullptr)
      return Say(kBad, "a pointwise operation without its descriptor");
    if (from != to) return Say(kBad, "a pointwise result of another shape");
    const int mode = ModeOf(op);
    const bool takes_b =
        mode != CUDNN_POINTWISE_EXP && mode != CUDNN_POINTWISE_LOG && mode != CUDNN_POINTWISE_GEN_INDEX;
    if (takes_b != (B(op) != nullptr) || (mode == CUDNN_POINTWISE_BINARY_SELECT) != (T(op) != nullptr))
      return Say(kBad, "a pointwise operation with other operands than its mode has");
    for (const Descriptor* broadcast : {B(op), T(op)}) {
      if (broadcast == nullptr) continue;
      const Dims dims = broadcast->dims();
      for (int d = 0; d < 4; ++d) {
        if (dims[d] != 1 && dims[d] != to[d]) return Say(kBad, "a pointwise operand that does not broadcast");
      }
    }
  }
  return kOk;
}

// A graph with the values of its tensors while it runs, row-major in f32.
class Computation {
 public:
  Computation(const std::vector<Pointer>& operations, std::map<int64_t, void*> memory)
      : operations_(operations), memory_(std::move(memory)) {}

  void Run() {
    for (const Pointer& op : operations_) {
      const Descriptor& y = *Y(*op);
      std::vector<float> out(y.elements());
      switch (op->type) {
        case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
          MatMul(*op, out);
          break;
        case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
          Reduce(*op, out);
          break;
        case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
          Reshape(*op, out);
          break;
        default:
          Pointwise(*op, out);
      }
      for (float& v : out) v = Rounded(y.data_type(), v);
      if (!y.inner()) Write(y, out);
      values_[y.number()] = std::move(out);
    }
  }

 private:
  template <typename F>  // f(index in row-major order, offset by strides)
  static void ForEach(const Descriptor& t, F f) {
    const Dims dims = t.dims(), strides = t.strides();
    int64_t i = 0;
    for (int64_t a = 0; a < dims[0]; ++a) {
      for (int64_t b = 0; b < dims[1]; ++b) {
        for (int64_t c = 0; c < dims[2]; ++c) {
          for (int64_t d = 0; d < dims[3]; ++d)
            f(i++, a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3]);
        }
      }
    }
  }
  void Write(const Descriptor& y, const std::vector<float>& out) {
    void* const to = memory_.at(y.number());
    ForEach(y, [&](int64_t i, int64_t at) { Store(y.data_type(), to, at, out[i]); });
  }
  const std::vector<float>& Read(const Descriptor& x) {
    std::vector<float>& value = values_[x.number()];
    if (value.empty()) {
      value.resize(x.elements());
      const void* const from = memory_.at(x.number());
      ForEach(x, [&](int64_t i, int64_t at) { value[i] = Load(x.data_type(), from, at); });
    }
    return value;
  }

  void MatMul(const Descriptor& op, std::vector<float>& out) {
    const std::vector<float>&a = Read(*X(op)), &b = Read(*B(op));
    const Dims da = X(op)->dims(), db = B(op)->dims();
    const int64_t m = da[2], k = da[3], n = db[3];
    for (int64_t batch = 0; batch < da[0] * da[1]; ++batch) {
      const int64_t of_b = batch / da[1] / (da[0] / db[0]) * db[1] + batch % da[1] / (da[1] / db[1]);
      for (int64_t i = 0; i < m; ++i) {
        float* const y = out.data() + (batch * m + i) * n;
        for (int64_t l = 0; l < k; ++l) {
          const float x = a[(batch * m + i) * k + l];
          const float* const row = b.data() + (of_b * k + l) * n;
          for (int64_t j = 0; j < n; ++j) y[j] += x * row[j];
        }
      }
    }
  }

  // The index of an element of `to` that the element `i` of `from` is read with or reduced to.
  static int64_t IndexIn(const Dims& to, const Dims& from, int64_t i) {
    int64_t index[4];
    for (int d = 3; d >= 0; --d) index[d] = i % from[d], i /= from[d];
    int64_t at = 0;
    for (int d = 0; d < 4; ++d) at = at * to[d] + index[d] / (from[d] / to[d]);
    return at;
  }

  void Reduce(const Descriptor& op, std::vector<float>& out) {
    const std::vector<float>& x = Read(*X(op));
    const Dims from = X(op)->dims(), to = Y(op)->dims();
    const bool max =
        op.Part(CUDNN_ATTR_OPERATION_REDUCTION_DESC)->One<int>(CUDNN_ATTR_REDUCTION_OPERATOR, -1) ==
        CUDNN_REDUCE_TENSOR_MAX;
    if (max) std::fill(out.begin(), out.end(), -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i < x.size(); ++i) {
      float& y = out[IndexIn(to, from, static_cast<int64_t>(i))];
      y = max ? std::max(y, x[i]) : y + x[i];
    }
  }

  // The same memory with other dims and strides.
  void Reshape(const Descriptor& op, std::vector<float>& out) {
    const std::vector<float>& x = Read(*X(op));
    int64_t end = 0;
    for (const Descriptor* t : {X(op), Y(op)})
      ForEach(*t, [&](int64_t, int64_t at) { end = std::max(end, at + 1); });
    std::vector<float> memory(end);
    ForEach(*X(op), [&](int64_t i, int64_t at) { memory[at] = x[i]; });
    ForEach(*Y(op), [&](int64_t i, int64_t at) { out[i] = memory[at]; });
  }

  void Pointwise(const Descriptor& op, std::vector<float>& out) {
    const int mode = ModeOf(op);
    const Dims dims = Y(op)->dims();
    if (mode == CUDNN_POINTWISE_GEN_INDEX) {
      const int64_t axis =
          op.Part(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR)->One<int64_t>(CUDNN_ATTR_POINTWISE_AXIS, -1);
      int64_t below = 1;
      for (int64_t d = 3; d > axis; --d) below *= dims[d];
      for (size_t i = 0; i < out.size(); ++i)
        out[i] = static_cast<float>(static_cast<int64_t>(i) / below % dims[axis]);
      return;
    }
    const std::vector<float>& x = Read(*X(op));
    const auto other = [&](const Descriptor* d) {
      std::vector<float> wide(out.size());
      if (d == nullptr) return wide;
      const std::vector<float>& b = Read(*d);
      const Dims from = d->dims();
      for (size_t i = 0; i < wide.size(); ++i) wide[i] = b[IndexIn(from, dims, static_cast<int64_t>(i))];
      return wide;
    };
    const std::vector<float> b = other(B(op)), t = other(T(op));
    for (size_t i = 0; i < out.size(); ++i) {
      switch (mode) {
        case CUDNN_POINTWISE_ADD:
          out[i] = x[i] + b[i];
          break;
        case CUDNN_POINTWISE_MUL:
          out[i] = x[i] * b[i];
          break;
        case CUDNN_POINTWISE_DIV:
          out[i] = x[i] / b[i];
          break;
        case CUDNN_POINTWISE_SUB:
          out[i] = x[i] - b[i];
          break;
        case CUDNN_POINTWISE_EXP:
          out[i] = std::exp(x[i]);
          break;
        case CUDNN_POINTWISE_LOG:
          out[i] = std::log(x[i]);
          break;
        case CUDNN_POINTWISE_CMP_GE:
          out[i] = x[i] >= b[i] ? 1 : 0;
          break;
        default:  // CUDNN_POINTWISE_BINARY_SELECT
          out[i] = t[i] != 0 ? x[i] : b[i];
      }
    }
  }

  const std::vector<Pointer> operations_;
  const std::map<int64_t, void*> memory_;
  std::map<int64_t, std::vector<float>> values_;
};

// ---- plans

using Visit = std::function<void(const Descriptor& tensor, bool written)>;
void ForEachTensor(const std::vector<Pointer>& operations, const Visit& visit) {
  for (const Pointer& op : operations) {
    for (const Descriptor* t : {X(*op), B(*op), T(*op)}) {
      if (t != nullptr) visit(*t, false);
    }
    visit(*Y(*op), true);
  }
}

// Whether there is an engine, and what workspace it wants.
cudnnStatus_t CheckGraph(const std::vector<Pointer>& operations, int64_t* workspace) {
  std::set<int64_t> made;
  cudnnStatus_t status = kOk;
  int64_t scores = 0, padded = 0, matrices_of_heads = 0;
  ForEachTensor(operations, [&](const Descriptor& t, bool written) {
    if (t.inner() && !written && made.count(t.number()) == 0)
      status = Say(kBad, "an inner tensor that is read before it is computed");
    if (written) made.insert(t.number());
    const Dims dims = t.dims();
    const bool narrow = t.data_type() == CUDNN_DATA_BFLOAT16 || t.data_type() == CUDNN_DATA_HALF;
    if (!t.inner() && narrow) {
      const int64_t d = t.strides()[3] == 1 ? dims[3] : dims[2];
      if (d % 8 != 0 || d > 256) status = Say(kNot, "heads are multiples of 8 up to 256");
    }
    if (!t.inner() && !t.by_value() && t.data_type() == CUDNN_DATA_FLOAT && !written &&
        t.strides() != Dims{dims[1] * dims[2], dims[2], 1, 1})
      status = Say(kNot, "statistics are read head by head");
    if (t.inner() && written && narrow && dims[2] != dims[3]) matrices_of_heads += t.elements() * 2;
    if (t.inner() && written && dims[2] == dims[3] && t.data_type() == CUDNN_DATA_FLOAT) {
      scores += 1;
      padded = dims[0] * dims[1] * ((dims[2] + 63) / 64 * 64) * ((dims[3] + 127) / 128 * 128) * 2;
    }
  });
  const bool backward = std::any_of(operations.begin(), operations.end(), [](const Pointer& op) {
    return op->type == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR;
  });
  if (scores == 0) status = Say(kNot, "a graph that is not attention");
  *workspace = backward ? padded + matrices_of_heads + 256 : 256;
  return status;
}

std::vector<Pointer> OperationsOf(const Descriptor& plan) {
  const Descriptor* config = plan.Part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
  const Descriptor* graph = config->Part(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
  return graph->parts.at(CUDNN_ATTR_OPERATIONGRAPH_OPS);
}

}  // namespace

size_t cudnnGetVersion() { return 91900; }
const char* cudnnGetErrorString(cudnnStatus_t status) {
  if (status == kOk) return "CUDNN_STATUS_SUCCESS";
  return status < kNot ? "CUDNN_STATUS_BAD_PARAM" : "CUDNN_STATUS_NOT_SUPPORTED";
}
void cudnnGetLastErrorString(char* message, size_t max_size) {
  const size_t n = std::min(max_size - 1, said.size());
  std::memcpy(message, said.data(), n);
  message[n] = 0;
}

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  *handle = new cudnnContext;
  return kOk;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, CUstream_st* stream) {
  handle->stream = stream;
  return kOk;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* descriptor) {
  auto d = std::make_shared<Descriptor>();
  d->type = type;
  *descriptor = new Handle{std::move(d)};
  return kOk;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Handle*>(descriptor);
  return kOk;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void* elements) {
  Descriptor& d = *Of(descriptor);
  if (d.final) return Say(kBad, "an attribute of a descriptor that is final");
  if (TypeOfAttribute(name) != type) return Say(kBad, "an attribute of another type");
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    for (int64_t i = 0; i < count; ++i) {
      const Pointer& part = Of(static_cast<const cudnnBackendDescriptor_t*>(elements)[i]);
      if (!part->final) return Say(kBad, "a part that is not final");
      d.parts[name].push_back(part);
    }
    return kOk;
  }
  const char* const from = static_cast<const char*>(elements);
  d.values[name].assign(from, from + count * BytesOf(type));
  return kOk;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  Descriptor& d = *Of(descriptor);
  switch (d.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
      if (d.dims().size() != 4 || d.strides().size() != 4 || d.number() < 0 || d.data_type() < 0)
        return Say(kBad, "a tensor without a number, a type, dims or strides");
      break;
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
      if (const cudnnStatus_t status = CheckOperation(d); status != kOk) return status;
      break;
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      if (d.parts.count(CUDNN_ATTR_OPERATIONGRAPH_OPS) == 0) return Say(kBad, "a graph without operations");
      if (d.One<cudnnHandle_t>(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, nullptr) == nullptr)
        return Say(kBad, "a graph without a handle");
      break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR: {
      const Descriptor* graph = d.Part(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
      if (graph == nullptr) return Say(kBad, "a heuristic without a graph");
      int64_t workspace = 0;
      const cudnnStatus_t status = CheckGraph(graph->parts.at(CUDNN_ATTR_OPERATIONGRAPH_OPS), &workspace);
      if (status != kOk) return status;
      break;
    }
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      if (d.Part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG) == nullptr)
        return Say(kBad, "a plan without an engine");
      break;
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
      if (d.All<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS).size() !=
          d.All<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS).size())
        return Say(kBad, "numbers and pointers that are not as many");
      break;
    default:
      break;
  }
  d.final = true;
  return kOk;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t requested, int64_t* count,
                                       void* elements) {
  const Descriptor& d = *Of(descriptor);
  if (!d.final || requested < 1) return Say(kBad, "an attribute of a descriptor that is not final");
  *count = 1;
  if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS) {  // one engine, which knows the graph
    const Pointer& config = Of(*static_cast<cudnnBackendDescriptor_t*>(elements));
    config->parts = d.parts;
    config->final = true;
    return kOk;
  }
  if (name != CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE || type != CUDNN_TYPE_INT64)
    return Say(kBad, "an attribute that is not to be read");
  return CheckGraph(OperationsOf(d), static_cast<int64_t*>(elements));
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t variant_pack) {
  const Descriptor &p = *Of(plan), &pack = *Of(variant_pack);
  if (!p.final || !pack.final) return Say(kBad, "a descriptor that is not final");
  const std::vector<Pointer> operations = OperationsOf(p);
  const std::vector<int64_t> numbers = pack.All<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const std::vector<void*> pointers = pack.All<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  std::map<int64_t, void*> memory;
  for (size_t i = 0; i < numbers.size(); ++i) memory[numbers[i]] = pointers[i];
  auto values = std::make_shared<std::map<int64_t, float>>();  // numbers of the host are read now
  cudnnStatus_t status = kOk;
  ForEachTensor(operations, [&](const Descriptor& t, bool) {
    if (t.inner()) return;
    const auto it = memory.find(t.number());
    if (it == memory.end() || it->second == nullptr) {
      status = Say(kBad, "memory of a tensor is missing");
    } else if (t.by_value()) {
      (*values)[t.number()] = *static_cast<const float*>(it->second);
    } else if (reinterpret_cast<uintptr_t>(it->second) %
               t.One<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 1)) {
      status = Say(kBad, "memory of a tensor is not aligned");
    }
  });
  if (status != kOk) return status;
  int64_t bytes = 0;
  if (status = CheckGraph(operations, &bytes); status != kOk) return status;
  void* const workspace = pack.One<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, nullptr);
  if (workspace == nullptr && bytes > 0) return Say(kBad, "no workspace");
  const auto work = [operations, memory, values, workspace, bytes]() mutable {
    std::memset(workspace, 0xff, bytes);  // it is the plan's to write
    for (auto& [number, value] : *values) memory[number] = &value;
    Computation(operations, memory).Run();
    return cudaSuccess;
  };
  return emulated::Enqueue(handle->stream, work) == cudaSuccess ? kOk : CUDNN_STATUS_EXECUTION_FAILED;
}
