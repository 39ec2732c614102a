// What the tools end with; docs/processes.md has the same as a table.
#pragma once

namespace moe {

enum ExitCode {
  kExitDone = 0,   // all that was asked for is done
  kExitError = 1,  // something went wrong; standard error says what
  kExitStopped =
      75,  // asked to end by a signal or a closed terminal: what is done is saved, and can be resumed
  kExitAtOnce = 130,  // a second Ctrl-C: what was done since the last checkpoint is lost
};

}  // namespace moe
