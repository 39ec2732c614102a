// StopRequest: what asks a process to end before it is done, as one request however often and by whomever it
// is sent: SIGTERM (scancel, systemd, Kubernetes, timeout), SIGUSR1 and SIGUSR2 (sbatch --signal), SIGXCPU,
// SIGHUP (a closed terminal; not where nohup has it ignored), SIGINT (Ctrl-C), or an output that nobody reads
// any more.
//
//   StopRequest& stop = StopRequest::Listen();                // once, in main
//   stop.EndsAtOnce("before training began; start it again"); // nothing would be lost: the process ends here
//   ...
//   stop.EndsInOrder("go on with --resume=runs/7");           // whoever works looks at the flag
//   while (!stop.flag()->load()) Step();
//   return kExitStopped;
//
// Launchers repeat what they send, and send it to a parent and its children at once. So only another SIGINT,
// half a second after the first request or later, is somebody's impatience: it ends the process there and
// then, and says how to go on. Lives as long as the process. Thread-safe.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "absl/strings/string_view.h"

namespace moe {

class StopRequest {
 public:
  // Installs the signal handlers, and ignores SIGPIPE: writing to what nobody reads is an error of the write.
  static StopRequest& Listen();

  const std::atomic<bool>* flag() const { return &asked_; }
  bool asked() const { return asked_.load(); }
  bool insists() const { return insists_.load(); }  // asked again by an impatient user
  std::string by() const;                           // "SIGTERM"; empty if nobody asked

  // The same as a signal does; `by` is for messages.
  void Ask(absl::string_view by);

  // What a request does from now on. `say` follows "stopped by SIGTERM " on standard error; empty: nothing is
  // said, because another process does or because whoever would read it is gone.
  void EndsAtOnce(std::string say);   // one that has been made ends the process here
  void EndsInOrder(std::string say);  // sets the flag; `say` is for the impatient
  void EndsByCaller();                // sets the flag, and insists() of the impatient
  void Silence();                     // nothing is said from now on, whatever the others say

 private:
  enum Mode { kAtOnce, kInOrder, kByCaller };
  StopRequest();
  void Watch();
  void Enter(Mode mode, std::string say);
  [[noreturn]] void Leave(int code) const;  // holding the mutex, which ends with the process
  static void OnSignal(int signal);

  std::atomic<bool> asked_{false}, insists_{false};
  mutable std::mutex mutex_;
  Mode mode_ = kAtOnce;
  bool silent_ = false;
  std::string say_, by_;
};

}  // namespace moe
