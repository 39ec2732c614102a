#include "moe/train/run/run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/comm/device_worlds.h"
#include "moe/cost/targets.h"
#include "moe/device/device.h"
#include "moe/inspect/graph_svg.h"
#include "moe/inspect/quantities.h"
#include "moe/inspect/timeline.h"
#include "moe/model/config.h"
#include "moe/model/transformer.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pipeline.h"
#include "moe/plan/compile.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/local.h"
#include "moe/train/checkpoint/checkpoint.h"
#include "moe/train/checkpoint/session_state.h"
#include "moe/train/config/validate.h"
#include "moe/train/data/line_data.h"
#include "moe/train/run/process_group.h"
#include "moe/train/run/summary.h"
#include "moe/train/run/trainer.h"
#include "moe/train/tuning/plan_search.h"
#include "moe/train/tuning/step_times.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

constexpr int64_t kTracedSteps = 2;

// Prints for people, unless told to be quiet or to speak JSON.
class Speaker {
 public:
  Speaker(std::ostream& out, RunOptions::Voice voice) : out_(out), voice_(voice) {}
  void Say(absl::string_view word, absl::string_view text) {
    if (voice_ == RunOptions::kText) out_ << SummaryLine(word, text) << std::flush;
  }
  void Break() {
    if (voice_ == RunOptions::kText) out_ << "\n";
  }
  void Progress(const StepMetrics& m) {
    if (voice_ == RunOptions::kText) out_ << ProgressLine(m, absl::Now()) << std::endl;
    if (voice_ == RunOptions::kJson) out_ << MetricsJson(m) << std::endl;
  }
  void Evaluated(int64_t step, double loss) {
    if (voice_ == RunOptions::kText) Say("eval", absl::StrFormat("step %d: held-out loss %.4f", step, loss));
    if (voice_ == RunOptions::kJson) out_ << EvaluationJson(step, loss) << std::endl;
  }
  void Result(const nlohmann::ordered_json& summary, absl::string_view line) {
    if (voice_ == RunOptions::kQuiet) out_ << line << std::endl;
    if (voice_ == RunOptions::kJson) {
      out_ << summary.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
    }
  }

 private:
  std::ostream& out_;
  const RunOptions::Voice voice_;
};

// Names and syntax of the passes to run and to skip.
absl::Status CheckPasses(const RunOptions& options) {
  ASSIGN_OR_RETURN(std::vector<passes::PipelineStep> steps, passes::ParsePipeline(options.passes));
  for (const std::string& name : options.disable_passes) steps.push_back({name, {}});
  for (const passes::PipelineStep& step : steps) {
    if (passes::Passes().Find(step.pass) != nullptr) continue;
    std::vector<std::string> names;
    for (const passes::PassDef* pass : passes::Passes().All()) names.push_back(pass->name);
    return absl::InvalidArgumentError(
        absl::StrCat("unknown pass '", step.pass, "'; there are ", absl::StrJoin(names, ", ")));
  }
  return absl::OkStatus();
}

// The checkpoint to start from, checked in full: a run is refused before it compiles or writes anything.
absl::Status CheckResume(const RunConfig& config, const Module& logical) {
  ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(config.train().resume()));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(dir));
  RETURN_IF_ERROR(CheckSameModel(checkpoint->meta().model_config, config.model()));
  RETURN_IF_ERROR(checkpoint->CheckTensors(PersistentTensors(logical), {"adam."}));
  return checkpoint->Verify();
}

absl::StatusOr<std::unique_ptr<Dataset>> LoadData(const TextOptions& options,
                                                  const std::vector<int64_t>& lengths, bool by_lines) {
  if (!by_lines) return TextDataset::Load(options);
  return LineDataset::Load(options, lengths);
}

// "seq128_mb4"
std::string PlanName(const RunConfig& config) {
  return absl::StrCat("seq", config.model().seq_length(), "_mb", config.train().micro_batch_size());
}

