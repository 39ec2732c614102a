// Job: this process among the others of a run, and the store through which they meet.
//
//   ASSIGN_OR_RETURN(const JobToken token, FindToken(SystemEnvironment()));
//   ASSIGN_OR_RETURN(auto job, Job::Join(place, {.token = token, .timeout = absl::Seconds(60)}));
//   ASSIGN_OR_RETURN(std::string dir, job->Agree("run_dir", mine));     // what rank 0 says
//   ...
//   RETURN_IF_ERROR(job->Finish());                                     // when all are done, and not before
//
// The rendezvous is MASTER_ADDR:MASTER_PORT, of IPv4 or IPv6, where rank 0 (or what spawned the processes) runs a
// StoreServer. All show each other the token of the job; the port is closed once they have met. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "moe/comm/job/environment.h"
#include "moe/comm/job/token.h"
#include "moe/comm/store/store.h"
#include "moe/comm/store/store_server.h"

namespace moe::comm {

struct JobOptions {
  JobToken token;
  // Of this process, where its peers reach it; "": that of the way to the master.
  std::string address;
  absl::Duration timeout = absl::Seconds(60);          // for the others to come to where all agree, or end
  absl::Duration connect_timeout = absl::Seconds(60);  // for all to come to the rendezvous
};

class Job {
 public:
  // Waits until all processes have come. Errors: InvalidArgument for a rendezvous that makes no sense; PermissionDenied
  // for another token, with what to do; AlreadyExists if this rank has been there before; DeadlineExceeded naming the
  // ranks that did not come; those of the store.
  static absl::StatusOr<std::unique_ptr<Job>> Join(const ProcessPlace& place, const JobOptions& options);
  ~Job();

  int64_t rank() const { return place_.rank; }
  int64_t count() const { return place_.count; }
  int64_t local_count() const { return place_.local_count; }  // of this host
  int64_t local_rank() const { return place_.local_rank; }
  Store* store() { return store_.get(); }
  const std::string& address() const { return address_; }

  // The value of rank 0, on all. Aborted with the reason if a process gave up meanwhile.
  absl::StatusOr<std::string> Agree(const std::string& what, const std::string& mine);
  // The values of all processes, in order, on rank 0; nothing on the others.
  absl::StatusOr<std::vector<std::string>> Gather(const std::string& what, const std::string& mine);
  // This process runs the rendezvous of the others.
  bool serves() const { return server_ != nullptr; }
  // Tells the others that this process gives up, so that they need not wait for it.
  void GiveUp(const absl::Status& reason);
  // Of an error that kept the run from beginning, on each process that meets one: whether rank 0 says the
  // same, and this process need not. Waits a few seconds for its word.
  bool RankZeroSays(absl::string_view error);
  // Waits for all processes to come here: none may close its connections before.
  absl::Status Finish();

 private:
  Job(const ProcessPlace& place, const JobOptions& options) : place_(place), options_(options) {}
  absl::Status ReachRendezvous();
  absl::Status Meet(absl::Duration timeout);
  absl::StatusOr<std::string> Await(const std::string& key, const std::string& of_whom);

  const ProcessPlace place_;
  const JobOptions options_;
  std::string address_;
  std::unique_ptr<StoreServer> server_;
  std::unique_ptr<Store> store_;  // its connection ends before the server
};

}  // namespace moe::comm
