#include "moe/train/micro_batch_tuner.h"

#include <algorithm>

namespace moe {

MicroBatchTuner::MicroBatchTuner(int plans, int first, int64_t interval)
    : plans_(plans), interval_(interval), plan_(first), kept_(first), seconds_(plans) {
  if (plans_ > 1) StartRound();
}

void MicroBatchTuner::StartRound() {
  kept_ = plan_;
  for (auto& s : seconds_) s.clear();
  trial_ = plan_ = 0;
  steps_ = 0;
}

double MicroBatchTuner::Median(int plan) const {
  std::vector<double> s = seconds_[plan];
  if (s.empty()) return 0;
  std::nth_element(s.begin(), s.begin() + s.size() / 2, s.end());
  return s[s.size() / 2];
}

bool MicroBatchTuner::Record(double seconds) {
  if (!measuring()) {
    if (plans_ > 1 && interval_ > 0 && ++held_ >= interval_) StartRound();
    return false;
  }
  if (++steps_ > kWarmUp) seconds_[trial_].push_back(seconds);
  if (steps_ < kWarmUp + kMeasured) return false;
  steps_ = 0;
  if (++trial_ < plans_) {
    plan_ = trial_;
    return false;
  }
  trial_ = -1;
  held_ = 0;
  plan_ = kept_;
  for (int p = 0; p < plans_; ++p) {
    const double bar = plan_ == kept_ ? (1 - kMargin) * Median(kept_) : Median(plan_);
    if (p != kept_ && Median(p) < bar) plan_ = p;
  }
  return true;
}

}  // namespace moe
