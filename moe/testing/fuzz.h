// Fuzzing of plans: random legal strategies on random small models, each against the one-device reference,
// for as long as it is told to. A case that fails is shrunk to the smallest point that still fails.
//
//   ASSERT_OK_AND_ASSIGN(const FuzzReport report, Fuzz(FuzzSpace(), {.seconds = 20, .seed = 1}, std::cout));
//   EXPECT_EQ(report.failure, "");
//
// Every case runs in a process of its own, so a crash or a hang is a failure like another and can be shrunk,
// too. The caller must not have threads. The same seed draws the same cases.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/testing/strategy_space.h"

namespace moe::testing {

struct FuzzOptions {
  double seconds = 60;
  uint64_t seed = 1;
  absl::Duration timeout = absl::Seconds(120);  // of one case
};

struct FuzzReport {
  int64_t cases = 0;
  // Of the first failure: what was wrong, and the smallest point with it. Empty: none.
  std::string failure, smallest;
  Point point;
};

// What is wrong with a case: "" if the plan compiles, runs, equals the reference within the bounds, twice
// with the same bits, in the memory that was planned.
std::string CheckCase(const EquivalenceCase& c);

// Calls `check` in a child process and gives what it returned, or how the child ended instead. Error: no
// process could be started.
absl::StatusOr<std::string> InAnotherProcess(const std::function<std::string()>& check,
                                             absl::Duration timeout);

// Draws and checks until the time is over or something fails; says on `out` what it does.
absl::StatusOr<FuzzReport> Fuzz(const StrategySpace& space, const FuzzOptions& options, std::ostream& out);

// A point as digits, and back: "0.2.1.0...". Error: InvalidArgument if the space does not have it.
std::string PointToString(const Point& p);
absl::StatusOr<Point> ParsePoint(const std::string& text, const StrategySpace& space);

}  // namespace moe::testing
