// compile_and_train: one command from a configuration to a trained model. See --help, and README.md.

#include <algorithm>
#include <atomic>
#include <csignal>
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
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "moe/base/status.h"
#include "moe/comm/job/environment.h"
#include "moe/comm/job/job.h"
#include "moe/comm/job/spawn.h"
#include "moe/testing/validate_passes.h"
#include "moe/train/config/flags.h"
#include "moe/train/run/resume_point.h"
#include "moe/train/run/run.h"
#include "tools/check_against_reference.h"
#include "tools/opt.h"
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
ABSL_FLAG(std::string, rendezvous, "",
          "A shared folder, fresh for each run, where processes meet instead of at MASTER_ADDR:MASTER_PORT.");
ABSL_FLAG(std::string, bind_address, "",
          "The address where other processes reach this one; empty: that of the way to the rendezvous.");

ABSL_DECLARE_FLAG(std::string, config);
ABSL_DECLARE_FLAG(absl::optional<std::string>, resume);

namespace {

std::atomic<bool> interrupted{false};

// The first signal lets the step end and a checkpoint be saved; a second one ends the process at once.
void OnSignal(int signal) {
  interrupted = true;
  std::signal(signal, SIG_DFL);
}

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
  options.stop = &interrupted;
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

// What one of several processes says of its error: rank 0 all, the others a line.
void PrintError(const absl::Status& status, int64_t rank) {
  if (status.message().empty()) return;  // rank 0 says it
  if (rank == 0) {
    std::cerr << absl::StrCat("error: ", status.message(), "\n") << std::flush;
    return;
  }
  absl::string_view text = status.message();
  text = text.substr(0, text.find("\n       first seen as"));
  text = text.substr(0, text.find("\n       flight record"));
  std::cerr << absl::StrCat("rank ", rank, ": error: ", absl::StrReplaceAll(text, {{"\n       ", "; "}}),
                            "\n")
            << std::flush;
}

}  // namespace

int main(int argc, char** argv) {
  // Parallelism comes from the virtual devices; what the libraries read at start must say so before they do.
  setenv("OMP_NUM_THREADS", "1", 0);
  setenv("OPENBLAS_NUM_THREADS", "1", 0);
  absl::SetProgramUsageMessage(
      "Compiles a Mixture-of-Experts transformer for many devices and trains it on a text.\n"
      "  compile_and_train                                     the default model on 8 virtual devices\n"
      "  compile_and_train --strategy=\"pp=2 dp=2 ep=2\" --train_iters=100\n"
      "  compile_and_train --config=my.textproto --run_dir=runs/mine\n"
      "  compile_and_train --spawn=4                           the same in 4 processes; also under torchrun, "
      "Slurm, MPI\n"
      "  compile_and_train --resume=runs/mine                  continue;  with --eval_only: evaluate\n"
      "Ctrl-C ends the step, saves a checkpoint and stops. Exit code 1 for any error.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) {
    return absl::EndsWith(file, "compile_and_train.cc") || absl::EndsWith(file, "train/config/flags.cc");
  };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> args = absl::ParseCommandLine(argc, argv);
  auto fail = [](const absl::Status& status) {
    std::cerr << "error: " << status.message() << std::endl;
    return 1;
  };
  if (args.size() > 1) {
    return fail(absl::InvalidArgumentError(
        absl::StrCat("'", args[1], "' is not a flag; every argument begins with --, see --help")));
  }
  // `bazel run` starts the tool in a folder of its own; paths are meant from where the user stands.
  absl::Status entered = moe::tools::EnterWorkingDirectory();
  if (!entered.ok()) return fail(entered);
  if (absl::GetFlag(FLAGS_print_passes)) {
    std::cout << moe::tools::DescribePasses();
    return 0;
  }
  // A run says itself what it was: flags need only name what shall differ.
  absl::StatusOr<moe::train::RunConfig> base = moe::train::DefaultRunConfig();
  const std::string resume = absl::GetFlag(FLAGS_resume).value_or("");
  if (absl::GetFlag(FLAGS_config).empty() && !resume.empty()) base = moe::train::ConfigToResume(resume);
  if (!base.ok()) return fail(moe::Annotate(base.status(), "--resume"));
  const absl::StatusOr<moe::train::RunConfig> config = moe::train::RunConfigFromFlags(*base);
  if (!config.ok()) return fail(config.status());
  moe::testing::PassValidator validator;
  moe::train::RunOptions options = OptionsFromFlags(validator);
  const absl::StatusOr<std::optional<moe::comm::ProcessPlace>> place =
      moe::comm::FindProcess(moe::comm::SystemEnvironment());
  if (!place.ok()) return fail(place.status());
  const absl::Status timeouts = moe::train::CheckTimeouts(options);
  if (!timeouts.ok()) return fail(timeouts);
  const int spawn = absl::GetFlag(FLAGS_spawn);
  const absl::StatusOr<bool> spawns = Spawns(spawn, *place);
  if (!spawns.ok()) return fail(spawns.status());
  if (*spawns) {
    // What is wrong with the run is said once.
    const absl::Status valid = moe::train::CheckRun(*config, options);
    if (!valid.ok()) return fail(valid);
    const absl::Duration grace = options.DeviceTimeout() + absl::Seconds(20);
    return moe::comm::SpawnProcesses(spawn, argv, {.grace_after_death = grace}, std::cerr);
  }
  if (place->has_value() && (*place)->spawned) moe::comm::EndWithParent();

  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
  if (absl::GetFlag(FLAGS_check_against_reference)) {
    if (place->has_value()) {
      return fail(absl::InvalidArgumentError("--check_against_reference compares within one process"));
    }
    const absl::Status status = moe::tools::CheckAgainstReference(*config, options.passes, std::cout);
    return status.ok() ? 0 : fail(status);
  }
  std::unique_ptr<moe::comm::Job> job;
  const int64_t rank = place->has_value() ? (*place)->rank : 0;
  absl::Status status;
  if (place->has_value()) {
    absl::StatusOr<std::unique_ptr<moe::comm::Job>> joined =
        moe::comm::Job::Join(**place, {.rendezvous = absl::GetFlag(FLAGS_rendezvous),
                                       .address = absl::GetFlag(FLAGS_bind_address),
                                       .timeout = std::max(options.DeviceTimeout(), absl::Seconds(60)),
                                       .connect_timeout = options.ConnectTimeout()});
    status = joined.status();
    if (joined.ok()) job = *std::move(joined);
    options.job = job.get();
  }
  if (status.ok()) status = moe::train::RunTraining(*config, options, std::cout);
  if (status.ok()) return 0;
  PrintError(status, rank);
  std::cout.flush();
  // Threads of a rank that hangs may still use what would be destroyed now.
  std::_Exit(1);
}
