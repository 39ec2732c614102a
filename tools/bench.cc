// Measures what docs/benchmarks.md reports.
//
//   bazel run //tools:bench                                  all tables, on the default model
//   bazel run //tools:bench -- --only=step,scaling --repeats=30 --json=/tmp/bench.jsonl
//   bazel run //tools:bench -- --only=step --strategy="dp=2" --model=$PWD/testdata/models/moe_100m.textproto
#include <cstdio>
#include <cstdlib>
#include <map>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/train/config/config.h"
#include "tools/bench_parts.h"
#include "tools/tool.h"

ABSL_FLAG(std::vector<std::string>, only, {},
          "tables to make: step, gemm, scaling, compile, memory, overlap, context, precision; none: all");
ABSL_FLAG(std::string, model, "", "a ModelConfig as textproto; empty: the default model");
ABSL_FLAG(std::string, strategy, "", "in words, as \"pp=2 dp=2 tp=2\"; empty: the default one");
ABSL_FLAG(int64_t, global_batch, 0, "samples per step; 0: the default");
ABSL_FLAG(int, repeats, 15, "steps or samples per measurement");
ABSL_FLAG(std::string, json, "", "a file that gets one JSON line per row");
ABSL_FLAG(std::string, models, "", "folder of the model files; empty: testdata/models of the workspace");

namespace moe::tools {
namespace {

absl::Status Run() {
  const train::RunConfig config = train::ResolveRunConfig(train::DefaultRunConfig());
  BenchOptions options;
  options.model = config.model();
  options.strategy = train::StrategyOf(config);
  options.global_batch = config.train().global_batch_size();
  options.repeats = absl::GetFlag(FLAGS_repeats);
  options.models = absl::GetFlag(FLAGS_models);
  if (options.models.empty()) {
    const char* workspace = std::getenv("BUILD_WORKSPACE_DIRECTORY");
    options.models = JoinPath(workspace != nullptr ? workspace : ".", "testdata/models");
  }
  if (const std::string path = absl::GetFlag(FLAGS_model); !path.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
    ASSIGN_OR_RETURN(options.model, model::ParseModelConfig(text, path));
  }
  if (const std::string words = absl::GetFlag(FLAGS_strategy); !words.empty()) {
    ASSIGN_OR_RETURN(options.strategy, strategy::ParseStrategy(words));
  }
  if (absl::GetFlag(FLAGS_global_batch) > 0) options.global_batch = absl::GetFlag(FLAGS_global_batch);
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    options.json = std::fopen(path.c_str(), "w");
    if (options.json == nullptr) return absl::InvalidArgumentError("cannot write " + path);
  }
  const std::map<std::string, absl::Status (*)(const BenchOptions&)> parts = {
      {"compile", &BenchCompile}, {"context", &BenchContext}, {"gemm", &BenchGemm},
      {"memory", &BenchMemory},   {"overlap", &BenchOverlap}, {"precision", &BenchPrecision},
      {"scaling", &BenchScaling}, {"step", &BenchStep}};
  std::vector<std::string> only = absl::GetFlag(FLAGS_only);
  if (only.empty())
    only = {"step", "scaling", "gemm", "compile", "memory", "overlap", "context", "precision"};
  for (const std::string& name : only) {
    if (parts.count(name) == 0) {
      return absl::InvalidArgumentError(
          "unknown table " + name +
          "; known: compile, context, gemm, memory, overlap, precision, scaling, step");
    }
  }
  for (const std::string& name : only) RETURN_IF_ERROR(Annotate(parts.at(name)(options), name));
  if (options.json != nullptr) std::fclose(options.json);
  return absl::OkStatus();
}

}  // namespace
}  // namespace moe::tools

int main(int argc, char** argv) {
  moe::tools::BeginTool();
  absl::SetProgramUsageMessage("Measures steps, matrix products, scaling, compile time and memory.");
  absl::ParseCommandLine(argc, argv);
  return moe::tools::EndTool(moe::tools::Run());
}
