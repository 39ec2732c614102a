// A whole run: configuration -> checks -> compiled plan -> training -> evaluation -> sample -> run directory.
// What compile_and_train does, as functions.
//
//   RETURN_IF_ERROR(RunTraining(config, options, std::cout));
//
// Everything that can be refused is refused before anything is compiled or written. One run at a time.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "moe/base/stop_request.h"
#include "moe/comm/job/job.h"
#include "moe/ir/program.h"
#include "moe/train/config/config.h"
#include "moe/train/run/generator.h"

namespace moe::train {

struct RunOptions {
  std::string passes;  // "": the default pipeline
  std::vector<std::string> disable_passes;
  std::string dump_to, dump_pass_re = ".*";  // "": ir/ in the run directory
  // Held against every pass that changed something; see PipelineOptions::validate. Null: none.
  std::function<absl::Status(const std::string& pass, const Program& before, const Program& after)> validate;
  bool eval_only = false;  // needs TrainConfig::resume; writes nothing
  enum Voice { kText, kQuiet, kJson };
  Voice voice = kText;
  double device_timeout = 60;  // seconds that a rank waits for its peers
  // Seconds in which all processes must come and be connected; 0: device_timeout, but at least 60.
  double connect_timeout = 0;
  absl::Duration DeviceTimeout() const;
  absl::Duration ConnectTimeout() const;
  std::string prompt = kSamplePrompt;
  bool cuda_graphs = true;      // record and launch what is the same in every step
  double peak_tflops = 0;       // of a device, which MFU is a share of; 0: what is known of a GPU of its name
  StopRequest* stop = nullptr;  // who may ask the run to end before it is done; null: nobody
  // This process among those that train together; null: it is alone. Rank 0 speaks and writes.
  comm::Job* job = nullptr;
};

// InvalidArgument for timeouts that are not a length of time. A caller that joins a job by these options must
// call it before.
absl::Status CheckTimeouts(const RunOptions& options);

// What can be said of a run without its files, devices and other processes: InvalidArgument names the values
// that are wrong and what would be legal. RunTraining asks, too.
absl::Status CheckRun(const RunConfig& config, const RunOptions& options);

// `config` is resolved. With several processes, all call this with the same configuration. An error that one
// meets ends all; of a hang or a death every survivor says who caused it, and flight/ in the run directory
// gets the records of all ranks. An error that keeps the run from beginning is without words on those
// processes whose words rank 0 has said.
//
// Cancelled, without words, for a run that was asked to stop, and has said how to go on. Before training
// begins, and once all is trained and evaluated, such a request ends the process.
absl::Status RunTraining(const RunConfig& config, const RunOptions& options, std::ostream& out);

}  // namespace moe::train
