#include "moe/kernels/cpu/bf16_product.h"

#include <dnnl.h>

#include <atomic>
#include <map>
#include <memory>
#include <tuple>

#include "moe/kernels/cpu/threads.h"

namespace moe::kernels {
namespace {

dnnl_data_type_t LibraryType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return dnnl_f32;
    case DType::kBF16:
      return dnnl_bf16;
    default:
      return dnnl_data_type_undef;
  }
}

dnnl_engine_t Engine() {
  static const dnnl_engine_t engine = [] {
    dnnl_engine_t e = nullptr;
    return dnnl_engine_create(&e, dnnl_cpu, 0) == dnnl_success ? e : nullptr;
  }();
  return engine;
}

// One shape: the primitive and its three matrices, whose addresses are set at each use.
class Matmul {
 public:
  Matmul(DType in, DType out, const MatrixProduct& p) { ok_ = Create(in, out, p); }
  ~Matmul() {
    for (dnnl_memory_t m : memory_) {
      if (m != nullptr) dnnl_memory_destroy(m);
    }
    if (primitive_ != nullptr) dnnl_primitive_destroy(primitive_);
  }
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  bool Run(dnnl_stream_t stream, const void* a, const void* b, void* c) {
    if (!ok_) return false;
    void* const data[3] = {const_cast<void*>(a), const_cast<void*>(b), c};
    constexpr int kArguments[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[3];
    for (int i = 0; i < 3; ++i) {
      if (dnnl_memory_set_data_handle(memory_[i], data[i]) != dnnl_success) return false;
      args[i] = {kArguments[i], memory_[i]};
    }
    return dnnl_primitive_execute(primitive_, stream, 3, args) == dnnl_success &&
           dnnl_stream_wait(stream) == dnnl_success;
  }

 private:
  bool Create(DType in, DType out, const MatrixProduct& p) {
    if (Engine() == nullptr) return false;
    dnnl_memory_desc_t desc[3];
    const auto describe = [&](int i, int64_t rows, int64_t cols, bool transposed, int64_t ld, DType dtype) {
      const dnnl_dims_t dims = {rows, cols}, plain = {ld, 1}, columns = {1, ld};
      return dnnl_memory_desc_init_by_strides(&desc[i], 2, dims, LibraryType(dtype),
                                              transposed ? columns : plain) == dnnl_success &&
             dnnl_memory_create(&memory_[i], &desc[i], Engine(), DNNL_MEMORY_NONE) == dnnl_success;
    };
    if (!describe(0, p.m, p.k, p.trans_a, p.lda, in) || !describe(1, p.k, p.n, p.trans_b, p.ldb, in) ||
        !describe(2, p.m, p.n, false, p.ldc, out)) {
      return false;
    }
    dnnl_primitive_attr_t attributes = nullptr;
    dnnl_post_ops_t sum = nullptr;
    bool ok = dnnl_primitive_attr_create(&attributes) == dnnl_success;
    if (ok && p.accumulate) {
      ok = dnnl_post_ops_create(&sum) == dnnl_success && dnnl_post_ops_append_sum(sum, 1) == dnnl_success &&
           dnnl_primitive_attr_set_post_ops(attributes, sum) == dnnl_success;
    }
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t chosen = nullptr;
    ok = ok && dnnl_matmul_desc_init(&matmul, &desc[0], &desc[1], nullptr, &desc[2]) == dnnl_success &&
         dnnl_primitive_desc_create(&chosen, &matmul, attributes, Engine(), nullptr) == dnnl_success &&
         dnnl_primitive_create(&primitive_, chosen) == dnnl_success;
    if (chosen != nullptr) dnnl_primitive_desc_destroy(chosen);
    if (sum != nullptr) dnnl_post_ops_destroy(sum);
    if (attributes != nullptr) dnnl_primitive_attr_destroy(attributes);
    return ok;
  }

  dnnl_primitive_t primitive_ = nullptr;
  dnnl_memory_t memory_[3] = {nullptr, nullptr, nullptr};
  bool ok_ = false;
};

struct Matmuls {  // of one thread
  using Key =
      std::tuple<DType, DType, int64_t, int64_t, int64_t, bool, bool, int64_t, int64_t, int64_t, bool>;
  std::map<Key, std::unique_ptr<Matmul>> by_shape;
  dnnl_stream_t stream = nullptr;
  ~Matmuls() {
    by_shape.clear();
    if (stream != nullptr) dnnl_stream_destroy(stream);
  }
};

bool OneDnnBf16(const MatrixProduct& p, const Bf16* a, const Bf16* b, void* c) {
  return LibraryProduct(DType::kBF16, p.wide ? DType::kF32 : DType::kBF16, p, a, b, c);
}

Bf16Product ProductOfCpu() {
  const int has = dnnl_get_effective_cpu_isa();
  return (has & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16 ? &OneDnnBf16 : nullptr;
}

std::atomic<Bf16Product>& Chosen() {
  static std::atomic<Bf16Product> chosen = ProductOfCpu();
  return chosen;
}

}  // namespace

Bf16Product ChosenBf16Product() { return Chosen().load(std::memory_order_relaxed); }
Bf16Product SetBf16Product(Bf16Product product) { return Chosen().exchange(product); }

bool LibraryProduct(DType in, DType out, const MatrixProduct& p, const void* a, const void* b, void* c) {
  thread_local Matmuls mine;
  UseOneThreadInThisThread();
  if (mine.stream == nullptr &&
      (Engine() == nullptr ||
       dnnl_stream_create(&mine.stream, Engine(), dnnl_stream_default_flags) != dnnl_success)) {
    return false;
  }
  const Matmuls::Key key = {in, out, p.m, p.n, p.k, p.trans_a, p.trans_b, p.lda, p.ldb, p.ldc, p.accumulate};
  constexpr size_t kMost = 256;
  auto at = mine.by_shape.find(key);
  if (at == mine.by_shape.end()) {
    if (mine.by_shape.size() >= kMost) mine.by_shape.clear();
    at = mine.by_shape.emplace(key, std::make_unique<Matmul>(in, out, p)).first;
  }
  return at->second->Run(mine.stream, a, b, c);
}

}  // namespace moe::kernels
