// The parts of //tools:bench, one per table of docs/benchmarks.md. Each compiles what it needs, measures, and
// prints. The machine may be shared: what is compared runs interleaved, medians are taken, and CPU time
// stands beside wall time.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/program.h"
#include "moe/model/config.h"
#include "moe/passes/pipeline.h"
#include "moe/strategy/strategy.h"

namespace moe::tools {

struct BenchOptions {
  model::ModelConfig model;
  strategy::Strategy strategy;
  int64_t global_batch = 32;
  int warm_up = 2;
  int repeats = 15;           // steps or samples per measurement
  std::string models;         // folder of the model files
  std::FILE* json = nullptr;  // JSON lines go here
};

struct CompiledProgram {
  Program program;
  std::vector<passes::PassResult> passes;
  double seconds = 0;      // of building the module and running the default pipeline
  double cpu_seconds = 0;  // the same, of this thread
};
absl::StatusOr<CompiledProgram> CompileForBench(const model::ModelConfig& model,
                                                const strategy::Strategy& strategy, int64_t global_batch);

// Bytes that a rank gives to others in a step, by the cost model; of the stage that gives most.
double WireBytesPerStep(const Program& program);

// The step of the configured model: tokens/s, time by category, the longest ops.
absl::Status BenchStep(const BenchOptions& options);
// Every distinct matrix product of the model, and larger ones, against oneDNN's primitive for the same
// product.
absl::Status BenchGemm(const BenchOptions& options);
// The strategy's ranks against one device in the same process, and where the difference goes.
absl::Status BenchScaling(const BenchOptions& options);
// Steps with buckets, overlap and experts in parts against the same without.
absl::Status BenchOverlap(const BenchOptions& options);
// Attention over context ranks: as a ring, against gathered keys and values.
absl::Status BenchContext(const BenchOptions& options);
// Compile time, as data parallelism grows with the batch and experts with expert parallelism, and of a large
// model.
absl::Status BenchCompile(const BenchOptions& options);
// Matrix products in bf16 and f16 against f32; and 60 steps of training on text, narrower in one respect at a
// time.
absl::Status BenchPrecision(const BenchOptions& options);
// Resident memory of a run against its plan.
absl::Status BenchMemory(const BenchOptions& options);

}  // namespace moe::tools
