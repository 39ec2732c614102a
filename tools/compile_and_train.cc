// compile_and_train: one command from a configuration to a trained model. See --help, and README.md.

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "moe/base/status.h"
#include "moe/base/stop_request.h"
#include "moe/comm/job/environment.h"
#include "moe/comm/job/job.h"
#include "moe/comm/job/spawn.h"
#include "moe/comm/job/token.h"
#include "moe/testing/validate_passes.h"
#include "moe/train/config/flags.h"
#include "moe/train/run/resume_point.h"
#include "moe/train/run/run.h"
#include "tools/check_against_reference.h"
#include "tools/opt.h"
#include "tools/tool.h"
#include "tools/working_directory.h"

ABSL_FLAG(std::string, passes, "",
          "The passes to run instead of the default pipeline: name,name{option=value},...");
ABSL_FLAG(std::vector<std::string>, disable_passes, {},
          "Passes of the pipeline to skip, separated by commas.");
ABSL_FLAG(std::string, dump_to, "",
          "Folder for the module after each pass that changed it; empty: ir/ in the run directory.");
ABSL_FLAG(std::string, dump_pass_re, ".*",
          "Dump only after passes whose names contain a match of this expression.");
ABSL_FLAG(bool, print_passes, false, "List the passes and the default pipeline, and stop.");
ABSL_FLAG(
    bool, validate_passes, false,
    "Run the program on virtual devices before and after each pass, compare, and name the pass that changes "
    "results.");
ABSL_FLAG(bool, check_against_reference, false,
          "Compare gradients and 20 losses of this model and strategy with the one-device reference in f64, "
          "and stop.");
ABSL_FLAG(bool, eval_only, false, "Evaluate the checkpoint of --resume on the held-out text, and stop.");
ABSL_FLAG(bool, quiet, false, "Print errors and the final loss only.");
ABSL_FLAG(bool, json, false,
          "Print JSON lines instead of text: one for each progress line, and a summary at the end.");
ABSL_FLAG(double, device_timeout, 60,
          "Seconds that a rank waits for its peers before the run ends with an error.");
ABSL_FLAG(
    double, connect_timeout, 0,
    "Seconds in which all processes must have come and be connected; 0: 60, or --device_timeout if that is "
    "longer.");
ABSL_FLAG(std::string, prompt, "", "What the sample text begins with.");
ABSL_FLAG(bool, cuda_graphs, true,
          "With --device=cuda: record what is the same in every step once, and launch it as graphs.");
ABSL_FLAG(
    double, peak_tflops, 0,
    "TFLOP/s of a device at most, which MFU is shown as a share of; 0: of a GPU whose name is known, in "
    "bf16 and fp16, its maker's.");
ABSL_FLAG(int, spawn, 0,
          "Run as so many processes on this machine, which share the ranks of the strategy evenly; 0: one "
          "process, or as torchrun, Slurm or Open MPI started it.");
ABSL_FLAG(std::string, bind_address, "",
          "The numeric address where other processes reach this one; empty: that of the way to MASTER_ADDR.");

ABSL_DECLARE_FLAG(std::string, config);
ABSL_DECLARE_FLAG(absl::optional<std::string>, resume);

namespace {

moe::train::RunOptions OptionsFromFlags(moe::testing::PassValidator& validator) {
  using moe::train::RunOptions;
  RunOptions options;
  options.passes = absl::GetFlag(FLAGS_passes);
  if (options.passes == "default") options.passes.clear();
  options.disable_passes = absl::GetFlag(FLAGS_disable_passes);
  options.dump_to = absl::GetFlag(FLAGS_dump_to);
  options.dump_pass_re = absl::GetFlag(FLAGS_dump_pass_re);
  if (absl::GetFlag(FLAGS_validate_passes)) options.validate = validator.Hook();
  options.eval_only = absl::GetFlag(FLAGS_eval_only);
  options.voice = absl::GetFlag(FLAGS_json)    ? RunOptions::kJson
                  : absl::GetFlag(FLAGS_quiet) ? RunOptions::kQuiet
                                               : RunOptions::kText;
  options.device_timeout = absl::GetFlag(FLAGS_device_timeout);
  options.connect_timeout = absl::GetFlag(FLAGS_connect_timeout);
  if (!absl::GetFlag(FLAGS_prompt).empty()) options.prompt = absl::GetFlag(FLAGS_prompt);
  options.cuda_graphs = absl::GetFlag(FLAGS_cuda_graphs);
  options.peak_tflops = absl::GetFlag(FLAGS_peak_tflops);
  return options;
}

// Whether this process starts the others, which then run this program again.
absl::StatusOr<bool> Spawns(int count, const std::optional<moe::comm::ProcessPlace>& place) {
  if (count < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--spawn=", count, " is not a number of processes; legal are 0 and above"));
  }
  if (count <= 1 || (place.has_value() && place->spawned)) return false;
  if (!place.has_value()) return true;
  return absl::InvalidArgumentError(absl::StrCat("--spawn=", count, " in a process that ", place->found_in,
                                                 " started; leave one of them out"));
}

absl::StatusOr<std::unique_ptr<moe::comm::Job>> JoinJob(const moe::comm::ProcessPlace& place,
                                                        const moe::train::RunOptions& options) {
  ASSIGN_OR_RETURN(const moe::comm::JobToken token, moe::comm::FindToken(moe::comm::SystemEnvironment()));
  return moe::comm::Job::Join(place, {.token = token,
                                      .address = absl::GetFlag(FLAGS_bind_address),
                                      .timeout = std::max(options.DeviceTimeout(), absl::Seconds(60)),
                                      .connect_timeout = options.ConnectTimeout()});
}

// What one of several processes says of its error: rank 0 all, the others a line.
absl::Status InOneLine(const absl::Status& status, int64_t rank) {
  if (rank == 0 || status.message().empty()) return status;  // rank 0 says it
  absl::string_view text = status.message();
  text = text.substr(0, text.find("\n       first seen as"));
  text = text.substr(0, text.find("\n       flight record"));
  std::cerr << absl::StrCat("rank ", rank, ": error: ", absl::StrReplaceAll(text, {{"\n       ", "; "}}),
                            "\n")
            << std::flush;
  return absl::Status(status.code(), "");
}

// A peer that is missed may have been asked to stop a moment before this process is.
void AwaitRequest(const moe::StopRequest& stop) {
  for (int i = 0; i < 25 && !stop.asked(); ++i) absl::SleepFor(absl::Milliseconds(20));
  if (stop.asked()) absl::SleepFor(absl::Milliseconds(500));  // where nothing is to be saved, it ends here
}

}  // namespace

