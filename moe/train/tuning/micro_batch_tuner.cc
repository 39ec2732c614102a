#include "moe/train/tuning/micro_batch_tuner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace moe::train {

MicroBatchTuner::MicroBatchTuner(std::vector<Plan> plans, int first, int64_t interval)
    : plans_(std::move(plans)),
      interval_(interval),
      plan_(first),
      kept_(first),
      seconds_(plans_.size()),
      predicted_(plans_.size()) {
  if (plans_.size() > 1) StartRound();
}

void MicroBatchTuner::StartRound() {
  kept_ = trial_ = plan_;
  for (auto& s : seconds_) s.clear();
  costs_ = MicroBatchCosts();
  predicted_.assign(plans_.size(), {});
  steps_ = 0;
}

double MicroBatchTuner::Median(int plan) const {
  std::vector<double> s = seconds_[plan];
  if (s.empty()) return 0;
  std::nth_element(s.begin(), s.begin() + s.size() / 2, s.end());
  return s[s.size() / 2];
}

StepPrediction MicroBatchTuner::Predicted(int plan) const { return predicted_[plan]; }

void MicroBatchTuner::Predict() {
  if (!costs_.fitted()) return;
  // What the model leaves out, the executor's own time above all, it leaves out alike in all plans.
  double ratio = 0, measured = 0;
  for (size_t p = 0; p < plans_.size(); ++p) {
    predicted_[p] = plans_[p].play(costs_.At(plans_[p].micro_batch_size));
    if (seconds_[p].empty() || predicted_[p].seconds <= 0) continue;
    ratio += Median(static_cast<int>(p)) / predicted_[p].seconds;
    measured += 1;
  }
  if (measured == 0) return;
  for (StepPrediction& p : predicted_) p.seconds *= ratio / measured;
}

int MicroBatchTuner::NextTrial() const {
  const auto distance = [&](size_t p) {
    return std::abs(std::log(static_cast<double>(plans_[p].micro_batch_size) /
                             static_cast<double>(plans_[kept_].micro_batch_size)));
  };
  double best = std::numeric_limits<double>::infinity();
  int run = 0;
  for (size_t p = 0; p < plans_.size(); ++p) {
    if (seconds_[p].empty()) continue;
    best = std::min(best, Median(static_cast<int>(p)));
    ++run;
  }
  int next = -1;
  for (size_t p = 0; p < plans_.size(); ++p) {
    if (!seconds_[p].empty()) continue;
    if (run == 1) {
      if (next < 0 || distance(p) >= distance(next)) next = static_cast<int>(p);
    } else if (predicted_[p].seconds <= (1 + kDoubt) * best &&
               (next < 0 || predicted_[p].seconds < predicted_[next].seconds)) {
      next = static_cast<int>(p);
    }
  }
  return next;
}

bool MicroBatchTuner::Record(double seconds, const StepTimes& times) {
  if (!measuring()) {
    if (plans_.size() > 1 && interval_ > 0 && ++held_ >= interval_) StartRound();
    return false;
  }
  if (meters()) costs_.Add(plans_[trial_].micro_batch_size, times);
  if (++steps_ > kWarmUp + kMetered) seconds_[trial_].push_back(seconds);
  if (steps_ < kWarmUp + kMetered + kMeasured) return false;
  steps_ = 0;
  Predict();
  if ((trial_ = NextTrial()) >= 0) {
    plan_ = trial_;
    return false;
  }
  held_ = 0;
  plan_ = kept_;
  for (int p = 0; p < static_cast<int>(plans_.size()); ++p) {
    if (p == kept_ || seconds_[p].empty()) continue;
    const double bar = plan_ == kept_ ? (1 - kMargin) * Median(kept_) : Median(plan_);
    if (Median(p) < bar) plan_ = p;
  }
  return true;
}

std::string MicroBatchTuner::Describe() const {
  std::vector<int> by_size(plans_.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::sort(by_size.begin(), by_size.end(),
            [&](int a, int b) { return plans_[a].micro_batch_size < plans_[b].micro_batch_size; });
  std::vector<std::string> sizes;
  for (const int p : by_size) {
    const StepPrediction predicted = Predicted(p);
    const double ms = 1e3 * predicted.seconds, bubble = 100 * predicted.bubble;
    const int64_t size = plans_[p].micro_batch_size;
    sizes.push_back(seconds_[p].empty()
                        ? absl::StrFormat("%d: %.1f ms predicted (bubble %.0f%%), not run", size, ms, bubble)
                        : absl::StrFormat("%d: %.1f ms (%.1f predicted, bubble %.0f%%)%s", size,
                                          1e3 * Median(p), ms, bubble, p == plan_ ? ", kept" : ""));
  }
  return absl::StrCat("micro_batch_size ", absl::StrJoin(sizes, "; "), "\n", costs_.Describe());
}

}  // namespace moe::train
