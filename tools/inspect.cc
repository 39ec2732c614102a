#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/cost/targets.h"
#include "moe/inspect/buffers.h"
#include "moe/inspect/diff.h"
#include "moe/inspect/graph_svg.h"
#include "moe/inspect/model_explorer.h"
#include "moe/inspect/report.h"
#include "moe/inspect/stage_view.h"
#include "moe/inspect/timeline.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"
#include "moe/plan/plan.h"
#include "moe/runtime/local.h"
#include "moe/train/config/validate.h"
#include "moe/train/tuning/plan_search.h"
#include "tools/tool.h"
#include "tools/working_directory.h"

ABSL_FLAG(std::string, run, "", "Folder of a training run: its plan.pb, and trace.json where it has one.");
ABSL_FLAG(std::string, plan, "", "A plan file, or a folder that holds plan.pb.");
ABSL_FLAG(std::string, model, "", "Model configuration (textproto) to compile here, with --strategy.");
ABSL_FLAG(std::string, strategy, "", "How --model is spread: \"pp=2 dp=2 tp=2 ep=2 microbatches=4\".");
ABSL_FLAG(std::string, target, "cpu", "Devices that --model is compiled for: cpu, a100, h100 or h200.");
ABSL_FLAG(int64_t, global_batch_size, 0,
          "Samples of a step for --model; 0: 8 a microbatch, at least one a dp rank.");
ABSL_FLAG(std::string, pipeline, "", "Passes for --model instead of the default pipeline.");
ABSL_FLAG(int, stage, -1, "Only this pipeline stage, with its nodes; -1: an overview of all.");
ABSL_FLAG(int64_t, layer, -1, "Only the nodes of this layer.");
ABSL_FLAG(std::string, function, "", "Only the nodes of this function, such as forward0.");
ABSL_FLAG(bool, nodes, false, "List all nodes in the overview too.");
ABSL_FLAG(int, largest, 0, "Also list so many of the largest buffers of each stage shown.");
ABSL_FLAG(bool, json, false, "Print the report as JSON.");
ABSL_FLAG(std::string, svg, "",
          "Write a picture of the graph (needs Graphviz) to this file; honours --stage, --layer, --phase.");
ABSL_FLAG(std::string, phase, "forward", "What --svg draws: forward, backward or update.");
ABSL_FLAG(bool, collapse_layers, true, "Draw equal neighbouring layers once.");
ABSL_FLAG(std::string, timeline, "", "Write a picture of the schedule to this file.");
ABSL_FLAG(
    std::string, times, "estimated",
    "Durations for --timeline: estimated (by the cost model), unit (forward 1, backward 2), or measured (the "
    "run's trace.json, or --trace).");
ABSL_FLAG(std::string, trace, "", "Trace for --times=measured; default: trace.json of --run.");
ABSL_FLAG(int, step, -1, "Which step of the trace; -1: its last whole one.");
ABSL_FLAG(std::string, buffers, "",
          "Write a picture of the memory plan of --stage (default 0) to this file.");
ABSL_FLAG(std::string, model_explorer, "", "Write all functions for Google's Model Explorer to this file.");
ABSL_FLAG(std::string, diff, "", "Compare two plans, --diff A B; with --model, A and B are strategies.");

namespace moe::tools {
namespace {

absl::StatusOr<plan::Plan> CompileModel(const std::string& file, const std::string& strategy_text) {
  ASSIGN_OR_RETURN(const model::ModelConfig config, model::LoadModelConfig(file));
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(strategy_text));
  model::BuildOptions build;
  build.microbatches = strategy.microbatches;
  build.global_batch = absl::GetFlag(FLAGS_global_batch_size);
  if (build.global_batch == 0) build.global_batch = std::max<int64_t>(8, strategy.dp) * strategy.microbatches;
  train::RunConfig run = train::DefaultRunConfig();
  *run.mutable_model() = config;
  run.mutable_cluster()->set_target(absl::GetFlag(FLAGS_target));
  run.mutable_train()->set_global_batch_size(build.global_batch);
  run.mutable_train()->set_micro_batch_size(
      std::max<int64_t>(1, build.global_batch / std::max<int64_t>(1, strategy.dp)));
  train::SetStrategy(strategy, run);
  RETURN_IF_ERROR(train::ValidateStrategy(train::ResolveRunConfig(run), train::CompilesInFact));
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module, model::BuildModel(config, build));
  plan::CompileOptions options;
  options.pipeline = absl::GetFlag(FLAGS_pipeline);
  options.model_text = model::ModelConfigToText(config);
  // Scratch memory counts as in a training run.
  ASSIGN_OR_RETURN(options.target, cost::NamedTarget(absl::GetFlag(FLAGS_target)));
  ASSIGN_OR_RETURN(const kernels::Backend backend, runtime::BackendOf(options.target));
  options.workspace = runtime::WorkspaceHook(backend, strategy.overload);
  ASSIGN_OR_RETURN(plan::Compiled compiled, plan::Compile(std::move(module), strategy, options));
  return std::move(compiled.plan);
}