// A folder for this run, made and proven writable. An earlier run in it is continued or left alone, never
// mixed with.
absl::StatusOr<std::string> OpenRunDirectory(const TrainConfig& train) {
  std::string dir = train.run_dir();
  const auto holds_run = [](const std::string& d) {
    return FileExists(JoinPath(d, "metrics.jsonl")) || IsFolder(JoinPath(d, "checkpoint"));
  };
  if (dir.empty()) {
    const std::string base =
        JoinPath("runs", absl::FormatTime("%Y-%m-%d-%H%M%S", absl::Now(), absl::LocalTimeZone()));
    dir = base;
    for (int i = 2; IsFolder(dir); ++i) dir = absl::StrCat(base, "-", i);
  } else if (train.resume().empty() && holds_run(dir)) {
    return absl::AlreadyExistsError(absl::StrCat("run directory ", dir,
                                                 " holds a run already; continue it with --resume=", dir,
                                                 " or choose another --run_dir"));
  }
  absl::Status status = MakeFolders(dir);
  const std::string probe = JoinPath(dir, ".writable");
  if (status.ok()) status = WriteFile(probe, "");
  if (status.ok()) status = RemoveTree(probe);
  RETURN_IF_ERROR(Annotate(status, "the run directory cannot be written; choose another with --run_dir"));
  return dir;
}

// Records the first steps after warm-up of the caches, on all ranks of all processes.
class StepTracer {
 public:
  // Of several plans, whichever run the steps to be recorded.
  StepTracer(std::vector<runtime::Executor*> executors, int64_t done, int64_t steps)
      : executors_(std::move(executors)),
        first_(done + 1 + std::min<int64_t>(10, std::max<int64_t>(0, steps - done - kTracedSteps))) {}
  void Before(int64_t step) {
    if (step != first_) return;
    for (runtime::Executor* e : executors_) started_.Update(e->StartTrace(kTracedSteps));
  }
  void After(int64_t step) {
    if (step < first_ || done_) return;
    if (step + 1 < first_ + kTracedSteps) return;
    done_ = true;
    for (runtime::Executor* e : executors_) {
      e->StopTrace();
      absl::StatusOr<runtime::Trace> trace = e->GatherTrace();
      if (!trace.ok()) {
        trace_ = std::move(trace);
        return;
      }
      if (trace->num_events() > trace_->num_events()) trace_ = std::move(trace);
    }
    if (!started_.ok()) trace_ = started_;  // the others wanted the gathering all the same
  }
  // Of the plan with most events; without any before the steps were run. Whole on process 0.
  const absl::StatusOr<runtime::Trace>& trace() const { return trace_; }

 private:
  const std::vector<runtime::Executor*> executors_;
  const int64_t first_;
  bool done_ = false;
  absl::Status started_;
  absl::StatusOr<runtime::Trace> trace_ = runtime::Trace();
};

absl::Status WritePictures(const Program& program, const std::string& dir, Speaker& speaker) {
  const inspect::Timeline planned =
      inspect::PlanTimeline(program, inspect::CostDurations(program, cost::Target()));
  RETURN_IF_ERROR(WriteFile(JoinPath(dir, "timeline.svg"), inspect::TimelineSvg(planned)));
  const absl::Status drawn = inspect::WriteGraphSvg(program, {}, JoinPath(dir, "graph.svg"));
  if (!drawn.ok()) speaker.Say("note", absl::StrCat("no graph.svg: ", drawn.message()));
  return absl::OkStatus();
}

// Of several plans, the one whose ranks began something last.
const runtime::Executor& RanLast(const std::vector<runtime::Executor*>& executors) {
  const runtime::Executor* last = executors[0];
  double least = std::numeric_limits<double>::infinity();
  for (const runtime::Executor* e : executors) {
    for (const runtime::FlightRecord& r : e->Flight()) {
      if (!r.actions.empty() && r.actions[0].ago < least) least = r.actions[0].ago, last = e;
    }
  }
  return *last;
}

// An error that others met only because of somebody else's.
bool IsOfOthers(absl::string_view status) {
  for (const char* code : {"DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED"}) {
    if (absl::StartsWith(status, code)) return true;
  }
  return false;
}

