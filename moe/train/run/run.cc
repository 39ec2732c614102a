#include "moe/train/run/run.h"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/cost/targets.h"
#include "moe/device/device.h"
#include "moe/inspect/graph_svg.h"
#include "moe/inspect/timeline.h"
#include "moe/model/config.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pipeline.h"
#include "moe/plan/compile.h"
#include "moe/runtime/local.h"
#include "moe/train/checkpoint/checkpoint.h"
#include "moe/train/checkpoint/session_state.h"
#include "moe/train/config/validate.h"
#include "moe/train/run/agreement.h"
#include "moe/train/run/failure.h"
#include "moe/train/run/history.h"
#include "moe/train/run/resume_check.h"
#include "moe/train/run/resume_point.h"
#include "moe/train/run/run_state.h"

namespace moe::train {
namespace {

// Names and syntax of the passes to run and to skip.
absl::Status CheckPasses(const RunOptions& options) {
  ASSIGN_OR_RETURN(std::vector<passes::PipelineStep> steps, passes::ParsePipeline(options.passes));
  for (const std::string& name : options.disable_passes) steps.push_back({name, {}});
  for (const passes::PipelineStep& step : steps) {
    RETURN_IF_ERROR(passes::FindPass(passes::Passes(), step.pass).status());
  }
  return absl::OkStatus();
}

// All processes train on the same, or none does.
absl::Status CompareProcesses(const RunState& run) {
  const RunOptions& options = run.options;
  if (options.job == nullptr) return absl::OkStatus();
  std::vector<Fact> facts = {ProgramFact(),
                             {"training text", run.data->Fingerprint(),
                              absl::StrCat(run.train.data_path(), " (", run.data->Fingerprint(), ")")},
                             {"vocabulary of the tokenizer", absl::StrCat(run.data->vocab_size()), ""}};
  ASSIGN_OR_RETURN(facts.emplace_back(), CheckpointFact(run.from));
  for (Fact& fact : ConfigFacts(run.config)) facts.push_back(std::move(fact));
  facts.push_back({"--passes", options.passes, ""});
  facts.push_back({"--disable_passes", absl::StrJoin(options.disable_passes, ","), ""});
  facts.push_back({"--eval_only", options.eval_only ? "true" : "false", ""});
  facts.push_back({"--cuda_graphs", options.cuda_graphs ? "true" : "false", ""});
  facts.push_back({"--device_timeout", absl::StrCat(options.device_timeout), ""});
  return CompareWithOthers(options.job, facts);
}

// The text, cut into samples of the run's lengths.
absl::Status LoadData(RunState& run) {
  const TextOptions text = {.path = run.train.data_path(),
                            .held_out = run.train.held_out_fraction(),
                            .seq_length = run.lengths[0],
                            .seed = run.train.seed()};
  if (run.by_lines()) {
    ASSIGN_OR_RETURN(run.data, LineDataset::Load(text, run.lengths));
  } else {
    ASSIGN_OR_RETURN(run.data, TextDataset::Load(text));
  }
  return absl::OkStatus();
}

// "seq128_mb4"
std::string PlanName(const RunConfig& config) {
  return absl::StrCat("seq", config.model().seq_length(), "_mb", config.train().micro_batch_size());
}

// The folder of the run: the named one, that of what is resumed, or a new one. An earlier run in it is continued
// or left alone, never mixed with.
absl::StatusOr<RunFolder> ClaimFolder(const TrainConfig& train) {
  const std::string continued = ContinuedRun(train);
  const std::string dir = train.run_dir().empty() ? continued : train.run_dir();
  if (dir.empty()) {
    return RunFolder::ClaimNew(
        JoinPath("runs", absl::FormatTime("%Y-%m-%d-%H%M%S", absl::Now(), absl::LocalTimeZone())));
  }
  ASSIGN_OR_RETURN(RunFolder folder, RunFolder::Claim(dir));
  if (continued.empty() && HoldsRun(dir)) {
    return absl::AlreadyExistsError(absl::StrCat("run directory ", dir,
                                                 " holds a run already; continue it with --resume=", dir,
                                                 " or choose another --run_dir"));
  }
  return folder;
}

// The checkpoint to start from, in full.
absl::Status CheckFrom(const RunState& run) {
  if (run.from.empty()) {
    if (!run.options.eval_only) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat(run.train.resume(), " has no checkpoint yet to evaluate"));
  }
  // What differs is said before all bytes are read.
  if (const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(run.from); opened.ok()) {
    const CheckpointMeta& saved = (*opened)->meta();
    RETURN_IF_ERROR(Annotate(run.options.eval_only
                                 ? CheckSameModel(saved.model_config, run.config.model())
                                 : CheckResume(saved, run.config, run.data->Fingerprint(), /*planned=*/false),
                             run.from));
    ASSIGN_OR_RETURN(const std::unique_ptr<Module> module, BuildLogical(run.config));
    RETURN_IF_ERROR((*opened)->CheckTensors(PersistentTensors(*module), {"adam."}));
  }
  return OpenWhole(run.from).status();
}

// What the run is, for whoever finds the folder.
absl::Status WriteConfig(const RunState& run) {
  return run.folder ? WriteRunConfig(run.dir, run.config) : absl::OkStatus();
}

// Check: all that can be refused before anything is compiled; then the run directory, and what the run will
// be.
absl::Status Check(RunState& run) {
  const RunOptions& options = run.options;
  RETURN_IF_ERROR(CheckRun(run.config, options));
  if (run.leads && !options.eval_only) {
    run.continues = !ContinuedRun(run.train).empty();
    ASSIGN_OR_RETURN(RunFolder folder, ClaimFolder(run.train));
    run.folder.emplace(std::move(folder));
    run.dir = run.folder->path();
  }
  ASSIGN_OR_RETURN(run.from, FindStartOf(run.train));
  if (TargetOf(run.config).device == "cuda") {
    RETURN_IF_ERROR(Annotate(device::LoadBackend(device::DeviceKind::kCuda), "--device=cuda"));
    RETURN_IF_ERROR(Annotate(device::CheckDevices(device::DeviceKind::kCuda), "--device=cuda"));
  }
  ASSIGN_OR_RETURN(run.lengths, LengthsOf(run.config));
  RETURN_IF_ERROR(LoadData(run));
  const int64_t vocabulary = run.config.model().vocab_size(), tokens = run.data->vocab_size();
  if (vocabulary < tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size = ", vocabulary, " is less than the ", tokens,
                     " different tokens of a text read as bytes; it must be at least ", tokens));
  }
  RETURN_IF_ERROR(CheckFrom(run));
  RETURN_IF_ERROR(CompareProcesses(run));
  if (!options.eval_only) {
    if (options.job != nullptr) {
      ASSIGN_OR_RETURN(run.dir, options.job->Agree("run_dir", run.dir));
    }
    run.config.mutable_train()->set_run_dir(run.dir);
    if (run.folder) run.folder->Keep();
    // What is to be resumed stays as it is until the first step can begin.
    if (run.folder && !run.continues) {
      RETURN_IF_ERROR(NoteOrigin(run.dir, run.from));
      RETURN_IF_ERROR(WriteConfig(run));
    }
  }
  run.speaker.Say("model", model::DescribeModel(run.config.model()));
  run.speaker.Say("data", run.data->Describe());
  run.speaker.Say("mesh", DescribeStrategy(run.config));
  if (options.job != nullptr) {
    run.speaker.Say("", absl::StrCat("in ", options.job->count(), " processes, met at ",
                                     options.job->store()->Describe()));
  }
  const std::string warm_up = options.eval_only ? "" : WarmUpBeyondTheEnd(run.train);
  if (!warm_up.empty()) run.speaker.Say("note", warm_up);
  run.speaker.Break();
  return absl::OkStatus();
}

