#include <algorithm>
#include <cmath>
#include <list>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/cost/step_runs.h"
#include "moe/ir/builder.h"
#include "moe/kernels/cpu/threads.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/local.h"
#include "moe/train/config/config.h"
#include "moe/train/data/data.h"
#include "moe/train/run/trainer.h"
#include "tools/bench_parts.h"
#include "tools/bench_table.h"

namespace moe::tools {
namespace {

constexpr int64_t kSteps = 60, kLast = 10;           // of one respect after the other
constexpr int64_t kLongSteps = 400, kLongLast = 50;  // of what products are computed in

// An einsum of dense operands in one dtype.
class Product {
 public:
  static absl::StatusOr<std::unique_ptr<Product>> Create(const std::string& eq, const Dims& a, const Dims& b,
                                                         DType dtype) {
    auto p = std::make_unique<Product>();
    p->module_ = std::make_unique<Module>("product");
    Function* f = p->module_->AddFunction("f");
    const Value x = f->AddArg("x", Type(dtype, a)), w = f->AddArg("w", Type(dtype, b));
    ASSIGN_OR_RETURN(const Value y, Builder(f).Create("math.einsum", {x, w}, {{"eq", eq}}));
    ASSIGN_OR_RETURN(p->kernel_, kernels::Kernels().Lookup(*y.node, kernels::Backend::kCpu));
    ASSIGN_OR_RETURN(p->context_, runtime::LocalContext(*y.node, p->module_->mesh(), 0));
    kernels::KernelContext& c = p->context_;
    for (const Value& v : {x, w}) c.in.push_back(p->Allocate(v.type()));
    c.out.push_back(p->Allocate(y.type()));
    c.workspace_bytes = p->kernel_->WorkspaceBytes(*y.node, *c.rule, c.extent, c.in, c.out);
    p->buffers_.emplace_back(c.workspace_bytes + 64);
    c.workspace = Aligned(p->buffers_.back());
    return p;
  }
  absl::Status Run() { return kernel_->Run(context_); }
  double Flops() const {
    double flops = 2;
    for (int64_t e : context_.extent) flops *= static_cast<double>(e);
    return flops;
  }

 private:
  static void* Aligned(std::vector<char>& v) {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(v.data()) + 63) / 64 * 64);
  }
  kernels::Tensor Allocate(const Type& type) {
    const int64_t bytes = StorageOf(type, module_->mesh()).bytes;
    buffers_.emplace_back(bytes + 64, 0);
    return runtime::LocalTensor(type, module_->mesh(), Aligned(buffers_.back()), bytes);
  }

  std::unique_ptr<Module> module_;
  const kernels::Kernel* kernel_ = nullptr;
  kernels::KernelContext context_;
  std::list<std::vector<char>> buffers_;
};

absl::Status BenchProducts(const BenchOptions& options) {
  kernels::UseOneThreadInThisThread();
  struct Shape {
    const char *name, *eq;
    Dims a, b;
  };
  const Shape shapes[] = {{"forward", "b s h, h f -> b s f", {4, 128, 512}, {512, 1536}},
                          {"input gradient", "b s f, h f -> b s h", {4, 128, 1536}, {512, 1536}},
                          {"weight gradient", "b s h, b s f -> h f", {4, 128, 512}, {4, 128, 1536}},
                          {"experts", "e b c p h, e h f -> e b c p f", {8, 4, 1, 40, 512}, {8, 512, 1280}}};
  BenchTable table("precision_gemm", {"product", "f32 GFLOP/s", "bf16 GFLOP/s", "f16 GFLOP/s", "bf16 / f32"});
  for (const Shape& s : shapes) {
    const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16};
    std::vector<double> seconds[3];
    std::unique_ptr<Product> products[3];
    for (int i = 0; i < 3; ++i) {
      ASSIGN_OR_RETURN(products[i], Product::Create(s.eq, s.a, s.b, dtypes[i]));
      RETURN_IF_ERROR(products[i]->Run());
    }
    for (int r = 0; r < options.repeats; ++r) {
      for (int i = 0; i < 3; ++i) {
        const double begin = ThreadCpuSeconds();
        RETURN_IF_ERROR(products[i]->Run());
        seconds[i].push_back(ThreadCpuSeconds() - begin);
      }
    }
    const double flops = products[0]->Flops() / 1e9;
    table.Add({s.name, absl::StrFormat("%.1f", flops / Median(seconds[0])),
               absl::StrFormat("%.1f", flops / Median(seconds[1])),
               absl::StrFormat("%.1f", flops / Median(seconds[2])),
               absl::StrFormat("%.2f", Median(seconds[0]) / Median(seconds[1]))});
  }
  table.Print(options.json);
  return absl::OkStatus();
}

}  // namespace

double WireBytesPerStep(const Program& program) {
  double most = 0;
  for (int64_t stage = 0; stage < program.module->mesh().num_stages(); ++stage) {
    most = std::max(most, cost::SentPerStep(program, static_cast<int>(stage)).bytes);
  }
  return most;
}