// Who held up whom, what all ranks did last, and how to go on: the message of a run that went wrong. The
// records go to flight/ in the run directory, those of a process by itself, of one that cannot by the first
// that can.
absl::Status Explain(const absl::Status& status, const runtime::Executor& executor, ProcessGroup* group,
                     const Mesh& mesh, const std::string& dir, const std::string& checkpoint) {
  const std::vector<runtime::FlightRecord> mine = executor.Flight();
  const std::vector<runtime::FlightRecord> records =
      group == nullptr ? mine : group->CollectFlight(mine, mesh);
  const bool complete = static_cast<int64_t>(records.size()) == mesh.num_ranks();
  std::string text;
  const runtime::FlightRecord* cause = nullptr;  // an error of its own
  for (const runtime::FlightRecord& r : records) {
    if (cause == nullptr && !r.error.empty() && !IsOfOthers(r.error)) cause = &r;
  }
  runtime::Diagnosis diagnosis;
  if (!IsOfOthers(status.ToString())) {
    cause = nullptr;  // it is this one
  } else if (cause == nullptr && complete) {
    diagnosis = runtime::Diagnose(records);
  }
  if (cause != nullptr) {
    text = cause->error;
  } else if (!diagnosis.text.empty()) {
    text = absl::StrCat(executor.step() > 0 ? absl::StrCat("step ", executor.step(), ", ") : "",
                        absl::StrReplaceAll(diagnosis.text, {{"\n", "\n       "}}),
                        "\n       first seen as: ", status.message());
  } else {
    text = std::string(status.message());
  }
  int64_t first_alive = -1;
  for (const runtime::FlightRecord& r : records) {
    if (first_alive < 0 && !r.stale && !r.unknown) first_alive = r.rank;
  }
  std::string written;
  if (!dir.empty()) {
    const std::string folder = JoinPath(dir, "flight");
    absl::Status saved = MakeFolders(folder);
    for (const runtime::FlightRecord& r : records) {
      const bool ours = std::any_of(mine.begin(), mine.end(),
                                    [&](const runtime::FlightRecord& m) { return m.rank == r.rank; });
      if (!ours && !((r.stale || r.unknown) && first_alive == mine[0].rank)) continue;
      if (saved.ok())
        saved = WriteFile(JoinPath(folder, absl::StrCat("rank_", r.rank, ".json")), runtime::FlightJson(r));
    }
    written = saved.ok() ? absl::StrCat("flight record of all ranks: ", folder, "/   ")
                         : absl::StrCat("no flight record: ", saved.message(), "   ");
  }
  absl::StrAppend(&text, "\n       ", written,
                  checkpoint.empty() ? std::string("no checkpoint was saved yet; see --save_interval")
                                     : absl::StrCat("last checkpoint: resume with --resume=", checkpoint));
  return absl::Status(status.code(), text);
}

// Bytes of the UTF-8 character that `text` begins with; 0 if there is none.
size_t CharacterBytes(absl::string_view text) {
  const unsigned char first = text[0];
  const size_t bytes = first < 0x80                    ? 1
                       : first >= 0xc2 && first < 0xe0 ? 2
                       : first >= 0xe0 && first < 0xf0 ? 3
                       : first >= 0xf0 && first < 0xf5 ? 4
                                                       : 0;
  if (bytes == 0 || bytes > text.size()) return 0;
  for (size_t i = 1; i < bytes; ++i) {
    if ((text[i] & 0xc0) != 0x80) return 0;
  }
  return bytes;
}

// One line of text whatever bytes the model wrote.
std::string OneLine(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t bytes = CharacterBytes(text);
    if (text[0] == '\n') {
      out += " / ";
    } else if (bytes == 0 || (bytes == 1 && (text[0] < 32 || text[0] == 127))) {
      out += '?';
    } else {
      absl::StrAppend(&out, text.substr(0, bytes));
    }
    text.remove_prefix(std::max<size_t>(1, bytes));
  }
  return out;
}

}  // namespace

namespace {

// "2 ranks on 0 (NVIDIA H200, ...), 2 ranks on 1 (...)"
std::string DescribeDevices(const runtime::Executor& executor) {
  std::map<int, std::pair<int64_t, std::string>> ranks;  // by ordinal
  for (int64_t r = 0; r < executor.num_local_ranks(); ++r) {
    const device::Device& device = executor.device(r);
    auto& [count, what] = ranks[device.ordinal()];
    ++count;
    what = device.description();
  }
  std::string text;
  for (const auto& [ordinal, held] : ranks) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", held.first, held.first == 1 ? " rank on " : " ranks on ",
                    ordinal, " (", held.second, ")");
  }
  return text;
}

