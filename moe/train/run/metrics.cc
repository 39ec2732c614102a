#include "moe/train/run/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/json_reader.h"
#include "moe/base/status.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

std::string Thousands(double value) {
  if (!std::isfinite(value)) return "?";
  std::string digits = absl::StrFormat("%.0f", value);
  for (int at = static_cast<int>(digits.size()) - 3; at > (digits[0] == '-'); at -= 3)
    digits.insert(at, 1, ',');
  return digits;
}

// Shortest text that is the same double; keys keep the order in which they are added.
class JsonLine {
 public:
  JsonLine& Add(absl::string_view key, absl::string_view text) {
    parts_.push_back(absl::StrCat("\"", key, "\":\"", text, "\""));
    return *this;
  }
  JsonLine& Add(absl::string_view key, int64_t value) {
    parts_.push_back(absl::StrCat("\"", key, "\":", value));
    return *this;
  }
  JsonLine& Add(absl::string_view key, double value) {
    parts_.push_back(absl::StrCat("\"", key, "\":", nlohmann::json(value).dump()));  // "null" unless finite
    return *this;
  }
  std::string Text() const { return absl::StrCat("{", absl::StrJoin(parts_, ","), "}"); }

 private:
  std::vector<std::string> parts_;
};

}  // namespace

std::string ShowDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const int64_t s = static_cast<int64_t>(seconds + 0.5);
  return s < 3600 ? absl::StrFormat("%02d:%02d", s / 60, s % 60)
                  : absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
}

std::string ProgressLine(const StepMetrics& m, absl::Time now, absl::TimeZone zone) {
  std::string line = absl::StrFormat(
      " [%s] iteration %8d/%8d | consumed samples: %12d | elapsed time per iteration (ms): %.1f |"
      " throughput per GPU (TFLOP/s/GPU): %.4g | learning rate: %.6E | global batch size: %5d |"
      " lm loss: %.6E |%s grad norm: %.3f | number of skipped iterations: %3d |"
      " number of nan iterations: %3d |",
      absl::FormatTime("%Y-%m-%d %H:%M:%S", now, zone), m.iteration, m.train_iters, m.consumed_samples,
      m.milliseconds, m.tflops_per_device, m.learning_rate, m.global_batch_size, m.lm_loss,
      m.loss_scale > 0 ? absl::StrFormat(" loss scale: %.1f |", m.loss_scale) : "", m.grad_norm,
      m.skipped_iterations, m.nan_iterations);
  const double left = static_cast<double>(m.train_iters - m.iteration) * m.milliseconds / 1000;
  absl::StrAppend(&line, " tok/s: ", Thousands(m.tokens_per_second), " | ETA: ", ShowDuration(left), " |");
  if (m.seq_length > 0) absl::StrAppend(&line, " sequence length: ", m.seq_length, " |");
  if (m.micro_batch_size > 0) absl::StrAppend(&line, " micro batch size: ", m.micro_batch_size, " |");
  if (m.mfu > 0) absl::StrAppendFormat(&line, " MFU: %.1f%% |", 100 * m.mfu);
  if (m.has_experts) {
    absl::StrAppendFormat(&line, " load max/mean: %.2f | dropped: %.1f%% | aux loss: %.3f |",
                          m.load_max_over_mean, 100 * m.dropped, m.aux_loss);
  }
  return line;
}

std::string MetricsJson(const StepMetrics& m) {
  JsonLine line;
  line.Add("kind", "train")
      .Add("iteration", m.iteration)
      .Add("consumed_samples", m.consumed_samples)
      .Add("lm_loss", m.lm_loss)
      .Add("grad_norm", m.grad_norm)
      .Add("learning_rate", m.learning_rate)
      .Add("milliseconds", m.milliseconds)
      .Add("tokens_per_second", m.tokens_per_second)
      .Add("tflops_per_device", m.tflops_per_device)
      .Add("skipped_iterations", m.skipped_iterations)
      .Add("nan_iterations", m.nan_iterations);
  if (m.seq_length > 0) line.Add("seq_length", m.seq_length);
  if (m.micro_batch_size > 0) line.Add("micro_batch_size", m.micro_batch_size);
  if (m.mfu > 0) line.Add("mfu", m.mfu);
  if (m.loss_scale > 0) line.Add("loss_scale", m.loss_scale);
  if (m.has_experts) {
    line.Add("load_max_over_mean", m.load_max_over_mean)
        .Add("dropped", m.dropped)
        .Add("aux_loss", m.aux_loss)
        .Add("z_loss", m.z_loss);
  }
  return line.Text();
}

std::string EvaluationJson(int64_t iteration, double held_out_loss) {
  JsonLine line;
  line.Add("kind", "eval")
      .Add("iteration", iteration)
      .Add("held_out_loss", held_out_loss)
      .Add("bits_per_byte", held_out_loss / std::log(2.0));
  return line.Text();
}

std::string SummaryJson(const RunSummary& summary) {
  nlohmann::ordered_json json = {{"kind", "summary"}, {"step", summary.step}};
  if (summary.held_out) {
    json["held_out_loss"] = summary.held_out->loss;
    json["bits_per_byte"] = summary.held_out->loss / std::log(2.0);
    json["bigram_loss"] = summary.held_out->bigram_loss;
  }
  if (summary.sample) json["sample"] = *summary.sample;
  if (summary.training) {
    const RunSummary::Training& t = *summary.training;
    for (const auto& [kind, share] : t.shares) json["shares"][kind] = share;
    if (!t.shares.empty()) json["hidden_communication"] = t.hidden_communication;
    json["tokens_per_second"] = t.tokens_per_second;
    json["seconds"] = t.seconds;
    json["planned_peak_bytes"] = t.planned_peak_bytes;
    json["measured_peak_bytes"] = t.measured_peak_bytes;
    json["run_dir"] = t.run_dir;
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

MetricsLines SplitMetrics(absl::string_view text, int64_t iteration) {
  MetricsLines lines;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    int64_t at = 0;
    std::string kind;
    JsonReader json(line, kMetricsLineLimits);
    JsonFields fields(&json);
    fields.Int("iteration", 0, std::numeric_limits<int64_t>::max(), &at);
    fields.Optional().Text("kind", kMetricsLineLimits.string_bytes, &kind);
    if (!fields.Read().ok() || !json.End().ok()) continue;
    absl::StrAppend(at <= iteration ? &lines.kept : &lines.later, line, "\n");
    lines.evaluated = lines.evaluated || (at == iteration && kind == "eval");
  }
  return lines;
}

std::string StoppedJson(int64_t step, absl::string_view text) {
  JsonLine line;
  line.Add("kind", "stopped").Add("step", step).Add("text", text);
  return line.Text();
}

absl::StatusOr<MetricsWriter> MetricsWriter::Open(const std::string& path, int64_t resume_after) {
  std::string kept;
  if (resume_after > 0 && FileExists(path)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxMetricsBytes));
    kept = SplitMetrics(text, resume_after).kept;
  }
  RETURN_IF_ERROR(WriteFile(path, kept));
  ASSIGN_OR_RETURN(FileWriter file, FileWriter::Create(path, /*append=*/true));
  return MetricsWriter(std::move(file));
}

}  // namespace moe::train
