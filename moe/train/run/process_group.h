// ProcessGroup: the ranks of this process in a run of several processes: their connections, the values that
// all processes agree on, and the flight records that they give each other.
//
//   ASSIGN_OR_RETURN(auto group, ProcessGroup::Connect(job.get(), /*num_ranks=*/8, timeout, connecting));
//   wanted.host = group->worlds();                              // of the DeviceWorlds
//   options.host = group->host();                               // of the Executor
//   group->StartReporting([&] { return executor->Flight(); });  // every second, for when this process cannot
//   ...
//   auto all = group->CollectFlight(executor->Flight(), mesh);  // after a failure
//
// Ranks are dealt to processes in order, the same number to each. The job outlives the group, and the group
// whatever uses its connections. Used by one thread; reporting has its own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/gloo/gloo_world.h"
#include "moe/comm/job/job.h"
#include "moe/comm/store/pulse.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/flight.h"

namespace moe::train {

class ProcessGroup {
 public:
  // InvalidArgument if the processes cannot share the ranks evenly, with the numbers that could.
  static absl::StatusOr<std::unique_ptr<ProcessGroup>> Connect(comm::Job* job, int64_t num_ranks,
                                                               absl::Duration timeout,
                                                               absl::Duration connect_timeout);
  ~ProcessGroup();

  const std::vector<comm::World*>& worlds() const { return local_; }  // of the ranks of this process
  comm::Communicator* host() const { return host_; }                  // one member a process
  comm::Pulse* pulse() const { return pulse_.get(); }
  bool leads() const { return job_->rank() == 0; }

  // FailedPrecondition if the processes have different texts, naming one that has not rank 0's.
  absl::Status CheckSame(const std::string& what, const std::string& text);
  // The same on all processes: ok if `mine` is on all of them, else the error of the first that has one, with
  // the numbers of those that have the same, unless all do.
  absl::Status Agree(const absl::Status& mine);
  // The largest of each over all processes.
  absl::StatusOr<std::vector<int64_t>> Max(std::vector<int64_t> values, const std::string& what);

  // Every second, for the others to have should this process no longer answer.
  void StartReporting(std::function<std::vector<runtime::FlightRecord>()> records);
  void StopReporting();  // after which `records` is not called
  // After a failure, once, on every process that can: gives the others these records and takes theirs. Of a
  // process that does not answer within a few seconds, what it said last. All ranks, in order; only the own
  // ones if the rendezvous itself is gone.
  std::vector<runtime::FlightRecord> CollectFlight(const std::vector<runtime::FlightRecord>& mine,
                                                   const Mesh& mesh);

 private:
  ProcessGroup(comm::Job* job, int64_t num_ranks) : job_(job), num_ranks_(num_ranks) {}
  void Report();

  comm::Job* const job_;
  const int64_t num_ranks_;
  int64_t per_process_ = 1;
  std::unique_ptr<comm::Pulse> pulse_;
  std::vector<std::unique_ptr<comm::GlooWorld>> worlds_;
  std::vector<comm::World*> local_;
  comm::Communicator* host_ = nullptr;
  std::function<std::vector<runtime::FlightRecord>()> records_;
  comm::Cancellation stop_;
  std::thread reporter_;
};

}  // namespace moe::train