// FLOP/s of a rank's device at most, which MFU is a share of. NotFound: why it is not known.
absl::StatusOr<double> PeakFlops(const RunOptions& options, const RunConfig& config,
                                 const runtime::Executor& executor) {
  if (options.peak_tflops > 0) return 1e12 * options.peak_tflops;
  if (!config.strategy().bf16() && !config.strategy().fp16()) {
    return absl::NotFoundError("the peak rates that are known are those of bf16 and f16");
  }
  std::set<int> ordinals;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t r = 0; r < executor.num_local_ranks(); ++r) {
    const device::Device& device = executor.device(r);
    if (!ordinals.insert(device.ordinal()).second) return absl::NotFoundError("ranks share a GPU");
    const std::string description = device.description();  // "NVIDIA H200, 139.8 GiB, ..."
    ASSIGN_OR_RETURN(const cost::Target target,
                     cost::TargetOfDevice(absl::string_view(description).substr(0, description.find(','))));
    least = std::min(least, target.flops);
  }
  return least;
}

// Where ranks live and how they meet. Outlives the executors: connections last until all processes are done,
// and a rank that hangs may still use them.
struct Meeting {
  std::unique_ptr<ProcessGroup> group;  // of several processes
  std::unique_ptr<comm::DeviceWorlds> devices;
  bool begun = false;  // errors from here on are those of a step
};

// Opens the devices of this process's ranks, and their ways to the others.
absl::Status MeetOnDevices(const RunOptions& run, kernels::Backend backend, int64_t num_ranks,
                           Meeting& meeting, runtime::ExecutorOptions* options) {
  comm::DeviceWorldsOptions wanted;
  wanted.kind = backend == kernels::Backend::kCuda ? device::DeviceKind::kCuda : device::DeviceKind::kHost;
  wanted.num_ranks = num_ranks;
  wanted.timeout = run.device_timeout;
  wanted.connect_timeout = run.connect_timeout;
  if (run.job != nullptr) {
    wanted.processes = run.job->count(), wanted.process = run.job->rank();
    wanted.local_processes = run.job->local_count(), wanted.local_process = run.job->local_rank();
    wanted.store = run.job->store();
    wanted.host = meeting.group->worlds();
    options->host = meeting.group->host();
  }
  ASSIGN_OR_RETURN(meeting.devices, comm::DeviceWorlds::Open(wanted));
  options->worlds = meeting.devices.get();
  return absl::OkStatus();
}

