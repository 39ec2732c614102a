// How every tool begins and ends.
//
//   int main(int argc, char** argv) {
//     moe::tools::BeginTool();
//     const std::vector<char*> args = absl::ParseCommandLine(argc, argv);
//     return moe::tools::EndTool(Run(args));
//   }
//
// Exit codes are those of moe/base/exit_code.h. A limit of the system (ulimit) is an error with words: threads
// and memory that are not given end the tool with a message, and files beyond the largest size are errors of
// their writes. One thread.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "moe/base/exit_code.h"

namespace moe::tools {

// First in main. Parallelism comes from the virtual devices: what libraries read of it is set here.
void BeginTool();

// `gone` is called, once and by whichever thread writes, when standard output is a pipe that nobody reads, or
// a terminal that was closed.
void WhenNobodyReads(std::function<void()> gone);

// Last in main. Prints "error: ..." unless `status` has no words, and is an error too where not all of the
// output could be written; not so if a pipe's reader has had enough. Cancelled: kExitStopped, and its message
// is said on standard output instead.
int EndTool(const absl::Status& status);

}  // namespace moe::tools
