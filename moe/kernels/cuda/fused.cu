// math.fused: a kernel generated for the node's program, compiled by NVRTC on first use and kept on disk;
// without NVRTC, one that interprets the program.
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "moe/ir/ops/fused_program.h"
#include "moe/kernels/cuda/context.h"
#include "moe/kernels/cuda/fused_source.h"
#include "moe/kernels/cuda/kernel_cache.h"
#include "moe/kernels/cuda/nvrtc.h"
#include "moe/kernels/cuda/ragged.h"
#include "moe/kernels/cuda/vec.h"
#include "moe/kernels/larger.h"

namespace moe::kernels {
namespace {

constexpr int kMostOperands = 2 * kMaxFusedInstructions;

// What a kernel is made for, and whatever it is given on a launch. Compared by bytes.
struct Shape {
  int32_t num_operands, num_instructions;
  Storage storage[kMostOperands + 1];  // the last in use: the result
  bool scalar[kMostOperands];
  bool ragged;
  struct {
    int32_t op, a, b;
    float constant;
  } program[kMaxFusedInstructions];

  bool operator<(const Shape& other) const { return std::memcmp(this, &other, sizeof(Shape)) < 0; }
};

struct Interpreted {
  Shape shape;
  void* data[kMostOperands + 1];
  int ragged[kMostOperands + 1];
  int64_t elements;  // dense
  RaggedRows rows;
  int64_t width;  // ragged
};

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__global__ void InterpretKernel(Interpreted p) {
  const Shape& s = p.shape;
  const int64_t n = s.ragged ? p.rows.header->rows * p.width : p.elements;
  float t[kMaxFusedInstructions];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const auto reals = [&](int operand) {
      return Reals{p.ragged[operand] < 0 ? p.data[operand] : p.rows.header->data[p.ragged[operand]],
                   s.storage[operand]};
    };
    const auto value = [&](int operand) {
      return operand < 0 ? t[-1 - operand] : LoadOne(reals(operand), s.scalar[operand] ? 0 : i);
    };
    for (int k = 0; k < s.num_instructions; ++k) {
      const auto& in = s.program[k];
      const float a = value(in.a);
      switch (static_cast<FusedOp>(in.op)) {
        case FusedOp::kAdd:
          t[k] = a + value(in.b);
          break;
        case FusedOp::kMul:
          t[k] = a * value(in.b);
          break;
        case FusedOp::kScale:
          t[k] = a * in.constant;
          break;
        case FusedOp::kSilu:
          t[k] = a * Sigmoid(a);
          break;
        case FusedOp::kSiluGrad:
          t[k] = value(in.b) * Sigmoid(a) * (1 + a * (1 - Sigmoid(a)));
          break;
        case FusedOp::kLog:
          t[k] = logf(a);
          break;
        case FusedOp::kReciprocal:
          t[k] = 1 / a;
          break;
        case FusedOp::kAtLeast:
          t[k] = Larger(a, in.constant);
          break;
      }
    }
    StoreOne(reals(s.num_operands), i, t[s.num_instructions - 1]);
  }
}

DType DTypeOf(Storage s) {
  return s == Storage::kBF16 ? DType::kBF16 : s == Storage::kF16 ? DType::kF16 : DType::kF32;
}

// Where a compiled kernel can be loaded.
#ifdef MOE_EMULATED
using Loaded = void*;
absl::StatusOr<Loaded> LoadCubin(const std::string&) {
  return absl::UnavailableError("the emulated device has no machine code");
}
#else
using Loaded = cudaKernel_t;
absl::StatusOr<Loaded> LoadCubin(const std::string& cubin) {
  cudaLibrary_t library;
  RETURN_IF_CUDA_ERROR(cudaLibraryLoadData(&library, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
  Loaded kernel;
  RETURN_IF_CUDA_ERROR(cudaLibraryGetKernel(&kernel, library, "fused"));
  return kernel;
}
#endif

absl::StatusOr<Loaded> Compiled(const Shape& shape, const FusedProgram& program, int device) {
#ifdef MOE_EMULATED
  if (device >= 0) return LoadCubin("");
#endif
  FusedKernel k;
  k.program = program;
  for (int i = 0; i < shape.num_operands; ++i)
    k.operands.push_back({DTypeOf(shape.storage[i]), shape.scalar[i]});
  k.result = DTypeOf(shape.storage[shape.num_operands]);
  k.ragged = shape.ragged;
  const std::string source = FusedSource(k);
  int major = 0, minor = 0;
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  const std::string architecture = absl::StrCat("sm_", major, minor);
  ASSIGN_OR_RETURN(const Nvrtc* const nvrtc, Nvrtc::Find());
  const KernelCache cache(DefaultKernelCachePath());
  const std::string key =
      KernelCache::Key({source, architecture, absl::StrCat("nvrtc ", nvrtc->major(), ".", nvrtc->minor())});
  if (const std::optional<std::string> cubin = cache.Get(key)) {
    absl::StatusOr<Loaded> kernel = LoadCubin(*cubin);
    if (kernel.ok()) return kernel;
  }
  ASSIGN_OR_RETURN(const std::string cubin, nvrtc->Compile(source, architecture));
  cache.Put(key, cubin);
  return LoadCubin(cubin);
}

// The kernel of a shape on a device, null where there is none; compiled once.
Loaded KernelOf(const Shape& shape, const FusedProgram& program, int device) {
  static std::mutex& mutex = *new std::mutex;
  static auto& known = *new std::map<std::pair<int, Shape>, Loaded>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(device, shape);
  const auto at = known.find(key);
  if (at != known.end()) return at->second;
  const absl::StatusOr<Loaded> kernel = Compiled(shape, program, device);
#ifndef MOE_EMULATED
  if (!kernel.ok()) LOG(WARNING) << "math.fused is interpreted: " << kernel.status();
#endif
  return known[key] = kernel.ok() ? *kernel : nullptr;
}

absl::Status Fused(KernelContext& c) {
  Workspace w(c);
  ASSIGN_OR_RETURN(const RaggedRows rows, PlaceLikeOperand(c, w));
  ASSIGN_OR_RETURN(const FusedProgram program,
                   ParseFusedProgram(c.node->Strings("program"), static_cast<int>(c.in.size())));
  if (c.in.size() > kMostOperands) {
    return absl::UnimplementedError(absl::StrCat("math.fused of ", c.in.size(), " operands"));
  }
  Interpreted p;
  std::memset(static_cast<void*>(&p), 0, sizeof(p));
  Shape& s = p.shape;
  s.num_operands = static_cast<int>(c.in.size());
  s.num_instructions = static_cast<int>(program.size());
  s.ragged = c.out[0].is_ragged();
  bool aligned = true;
  for (int i = 0; i <= s.num_operands; ++i) {
    const bool is_result = i == s.num_operands;
    const Tensor& t = is_result ? c.out[0] : c.in[i];
    ASSIGN_OR_RETURN(s.storage[i], StorageOfReals(t.dtype));
    if (!is_result) s.scalar[i] = IsScalar(t);
    p.data[i] = t.data;
    p.ragged[i] = is_result ? RaggedResultIndex(c, 0) : RaggedOperandIndex(c, i);
    if (s.ragged && p.ragged[i] < 0 && !(i < s.num_operands && s.scalar[i])) {
      return absl::UnimplementedError("math.fused of ragged and dense operands");
    }
    if (!t.is_ragged() && (is_result || !s.scalar[i])) aligned = aligned && IsAligned(t.data);
  }
  for (size_t i = 0; i < program.size(); ++i) {
    s.program[i] = {static_cast<int32_t>(program[i].op), program[i].a, program[i].b,
                    static_cast<float>(program[i].constant)};
  }
  p.rows = rows;
  p.width = c.out[0].row_elements;
  p.elements = s.ragged ? 0 : c.out[0].elements();
  // A ragged grid is that of the rows that fit; with more, threads take several turns.
  const int64_t n = s.ragged ? c.out[0].capacity_rows * p.width : p.elements;
  if (n == 0 && !s.ragged) return absl::OkStatus();
  int device = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  const cudaStream_t stream = CudaStreamOf(c);
  const Loaded kernel = KernelOf(s, program, device);
  if (kernel == nullptr) {
    const LaunchShape shape = FlatLaunch(n);
    return MOE_LAUNCH(InterpretKernel, GridOf(shape), BlockOf(shape), 0, stream, p);
  }
#ifndef MOE_EMULATED
  const LaunchShape shape = FlatLaunch(CeilDiv(n, 8));
  const void* header = rows.header;
  long long elements = p.elements, width = p.width;
  int is_aligned = aligned ? 1 : 0;
  void* arguments[kMostOperands + 3];
  int count = 0;
  for (int i = 0; i < s.num_operands; ++i) arguments[count++] = &p.data[i];
  if (s.ragged) {
    arguments[count++] = &header;
    arguments[count++] = &width;
  } else {
    arguments[count++] = &p.data[s.num_operands];
    arguments[count++] = &elements;
    arguments[count++] = &is_aligned;
  }
  RETURN_IF_CUDA_ERROR(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), GridOf(shape), dim3(256),
                                        arguments, 0, stream));
#endif
  return absl::OkStatus();
}

void Register(KernelRegistry& r) { AddForFloats(r, "math.fused", &Fused, &RaggedWorkspaceOf); }
const KernelRegistration registration(&Register);

}  // namespace
}  // namespace moe::kernels
