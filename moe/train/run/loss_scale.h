// LossScale: the factor by which losses are multiplied in f16, so that small gradients do not vanish
// (Micikevicius et al. 2018, section 3.2). It grows while steps are finite and shrinks when they are not.
//
//   LossScale scale({.initial = 65536, .window = 1000});
//   inputs.scalars["loss_scale"] = scale.value();
//   scale.After(finite);
//
// After `window` finite steps in a row it doubles. After `hysteresis` non-finite ones (not necessarily in a
// row, finite steps in between restore none until it grows) it halves at each, but not below `least`. Those
// steps change no weights: the compiled update sees to that. A value; not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moe::train {

class LossScale {
 public:
  struct Options {
    double initial = 65536, least = 1;
    int64_t window = 1000;
    int64_t hysteresis = 2;
  };
  // All that a checkpoint needs.
  struct State {
    double value = 0;
    int64_t finite_steps = 0;  // in a row
    int64_t tolerance = 0;     // non-finite steps until it shrinks
    friend bool operator==(const State&, const State&) = default;
  };

  explicit LossScale(const Options& options)
      : options_(options), state_{options.initial, 0, options.hysteresis} {}

  double value() const { return state_.value; }
  const State& state() const { return state_; }
  bool CanShrink() const { return state_.value > options_.least; }
  void Restore(const State& state) { state_ = state; }

  void After(bool finite) {
    if (finite) {
      if (++state_.finite_steps < options_.window) return;
      state_ = {2 * state_.value, 0, options_.hysteresis};
    } else {
      state_.finite_steps = 0;
      state_.tolerance = std::max<int64_t>(0, state_.tolerance - 1);
      if (state_.tolerance == 0) state_.value = std::max(options_.least, state_.value / 2);
    }
  }

 private:
  Options options_;
  State state_;
};

}  // namespace moe::train
