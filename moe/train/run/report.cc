#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/file.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/inspect/timeline.h"
#include "moe/runtime/trace.h"
#include "moe/train/run/generator.h"
#include "moe/train/run/run_state.h"

// The last phase of a run.

namespace moe::train {
namespace {

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

int64_t StepsRun(const RunState& run) { return run.result.last_step - run.result.first_step; }

// The held-out loss beside that of a simple model. `line` says it, also where there is no held-out text.
absl::Status Evaluate(RunState& run, RunSummary* summary, std::string* line) {
  *line = "no held-out text";
  int64_t held_out = 0;
  for (const int64_t length : run.lengths) held_out += run.data->held_out_samples(length);
  if (held_out == 0) return absl::OkStatus();
  const absl::StatusOr<double> evaluated = run.trainer->Evaluate();
  if (absl::IsCancelled(evaluated.status())) {
    const std::string& of = run.options.eval_only ? run.train.resume() : run.dir;
    run.speaker.Stopped(run.trainer->step(),
                        absl::StrCat("in the evaluation; repeat it with --eval_only --resume=", of));
    run.stopped = true;
    return absl::OkStatus();
  }
  if (!evaluated.ok()) return Explain(run, evaluated.status());
  const double loss = *evaluated;
  if (!std::isfinite(loss)) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the held-out loss after step %d is %g: the weights are not finite, or too large for "
                        "what the model computes. Resume from an earlier checkpoint with a lower --lr",
                        run.trainer->step(), loss));
  }
  const double bigram = BigramModel(run.data->train()).NatsPerByte(run.data->held_out());
  const double bits = 1 / std::log(2.0);
  *line = absl::StrFormat(
      "held-out loss %.3f (%.3f bits per byte)   smoothed bigram model of the same text: %.3f (%.3f)", loss,
      loss * bits, bigram, bigram * bits);
  run.speaker.Say("eval", *line);
  summary->held_out = RunSummary::HeldOut{loss, bigram};
  if (!run.folder) return absl::OkStatus();
  const std::string path = JoinPath(run.dir, "metrics.jsonl");
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  if (SplitMetrics(text, run.trainer->step()).evaluated) return absl::OkStatus();  // before it was resumed
  ASSIGN_OR_RETURN(MetricsWriter metrics, MetricsWriter::Open(path, run.trainer->step()));
  RETURN_IF_ERROR(metrics.WriteEvaluation(run.trainer->step(), loss));
  return metrics.Close();
}

// What the model writes. All processes give their part of the weights; one of them writes.
absl::Status Sample(RunState& run, RunSummary* summary) {
  if (run.options.voice == RunOptions::kQuiet) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::unique_ptr<Generator> generator, Generator::Create(run.config.model()));
  RETURN_IF_ERROR(generator->LoadFrom(*run.executors[0]));
  const std::string& prompt = run.options.prompt;
  std::string sample;
  for (uint64_t seed = 1; run.leads && seed <= 3; ++seed) {
    ASSIGN_OR_RETURN(const std::string text,
                     generator->Continue(prompt, {.tokens = 80, .temperature = 0.6, .seed = seed}));
    absl::StrAppend(&sample, sample.empty() ? "" : "\n", "\"", prompt, "\"  ->  \"", OneLine(text), "\"");
  }
  run.speaker.Say("sample", sample);
  summary->sample = sample;
  return absl::OkStatus();
}

std::vector<int64_t> PlannedPeak(const runtime::Executor& executor) {
  std::vector<int64_t> peak;
  for (const StageMemory& stage : executor.program().memory.stages) peak.push_back(stage.peak_bytes());
  return peak;
}

