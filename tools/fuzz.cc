// fuzz: random legal strategies on random small models against the one-device reference. See --help.

#include "moe/testing/fuzz.h"

#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "tools/tool.h"

ABSL_FLAG(double, seconds, 60, "How long to draw.");
ABSL_FLAG(uint64_t, seed, 1, "Of the draws.");
ABSL_FLAG(std::string, replay, "", "Run one point, as a failure prints it, instead of drawing.");
ABSL_FLAG(bool, f32, false, "With --replay: the plan in f32.");

namespace {

// What was found has been printed.
absl::Status Found(const std::string& failure) {
  return failure.empty() ? absl::OkStatus() : absl::InternalError("");
}

}  // namespace

int main(int argc, char** argv) {
  using moe::tools::EndTool;
  moe::tools::BeginTool();
  absl::SetProgramUsageMessage(
      "Draws random legal strategies and random small models, and compares each plan with the one-device "
      "reference.\n"
      "  fuzz --seconds=600 --seed=7\n"
      "  fuzz --replay=0.1.0.2...      what a failure printed\n"
      "Exit code 1 if something fails; it is shrunk to the smallest case first.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) { return absl::EndsWith(file, "fuzz.cc"); };
  absl::SetFlagsUsageConfig(usage);
  absl::ParseCommandLine(argc, argv);
  const moe::testing::StrategySpace& space = moe::testing::FuzzSpace();
  if (const std::string replay = absl::GetFlag(FLAGS_replay); !replay.empty()) {
    const absl::StatusOr<moe::testing::Point> point = moe::testing::ParsePoint(replay, space);
    if (!point.ok()) return EndTool(point.status());
    moe::testing::EquivalenceCase c = space.Case(*point);
    c.steps = 3;
    c.f32 = absl::GetFlag(FLAGS_f32);
    c.twice = !c.f32;
    std::cout << space.Describe(*point) << std::endl;
    const std::string wrong = moe::testing::CheckCase(c);
    std::cout << (wrong.empty() ? "as the reference" : wrong) << std::endl;
    return EndTool(Found(wrong));
  }
  moe::testing::FuzzOptions options;
  options.seconds = absl::GetFlag(FLAGS_seconds);
  options.seed = absl::GetFlag(FLAGS_seed);
  const absl::StatusOr<moe::testing::FuzzReport> report = moe::testing::Fuzz(space, options, std::cout);
  return EndTool(report.ok() ? Found(report->failure) : report.status());
}