absl::StatusOr<plan::Plan> Subject() {
  const std::string run = absl::GetFlag(FLAGS_run), plan = absl::GetFlag(FLAGS_plan),
                    model = absl::GetFlag(FLAGS_model);
  if (!run.empty() + !plan.empty() + !model.empty() != 1) {
    return absl::InvalidArgumentError(
        "say what to inspect by one of --run=FOLDER, --plan=FILE, or --model=FILE with --strategy=\"...\"; "
        "see --help");
  }
  if (!model.empty()) return CompileModel(model, absl::GetFlag(FLAGS_strategy));
  return plan::LoadPlan(run.empty() ? plan : run);
}

absl::Status Diff(const std::vector<char*>& args) {
  if (args.size() != 2) return absl::InvalidArgumentError("--diff needs two plans: --diff A B");
  const std::string names[2] = {absl::GetFlag(FLAGS_diff), args[1]}, model = absl::GetFlag(FLAGS_model);
  absl::StatusOr<plan::Plan> plans[2] = {absl::UnknownError(""), absl::UnknownError("")};
  for (int i = 0; i < 2; ++i) {
    plans[i] = model.empty() ? plan::LoadPlan(names[i]) : CompileModel(model, names[i]);
    if (!plans[i].ok()) return Annotate(plans[i].status(), names[i]);
  }
  std::cout << inspect::DiffText({names[0], &plans[0]->program, plans[0]->target},
                                 {names[1], &plans[1]->program, plans[1]->target});
  return absl::OkStatus();
}

absl::StatusOr<inspect::Timeline> ChosenTimeline(const plan::Plan& plan) {
  const std::string times = absl::GetFlag(FLAGS_times);
  if (times == "unit") return inspect::PlanTimeline(plan.program);
  if (times == "estimated") return inspect::EstimatedTimeline(plan.program, plan.target);
  if (times != "measured") {
    return absl::InvalidArgumentError(
        absl::StrCat("--times=", times, ": legal are estimated, unit and measured"));
  }
  std::string trace = absl::GetFlag(FLAGS_trace);
  if (trace.empty() && !absl::GetFlag(FLAGS_run).empty())
    trace = JoinPath(absl::GetFlag(FLAGS_run), "trace.json");
  if (trace.empty())
    return absl::InvalidArgumentError("--times=measured needs a trace: --run=FOLDER or --trace=FILE");
  ASSIGN_OR_RETURN(const std::string text, ReadFile(trace, inspect::kTraceLimits.bytes));
  absl::StatusOr<inspect::Timeline> timeline =
      inspect::MeasuredTimeline(text, plan.mesh(), {.step = absl::GetFlag(FLAGS_step)});
  if (!timeline.ok()) return Annotate(timeline.status(), trace);
  return timeline;
}

absl::Status WritePicture(const std::string& file, const std::string& picture) {
  RETURN_IF_ERROR(WriteFile(file, picture));
  std::cerr << "wrote " << file << "\n";
  return absl::OkStatus();
}