absl::Status WritePictures(const plan::Plan& plan, const std::string& dir, Speaker& speaker) {
  const inspect::Timeline planned = inspect::EstimatedTimeline(plan.program, plan.target);
  RETURN_IF_ERROR(WriteFile(JoinPath(dir, "timeline.svg"), inspect::TimelineSvg(planned)));
  const absl::Status drawn = inspect::WriteGraphSvg(plan.program, {}, JoinPath(dir, "graph.svg"));
  if (!drawn.ok()) speaker.Say("note", absl::StrCat("no graph.svg: ", drawn.message()));
  return absl::OkStatus();
}

// The plans in the run directory, with pictures: the main one in it, the others in folders of their own.
absl::Status WritePlans(RunState& run) {
  if (run.dir.empty() || !run.leads) return absl::OkStatus();
  for (const PlannedBucket& b : run.planned.buckets) {
    for (const PlannedStep& p : b.plans) {
      const bool is_main = &p == &run.main_plan();
      const std::string folder = is_main ? run.dir : JoinPath(JoinPath(run.dir, "plans"), PlanName(p.config));
      RETURN_IF_ERROR(MakeFolders(folder));
      RETURN_IF_ERROR(plan::SavePlan(p.compiled.plan, folder));
      RETURN_IF_ERROR(WritePictures(p.compiled.plan, folder, run.speaker));
    }
  }
  return absl::OkStatus();
}

