// Where relative paths on a command line count from: `bazel run` starts a tool in a folder of its own and
// says in BUILD_WORKING_DIRECTORY where the user stands.
//
//   RETURN_IF_ERROR(EnterWorkingDirectory());   // once, before the first path is opened
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moe::tools {

inline absl::Status EnterWorkingDirectory() {
  const char* folder = std::getenv("BUILD_WORKING_DIRECTORY");
  if (folder == nullptr || chdir(folder) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cannot enter BUILD_WORKING_DIRECTORY ", folder, ": ", std::strerror(errno)));
}

}  // namespace moe::tools