absl::Status Run(const RunConfig& given, const RunOptions& options, std::ostream& out, Meeting& meeting) {
  std::unique_ptr<ProcessGroup>& group = meeting.group;
  const absl::Time start = absl::Now();
  const bool leads = options.job == nullptr || options.job->rank() == 0;
  RunConfig config = given;
  RETURN_IF_ERROR(ValidateRunConfig(config));
  RETURN_IF_ERROR(CheckPasses(options));
  const TrainConfig train = config.train();  // a copy: the plan may change `config`
  if (train.adaptive_micro_batch_size() && options.job != nullptr) {
    return absl::InvalidArgumentError(
        "adaptive_micro_batch_size wants all ranks in one process: each process would decide by times of its "
        "own");
  }
  if (options.eval_only && train.resume().empty()) {
    return absl::InvalidArgumentError("--eval_only needs the checkpoint to evaluate; add --resume=DIR");
  }
  if (TargetOf(config).device == "cuda") {
    // Before anything is compiled.
    RETURN_IF_ERROR(Annotate(device::CheckDevices(device::DeviceKind::kCuda), "--device=cuda"));
  }
  const TextOptions text = {.path = train.data_path(),
                            .held_out = train.held_out_fraction(),
                            .seq_length = config.model().seq_length(),
                            .seed = train.seed()};
  if (!(options.peak_tflops >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "peak_tflops = ", options.peak_tflops, "; it must be positive, or 0 for what is known of the GPU"));
  }
  // A text that cannot be used is refused before anything is compiled.
  ASSIGN_OR_RETURN(std::vector<int64_t> lengths, LengthsOf(config));
  const bool by_lines = !train.length_buckets().empty();
  ASSIGN_OR_RETURN(std::unique_ptr<Dataset> data, LoadData(text, lengths, by_lines));
  if (config.model().vocab_size() < data->vocab_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size = ", config.model().vocab_size(), " is less than the ", data->vocab_size(),
                     " different tokens of a text read as bytes; it must be at least ", data->vocab_size()));
  }
  if (!train.resume().empty()) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Module> module, BuildLogical(config));
    RETURN_IF_ERROR(CheckResume(config, *module));
  }
  std::string dir;
  if (!options.eval_only) {
    if (leads) {
      ASSIGN_OR_RETURN(dir, OpenRunDirectory(train));
    }
    if (options.job != nullptr) {
      ASSIGN_OR_RETURN(dir, options.job->Agree("run_dir", dir));
    }
    config.mutable_train()->set_run_dir(dir);
    if (leads) RETURN_IF_ERROR(WriteFile(JoinPath(dir, "config.textproto"), RunConfigToText(config)));
  }

  Speaker speaker(out, options.voice);
  speaker.Say("model", model::DescribeModel(config.model()));
  speaker.Say("data", data->Describe());
  speaker.Say("mesh", DescribeStrategy(config));
  if (options.job != nullptr) {
    speaker.Say("", absl::StrCat("in ", options.job->count(), " processes, met at ",
                                 options.job->store()->Describe()));
  }
  speaker.Break();

  plan::CompileOptions compile;
  compile.pipeline = options.passes;
  compile.passes.disable_passes = options.disable_passes;
  compile.passes.dump_pass_re = options.dump_pass_re;
  compile.passes.validate = options.validate;
  compile.target = TargetOf(config);
  compile.memory_limit = StrategyOf(config).memory_limit;
  ASSIGN_OR_RETURN(const kernels::Backend backend, runtime::BackendOf(compile.target));
  compile.workspace = runtime::WorkspaceHook(backend, StrategyOf(config).overload);
  std::string dump_to;
  if (leads) dump_to = options.dump_to.empty() && !dir.empty() ? JoinPath(dir, "ir") : options.dump_to;
  bool first_dump = true;
  ASSIGN_OR_RETURN(
      PlannedRun planned_run, PlanRun(config, compile, [&](const RunConfig& c, plan::CompileOptions* o) {
        // The other plans of a run go into folders of their own, by length and microbatch.
        o->passes.dump_to = first_dump || dump_to.empty() ? dump_to : JoinPath(dump_to, PlanName(c));
        first_dump = false;
      }));
  const PlannedStep& main_plan = planned_run.buckets[0].plans[planned_run.buckets[0].first];
  if (planned_run.buckets.size() != lengths.size() || main_plan.config.model().seq_length() != lengths[0]) {
    // Memory did not allow the lengths that were asked for.
    lengths.clear();
    for (const PlannedBucket& b : planned_run.buckets) {
      lengths.push_back(b.plans[0].config.model().seq_length());
    }
    TextOptions shorter = text;
    shorter.seq_length = lengths[0];
    ASSIGN_OR_RETURN(data, LoadData(shorter, lengths, by_lines));
  }
  if (!by_lines && !planned_run.said.empty()) {
    config = main_plan.config;  // what was changed to fit is what the run is
    if (leads && !dir.empty()) {
      RETURN_IF_ERROR(WriteFile(JoinPath(dir, "config.textproto"), RunConfigToText(config)));
    }
  }
  const plan::Compiled& compiled = main_plan.compiled;
  const Program& program = compiled.plan.program;
  for (const std::string& line : planned_run.said) speaker.Say("plan", line);
  if (!planned_run.said.empty() && !by_lines) speaker.Say("mesh", DescribeStrategy(config));
  speaker.Say("compile", PassTable(compiled.passes, compiled.milliseconds));
  speaker.Break();
  if (!dir.empty() && leads) {
    RETURN_IF_ERROR(plan::SavePlan(compiled.plan, dir));
    RETURN_IF_ERROR(WritePictures(program, dir, speaker));
    for (const PlannedBucket& b : planned_run.buckets) {
      for (const PlannedStep& p : b.plans) {
        if (&p == &main_plan) continue;
        const std::string folder = JoinPath(JoinPath(dir, "plans"), PlanName(p.config));
        RETURN_IF_ERROR(MakeFolders(folder));
        RETURN_IF_ERROR(plan::SavePlan(p.compiled.plan, folder));
        RETURN_IF_ERROR(WritePictures(p.compiled.plan.program, folder, speaker));
      }
    }
  }

  const Mesh& mesh = program.module->mesh();
  runtime::ExecutorOptions devices;
  devices.backend = backend;
  devices.graphs = options.cuda_graphs;
  devices.tf32 = train.tf32();
  devices.timeout = options.device_timeout;
  devices.stop = options.stop;
  for (const PlannedBucket& b : planned_run.buckets) {
    for (const PlannedStep& p : b.plans) devices.room_for.push_back(&p.compiled.plan.program);
  }
  if (options.job != nullptr) {
    ASSIGN_OR_RETURN(group, ProcessGroup::Connect(options.job, mesh.num_ranks(), options.device_timeout,
                                                  options.connect_timeout));
    std::string plans;
    for (const PlannedBucket& b : planned_run.buckets) {
      for (const PlannedStep& p : b.plans) plans += plan::SerializePlan(p.compiled.plan);
    }
    RETURN_IF_ERROR(group->CheckSame("plan", plans));
    // The processes of a host share its cores.
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    devices.compute_threads = static_cast<int>(std::max<int64_t>(1, cores / options.job->local_count()));
  }
  // What one process lacks ends all of them here, before they wait for it.
  const auto on_all = [&](const absl::Status& mine) { return group == nullptr ? mine : group->Agree(mine); };
  RETURN_IF_ERROR(on_all(Annotate(MeetOnDevices(options, backend, mesh.num_ranks(), meeting, &devices),
                                  absl::StrCat("--device=", compile.target.device))));
  absl::StatusOr<std::unique_ptr<runtime::Executor>> created = runtime::Executor::Create(program, devices);
  RETURN_IF_ERROR(on_all(created.status()));
  const std::unique_ptr<runtime::Executor> executor = *std::move(created);
  std::vector<std::unique_ptr<runtime::Executor>> others;  // of the other plans, in the same memory
  std::vector<std::unique_ptr<StepMeter>> meters;
  // What computes at once: the ranks of a GPU take turns, those of a CPU share its cores.
  const int64_t computing = backend == kernels::Backend::kCuda
                                ? device::CountDevices(device::DeviceKind::kCuda)
                                : std::max(1u, std::thread::hardware_concurrency());
  std::vector<StepBucket> buckets;
  devices.room_for.clear();
  devices.memory_of = executor.get();
  for (const PlannedBucket& b : planned_run.buckets) {
    StepBucket bucket;
    bucket.seq_length = b.plans[0].config.model().seq_length();
    bucket.global_batch = b.plans[0].config.train().global_batch_size();
    bucket.flops_per_step = b.flops_per_step;
    bucket.first_plan = b.first;
    for (const PlannedStep& p : b.plans) {
      runtime::Executor* runs = executor.get();
      if (&p != &main_plan) {
        ASSIGN_OR_RETURN(others.emplace_back(), runtime::Executor::Create(p.compiled.plan.program, devices));
        runs = others.back().get();
      }
      meters.push_back(std::make_unique<ExecutorMeter>(runs, computing));
      bucket.plans.push_back({runs, StrategyOf(p.config).microbatches, p.config.train().micro_batch_size(),
                              meters.back().get()});
    }
    buckets.push_back(std::move(bucket));
  }
  if (backend == kernels::Backend::kCuda) {
    speaker.Say("device", absl::StrCat(DescribeDevices(*executor), "\n", meeting.devices->Describe()));
  }
  const absl::StatusOr<double> peak = PeakFlops(options, config, *executor);
  if (peak.ok()) {
    speaker.Say("peak", absl::StrFormat("%.5g TFLOP/s of a device, for MFU", *peak / 1e12));
  } else if (backend == kernels::Backend::kCuda) {
    speaker.Say("peak",
                absl::StrCat("no MFU: ", peak.status().message(), "; --peak_tflops gives the rate that MFU is a share of"));
  }
  RETURN_IF_ERROR(executor->InitializeState(train.seed()));

  int64_t done = 0;
  if (!train.resume().empty()) {
    ASSIGN_OR_RETURN(const std::string from, FindCheckpoint(train.resume()));
    ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(from));
    done = checkpoint->meta().step;
  }
  std::vector<runtime::Executor*> executors = {executor.get()};
  for (const auto& other : others) executors.push_back(other.get());
  if (group != nullptr) group->StartReporting([&executors] { return RanLast(executors).Flight(); });
  const absl::Cleanup reported = [&] {
    if (group != nullptr) group->StopReporting();
  };
  StepTracer tracer(executors, done, train.train_iters());
  TrainerOptions hooks;
  hooks.run_dir = dir;
  hooks.writes = leads;
  hooks.stop = executor->stop();
  hooks.devices = executor->num_ranks();
  hooks.peak_flops = peak.value_or(0);
  hooks.tuning_interval = train.micro_batch_interval();
  hooks.tuned = [&](int b, const MicroBatchTuner& tuner) {
    speaker.Say("tuned",
                absl::StrCat(buckets.size() > 1 ? absl::StrCat("length ", buckets[b].seq_length, ", ") : "",
                             tuner.Describe()));
  };
  hooks.progress = [&](const StepMetrics& m) { speaker.Progress(m); };
  hooks.evaluated = [&](int64_t step, double loss) { speaker.Evaluated(step, loss); };
  hooks.before_step = [&](int64_t step) {
    for (runtime::Executor* e : executors) e->NameStep(step);
    tracer.Before(step);
  };
  hooks.after_step = [&](int64_t step) { tracer.After(step); };
  Trainer trainer(config, *program.module, buckets, data.get(), hooks);
  meeting.begun = true;
  const auto explain = [&](const absl::Status& status) {
    if (options.job != nullptr) options.job->GiveUp(status);  // the others may not know yet
    return Explain(status, RanLast(executors), group.get(), mesh, dir, trainer.last_checkpoint());
  };
  if (!train.resume().empty()) {
    RETURN_IF_ERROR(options.eval_only ? trainer.LoadWeights(train.resume()) : trainer.Resume(train.resume()));
    speaker.Say(options.eval_only ? "weights" : "resume",
                absl::StrCat("step ", trainer.step(), " of ", trainer.last_checkpoint()));
  }

  TrainResult result;
  if (!options.eval_only) {
    if (trainer.step() >= train.train_iters()) {
      speaker.Say("train", absl::StrCat("nothing left: step ", trainer.step(), " of ", train.train_iters(),
                                        " is done; raise --train_iters to go on"));
    } else {
      speaker.Say("train", absl::StrCat(train.train_iters() - trainer.step(), " steps"));
    }
    absl::StatusOr<TrainResult> trained = trainer.Train();
    if (!trained.ok()) return explain(trained.status());
    result = *std::move(trained);
    speaker.Break();
    if (result.interrupted) {
      speaker.Say("stopped", absl::StrCat("after step ", result.last_step, "; go on with --resume=", dir));
      return absl::OkStatus();
    }
  }

  const int64_t steps = result.last_step - result.first_step;
  nlohmann::ordered_json summary = {{"kind", "summary"}, {"step", trainer.step()}};
  std::string line = "no held-out text";
  int64_t held_out = 0;
  for (const int64_t length : lengths) held_out += data->held_out_samples(length);
  if (held_out > 0) {
    const absl::StatusOr<double> evaluated = trainer.Evaluate();
    if (absl::IsCancelled(evaluated.status()) && !options.eval_only) {
      speaker.Say("stopped", absl::StrCat("in the evaluation; repeat it with --eval_only --resume=", dir));
      return absl::OkStatus();
    }
    if (!evaluated.ok()) return explain(evaluated.status());
    const double loss = *evaluated;
    const double bigram = BigramModel(data->train()).NatsPerByte(data->held_out());
    const double bits = 1 / std::log(2.0);
    line = absl::StrFormat(
        "held-out loss %.3f (%.3f bits per byte)   smoothed bigram model of the same text: %.3f (%.3f)", loss,
        loss * bits, bigram, bigram * bits);
    speaker.Say("eval", line);
    summary["held_out_loss"] = loss;
    summary["bits_per_byte"] = loss * bits;
    summary["bigram_loss"] = bigram;
    if (steps > 0 && leads) {
      ASSIGN_OR_RETURN(MetricsWriter metrics,
                       MetricsWriter::Open(JoinPath(dir, "metrics.jsonl"), trainer.step()));
      RETURN_IF_ERROR(metrics.WriteEvaluation(trainer.step(), loss));
      RETURN_IF_ERROR(metrics.Close());
    }
  }
  if (options.voice != RunOptions::kQuiet) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Generator> generator, Generator::Create(config.model()));
    RETURN_IF_ERROR(generator->LoadFrom(*executor));
    std::string sample;
    for (uint64_t seed = 1; leads && seed <= 3; ++seed) {
      ASSIGN_OR_RETURN(const std::string text,
                       generator->Continue(options.prompt, {.tokens = 80, .temperature = 0.6, .seed = seed}));
      absl::StrAppend(&sample, sample.empty() ? "" : "\n", "\"", options.prompt, "\"  ->  \"", OneLine(text),
                      "\"");
    }
    speaker.Say("sample", sample);
    summary["sample"] = sample;
  }
  if (options.eval_only) {
    speaker.Result(summary, line);
    return absl::OkStatus();
  }

  // Of several plans, the one that takes most.
  const runtime::Executor* fullest = executor.get();
  const auto peak_bytes = [](const runtime::Executor& e) {
    int64_t most = 0;
    for (const StageMemory& stage : e.program().memory.stages) most = std::max(most, stage.peak_bytes());
    return most;
  };
  for (const runtime::Executor* e : executors) {
    if (peak_bytes(*e) > peak_bytes(*fullest)) fullest = e;
  }
  std::vector<int64_t> measured = fullest->MeasuredPeakPerStage();
  if (group != nullptr) {
    ASSIGN_OR_RETURN(measured, group->Max(measured, "peak memory"));
  }
  if (!leads) return absl::OkStatus();
  std::vector<int64_t> planned;
  for (const StageMemory& stage : fullest->program().memory.stages) planned.push_back(stage.peak_bytes());
  std::string end = absl::StrFormat("%.0f s", absl::ToDoubleSeconds(absl::Now() - start));
  if (steps > 0)
    absl::StrAppend(&end, "   ", inspect::CountText(std::llround(result.tokens_per_second)), " tok/s");
  // The training is done: what it looked like is not worth its loss.
  if (!tracer.trace().ok()) {
    speaker.Say("note", absl::StrCat("no trace.json: ", tracer.trace().status().message()));
  } else if (const runtime::Trace& traced = *tracer.trace(); traced.num_events() > 0) {
    // The ranks of a CPU take turns on its cores; each has streams of its own on a GPU.
    const int64_t hosts = options.job == nullptr ? 1 : options.job->count() / options.job->local_count();
    const int64_t at_once = backend == kernels::Backend::kCuda
                                ? traced.ranks()
                                : hosts * std::max(1u, std::thread::hardware_concurrency());
    const StepShares shares = SharesOf(traced, static_cast<int>(at_once));
    absl::StrAppend(&end, "   step: ", SharesText(shares));
    for (int i = 0; i < runtime::kNumCategories; ++i) {
      summary["shares"][std::string(runtime::CategoryName(static_cast<runtime::Category>(i)))] =
          shares.share[i];
    }
    summary["hidden_communication"] = shares.communication.hidden();
    const std::string trace = runtime::ChromeTrace(traced);
    RETURN_IF_ERROR(WriteFile(JoinPath(dir, "trace.json"), trace));
    const absl::StatusOr<inspect::Timeline> measured =
        inspect::MeasuredTimeline(trace, program.module->mesh());
    if (measured.ok()) {
      RETURN_IF_ERROR(WriteFile(JoinPath(dir, "timeline_measured.svg"), inspect::TimelineSvg(*measured)));
    } else {
      speaker.Say("note", absl::StrCat("no timeline_measured.svg: ", measured.status().message()));
    }
  }
  if (steps > 0) absl::StrAppend(&end, "\n", PeakMemoryText(planned, measured));
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ListFolder(dir));
  absl::StrAppend(&end, "\n", dir, "/ ");
  for (const std::string& file : files)
    absl::StrAppend(&end, " ", file, IsFolder(JoinPath(dir, file)) ? "/" : "");
  absl::StrAppend(&end, "\nlook at it:  bazel run //tools:inspect -- --run=", dir);
  speaker.Break();
  speaker.Say("done", end);
  summary["tokens_per_second"] = result.tokens_per_second;
  summary["seconds"] = absl::ToDoubleSeconds(absl::Now() - start);
  summary["planned_peak_bytes"] = planned;
  summary["measured_peak_bytes"] = measured;
  summary["run_dir"] = dir;
  speaker.Result(summary, line);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunTraining(const RunConfig& config, const RunOptions& options, std::ostream& out) {
  auto meeting = std::make_unique<Meeting>();
  std::ostream silence(nullptr);
  const bool leads = options.job == nullptr || options.job->rank() == 0;
  const absl::Status status = Run(config, options, leads ? out : silence, *meeting);
  const bool begun = meeting->begun;
  if (!status.ok()) meeting.release();  // a rank that hangs may still use it
  if (options.job == nullptr) return status;
  if (status.ok()) return options.job->Finish();
  options.job->GiveUp(status);
  const bool said = !begun && options.job->RankZeroSays(status.message());
  return said ? absl::Status(status.code(), "") : status;
}

}  // namespace moe::train
