// What a run says while it goes on: lines for people, JSON lines for programs, or next to nothing.
//
//   Speaker speaker(std::cout, RunOptions::kText);
//   speaker.Say("data", dataset.Describe());
//   speaker.Progress(metrics);
//
// The stream outlives the speaker. One thread at a time.
#pragma once

#include <ostream>

#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "moe/train/run/metrics.h"
#include "moe/train/run/run.h"
#include "moe/train/run/summary.h"

namespace moe::train {

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
  // A run that was asked to stop says so in every voice. `text`: where, and how to go on.
  void Stopped(int64_t step, absl::string_view text) {
    if (voice_ == RunOptions::kJson) {
      out_ << StoppedJson(step, text) << std::endl;
    } else {
      out_ << SummaryLine("stopped", text) << std::flush;
    }
  }
  // The end: all that remains of a run that is quiet, and the summary of one that speaks JSON.
  void Result(const RunSummary& summary, absl::string_view line) {
    if (voice_ == RunOptions::kQuiet) out_ << line << std::endl;
    if (voice_ == RunOptions::kJson) out_ << SummaryJson(summary) << std::endl;
  }

 private:
  std::ostream& out_;
  const RunOptions::Voice voice_;
};

}  // namespace moe::train
