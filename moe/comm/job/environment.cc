#include "moe/comm/job/environment.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

struct Launcher {
  const char* name;
  const char *rank, *count, *local_rank, *local_count;
};
constexpr Launcher kLaunchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
};

constexpr int64_t kMaxProcesses = 1 << 20;

constexpr const char* kJobs[] = {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PMIX_NAMESPACE"};

// What srun sets, and sbatch and salloc do not.
constexpr const char* kSteps[] = {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST"};

bool StartedBySrun(const Environment& environment) {
  return std::any_of(std::begin(kSteps), std::end(kSteps),
                     [&](const char* name) { return environment(name) != nullptr; });
}

}  // namespace

Environment SystemEnvironment() {
  return [](const char* name) -> const char* { return std::getenv(name); };
}

std::string FirstHost(const std::string& list) {
  const size_t end = list.find_first_of(",[");
  std::string host = list.substr(0, end);
  if (end != std::string::npos && list[end] == '[') {
    const size_t number = list.find_first_of(",-]", end + 1);
    if (number != std::string::npos) host += list.substr(end + 1, number - end - 1);
  }
  return host;
}

absl::StatusOr<std::optional<ProcessPlace>> FindProcess(const Environment& environment) {
  const auto get = [&](const char* name) -> std::string {
    const char* value = environment(name);
    return value == nullptr ? "" : value;
  };
  for (const Launcher& l : kLaunchers) {
    if (get(l.rank).empty() || get(l.count).empty()) continue;
    if (absl::string_view(l.rank) == "SLURM_PROCID" && !StartedBySrun(environment)) continue;
    ProcessPlace p;
    p.found_in = l.name;
    std::vector<std::string> wrong;
    const auto number = [&](const char* name, int64_t low, int64_t high, int64_t* to) {
      const std::string text = get(name);
      if (text.empty()) return;
      if (!absl::SimpleAtoi(text, to) || *to < low || *to > high) {
        wrong.push_back(absl::StrCat(name, "='", text, "' is not a number from ", low, " to ", high));
      }
    };
    number(l.count, 1, kMaxProcesses, &p.count);
    number(l.rank, 0, wrong.empty() ? p.count - 1 : kMaxProcesses, &p.rank);
    number(l.local_rank, 0, kMaxProcesses, &p.local_rank);
    int64_t port = p.master_port;
    number("MASTER_PORT", 1, 65535, &port);
    p.master_port = static_cast<int>(port);
    if (!wrong.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the environment of ", l.name, " makes no sense: ", absl::StrJoin(wrong, "; ")));
    }
    // Slurm may say "4(x2),3": of the first hosts, and near enough of the others.
    const std::string local = get(l.local_count);
    if (!absl::SimpleAtoi(local.substr(0, local.find_first_of("(,")), &p.local_count) || p.local_count < 1 ||
        p.local_count > p.count) {
      p.local_count = p.count;
    }
    if (p.count == 1) return std::optional<ProcessPlace>();
    p.master_address = get("MASTER_ADDR");
    if (p.master_address.empty() && p.found_in == "Slurm")
      p.master_address = FirstHost(get("SLURM_JOB_NODELIST"));
    if (p.master_address.empty() && get("OMPI_COMM_WORLD_LOCAL_SIZE") == get(l.count)) {
      p.master_address = "127.0.0.1";
    }
    p.spawned = !get("SWITCHYARD_SPAWNED").empty();
    for (const char* name : kJobs) {
      if (p.job.empty() && !p.spawned && get(name) != "none") p.job = get(name);
    }
    return std::optional<ProcessPlace>(p);
  }
  return std::optional<ProcessPlace>();
}

absl::Status CheckStartedBySrun(const Environment& environment) {
  const char* const text = environment("SLURM_NTASKS");
  int64_t tasks = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &tasks) || tasks <= 1 || StartedBySrun(environment)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("Slurm gives this job ", tasks,
                   " tasks (SLURM_NTASKS), but srun did not start this process, so it is "
                   "alone: put srun before the command, or --spawn=",
                   tasks,
                   " after it for processes of this host, or "
                   "SLURM_NTASKS=1 before it for one process"));
}

}  // namespace moe::comm
