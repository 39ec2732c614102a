// What the processes of a run must have in common, compared before anything is compiled: each says what it was given
// and what it found, and where one has something else all end with the same error, which names it.
//
//   std::vector<Fact> facts = ConfigFacts(config);
//   facts.push_back({"training text", data->Fingerprint(), data->Describe()});
//   RETURN_IF_ERROR(CompareWithOthers(job, facts));
//
//   error: the processes of this run do not have the same, so nothing was trained:
//          --lr: 0.001 in process 0; 0.01 in processes 1, 3
//
// Costs a few kilobytes of each process, and a wait for the slowest.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/comm/job/job.h"
#include "moe/train/config/config.h"

namespace moe::train {

struct Fact {
  std::string name;   // "training text"; the same in all processes
  std::string value;  // what is compared
  std::string shown;  // what a message says instead of the value, unless empty
};

// Every option of the configuration that has a value, by the name of its field, without those that say where things lie
// on this host: run_dir, resume and data_path.
std::vector<Fact> ConfigFacts(const RunConfig& config);
// The checkpoint in the folder, by its step and its manifest's hash; "": the run begins.
absl::StatusOr<Fact> CheckpointFact(const std::string& dir);
// This program, by the build id that the linker gave it.
Fact ProgramFact();

// FailedPrecondition, naming each fact that differs, its values and the processes that have them: `facts` of process 0
// first. A fact that a process does not have is "not set" there.
absl::Status CompareFacts(const std::vector<std::vector<Fact>>& facts);
// The same over the processes of a job. Every one calls it, at the same place.
absl::Status CompareWithOthers(comm::Job* job, const std::vector<Fact>& mine);

}  // namespace moe::train
