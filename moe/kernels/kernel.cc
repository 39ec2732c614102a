#include "moe/kernels/kernel.h"

#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "moe/device/convert.h"
#include "moe/kernels/widen.h"

namespace moe::kernels {

absl::string_view BackendName(Backend b) {
  switch (b) {
    case Backend::kReference:
      return "reference";
    case Backend::kBlas:
      return "blas";
    case Backend::kCpu:
      return "cpu";
    case Backend::kCuda:
      return "cuda";
  }
  return "?";
}

namespace {

bool IsNarrow(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16; }

// Calls f with a null pointer of the dtype's type; false if the host has no such type.
template <typename F>
bool ForElementType(DType dtype, F f) {
  switch (dtype) {
    case DType::kPred:
      f(static_cast<bool*>(nullptr));
      return true;
    case DType::kS32:
      f(static_cast<int32_t*>(nullptr));
      return true;
    case DType::kS64:
      f(static_cast<int64_t*>(nullptr));
      return true;
    case DType::kF32:
      f(static_cast<float*>(nullptr));
      return true;
    case DType::kF64:
      f(static_cast<double*>(nullptr));
      return true;
    default:
      return false;
  }
}

}  // namespace

bool HasElementAccess(DType dtype) {
  return IsNarrow(dtype) || ForElementType(dtype, [](auto*) {});
}

double LoadElement(DType dtype, const void* data, int64_t i) {
  if (IsNarrow(dtype)) {
    float wide;
    device::ToF32(dtype, static_cast<const char*>(data) + i * ByteSize(dtype), &wide, 1);
    return wide;
  }
  double value = 0;
  const bool known = ForElementType(dtype, [&](auto* t) {
    value = static_cast<double>(static_cast<const std::remove_pointer_t<decltype(t)>*>(data)[i]);
  });
  CHECK(known) << DTypeName(dtype);
  return value;
}

void StoreElement(DType dtype, void* data, int64_t i, double value) {
  if (IsNarrow(dtype)) {
    const float wide = static_cast<float>(value);
    device::FromF32(dtype, &wide, static_cast<char*>(data) + i * ByteSize(dtype), 1);
    return;
  }
  const bool known = ForElementType(dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    static_cast<T*>(data)[i] = static_cast<T>(value);
  });
  CHECK(known) << DTypeName(dtype);
}

DType ComputeDType(const Node& n) {
  DType narrowest = DType::kS32;
  const auto see = [&](DType d) {
    if (IsFloat(d) && (!IsFloat(narrowest) || ByteSize(d) < ByteSize(narrowest))) narrowest = d;
  };
  for (const Value& v : n.operands()) see(v.type().dtype);
  for (int i = 0; i < n.num_results(); ++i) see(n.type(i).dtype);
  return narrowest;
}

absl::Status Kernel::Run(KernelContext& c) const { return wide == nullptr ? fn(c) : RunWidened(*wide, c); }

int64_t Kernel::WorkspaceBytes(const Node& n, const ShardingRule& rule, absl::Span<const int64_t> extent,
                               absl::Span<const Tensor> in, absl::Span<const Tensor> out) const {
  if (wide != nullptr) return WidenedWorkspace(*wide, n, rule, extent, in, out);
  return workspace == nullptr ? 0 : workspace(n, rule, extent, in, out);
}

const Kernel* KernelRegistry::Add(Kernel kernel) {
  const auto key = std::make_tuple(kernel.op, kernel.backend, kernel.dtype);
  const auto [at, inserted] = kernels_.emplace(key, kernel);
  CHECK(inserted) << "kernel registered twice: " << kernel.op << " " << BackendName(kernel.backend) << " "
                  << DTypeName(kernel.dtype);
  return &at->second;
}

const Kernel* KernelRegistry::Find(absl::string_view op, Backend backend, DType dtype) const {
  const auto it = kernels_.find(std::make_tuple(std::string(op), backend, dtype));
  return it == kernels_.end() ? nullptr : &it->second;
}

absl::StatusOr<const Kernel*> KernelRegistry::Lookup(const Node& n, Backend backend) const {
  const DType dtype = ComputeDType(n);
  if (const Kernel* k = Find(n.op_name(), backend, dtype)) return k;
  std::vector<std::string> have;
  for (const auto& [key, kernel] : kernels_) {
    if (kernel.op == n.op_name())
      have.push_back(absl::StrCat(BackendName(kernel.backend), " ", DTypeName(kernel.dtype)));
  }
  return absl::NotFoundError(
      absl::StrCat("no ", BackendName(backend), " kernel for ", n.op_name(), " in ", DTypeName(dtype),
                   have.empty() ? "; the op has no kernel at all"
                                : absl::StrCat("; there is: ", absl::StrJoin(have, ", "))));
}

std::vector<const Kernel*> KernelRegistry::All() const {
  std::vector<const Kernel*> all;
  for (const auto& [key, kernel] : kernels_) all.push_back(&kernel);
  return all;
}

namespace {
struct LinkedKernels {
  std::vector<void (*)(KernelRegistry&)> add;
  bool added = false;
};
LinkedKernels& Linked() {
  static auto& linked = *new LinkedKernels;
  return linked;
}
}  // namespace

KernelRegistration::KernelRegistration(void (*add)(KernelRegistry&)) {
  CHECK(!Linked().added) << "kernels were loaded after the first use of Kernels()";
  Linked().add.push_back(add);
}

void RegisterLinkedKernels(KernelRegistry& r) {
  for (const auto add : Linked().add) add(r);
  Linked().added = true;
}

}  // namespace moe::kernels
