// --spawn=N: this program again, N times, as the processes of one job on this machine.
//
//   return SpawnProcesses(8, argv, {.grace_after_death = absl::Seconds(70)}, std::cerr);      // in main
//
// The children get the variables of torchrun, run the same command line, and write to the same streams. The
// parent runs the rendezvous on a free port of loopback, passes SIGINT and SIGTERM on, and waits. Once a
// child has failed, the others get some time to see that for themselves, then they are ended. One call a
// process.
#pragma once

#include <iosfwd>
#include <string>

#include "absl/time/time.h"

namespace moe::comm {

struct SpawnOptions {
  // After a child was killed; a child that ends with an error has told the others already.
  absl::Duration grace_after_death = absl::Seconds(70);
  absl::Duration grace_after_error = absl::Seconds(15);
};

// The exit code: 0 if all children gave it, else that of the first that did not, 1 for one ended by a signal.
int SpawnProcesses(int count, char** argv, const SpawnOptions& options, std::ostream& errors);

// In a child: ends it when its parent does.
void EndWithParent();

}  // namespace moe::comm
