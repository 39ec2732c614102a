// Runs the project's tools from tests, as a user would from a shell.
//
//   const Outcome o = RunShell(absl::StrCat(ToolPath("opt"), " --passes=shard ", file));
//   EXPECT_EQ(o.code, 0) << o.output;
//
// Tools must be in the `data` of the test. No state.
#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/file.h"

namespace moe::tools {

struct Outcome {
  int code = -1;       // 1000 + n: ended by signal n
  std::string output;  // both streams
};

inline Outcome RunShell(const std::string& command) {
  Outcome o;
  FILE* pipe = popen(absl::StrCat("{ ", command, "; } 2>&1 </dev/null").c_str(), "r");
  char buffer[4096];
  size_t n;
  while ((n = fread(buffer, 1, sizeof(buffer), pipe)) > 0) o.output.append(buffer, n);
  const int status = pclose(pipe);
  o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  return o;
}

inline std::string ToolPath(const std::string& name) {
  return JoinPath(std::getenv("TEST_SRCDIR"), absl::StrCat("moe/tools/", name));
}

}  // namespace moe::tools