// Peak memory by stage, as planned and as measured on all processes; of several plans, of the one that takes
// most.
absl::Status MeasureMemory(const RunState& run, RunSummary::Training* training) {
  const runtime::Executor* fullest = run.executors[0];
  const auto most = [](const runtime::Executor& e) {
    const std::vector<int64_t> peak = PlannedPeak(e);
    return *std::max_element(peak.begin(), peak.end());
  };
  for (const runtime::Executor* e : run.executors) {
    if (most(*e) > most(*fullest)) fullest = e;
  }
  training->planned_peak_bytes = PlannedPeak(*fullest);
  training->measured_peak_bytes = fullest->MeasuredPeakPerStage();
  if (run.meeting.group == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(training->measured_peak_bytes,
                   run.meeting.group->Max(training->measured_peak_bytes, "peak memory"));
  return absl::OkStatus();
}

// Writes the trace and its picture, and says in `end` where the time of a step went. The training is done: a
// trace that failed is not worth its loss.
absl::Status WriteTrace(RunState& run, RunSummary::Training* training, std::string* end) {
  const absl::StatusOr<runtime::Trace>& recorded = run.tracer->trace();
  if (!recorded.ok()) {
    run.speaker.Say("note", absl::StrCat("no trace.json: ", recorded.status().message()));
    return absl::OkStatus();
  }
  if (recorded->num_events() == 0) return absl::OkStatus();
  // The ranks of a CPU take turns on its cores; each has streams of its own on a GPU.
  const comm::Job* job = run.options.job;
  const int64_t hosts = job == nullptr ? 1 : job->count() / job->local_count();
  const int64_t at_once = run.backend == kernels::Backend::kCuda
                              ? recorded->ranks()
                              : hosts * std::max(1u, std::thread::hardware_concurrency());
  const StepShares shares = SharesOf(*recorded, static_cast<int>(at_once));
  absl::StrAppend(end, "   step: ", SharesText(shares));
  for (int i = 0; i < runtime::kNumCategories; ++i) {
    training->shares.emplace_back(runtime::CategoryName(static_cast<runtime::Category>(i)), shares.share[i]);
  }
  training->hidden_communication = shares.communication.hidden();
  const std::string trace = runtime::ChromeTrace(*recorded);
  RETURN_IF_ERROR(WriteFile(JoinPath(run.dir, "trace.json"), trace));
  const absl::StatusOr<inspect::Timeline> measured = inspect::MeasuredTimeline(trace, run.module().mesh());
  if (!measured.ok()) {
    run.speaker.Say("note", absl::StrCat("no timeline_measured.svg: ", measured.status().message()));
    return absl::OkStatus();
  }
  return WriteFile(JoinPath(run.dir, "timeline_measured.svg"), inspect::TimelineSvg(*measured));
}

}  // namespace

absl::Status Report(RunState& run) {
  RunSummary summary;
  summary.step = run.trainer->step();
  std::string line;
  if (run.options.stop != nullptr) run.options.stop->EndsInOrder("again, at once");
  RETURN_IF_ERROR(Evaluate(run, &summary, &line));
  if (run.stopped) return absl::OkStatus();
  if (run.options.stop != nullptr) run.options.stop->EndsAtOnce("when all was trained and evaluated");
  RETURN_IF_ERROR(Sample(run, &summary));
  if (run.options.eval_only) {
    run.speaker.Result(summary, line);
    return absl::OkStatus();
  }
  RunSummary::Training training;
  RETURN_IF_ERROR(MeasureMemory(run, &training));
  if (!run.leads) return absl::OkStatus();
  std::string end = absl::StrFormat("%.0f s", absl::ToDoubleSeconds(absl::Now() - run.start));
  if (StepsRun(run) > 0) {
    absl::StrAppend(&end, "   ", CountText(std::llround(run.result.tokens_per_second)), " tok/s");
  }
  RETURN_IF_ERROR(WriteTrace(run, &training, &end));
  if (StepsRun(run) > 0) {
    absl::StrAppend(&end, "\n", PeakMemoryText(training.planned_peak_bytes, training.measured_peak_bytes));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ListFolder(run.dir));
  absl::StrAppend(&end, "\n", run.dir, "/ ");
  for (const std::string& file : files) {
    if (file[0] == '.') continue;
    absl::StrAppend(&end, " ", file, IsFolder(JoinPath(run.dir, file)) ? "/" : "");
  }
  absl::StrAppend(&end, "\nlook at it:  bazel run //tools:inspect -- --run=", run.dir);
  run.speaker.Break();
  run.speaker.Say("done", end);
  training.tokens_per_second = run.result.tokens_per_second;
  training.seconds = absl::ToDoubleSeconds(absl::Now() - run.start);
  training.run_dir = run.dir;
  summary.training = std::move(training);
  run.speaker.Result(summary, line);
  return absl::OkStatus();
}

}  // namespace moe::train