int main(int argc, char** argv) {
  moe::comm::EndWithParent();
  moe::tools::BeginTool();
  absl::SetProgramUsageMessage(
      "Compiles a Mixture-of-Experts transformer for many devices and trains it on a text.\n"
      "  compile_and_train                                     the default model on 8 virtual devices\n"
      "  compile_and_train --strategy=\"pp=2 dp=2 ep=2\" --train_iters=100\n"
      "  compile_and_train --config=my.textproto --run_dir=runs/mine\n"
      "  compile_and_train --spawn=4                           the same in 4 processes; also under torchrun, "
      "Slurm, MPI\n"
      "  compile_and_train --resume=runs/mine                  continue;  with --eval_only: evaluate\n"
      "Ctrl-C ends the step, saves a checkpoint and stops, and so does SIGTERM; a second Ctrl-C stops at once.\n"
      "Exit codes: 0 done, 1 error, 75 stopped before it was done, 130 stopped at once.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) {
    return absl::EndsWith(file, "compile_and_train.cc") || absl::EndsWith(file, "train/config/flags.cc");
  };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> args = absl::ParseCommandLine(argc, argv);
  using moe::tools::EndTool;
  if (args.size() > 1) {
    return EndTool(absl::InvalidArgumentError(
        absl::StrCat("'", args[1], "' is not a flag; every argument begins with --, see --help")));
  }
  // `bazel run` starts the tool in a folder of its own; paths are meant from where the user stands.
  absl::Status entered = moe::tools::EnterWorkingDirectory();
  if (!entered.ok()) return EndTool(entered);
  if (absl::GetFlag(FLAGS_print_passes)) {
    std::cout << moe::tools::DescribePasses();
    return EndTool(absl::OkStatus());
  }
  // A run says itself what it was: flags need only name what shall differ.
  absl::StatusOr<moe::train::RunConfig> base = moe::train::DefaultRunConfig();
  const std::string resume = absl::GetFlag(FLAGS_resume).value_or("");
  if (absl::GetFlag(FLAGS_config).empty() && !resume.empty()) base = moe::train::ConfigToResume(resume);
  if (!base.ok()) return EndTool(moe::Annotate(base.status(), "--resume"));
  const absl::StatusOr<moe::train::RunConfig> config = moe::train::RunConfigFromFlags(*base);
  if (!config.ok()) return EndTool(config.status());
  moe::testing::PassValidator validator;
  moe::train::RunOptions options = OptionsFromFlags(validator);
  const absl::StatusOr<std::optional<moe::comm::ProcessPlace>> place =
      moe::comm::FindProcess(moe::comm::SystemEnvironment());
  if (!place.ok()) return EndTool(place.status());
  const absl::Status timeouts = moe::train::CheckTimeouts(options);
  if (!timeouts.ok()) return EndTool(timeouts);
  const int spawn = absl::GetFlag(FLAGS_spawn);
  const absl::StatusOr<bool> spawns = Spawns(spawn, *place);
  if (!spawns.ok()) return EndTool(spawns.status());
  if (*spawns) {
    // What is wrong with the run is said once.
    const absl::Status valid = moe::train::CheckRun(*config, options);
    if (!valid.ok()) return EndTool(valid);
    return moe::comm::SpawnProcesses(spawn, argv, std::cerr);
  }
  if (!place->has_value()) {
    const absl::Status alone = moe::comm::CheckStartedBySrun(moe::comm::SystemEnvironment());
    if (!alone.ok()) return EndTool(alone);
  }
  moe::StopRequest& stop = moe::StopRequest::Listen();
  const int64_t rank = place->has_value() ? (*place)->rank : 0;
  if (rank != 0) stop.Silence();
  stop.EndsAtOnce("before training began; start it again");
  moe::tools::WhenNobodyReads([&stop] {
    stop.Silence();
    stop.Ask("an output that nobody reads");
  });
  options.stop = &stop;
  if (absl::GetFlag(FLAGS_check_against_reference)) {
    if (place->has_value()) {
      return EndTool(absl::InvalidArgumentError("--check_against_reference compares within one process"));
    }
    return EndTool(moe::tools::CheckAgainstReference(*config, options.passes, std::cout));
  }
  std::unique_ptr<moe::comm::Job> job;
  absl::Status status;
  if (place->has_value()) {
    absl::StatusOr<std::unique_ptr<moe::comm::Job>> joined = JoinJob(**place, options);
    status = joined.status();
    if (joined.ok()) job = *std::move(joined);
    options.job = job.get();
  }
  if (status.ok()) status = moe::train::RunTraining(*config, options, std::cout);
  if (absl::IsUnavailable(status) || absl::IsAborted(status)) AwaitRequest(stop);
  const int code = EndTool(InOneLine(status, rank));
  // Threads of a rank that hangs may still use what would be destroyed now.
  if (!status.ok()) std::_Exit(code);
  return code;
}
