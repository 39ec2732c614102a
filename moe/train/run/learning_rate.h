// The learning rate of a step: linear warm-up, then half a cosine down to a floor.
//
//   LearningRate({.peak = 1e-3, .floor = 1e-4, .warmup = 100, .total = 1000}, iteration)
//
// Iterations count from 1, those alone that changed the weights: the first one already does,
// iteration `warmup` has the peak, iteration `total` and all later ones the floor. (Loshchilov and Hutter
// 2017, eq. 5, without restarts.)
#pragma once

#include <cmath>
#include <cstdint>

namespace moe::train {

struct LearningRateSchedule {
  double peak = 1e-3;
  double floor = 0;
  int64_t warmup = 0;  // iterations
  int64_t total = 1;   // iterations, warm-up included
};

inline double LearningRate(const LearningRateSchedule& s, int64_t iteration) {
  if (iteration < s.warmup) return s.peak * static_cast<double>(iteration) / static_cast<double>(s.warmup);
  if (iteration >= s.total) return s.total > s.warmup ? s.floor : s.peak;
  const double done = static_cast<double>(iteration - s.warmup) / static_cast<double>(s.total - s.warmup);
  return s.floor + 0.5 * (s.peak - s.floor) * (1 + std::cos(std::acos(-1.0) * done));
}

}  // namespace moe::train
