// Which process of a job this is, according to the environment that the launcher set: torchrun, Slurm or Open
// MPI, in that order. Without a launcher, the job is this process.
//
//   ASSIGN_OR_RETURN(std::optional<ProcessPlace> place, FindProcess(SystemEnvironment()));
//
//   torchrun   RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
//   Slurm      SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_TASKS_PER_NODE, of a process that srun started; the
//              first host of SLURM_JOB_NODELIST is the master
//   Open MPI   OMPI_COMM_WORLD_RANK _LOCAL_RANK _SIZE _LOCAL_SIZE; alone on one host that is the master
//
// MASTER_ADDR and MASTER_PORT, where set, win for all three. Plain functions.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe::comm {

using Environment = std::function<const char*(const char* name)>;  // null for what is not set
Environment SystemEnvironment();

struct ProcessPlace {
  int64_t rank = 0, count = 1, local_rank = 0;
  int64_t local_count = 1;     // of this host; `count` where that is not known
  std::string found_in;        // "torchrun"
  std::string master_address;  // a name or an address; "" if it is not known
  int master_port = 29500;
  bool spawned = false;  // by --spawn: what started it runs the rendezvous
  std::string job;       // what the launcher calls this run, the same in all its processes; "" if nothing
};

// Nothing for a process alone (also a job of one). InvalidArgument for variables that make no sense, naming
// them.
absl::StatusOr<std::optional<ProcessPlace>> FindProcess(const Environment& environment);

// FailedPrecondition for one process where Slurm gives several, because srun did not start it: the others would
// not run.
absl::Status CheckStartedBySrun(const Environment& environment);

// "node[04-07,9]" -> "node04"; "a,b" -> "a".
std::string FirstHost(const std::string& node_list);

}  // namespace moe::comm
