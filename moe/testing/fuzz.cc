#include "moe/testing/fuzz.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "moe/base/status.h"
#include "moe/strategy/strategy.h"
#include "moe/strategy/word.h"

namespace moe::testing {

std::string CheckCase(const EquivalenceCase& c) {
  const absl::StatusOr<EquivalenceResult> r = CheckEquivalence(c);
  if (!r.ok()) return r.status().ToString();
  std::vector<std::string> wrong;
  const absl::StatusOr<strategy::Strategy> strategy = strategy::ParseStrategy(c.strategy);
  const bool narrow = strategy.ok() && strategy::Rounds(*strategy);
  const double gradient = narrow ? 1 : c.f32 ? 1e-5 : 1e-9, loss = narrow ? 2e-2 : c.f32 ? 1e-4 : 1e-9;
  // Small models have gradients that are truly zero, in f32 a difference of numbers rounded apart.
  const double worst = c.f32 ? r->worst_gradient_beyond_f32 : r->worst_gradient;
  if (!(worst < gradient)) wrong.push_back("gradients differ");
  if (!(r->worst_loss < loss)) wrong.push_back("losses differ");
  if (!r->repeated_bitwise) wrong.push_back("the second run differs from the first");
  if (!r->MemoryIsAsPlanned()) wrong.push_back("memory is not as planned");
  if (wrong.empty()) return "";
  return absl::StrCat(absl::StrJoin(wrong, ", "), ": ", r->ToString());
}

absl::StatusOr<std::string> InAnotherProcess(const std::function<std::string()>& check,
                                             absl::Duration timeout) {
  int ends[2];
  if (pipe(ends) != 0) return absl::InternalError(absl::StrCat("pipe: ", std::strerror(errno)));
  const pid_t child = fork();
  if (child < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (child == 0) {
    close(ends[0]);
    const std::string said = check();
    for (size_t at = 0; at < said.size();) {
      const ssize_t n = write(ends[1], said.data() + at, said.size() - at);
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
    _exit(0);
  }
  close(ends[1]);
  std::string said;
  bool late = false;
  for (const absl::Time deadline = absl::Now() + timeout;;) {
    pollfd wait = {ends[0], POLLIN, 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    late = left <= 0;
    if (late) break;
    if (poll(&wait, 1, static_cast<int>(left)) <= 0) continue;
    char buffer[4096];
    const ssize_t n = read(ends[0], buffer, sizeof(buffer));
    if (n <= 0) break;
    said.append(buffer, static_cast<size_t>(n));
  }
  close(ends[0]);
  if (late) kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  if (late) return absl::StrCat("no end after ", absl::FormatDuration(timeout));
  if (WIFSIGNALED(status)) return absl::StrCat("died of signal ", WTERMSIG(status), " ", said);
  if (WEXITSTATUS(status) != 0) return absl::StrCat("ended with exit code ", WEXITSTATUS(status), " ", said);
  return said;
}

absl::StatusOr<FuzzReport> Fuzz(const StrategySpace& space, const FuzzOptions& options, std::ostream& out) {
  FuzzReport report;
  Draw draw(options.seed);
  const absl::Time end = absl::Now() + absl::Seconds(options.seconds);
  absl::Status broken;
  const auto run = [&](const Point& p, bool f32) -> std::string {
    absl::StatusOr<std::string> said = InAnotherProcess(
        [&] {
          EquivalenceCase c = space.Case(p);
          c.steps = 3;
          c.twice = !f32;
          c.f32 = f32;
          return CheckCase(c);
        },
        options.timeout);
    if (said.ok()) return *said;
    broken = said.status();
    return "";
  };
  while (absl::Now() < end) {
    const Point p = space.RandomLegal(&draw);
    const bool f32 = draw.Below(4) == 0;
    ++report.cases;
    const std::string wrong = run(p, f32);
    RETURN_IF_ERROR(broken);
    if (wrong.empty()) continue;
    out << "seed " << options.seed << ", case " << report.cases << (f32 ? ", f32" : "") << ": "
        << space.Describe(p) << "\n  " << wrong << "\nshrinking" << std::endl;
    int64_t tried = 0;
    report.point = space.Shrink(p, [&](const Point& q) {
      ++tried;
      const bool fails = broken.ok() && !run(q, f32).empty();
      out << (fails ? '+' : '.') << std::flush;
      return fails;
    });
    RETURN_IF_ERROR(broken);
    report.failure = run(report.point, f32);
    const EquivalenceCase c = space.Case(report.point);
    report.smallest =
        absl::StrCat("strategy \"", c.strategy, "\", batch ", c.global_batch,
                     c.empty_sample ? ", an empty sample" : "", c.one_expert ? ", routers at zero" : "",
                     f32 ? ", f32" : "", "\n--replay=", PointToString(report.point), "\n", c.model);
    out << "\nsmallest of " << tried << " tried: " << report.smallest << "\n  " << report.failure
        << std::endl;
    return report;
  }
  out << report.cases << " cases of seed " << options.seed << ", all as the reference" << std::endl;
  return report;
}

std::string PointToString(const Point& p) { return absl::StrJoin(p, "."); }

absl::StatusOr<Point> ParsePoint(const std::string& text, const StrategySpace& space) {
  Point p;
  for (absl::string_view part : absl::StrSplit(text, '.')) {
    int value;
    const size_t d = p.size();
    if (!absl::SimpleAtoi(part, &value) || value < 0 || d >= space.dimensions().size() ||
        value >= static_cast<int>(space.dimensions()[d].values.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", text, "': '", part, "' is not a value of dimension ", d,
                       d < space.dimensions().size() ? absl::StrCat(", ", space.dimensions()[d].name)
                                                     : ", which does not exist"));
    }
    p.push_back(value);
  }
  if (p.size() != space.dimensions().size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' has ", p.size(), " numbers; the space has ", space.dimensions().size()));
  }
  return p;
}

}  // namespace moe::testing
