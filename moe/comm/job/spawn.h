// --spawn=N: this program again, N times, as the processes of one job on this machine.
//
//   return SpawnProcesses(8, argv, std::cerr);  // in main
//
// The children get the variables of torchrun, run the same command line, and write to the same streams. The
// parent runs the rendezvous on a free port of loopback and waits. It passes on what StopRequest hears, and
// Ctrl-Z. When a child dies or fails it tells the others through the rendezvous, at once; those that do not
// end then by themselves are ended. One call a process.
#pragma once

#include <iosfwd>

namespace moe::comm {

// In main, before anything else: a child ends with its parent, also with one that died before the child could
// ask for that.
void EndWithParent();

// The exit code: kExitDone if all children gave it, else kExitError if one of them did, or was ended by a
// signal that nobody sent to the whole job; else that of those who were stopped.
int SpawnProcesses(int count, char** argv, std::ostream& errors);

}  // namespace moe::comm
