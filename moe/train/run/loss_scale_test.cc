#include "moe/train/run/loss_scale.h"

#include <gtest/gtest.h>

namespace moe::train {
namespace {

TEST(LossScaleTest, GrowsAfterAWindowOfFiniteSteps) {
  LossScale s({.initial = 1024, .window = 3});
  for (int i = 0; i < 2; ++i) s.After(true);
  EXPECT_EQ(s.value(), 1024);
  s.After(true);
  EXPECT_EQ(s.value(), 2048);
  s.After(true);
  s.After(false);  // the row is broken
  s.After(true);
  s.After(true);
  EXPECT_EQ(s.value(), 2048);
  s.After(true);
  EXPECT_EQ(s.value(), 4096);
}

TEST(LossScaleTest, ShrinksAtEachOverflowBeyondTheTolerance) {
  LossScale s({.initial = 16, .least = 4, .window = 100, .hysteresis = 2});
  s.After(false);
  EXPECT_EQ(s.value(), 16);
  s.After(false);
  EXPECT_EQ(s.value(), 8);
  s.After(true);
  s.After(false);
  EXPECT_EQ(s.value(), 4);
  s.After(false);
  EXPECT_EQ(s.value(), 4);  // the least
}

TEST(LossScaleTest, GoesOnFromItsState) {
  LossScale a({.initial = 64, .window = 2, .hysteresis = 1}), b({.initial = 1, .window = 2, .hysteresis = 1});
  a.After(true);
  b.Restore(a.state());
  for (bool finite : {true, false, true, true, false}) {
    a.After(finite);
    b.After(finite);
    EXPECT_EQ(a.state(), b.state());
  }
}

}  // namespace
}  // namespace moe::train