// Plan: compiles the plans of the run, and follows them where memory did not allow what was asked for.
absl::Status Plan(RunState& run) {
  const RunOptions& options = run.options;
  plan::CompileOptions compile;
  compile.pipeline = options.passes;
  compile.passes.disable_passes = options.disable_passes;
  compile.passes.dump_pass_re = options.dump_pass_re;
  compile.passes.validate = options.validate;
  compile.target = TargetOf(run.config);
  compile.memory_limit = StrategyOf(run.config).memory_limit;
  ASSIGN_OR_RETURN(run.backend, runtime::BackendOf(compile.target));
  compile.workspace = runtime::WorkspaceHook(run.backend, StrategyOf(run.config).overload);
  std::string dump_to;
  if (run.leads) {
    dump_to = options.dump_to.empty() && !run.dir.empty() ? JoinPath(run.dir, "ir") : options.dump_to;
  }
  bool first_dump = true;
  ASSIGN_OR_RETURN(
      run.planned, PlanRun(run.config, compile, [&](const RunConfig& c, plan::CompileOptions* o) {
        // The other plans of a run go into folders of their own, by length and microbatch.
        o->passes.dump_to = first_dump || dump_to.empty() ? dump_to : JoinPath(dump_to, PlanName(c));
        first_dump = false;
      }));
  const PlannedStep& main_plan = run.main_plan();
  if (run.planned.buckets.size() != run.lengths.size() ||
      main_plan.config.model().seq_length() != run.lengths[0]) {
    // Memory did not allow the lengths that were asked for.
    run.lengths.clear();
    for (const PlannedBucket& b : run.planned.buckets) {
      run.lengths.push_back(b.plans[0].config.model().seq_length());
    }
    RETURN_IF_ERROR(LoadData(run));
  }
  const bool changed = !run.by_lines() && !run.planned.said.empty();
  if (changed) {
    run.config = main_plan.config;  // what was changed to fit is what the run is
    if (!run.continues) RETURN_IF_ERROR(WriteConfig(run));
  }
  for (const std::string& line : run.planned.said) run.speaker.Say("plan", line);
  if (changed) run.speaker.Say("mesh", DescribeStrategy(run.config));
  run.speaker.Say("compile", PassTable(main_plan.compiled.passes, main_plan.compiled.milliseconds));
  run.speaker.Break();
  return run.continues ? absl::OkStatus() : WritePlans(run);
}

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
  if (StrategyOf(config).precision == strategy::Precision::kAsModel) {
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

// Opens the devices of this process's ranks, and their ways to the others.
absl::Status MeetOnDevices(RunState& run, runtime::ExecutorOptions* executor) {
  const comm::Job* job = run.options.job;
  Meeting& meeting = run.meeting;
  comm::DeviceWorldsOptions wanted;
  wanted.kind =
      run.backend == kernels::Backend::kCuda ? device::DeviceKind::kCuda : device::DeviceKind::kHost;
  wanted.num_ranks = run.module().mesh().num_ranks();
  wanted.timeout = run.options.DeviceTimeout();
  wanted.connect_timeout = run.options.ConnectTimeout();
  if (job != nullptr) {
    wanted.processes = job->count(), wanted.process = job->rank();
    wanted.local_processes = job->local_count(), wanted.local_process = job->local_rank();
    wanted.store = run.options.job->store();
    wanted.host = meeting.group->worlds();
    wanted.pulse = meeting.group->pulse();
    executor->host = meeting.group->host();
  }
  ASSIGN_OR_RETURN(meeting.devices, comm::DeviceWorlds::Open(wanted));
  executor->worlds = meeting.devices.get();
  return absl::OkStatus();
}

// Joins the other processes of the job, which must have the same plans.
absl::Status MeetProcesses(RunState& run, runtime::ExecutorOptions* executor) {
  comm::Job* job = run.options.job;
  if (job == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(run.meeting.group,
                   ProcessGroup::Connect(job, run.module().mesh().num_ranks(), run.options.DeviceTimeout(),
                                         run.options.ConnectTimeout()));
  std::string plans;
  for (const PlannedBucket& b : run.planned.buckets) {
    for (const PlannedStep& p : b.plans) plans += plan::SerializePlan(p.compiled.plan);
  }
  RETURN_IF_ERROR(run.meeting.group->CheckSame("plan", plans));
  // The processes of a host share its cores.
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  executor->compute_threads = static_cast<int>(std::max<int64_t>(1, cores / job->local_count()));
  return absl::OkStatus();
}

// An executor for each plan, all in the memory of the main plan's, and what the trainer has to know of them.
absl::Status OpenExecutors(RunState& run, runtime::ExecutorOptions wanted) {
  for (const PlannedBucket& b : run.planned.buckets) {
    for (const PlannedStep& p : b.plans) wanted.room_for.push_back(&p.compiled.plan.program);
  }
  // What one process lacks ends all of them here, before they wait for it.
  ProcessGroup* group = run.meeting.group.get();
  const auto on_all = [&](const absl::Status& mine) { return group == nullptr ? mine : group->Agree(mine); };
  RETURN_IF_ERROR(
      on_all(Annotate(MeetOnDevices(run, &wanted), absl::StrCat("--device=", TargetOf(run.config).device))));
  absl::StatusOr<std::unique_ptr<runtime::Executor>> created =
      runtime::Executor::Create(run.main_plan().compiled.plan.program, wanted);
  RETURN_IF_ERROR(on_all(created.status()));
  run.owned.push_back(*std::move(created));
  wanted.room_for.clear();
  wanted.memory_of = run.owned[0].get();
  // What computes at once: the ranks of a GPU take turns, those of a CPU share its cores.
  const int64_t computing = run.backend == kernels::Backend::kCuda
                                ? device::CountDevices(device::DeviceKind::kCuda)
                                : std::max(1u, std::thread::hardware_concurrency());
  for (const PlannedBucket& b : run.planned.buckets) {
    StepBucket bucket;
    bucket.seq_length = b.plans[0].config.model().seq_length();
    bucket.global_batch = b.plans[0].config.train().global_batch_size();
    bucket.flops_per_step = b.flops_per_step;
    bucket.first_plan = b.first;
    for (const PlannedStep& p : b.plans) {
      runtime::Executor* runs = run.owned[0].get();
      if (&p != &run.main_plan()) {
        ASSIGN_OR_RETURN(run.owned.emplace_back(),
                         runtime::Executor::Create(p.compiled.plan.program, wanted));
        runs = run.owned.back().get();
      }
      run.meters.push_back(std::make_unique<ExecutorMeter>(runs, computing));
      bucket.plans.push_back({runs, StrategyOf(p.config).microbatches, p.config.train().micro_batch_size(),
                              run.meters.back().get()});
    }
    run.buckets.push_back(std::move(bucket));
  }
  for (const auto& e : run.owned) run.executors.push_back(e.get());
  return absl::OkStatus();
}

// Open: the ranks of this process on their devices, connected, with initial weights.
absl::Status Open(RunState& run) {
  runtime::ExecutorOptions wanted;
  wanted.backend = run.backend;
  wanted.graphs = run.options.cuda_graphs;
  wanted.tf32 = run.train.tf32();
  wanted.timeout = run.options.DeviceTimeout();
  if (run.options.stop != nullptr) wanted.stop = run.options.stop->flag();
  RETURN_IF_ERROR(MeetProcesses(run, &wanted));
  RETURN_IF_ERROR(OpenExecutors(run, wanted));
  runtime::Executor& executor = *run.executors[0];
  const bool cuda = run.backend == kernels::Backend::kCuda;
  if (cuda) {
    run.speaker.Say("device", absl::StrCat(DescribeDevices(executor), "\n", run.meeting.devices->Describe()));
  }
  const absl::StatusOr<double> peak = PeakFlops(run.options, run.config, executor);
  if (peak.ok()) {
    run.peak_flops = *peak;
    run.speaker.Say("peak", absl::StrFormat("%.5g TFLOP/s of a device, for MFU", *peak / 1e12));
  } else if (cuda) {
    run.speaker.Say("peak", absl::StrCat("no MFU: ", peak.status().message(),
                                         "; --peak_tflops gives the rate that MFU is a share of"));
  }
  RETURN_IF_ERROR(executor.InitializeState(run.train.seed()));
  if (ProcessGroup* group = run.meeting.group.get(); group != nullptr) {
    group->StartReporting([&run] { return RanLast(run.executors).Flight(); });
  }
  return absl::OkStatus();
}

// What the trainer calls back for.
TrainerOptions Hooks(RunState& run) {
  TrainerOptions hooks;
  hooks.run_dir = run.dir;
  hooks.writes = run.leads;
  hooks.stop = run.executors[0]->stop();
  hooks.devices = run.executors[0]->num_ranks();
  hooks.peak_flops = run.peak_flops;
  hooks.tuning_interval = run.train.micro_batch_interval();
  hooks.tuned = [&run](int b, const MicroBatchTuner& tuner) {
    const std::string length =
        run.buckets.size() > 1 ? absl::StrCat("length ", run.buckets[b].seq_length, ", ") : "";
    run.speaker.Say("tuned", absl::StrCat(length, tuner.Describe()));
  };
  hooks.progress = [&run](const StepMetrics& m) { run.speaker.Progress(m); };
  hooks.evaluated = [&run](int64_t step, double loss) { run.speaker.Evaluated(step, loss); };
  hooks.before_step = [&run](int64_t step) {
    for (runtime::Executor* e : run.executors) e->NameStep(step);
    run.tracer->Before(step);
  };
  hooks.after_step = [&run](int64_t step) { run.tracer->After(step); };
  return hooks;
}

// What the run changes by going on as it does, and its folder as the steps to come need it.
absl::Status Accept(RunState& run, const CheckpointMeta* saved) {
  if (saved != nullptr) {
    const std::vector<std::string> changes = ChangedSettings(*saved, run.config);
    if (!changes.empty()) run.speaker.Say("changed", absl::StrJoin(changes, "\n"));
    const std::string rate = ChangedLearningRate(*saved, run.config);
    if (!rate.empty()) run.speaker.Say("note", rate);
  }
  if (!run.folder) return absl::OkStatus();
  RETURN_IF_ERROR(RemoveRemains(run.dir));
  ASSIGN_OR_RETURN(const std::string aside, SetLaterAside(run.dir, run.continues ? run.trainer->step() : 0));
  if (!aside.empty()) run.speaker.Say("retired", aside);
  RETURN_IF_ERROR(run.continues ? WritePlans(run) : RemoveTree(JoinPath(run.dir, "metrics.jsonl")));
  return WriteConfig(run);
}

// Train: from the beginning or from a checkpoint, unless the run only evaluates one.
absl::Status Train(RunState& run) {
  const RunOptions& options = run.options;
  const int64_t steps = run.train.train_iters();
  std::unique_ptr<Checkpoint> saved;
  if (!run.from.empty()) {
    ASSIGN_OR_RETURN(saved, Checkpoint::Open(run.from));
  }
  run.tracer.emplace(run.executors, saved == nullptr ? 0 : saved->meta().step, steps);
  run.trainer.emplace(run.config, run.module(), run.buckets, run.data.get(), Hooks(run));
  Trainer& trainer = *run.trainer;
  run.meeting.begun = true;
  if (saved != nullptr) {
    RETURN_IF_ERROR(options.eval_only ? trainer.LoadWeights(run.from) : trainer.Resume(run.from));
    run.speaker.Say(options.eval_only ? "weights" : "resume",
                    absl::StrCat("step ", trainer.step(), " of ", run.from));
  } else if (!run.train.resume().empty()) {
    run.speaker.Say("resume",
                    absl::StrCat(run.train.resume(), " has no checkpoint yet: it begins with step 1"));
  }
  if (!options.eval_only) RETURN_IF_ERROR(Accept(run, saved == nullptr ? nullptr : &saved->meta()));
  if (options.eval_only) return absl::OkStatus();
  if (trainer.step() >= steps) {
    run.speaker.Say("train", absl::StrCat("nothing left: step ", trainer.step(), " of ", steps,
                                          " is done; raise --train_iters to go on"));
  } else {
    run.speaker.Say("train", absl::StrCat(steps - trainer.step(), " steps"));
  }
  if (options.stop != nullptr) {
    options.stop->EndsInOrder(
        absl::StrCat("again, at once; go on from the last checkpoint with --resume=", run.dir));
  }
  absl::StatusOr<TrainResult> trained = trainer.Train();
  if (!trained.ok()) return Explain(run, trained.status());
  run.result = *std::move(trained);
  run.speaker.Break();
  if (run.result.interrupted) {
    run.speaker.Stopped(run.result.last_step,
                        absl::StrCat("after step ", run.result.last_step, "; go on with --resume=", run.dir));
    run.stopped = true;
  }
  return absl::OkStatus();
}

absl::Status Run(RunState& run) {
  RETURN_IF_ERROR(Check(run));
  RETURN_IF_ERROR(Plan(run));
  RETURN_IF_ERROR(Open(run));
  RETURN_IF_ERROR(Train(run));
  return run.stopped ? absl::OkStatus() : Report(run);
}

}  // namespace

absl::Duration RunOptions::DeviceTimeout() const { return absl::Seconds(device_timeout); }

absl::Duration RunOptions::ConnectTimeout() const {
  return connect_timeout > 0 ? absl::Seconds(connect_timeout) : std::max(DeviceTimeout(), absl::Seconds(60));
}

absl::Status CheckTimeouts(const RunOptions& options) {
  if (!(options.device_timeout > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device_timeout=", options.device_timeout, "; legal are seconds above 0"));
  }
  if (!(options.connect_timeout >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--connect_timeout=", options.connect_timeout, "; legal are seconds 0 or above"));
  }
  return absl::OkStatus();
}

absl::Status CheckRun(const RunConfig& config, const RunOptions& options) {
  RETURN_IF_ERROR(CheckTimeouts(options));
  RETURN_IF_ERROR(ValidateRunConfig(config, CompilesInFact));
  RETURN_IF_ERROR(CheckPasses(options));
  if (config.train().adaptive_micro_batch_size() && options.job != nullptr) {
    return absl::InvalidArgumentError(
        "adaptive_micro_batch_size needs all ranks in one process: several processes would each decide by "
        "their own times");
  }
  if (options.eval_only && config.train().resume().empty()) {
    return absl::InvalidArgumentError("--eval_only needs the checkpoint to evaluate; add --resume=DIR");
  }
  if (options.eval_only && config.train().held_out_fraction() == 0) {
    return absl::InvalidArgumentError(
        "--eval_only with held_out_fraction = 0, which leaves nothing to evaluate; it must be above 0");
  }
  if (!(options.peak_tflops >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("peak_tflops = ", options.peak_tflops,
                     "; it must be positive, or 0 for the rate that is known of the GPU"));
  }
  return absl::OkStatus();
}

absl::Status Explain(RunState& run, const absl::Status& status) {
  if (run.options.job != nullptr) run.options.job->GiveUp(status);  // the others may not know yet
  return ExplainFailure(status, RanLast(run.executors), run.meeting.group.get(), run.module().mesh(), run.dir,
                        run.trainer->last_checkpoint());
}

absl::Status RunTraining(const RunConfig& config, const RunOptions& options, std::ostream& out) {
  auto meeting = std::make_unique<Meeting>();
  std::ostream silence(nullptr);
  const bool leads = options.job == nullptr || options.job->rank() == 0;
  absl::Status status;
  bool stopped = false;
  {
    RunState run(config, options, leads ? out : silence, *meeting);
    status = Run(run);
    stopped = run.stopped;
  }
  const bool begun = meeting->begun;
  if (!status.ok()) meeting.release();  // a rank that hangs may still use it
  if (status.ok()) {
    if (options.job != nullptr) RETURN_IF_ERROR(options.job->Finish());
    return stopped ? absl::CancelledError("") : absl::OkStatus();
  }
  if (options.job == nullptr) return status;
  options.job->GiveUp(status);
  const bool said = !begun && options.job->RankZeroSays(status.message());
  return said ? absl::Status(status.code(), "") : status;
}

}  // namespace moe::train
