#include "moe/train/run/history.h"

#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/train/checkpoint/checkpoint.h"
#include "moe/train/run/metrics.h"

namespace moe::train {
namespace {

// "step 8", "steps 6 and 8", "steps 2, 4, 6 and 8"
std::string StepsText(const std::vector<int64_t>& steps) {
  if (steps.size() == 1) return absl::StrCat("step ", steps[0]);
  return absl::StrCat("steps ", absl::StrJoin(steps.begin(), steps.end() - 1, ", "), " and ", steps.back());
}

// Of what a name of AtomicFolder's and WriteFile's temporaries is made (moe/base/file.h): "NAME.tmp.AbC123".
// Empty for other names.
absl::string_view NameOfRemains(absl::string_view name) {
  constexpr absl::string_view kMark = ".tmp.";
  constexpr size_t kRandom = 6;
  const size_t mark = name.rfind(kMark);
  if (mark == absl::string_view::npos || name.size() != mark + kMark.size() + kRandom) return "";
  const absl::string_view random = name.substr(mark + kMark.size());
  return std::all_of(random.begin(), random.end(), absl::ascii_isalnum) ? name.substr(0, mark) : "";
}

}  // namespace

absl::StatusOr<std::string> SetLaterAside(const std::string& run, int64_t step) {
  const std::string checkpoints = JoinPath(run, "checkpoint");
  std::vector<int64_t> later = ListCheckpoints(checkpoints);
  later.erase(later.begin(), std::upper_bound(later.begin(), later.end(), step));
  const std::string metrics = JoinPath(run, "metrics.jsonl");
  std::string lines;
  if ((step == 0 || !later.empty()) && FileExists(metrics)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(metrics));
    lines = SplitMetrics(text, step).later;
  }
  if (later.empty() && lines.empty()) return "";
  const std::string name = JoinPath(JoinPath(run, "retired"), absl::StrCat("after_", CheckpointName(step)));
  std::string folder = name;
  for (int i = 2; IsFolder(folder); ++i) folder = absl::StrCat(name, "-", i);
  RETURN_IF_ERROR(MakeFolders(folder));
  if (!lines.empty()) RETURN_IF_ERROR(WriteFile(JoinPath(folder, "metrics.jsonl"), lines));
  // The newest goes first, so that what is left is a line at any time.
  for (auto s = later.rbegin(); s != later.rend(); ++s) {
    const std::string from = JoinPath(checkpoints, CheckpointName(*s)),
                      to = JoinPath(folder, CheckpointName(*s));
    if (::rename(from.c_str(), to.c_str()) != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("cannot move ", from, " to ", to, ": ", std::strerror(errno)));
    }
  }
  if (later.empty()) return absl::StrCat("what was trained without a checkpoint is kept in ", folder);
  return absl::StrCat(StepsText(later), later.size() == 1 ? " is" : " are", " kept in ", folder);
}

absl::Status RemoveRemains(const std::string& run) {
  const std::string checkpoints = JoinPath(run, "checkpoint");
  if (IsFolder(checkpoints)) {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(checkpoints));
    for (const std::string& name : names) {
      if (CheckpointStep(NameOfRemains(name)) >= 0) RETURN_IF_ERROR(RemoveTree(JoinPath(checkpoints, name)));
    }
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(run));
  for (const std::string& name : names) {
    const absl::string_view of = NameOfRemains(name);
    const bool written = of == "config.textproto" || of == "started_from" || of == "metrics.jsonl" ||
                         of == "trace.json" || of == "plan.pb" || of == "plan.txt" ||
                         absl::EndsWith(of, ".svg");
    if (written && FileExists(JoinPath(run, name))) RETURN_IF_ERROR(RemoveTree(JoinPath(run, name)));
  }
  return absl::OkStatus();
}

}  // namespace moe::train
