#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pipeline.h"
#include "moe/runtime/local.h"
#include "moe/strategy/fold.h"
#include "tools/bench_parts.h"
#include "tools/bench_table.h"

namespace moe::tools {

absl::StatusOr<CompiledProgram> CompileForBench(const model::ModelConfig& model,
                                                const strategy::Strategy& strategy, int64_t global_batch) {
  CompiledProgram out;
  const double wall = WallSeconds(), cpu = ThreadCpuSeconds();
  model::BuildOptions build;
  build.global_batch = global_batch;
  build.microbatches = strategy.microbatches;
  ASSIGN_OR_RETURN(out.program.module, model::BuildModel(model, build));
  ASSIGN_OR_RETURN(out.program.module->mesh(),
                   strategy::FoldMesh(strategy, AttrInt(out.program.module->attributes(), "kv_heads")));
  passes::PassContext context;
  context.strategy = strategy;
  context.workspace = runtime::WorkspaceHook(kernels::Backend::kCpu, strategy.overload);
  ASSIGN_OR_RETURN(out.passes,
                   passes::RunPipeline(passes::Passes(), passes::DefaultPipeline(), out.program, context));
  out.seconds = WallSeconds() - wall;
  out.cpu_seconds = ThreadCpuSeconds() - cpu;
  return out;
}

absl::Status BenchCompile(const BenchOptions& options) {
  struct Case {
    std::string name;
    model::ModelConfig model;
    strategy::Strategy strategy;
    int64_t global_batch;
    std::vector<double> wall, cpu;
    std::string slowest;
  };
  std::vector<Case> cases;
  cases.push_back({"as configured", options.model, options.strategy, options.global_batch, {}, {}, ""});
  Case data = cases[0];
  data.name = "dp and batch x 64";
  data.strategy.dp *= 64;
  data.global_batch *= 64;
  cases.push_back(data);
  if (options.model.num_experts() > 0) {
    Case experts = cases[0];
    experts.name = "experts, ep, dp and batch x 8";
    experts.model.set_num_experts(options.model.num_experts() * 8);
    experts.strategy.ep *= 8;
    experts.strategy.dp *= 8;
    experts.global_batch *= 8;
    cases.push_back(experts);
  }
  const std::string path = JoinPath(options.models, "mixtral_8x22b.textproto");
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  Case mixtral;
  mixtral.name = "Mixtral-8x22B";
  ASSIGN_OR_RETURN(mixtral.model, model::ParseModelConfig(text, path));
  ASSIGN_OR_RETURN(
      mixtral.strategy,
      strategy::ParseStrategy("pp=8 dp=16 tp=8 ep=8 etp=1 zero=1 sp microbatches=16 checkpoint=selective"));
  mixtral.global_batch = 256;
  cases.push_back(mixtral);
  Case deep = mixtral;
  deep.name = "the same with 60 layers";
  deep.model.set_num_layers(60);
  cases.push_back(deep);
  // A round of all cases, several times: what else the machine does falls on all of them alike.
  const int rounds = std::max(1, std::min(options.repeats, 5));
  for (int round = 0; round < rounds; ++round) {
    for (Case& c : cases) {
      ASSIGN_OR_RETURN(CompiledProgram p, CompileForBench(c.model, c.strategy, c.global_batch));
      c.wall.push_back(p.seconds);
      c.cpu.push_back(p.cpu_seconds);
      const auto slow = std::max_element(p.passes.begin(), p.passes.end(),
                                         [](const passes::PassResult& a, const passes::PassResult& b) {
                                           return a.milliseconds < b.milliseconds;
                                         });
      c.slowest = absl::StrFormat("%s %.0f ms", slow->name, slow->milliseconds);
    }
  }
  BenchTable table("compile", {"case", "strategy", "ranks", "wall s", "CPU s", "slowest pass"});
  for (const Case& c : cases) {
    table.Add({c.name, c.strategy.ToString(), absl::StrCat(c.strategy.world()),
               absl::StrFormat("%.3f", Median(c.wall)), absl::StrFormat("%.3f", Median(c.cpu)), c.slowest});
  }
  table.Print(options.json);
  return absl::OkStatus();
}

}  // namespace moe::tools
