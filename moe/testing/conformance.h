// The conformance suite of communicators: what every back end must do, run against N ranks in threads of one
// process.
//
// The tests are abstract (in conformance.cc, linked with alwayslink). A back end's own test instantiates
// them:
//
//   INSTANTIATE_TEST_SUITE_P(InProcess, CommunicatorConformance, ::testing::Values(CommBackend{}), CommBackendName);
//
// A back end that cannot run here (a stub, no device) says why in `unavailable`, and its tests report
// themselves skipped. Expectations that are not the interface's but the in-process back end's own are tested
// with it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/world.h"

namespace moe::testing {

// All ranks of one run.
class WorldSet {
 public:
  virtual ~WorldSet() = default;
  virtual comm::World* rank(int rank) = 0;
};

struct CommBackend {
  std::string name;
  std::string unavailable;  // why it cannot run here; empty if it can
  std::function<absl::StatusOr<std::unique_ptr<WorldSet>>(int num_ranks, absl::Duration timeout)> make;
  bool native_order = false;        // reductions in an order of its own: compared by tolerance
  bool detects_mismatch = true;     // calls that do not fit together fail instead of hanging
  bool names_missing_ranks = true;  // a timeout says who entered and who did not
  int max_ranks = 8;
};

std::string CommBackendName(const ::testing::TestParamInfo<CommBackend>& info);

// Runs body(rank) in a thread per rank and returns the statuses in rank order.
std::vector<absl::Status> RunRanks(int num_ranks, const std::function<absl::Status(int rank)>& body);

class CommunicatorConformance : public ::testing::TestWithParam<CommBackend> {
 protected:
  void SetUp() override;

  // Runs body(communicator of all ranks) on every rank; expects OK from all.
  void OnAll(int num_ranks, const std::function<absl::Status(comm::Communicator*)>& body);
  std::unique_ptr<WorldSet> Make(int num_ranks, absl::Duration timeout = absl::Seconds(30));
  std::vector<int> GroupSizes() const;  // 1 2 3 5 8, as far as the back end goes
};

}  // namespace moe::testing
