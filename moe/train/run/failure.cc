#include "moe/train/run/failure.h"

#include <algorithm>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "moe/base/file.h"
#include "moe/runtime/flight.h"
#include "moe/train/run/resume_point.h"

namespace moe::train {
namespace {

using runtime::FlightRecord;

// An error that others met only because of somebody else's.
bool IsOfOthers(absl::string_view status) {
  for (const char* code : {"DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED"}) {
    if (absl::StartsWith(status, code)) return true;
  }
  return false;
}

// What went wrong first, on whichever rank.
std::string CauseOf(const absl::Status& status, const std::vector<FlightRecord>& records, bool complete,
                    int64_t step) {
  if (!IsOfOthers(status.ToString())) return std::string(status.message());
  for (const FlightRecord& r : records) {
    if (!r.error.empty() && !IsOfOthers(r.error)) return r.error;
  }
  const runtime::Diagnosis diagnosis = complete ? runtime::Diagnose(records) : runtime::Diagnosis();
  if (diagnosis.text.empty()) return std::string(status.message());
  return absl::StrCat(step > 0 ? absl::StrCat("step ", step, ", ") : "",
                      absl::StrReplaceAll(diagnosis.text, {{"\n", "\n       "}}),
                      "\n       first seen as: ", status.message());
}

// Writes the records of this process, and of those that cannot if it is the first that can.
absl::Status WriteFlight(const std::vector<FlightRecord>& records, const std::vector<FlightRecord>& mine,
                         const std::string& folder) {
  absl::Status saved = MakeFolders(folder);
  int64_t first_alive = -1;
  for (const FlightRecord& r : records) {
    if (first_alive < 0 && !r.stale && !r.unknown) first_alive = r.rank;
  }
  for (const FlightRecord& r : records) {
    const bool ours =
        std::any_of(mine.begin(), mine.end(), [&](const FlightRecord& m) { return m.rank == r.rank; });
    if (!ours && !((r.stale || r.unknown) && first_alive == mine[0].rank)) continue;
    if (!saved.ok()) return saved;
    saved = WriteFile(JoinPath(folder, absl::StrCat("rank_", r.rank, ".json")), runtime::FlightJson(r));
  }
  return saved;
}

}  // namespace

const runtime::Executor& RanLast(const std::vector<runtime::Executor*>& executors) {
  const runtime::Executor* last = executors[0];
  double least = std::numeric_limits<double>::infinity();
  for (const runtime::Executor* e : executors) {
    for (const FlightRecord& r : e->Flight()) {
      if (!r.actions.empty() && r.actions[0].ago < least) least = r.actions[0].ago, last = e;
    }
  }
  return *last;
}

absl::Status ExplainFailure(const absl::Status& status, const runtime::Executor& executor,
                            ProcessGroup* group, const Mesh& mesh, const std::string& dir,
                            const std::string& checkpoint) {
  const std::vector<FlightRecord> mine = executor.Flight();
  const std::vector<FlightRecord> records = group == nullptr ? mine : group->CollectFlight(mine, mesh);
  const bool complete = static_cast<int64_t>(records.size()) == mesh.num_ranks();
  std::string text = CauseOf(status, records, complete, executor.step());
  std::string written;
  if (!dir.empty()) {
    const std::string folder = JoinPath(dir, "flight");
    const absl::Status saved = WriteFlight(records, mine, folder);
    written = saved.ok() ? absl::StrCat("flight record of all ranks: ", folder, "/   ")
                         : absl::StrCat("no flight record: ", saved.message(), "   ");
  }
  // One of another run, that this one began from, would be gone on with there.
  const bool own = !checkpoint.empty() && (dir.empty() || SameFolder(RunOf(checkpoint), dir));
  absl::StrAppend(
      &text, "\n       ", written,
      own ? absl::StrCat("last checkpoint: resume with --resume=", checkpoint)
          : absl::StrCat("no checkpoint was saved yet (--save_interval): begin again with --resume=", dir));
  return absl::Status(status.code(), text);
}

}  // namespace moe::train