// The pictures asked for; `written` says whether there were any.
absl::Status Pictures(const plan::Plan& plan, bool* written) {
  const Program& program = plan.program;
  const int stage = absl::GetFlag(FLAGS_stage);
  if (const std::string file = absl::GetFlag(FLAGS_svg); !file.empty()) {
    inspect::GraphOptions options;
    options.stage = stage;
    options.layer = absl::GetFlag(FLAGS_layer);
    options.collapse_layers = absl::GetFlag(FLAGS_collapse_layers);
    const std::string phase = absl::GetFlag(FLAGS_phase);
    bool known = false;
    for (const Phase p : {Phase::kForward, Phase::kBackward, Phase::kUpdate}) {
      if (phase == PhaseName(p)) options.phase = p, known = true;
    }
    if (!known) {
      return absl::InvalidArgumentError(
          absl::StrCat("--phase=", phase, ": legal are forward, backward and update"));
    }
    RETURN_IF_ERROR(inspect::WriteGraphSvg(program, options, file));
    std::cerr << "wrote " << file << "\n";
    *written = true;
  }
  if (const std::string file = absl::GetFlag(FLAGS_timeline); !file.empty()) {
    ASSIGN_OR_RETURN(const inspect::Timeline timeline, ChosenTimeline(plan));
    RETURN_IF_ERROR(WritePicture(file, inspect::TimelineSvg(timeline)));
    std::cout << inspect::TimelineText(timeline);
    *written = true;
  }
  if (const std::string file = absl::GetFlag(FLAGS_buffers); !file.empty()) {
    ASSIGN_OR_RETURN(const std::string picture, inspect::BuffersSvg(program, std::max(0, stage)));
    RETURN_IF_ERROR(WritePicture(file, picture));
    std::cout << inspect::LargestBuffersText(program, std::max(0, stage));
    *written = true;
  }
  if (const std::string file = absl::GetFlag(FLAGS_model_explorer); !file.empty()) {
    RETURN_IF_ERROR(WritePicture(file, inspect::ModelExplorerJson(program)));
    *written = true;
  }
  return absl::OkStatus();
}

absl::Status Inspect(const std::vector<char*>& args) {
  RETURN_IF_ERROR(EnterWorkingDirectory());
  if (!absl::GetFlag(FLAGS_diff).empty()) return Diff(args);
  if (args.size() > 1)
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", args[1], "'; see --help"));
  ASSIGN_OR_RETURN(const plan::Plan plan, Subject());
  inspect::ReportOptions options;
  options.stage = absl::GetFlag(FLAGS_stage);
  options.layer = absl::GetFlag(FLAGS_layer);
  options.function = absl::GetFlag(FLAGS_function);
  options.nodes = absl::GetFlag(FLAGS_nodes);
  options.target = plan.target;
  RETURN_IF_ERROR(inspect::CheckReportOptions(plan.program, options));
  bool written = false;
  RETURN_IF_ERROR(Pictures(plan, &written));
  if (absl::GetFlag(FLAGS_json)) {
    ASSIGN_OR_RETURN(const std::string json, inspect::ReportJson(plan.program, options));
    std::cout << json;
    return absl::OkStatus();
  }
  const int largest = absl::GetFlag(FLAGS_largest);
  if (written && largest == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string report, inspect::ReportText(plan.program, options));
  std::cout << "strategy  " << plan.strategy.ToString() << "\n" << report;
  for (int s = 0; largest > 0 && s < inspect::NumStages(plan.program); ++s) {
    if (options.stage < 0 || options.stage == s)
      std::cout << "\n" << inspect::LargestBuffersText(plan.program, s, largest);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace moe::tools

int main(int argc, char** argv) {
  moe::tools::BeginTool();
  absl::SetProgramUsageMessage(
      "Shows a compiled program: what each stage does, where values live, why collectives are there.\n"
      "  inspect --run=runs/NAME [--stage=1 --layer=2]\n"
      "  inspect --model=testdata/models/tiny_moe.textproto --strategy=\"pp=2 dp=2 tp=2 microbatches=4\"\n"
      "  inspect --run=runs/NAME --svg=graph.svg --timeline=timeline.svg --times=measured "
      "--buffers=buffers.svg\n"
      "  inspect --diff runs/A runs/B\n"
      "  inspect --model=FILE --diff \"tp=2 dp=4\" \"dp=8 ep=8\"\n"
      "Exit code 1 for any error, with what was wrong on standard error.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) { return absl::EndsWith(file, "inspect.cc"); };
  absl::SetFlagsUsageConfig(usage);
  return moe::tools::EndTool(moe::tools::Inspect(absl::ParseCommandLine(argc, argv)));
}
