#include "moe/train/run/resume_point.h"

#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/textproto.h"
#include "moe/train/checkpoint/checkpoint.h"
#include "moe/train/checkpoint/session_state.h"

namespace moe::train {
namespace {

namespace fs = std::filesystem;

constexpr char kConfig[] = "config.textproto", kCheckpoints[] = "checkpoint", kOrigin[] = "started_from";
constexpr int64_t kMostPath = 1 << 16;  // bytes

// The same place from the root, links followed as far as it exists.
fs::path Canonical(const std::string& path) {
  std::error_code error;
  const fs::path canonical = fs::weakly_canonical(fs::absolute(path, error), error);
  return error ? fs::path(path).lexically_normal() : canonical;
}

bool IsRun(const fs::path& folder) {
  return !folder.empty() && FileExists(JoinPath(folder.string(), kConfig));
}

std::string RunAbove(fs::path path) {
  if (!path.has_filename()) path = path.parent_path();  // "runs/mine/"
  if (IsRun(path)) return path.string();
  const fs::path parent = path.parent_path();
  if (path.filename() == kCheckpoints && IsRun(parent)) return parent.string();
  if (parent.filename() == kCheckpoints && IsRun(parent.parent_path())) return parent.parent_path().string();
  return "";
}

}  // namespace

std::string RunOf(const std::string& path) {
  if (path.empty()) return "";
  const std::string run = RunAbove(fs::path(path).lexically_normal());
  return run.empty() ? RunAbove(Canonical(path)) : run;
}

bool HoldsRun(const std::string& folder) { return !ListCheckpoints(JoinPath(folder, kCheckpoints)).empty(); }

bool SameFolder(const std::string& a, const std::string& b) { return Canonical(a) == Canonical(b); }

absl::StatusOr<RunConfig> ConfigToResume(const std::string& path) {
  RunConfig config = DefaultRunConfig();
  if (const std::string run = RunOf(path); !run.empty()) {
    RETURN_IF_ERROR(MergeRunConfigFile(JoinPath(run, kConfig), config));
  } else if (const absl::StatusOr<std::string> found = FindCheckpoint(path); found.ok()) {
    // One that does not open is refused when the run is checked.
    const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(*found);
    if (checkpoint.ok()) {
      RETURN_IF_ERROR(
          MergeTextproto((*checkpoint)->meta().run_config, JoinPath(*found, "manifest.json"), config));
    }
  }
  config.mutable_train()->clear_run_dir();
  config.mutable_train()->clear_resume();
  return config;
}

absl::StatusOr<std::string> FindStart(const std::string& path) {
  absl::StatusOr<std::string> found = FindCheckpoint(path);
  if (!absl::IsNotFound(found.status())) return found;
  const std::string run = RunOf(path);
  if (run.empty()) {
    return absl::NotFoundError(
        absl::StrCat("there is neither a run nor a checkpoint at ", path, "; a new run takes --run_dir"));
  }
  const std::string checkpoints = JoinPath(run, kCheckpoints);
  if (!SameFolder(path, run) && !SameFolder(path, checkpoints)) {
    return absl::NotFoundError(absl::StrCat("there is no checkpoint ", path, "; the steps that have one in ",
                                            checkpoints, ": ",
                                            absl::StrJoin(ListCheckpoints(checkpoints), ", ")));
  }
  const std::string origin = JoinPath(run, kOrigin);
  if (!FileExists(origin)) return "";
  ASSIGN_OR_RETURN(const std::string text, ReadFile(origin, kMostPath));
  const std::string from(absl::StripSuffix(text, "\n"));
  if (FindCheckpoint(from).ok()) return from;
  return absl::NotFoundError(
      absl::StrCat("the run in ", run, " was to begin from checkpoint ", from, ", which is no longer there"));
}

std::string ContinuedRun(const TrainConfig& train) {
  const std::string run = RunOf(train.resume());
  return train.run_dir().empty() || SameFolder(run, train.run_dir()) ? run : "";
}

absl::StatusOr<std::string> FindStartOf(const TrainConfig& train) {
  if (train.resume().empty()) return "";
  absl::StatusOr<std::string> start = FindStart(train.resume());
  const bool own = !train.run_dir().empty() && SameFolder(train.run_dir(), train.resume());
  return absl::IsNotFound(start.status()) && own && RunOf(train.resume()).empty() ? "" : start;
}

absl::Status WriteRunConfig(const std::string& run, const RunConfig& config) {
  RunConfig saved = config;
  TrainConfig& train = *saved.mutable_train();
  train.clear_run_dir();
  train.clear_resume();
  if (const fs::path text = train.data_path(); text.is_relative() && !text.empty()) {
    train.set_data_path(Canonical(text).lexically_relative(Canonical(run)).string());
  } else if (absl::string_view below = train.data_path();
             absl::ConsumePrefix(&below, absl::StrCat(run, "/"))) {
    train.set_data_path(std::string(below));
  }
  return WriteFile(JoinPath(run, kConfig), RunConfigToText(saved));
}

absl::Status NoteOrigin(const std::string& run, const std::string& checkpoint) {
  const std::string note = JoinPath(run, kOrigin);
  return checkpoint.empty() ? RemoveTree(note) : WriteFile(note, Canonical(checkpoint).string() + "\n");
}

}  // namespace moe::train
