// Worlds whose ranks are processes: a WorldSet that starts this test again for each rank and passes each
// request on to the copy. So one suite serves ranks in threads and ranks in processes.
//
//   backend.make = [](int n, absl::Duration timeout) { return StartRanks(n, "--timeout_ms=200 ..."); };
//
//   TEST(Worker, Serves) {                                   // what the copies run, and nothing else
//     const std::optional<WorkerRank> me = ThisWorker();
//     if (!me) GTEST_SKIP() << "not a worker";
//     ... make the world of me->rank, with what me->task says ...
//     ASSERT_OK(ServeRank(*me, world.get()));
//   }
//
// The set ends its processes. One that dies answers Unavailable to what it was asked.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/comm/world.h"
#include "moe/testing/conformance.h"

namespace moe::testing {

// `task` reaches the workers as it is, `variables` ("NAME=value") with "%r" as the rank.
absl::StatusOr<std::unique_ptr<WorldSet>> StartRanks(int num_ranks, const std::string& task,
                                                     const std::vector<std::string>& variables = {});

struct WorkerRank {
  int rank = 0, num_ranks = 0;
  std::string task;
  int socket = -1;
};
// Nothing in a process that was not started by StartRanks.
std::optional<WorkerRank> ThisWorker();
// Until the set ends.
absl::Status ServeRank(const WorkerRank& worker, comm::World* world);

}  // namespace moe::testing