namespace {

struct Trained {
  std::vector<double> losses;
  double wire_bytes = 0, cpu_seconds = 0;
  int64_t peak = 0;
};

absl::StatusOr<Trained> Train(const BenchOptions& options, const std::string& words, int64_t steps) {
  train::RunConfig config = train::DefaultRunConfig();
  *config.mutable_model() = options.model;
  config.mutable_train()->set_train_iters(steps);
  config.mutable_train()->set_global_batch_size(8);
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(words));
  train::SetStrategy(strategy, config);
  config = train::ResolveRunConfig(std::move(config));
  ASSIGN_OR_RETURN(const CompiledProgram compiled,
                   CompileForBench(config.model(), strategy, config.train().global_batch_size()));
  ASSIGN_OR_RETURN(const auto data, train::TextDataset::Load({.path = config.train().data_path(),
                                                              .seq_length = config.model().seq_length(),
                                                              .seed = config.train().seed()}));
  ASSIGN_OR_RETURN(const auto executor, runtime::Executor::Create(compiled.program, {}));
  RETURN_IF_ERROR(executor->InitializeState(config.train().seed()));
  train::Trainer trainer(config, *compiled.program.module, executor.get(), data.get());
  Trained t;
  const double begin = ProcessCpuSeconds();
  ASSIGN_OR_RETURN(const train::TrainResult result, trainer.Train());
  t.cpu_seconds = (ProcessCpuSeconds() - begin) / static_cast<double>(steps);
  t.losses = result.losses;
  t.wire_bytes = WireBytesPerStep(compiled.program);
  for (const StageMemory& s : compiled.program.memory.stages) t.peak = std::max(t.peak, s.peak_bytes());
  return t;
}

// The same training, narrower in one respect at a time: what it does to the loss.
absl::Status BenchTraining(const BenchOptions& options) {
  const std::string base = "dp=4 ep=4 zero=3 microbatches=2";
  // In f32 too, but summed in another order: how far rounding alone carries a run, routing and all.
  const std::vector<std::string> controls = {"dp=2 ep=2 zero=3 microbatches=2", "dp=2 microbatches=4",
                                             "tp=2 dp=2 etp=2 ep=2 microbatches=4"};
  const std::vector<std::string> variants = {
      "bf16",
      "f16",
      "bf16 fp8_experts",
      "compress_dispatch=bf16",
      "compress_dispatch=f8",
      "compress_combine=bf16",
      "compress_combine=f8",
      "compress_gather=bf16",
      "compress_gather=f8",
      "compress_grad=bf16",
      "compress_grad=f8",
      "compress_dispatch=f8 compress_combine=bf16 compress_gather=f8 compress_grad=bf16",
      "bf16 compress_dispatch=f8 compress_combine=f8 compress_gather=f8 compress_grad=f8"};
  BenchTable table("precision_training",
                   {"words", "loss, mean of steps 51-60", "difference to f32", "largest difference of a step",
                    "MB per rank and step", "CPU ms per step", "peak MiB"});
  Trained f32;
  const auto add = [&](const std::string& name, const std::string& strategy) -> absl::Status {
    ASSIGN_OR_RETURN(const Trained t, Train(options, strategy, kSteps));
    if (f32.losses.empty()) f32 = t;
    double last = 0, last_f32 = 0, largest = 0;
    for (int64_t i = 0; i < kSteps; ++i) {
      largest = std::max(largest, std::abs(t.losses[i] - f32.losses[i]));
      if (i >= kSteps - kLast) last += t.losses[i] / kLast, last_f32 += f32.losses[i] / kLast;
    }
    table.Add({name, absl::StrFormat("%.4f", last), absl::StrFormat("%+.4f", last - last_f32),
               absl::StrFormat("%.4f", largest), absl::StrFormat("%.2f", t.wire_bytes / 1e6),
               absl::StrFormat("%.0f", 1e3 * t.cpu_seconds),
               absl::StrFormat("%.1f", static_cast<double>(t.peak) / (1 << 20))});
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(add("f32", base));
  for (const std::string& control : controls)
    RETURN_IF_ERROR(add(absl::StrCat("f32, as ", control), control));
  for (const std::string& words : variants) RETURN_IF_ERROR(add(words, absl::StrCat(base, " ", words)));
  table.Print(options.json);
  return absl::OkStatus();
}

// Longer, beside f32 summed in another order: whether what products are computed in shows in the loss at all.
absl::Status BenchLongTraining(const BenchOptions& options) {
  const std::string base = "dp=4 ep=4 zero=3 microbatches=2";
  const std::pair<std::string, std::string> rows[] = {{"f32", base},
                                                      {"f32, as dp=2 microbatches=4", "dp=2 microbatches=4"},
                                                      {"bf16", base + " bf16"},
                                                      {"bf16 fp8_experts", base + " bf16 fp8_experts"}};
  BenchTable table("precision_long_training", {"words", "loss, mean of steps 351-400", "difference to f32",
                                               "mean of all steps", "CPU ms per step"});
  const auto mean = [](const std::vector<double>& losses, int64_t last) {
    return std::accumulate(losses.end() - last, losses.end(), 0.0) / static_cast<double>(last);
  };
  double f32 = 0;
  for (const auto& [name, words] : rows) {
    ASSIGN_OR_RETURN(const Trained t, Train(options, words, kLongSteps));
    const double loss = mean(t.losses, kLongLast);
    if (f32 == 0) f32 = loss;
    table.Add({name, absl::StrFormat("%.4f", loss), absl::StrFormat("%+.4f", loss - f32),
               absl::StrFormat("%.4f", mean(t.losses, kLongSteps)),
               absl::StrFormat("%.0f", 1e3 * t.cpu_seconds)});
  }
  table.Print(options.json);
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchPrecision(const BenchOptions& options) {
  RETURN_IF_ERROR(BenchProducts(options));
  RETURN_IF_ERROR(BenchTraining(options));
  return BenchLongTraining(options);
}

}  // namespace moe::tools
