// What a run reports: JSON lines for machines, and the progress line that the field's log parsers read.
//
//   ASSIGN_OR_RETURN(MetricsWriter metrics, MetricsWriter::Open("runs/7/metrics.jsonl", /*resume_after=*/0));
//   RETURN_IF_ERROR(metrics.Write(step));
//   std::cout << ProgressLine(step, absl::Now()) << std::endl;
//
// One line per step, written at once, so a run that dies leaves whole lines. Single-threaded; rank 0 alone
// reports.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "moe/base/file.h"
#include "moe/base/json_reader.h"

namespace moe::train {

struct StepMetrics {
  int64_t iteration = 0;  // from 1
  int64_t train_iters = 0;
  int64_t consumed_samples = 0;  // after this step
  double milliseconds = 0;       // per iteration, mean since the last line
  double tflops_per_device = 0;  // model flops; 0: unknown
  double mfu = 0;                // share of the devices' peak; 0: unknown, and then not shown
  double learning_rate = 0;
  int64_t global_batch_size = 0;
  int64_t seq_length = 0;        // shown only where a run has several lengths; 0: it does not
  int64_t micro_batch_size = 0;  // shown only where it changes; 0: it does not
  double lm_loss = 0;
  double grad_norm = 0;
  double loss_scale = 0;           // 0: none, and then not shown
  int64_t skipped_iterations = 0;  // so far: something was not finite, or out of bounds, and weights stayed
  int64_t nan_iterations = 0;
  double tokens_per_second = 0;
  bool has_experts = false;       // the four below are shown only then
  double load_max_over_mean = 1;  // of tokens per expert, the worst layer
  double dropped = 0;             // share of (token, expert) choices without a slot
  double aux_loss = 0;            // mean over layers, without its coefficient: 1 is balanced
  double z_loss = 0;
};

// What metrics.jsonl may have when a run goes on in it. A line that is not like this is left out.
inline constexpr int64_t kMaxMetricsBytes = int64_t{1} << 32;
inline constexpr JsonLimits kMetricsLineLimits = {
    .bytes = 1 << 20, .values = 1 << 16, .string_bytes = 1 << 20, .depth = 8};

// " [2025-01-01 00:00:00] iteration       10/     100 | consumed samples: ... | ... |", local time.
std::string ProgressLine(const StepMetrics& m, absl::Time now, absl::TimeZone zone = absl::LocalTimeZone());

// {"kind":"train","iteration":10,...}; a value that is not finite is null.
std::string MetricsJson(const StepMetrics& m);
// {"kind":"eval","iteration":100,"held_out_loss":1.9,"bits_per_byte":2.7}
std::string EvaluationJson(int64_t iteration, double held_out_loss);

// How a run ended.
struct RunSummary {
  int64_t step = 0;
  struct HeldOut {
    double loss = 0, bigram_loss = 0;  // nats per token
  };
  std::optional<HeldOut> held_out;    // none without held-out text
  std::optional<std::string> sample;  // none of a quiet run
  struct Training {
    std::vector<std::pair<std::string, double>> shares;  // of a step's time, by kind; empty without a trace
    double hidden_communication = 0;  // share of the exchanges' time; shown with the shares
    double tokens_per_second = 0, seconds = 0;
    std::vector<int64_t> planned_peak_bytes, measured_peak_bytes;  // by stage
    std::string run_dir;
  };
  std::optional<Training> training;  // none of a mere evaluation
};
// {"kind":"summary","step":100,"held_out_loss":1.9,...}; bytes that are not UTF-8 are replaced.
std::string SummaryJson(const RunSummary& summary);
// {"kind":"stopped","step":12,"text":"after step 12; go on with --resume=runs/7"}
std::string StoppedJson(int64_t step, absl::string_view text);

// Lines of metrics.jsonl up to an iteration, and of later ones; what is no whole line of either is dropped.
struct MetricsLines {
  std::string kept, later;
  bool evaluated = false;  // at the iteration itself
};
MetricsLines SplitMetrics(absl::string_view text, int64_t iteration);

class MetricsWriter {
 public:
  // Appends to the file; lines of iterations after `resume_after`, left over by a run that went further than
  // its last checkpoint, are removed first. 0: starts the file anew.
  static absl::StatusOr<MetricsWriter> Open(const std::string& path, int64_t resume_after);
  absl::Status Write(const StepMetrics& m) { return WriteLine(MetricsJson(m)); }
  absl::Status WriteEvaluation(int64_t iteration, double held_out_loss) {
    return WriteLine(EvaluationJson(iteration, held_out_loss));
  }
  absl::Status Close() { return file_.Close(); }

 private:
  explicit MetricsWriter(FileWriter file) : file_(std::move(file)) {}
  absl::Status WriteLine(const std::string& json) { return file_.Append(json + "\n"); }
  FileWriter file_;
};

// "01:31", "2:03:04"; for an ETA.
std::string ShowDuration(double seconds);

}  // namespace moe::train
