#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/graph.h"
#include "moe/kernels/cpu/threads.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/local.h"
#include "tools/bench_parts.h"
#include "tools/bench_table.h"

namespace moe::tools {
namespace {

struct FreeDeleter {
  void operator()(char* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<char, FreeDeleter>;

Buffer Allocate(int64_t bytes) {
  bytes = (std::max<int64_t>(bytes, 64) + 63) / 64 * 64;
  Buffer b(static_cast<char*>(std::aligned_alloc(64, bytes)));
  float* f = reinterpret_cast<float*>(b.get());
  for (int64_t i = 0; i < bytes / 4; ++i) f[i] = static_cast<float>(i % 7) * 0.1f;
  return b;
}

// The product as oneDNN would take it: plain matrices, no transposes, one primitive made in advance.
struct Product {
  int64_t batch = 1, m = 1, n = 1, k = 1;
  double Flops() const { return 2.0 * batch * m * n * k; }
  std::string ToString() const {
    return absl::StrCat(batch > 1 ? absl::StrCat(batch, " x ") : "", m, " x ", n, " x ", k);
  }
};

class OneDnnMatmul {
 public:
  explicit OneDnnMatmul(const Product& p)
      : engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        a_(Allocate(p.batch * p.m * p.k * 4)),
        b_(Allocate(p.batch * p.k * p.n * 4)),
        c_(Allocate(p.batch * p.m * p.n * 4)) {
    using Desc = dnnl::memory::desc;
    const auto type = dnnl::memory::data_type::f32;
    const bool flat = p.batch == 1;
    const auto tag = flat ? dnnl::memory::format_tag::ab : dnnl::memory::format_tag::abc;
    const auto dims = [&](int64_t rows, int64_t columns) {
      return flat ? dnnl::memory::dims{rows, columns} : dnnl::memory::dims{p.batch, rows, columns};
    };
    const Desc a(dims(p.m, p.k), type, tag), b(dims(p.k, p.n), type, tag), c(dims(p.m, p.n), type, tag);
    matmul_ = dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), engine_));
    args_ = {{DNNL_ARG_SRC, dnnl::memory(a, engine_, a_.get())},
             {DNNL_ARG_WEIGHTS, dnnl::memory(b, engine_, b_.get())},
             {DNNL_ARG_DST, dnnl::memory(c, engine_, c_.get())}};
  }
  void Run() {
    matmul_.execute(stream_, args_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  Buffer a_, b_, c_;
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> args_;
};

// One einsum on local buffers, by the kernel that the executor would run.
class OurEinsum {
 public:
  static absl::StatusOr<std::unique_ptr<OurEinsum>> Create(const Node& n, const Mesh& mesh) {
    auto e = std::make_unique<OurEinsum>();
    ASSIGN_OR_RETURN(e->kernel_, kernels::Kernels().Lookup(n, kernels::Backend::kCpu));
    ASSIGN_OR_RETURN(e->context_, runtime::LocalContext(n, mesh, 0));
    const auto add = [&](const Type& type, std::vector<kernels::Tensor>& to) {
      const int64_t bytes = StorageOf(type, mesh).bytes;
      e->buffers_.push_back(Allocate(bytes));
      to.push_back(runtime::LocalTensor(type, mesh, e->buffers_.back().get(), bytes));
    };
    for (Value v : n.operands()) add(v.type(), e->context_.in);
    add(n.type(), e->context_.out);
    return e;
  }
  bool ragged() const {
    return context_.in[0].is_ragged() || context_.in[1].is_ragged() || context_.out[0].is_ragged();
  }
  // Fills ragged operands with `rows` rows in every cell.
  absl::Status SetRows(int32_t rows) {
    for (kernels::Tensor& t : context_.in) {
      if (!t.is_ragged()) continue;
      std::fill_n(t.sizes, t.cells, rows);
      RETURN_IF_ERROR(t.PlaceRows());
    }
    return absl::OkStatus();
  }
  absl::Status Run() { return kernel_->Run(context_); }
  // Factors by the terms that have them; ragged extents count as they are expected.
  Product AsProduct() const {
    const ShardingRule& rule = *context_.rule;
    const auto has = [](const FactorTerm& term, FactorId f) {
      for (const auto& dim : term) {
        if (std::find(dim.begin(), dim.end(), f) != dim.end()) return true;
      }
      return false;
    };
    Product p;
    for (FactorId f = 0; f < rule.num_factors(); ++f) {
      const bool a = has(rule.operands[0], f), b = has(rule.operands[1], f), c = has(rule.results[0], f);
      (a && b && c ? p.batch : a && c ? p.m : b && c ? p.n : p.k) *= context_.extent[f];
    }
    return p;
  }

 private:
  const kernels::Kernel* kernel_ = nullptr;
  kernels::KernelContext context_;
  std::vector<Buffer> buffers_;
};

struct Measured {
  double ours = 0, library = 0;  // CPU seconds of one run
};

template <typename F>
double TimeOf(int64_t times, F run) {
  const double begin = ThreadCpuSeconds();
  for (int64_t i = 0; i < times; ++i) run();
  return (ThreadCpuSeconds() - begin) / times;
}

absl::StatusOr<Measured> Compare(OurEinsum& ours, OneDnnMatmul& library, double flops, int repeats) {
  RETURN_IF_ERROR(ours.Run());
  library.Run();
  const int64_t times = std::max<int64_t>(1, static_cast<int64_t>(2e8 / flops));  // several milliseconds
  std::vector<double> a, b;
  for (int i = 0; i < repeats; ++i) {
    a.push_back(TimeOf(times, [&] { (void)ours.Run(); }));
    b.push_back(TimeOf(times, [&] { library.Run(); }));
  }
  return Measured{Median(a), Median(b)};
}

// Larger products, among them grouped ones over packed rows, where the arithmetic dominates.
absl::Status AddLarge(Module* module) {
  Function* f = module->AddFunction("large");
  struct Shape {
    const char* eq;
    Dims a, b;
  };
  const std::vector<Shape> dense = {
      {"b s h, h f -> b s f", {4, 128, 512}, {512, 1536}},
      {"b s f, h f -> b s h", {4, 128, 1536}, {512, 1536}},
      {"b s h, b s f -> h f", {4, 128, 512}, {4, 128, 1536}},
      {"b s h, h n d -> b s n d", {4, 128, 512}, {512, 8, 64}},
      {"e b c p h, e h f -> e b c p f", {8, 4, 1, 40, 512}, {8, 512, 1280}},
      {"e b c p h, e b c p f -> e h f", {8, 4, 1, 40, 512}, {8, 4, 1, 40, 1280}},
  };
  int i = 0;
  for (const Shape& s : dense) {
    for (const bool packed : {false, true}) {
      if (packed && s.a.size() < 5) continue;
      Type a(DType::kF32, s.a), b(DType::kF32, s.b);
      if (packed) {
        a.ragged = 3;
        a.ragged_bound = 320;
        if (s.b.size() == 5) b.ragged = 3, b.ragged_bound = 320;
      }
      const Value x = f->AddArg(absl::StrCat("x", i), a), w = f->AddArg(absl::StrCat("w", i), b);
      ++i;
      RETURN_IF_ERROR(Builder(f).Create("math.einsum", {x, w}, {{"eq", std::string(s.eq)}}).status());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchGemm(const BenchOptions& options) {
  kernels::UseOneThreadInThisThread();
  BenchTable table("gemm", {"from", "einsum", "product", "ours GFLOP/s", "oneDNN GFLOP/s", "of oneDNN"});
  double ours_seconds = 0, library_seconds = 0;
  const auto measure = [&](const Function& f, const Mesh& mesh, const std::string& from) -> absl::Status {
    std::map<std::string, int> seen;
    for (const auto& n : f.body()) {
      if (!n->Is("math.einsum") || n->num_operands() != 2) continue;
      ASSIGN_OR_RETURN(auto ours, OurEinsum::Create(*n, mesh));
      Product p = ours->AsProduct();
      const std::string eq = n->String("eq");
      if (p.m * p.n * p.k < 4096 ||
          seen[absl::StrCat(eq, " ", p.ToString(), ours->ragged() ? " packed" : "")]++ > 0)
        continue;
      if (ours->ragged()) RETURN_IF_ERROR(ours->SetRows(40));
      OneDnnMatmul library(p);
      ASSIGN_OR_RETURN(const Measured t, Compare(*ours, library, p.Flops(), options.repeats));
      ours_seconds += t.ours;
      library_seconds += t.library;
      table.Add({from, absl::StrCat(eq, ours->ragged() ? " (packed rows)" : ""), p.ToString(),
                 absl::StrFormat("%.1f", p.Flops() / t.ours / 1e9),
                 absl::StrFormat("%.1f", p.Flops() / t.library / 1e9),
                 absl::StrFormat("%.0f%%", 100 * t.library / t.ours)});
    }
    return absl::OkStatus();
  };
  Module large;
  RETURN_IF_ERROR(AddLarge(&large));
  RETURN_IF_ERROR(measure(*large.Find("large"), large.mesh(), "large"));
  table.Add({"large", "all", "", "", "", absl::StrFormat("%.0f%%", 100 * library_seconds / ours_seconds)});
  ours_seconds = library_seconds = 0;
  for (const bool one_device : {false, true}) {
    strategy::Strategy strategy = options.strategy;
    if (one_device) {
      strategy = strategy::Strategy();
      strategy.microbatches = options.strategy.microbatches;
    }
    ASSIGN_OR_RETURN(const CompiledProgram compiled,
                     CompileForBench(options.model, strategy, options.global_batch));
    const Module& module = *compiled.program.module;
    const std::string from = one_device ? "one device" : "a rank";
    for (const char* name : {"forward0", "backward0"}) {
      if (module.Find(name) != nullptr) RETURN_IF_ERROR(measure(*module.Find(name), module.mesh(), from));
    }
    table.Add({from, "all", "", "", "", absl::StrFormat("%.0f%%", 100 * library_seconds / ours_seconds)});
    ours_seconds = library_seconds = 0;
  }
  table.Print(options.json);
  return absl::OkStatus();
}

}  // namespace moe::tools
