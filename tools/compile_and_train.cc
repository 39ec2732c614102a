// compile_and_train: one command from a configuration to a trained model. See --help, and README.md.

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "moe/base/file.h"
#include "moe/passes/builtin.h"
#include "moe/testing/validate_passes.h"
#include "moe/train/flags.h"
#include "moe/train/run.h"
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
          "Seconds that a virtual device waits for its peers before the run ends with an error.");
ABSL_FLAG(std::string, prompt, "", "What the sample text begins with.");

ABSL_DECLARE_FLAG(std::string, config);
ABSL_DECLARE_FLAG(absl::optional<std::string>, resume);

namespace {

std::atomic<bool> interrupted{false};

// The first signal lets the step end and a checkpoint be saved; a second one ends the process at once.
void OnSignal(int signal) {
  interrupted = true;
  std::signal(signal, SIG_DFL);
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
      "  compile_and_train --resume=runs/mine                  continue;  with --eval_only: evaluate\n"
      "Ctrl-C ends the step, saves a checkpoint and stops. Exit code 1 for any error.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) {
    return absl::EndsWith(file, "compile_and_train.cc") || absl::EndsWith(file, "train/flags.cc");
  };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> args = absl::ParseCommandLine(argc, argv);
  auto fail = [](const absl::Status& status) {
    std::cerr << "error: " << status.message() << std::endl;
    return 1;
  };
  if (args.size() > 1) {
    return fail(absl::InvalidArgumentError(
        absl::StrCat("'", args[1], "' is no flag; every argument begins with --, see --help")));
  }
  // `bazel run` starts the tool in a folder of its own; paths are meant from where the user stands.
  absl::Status entered = moe::EnterWorkingDirectory();
  if (!entered.ok()) return fail(entered);
  if (absl::GetFlag(FLAGS_print_passes)) {
    std::cout << moe::DescribePasses();
    return 0;
  }
  // A run directory says itself what it was: flags need only name what shall differ.
  if (absl::GetFlag(FLAGS_config).empty() && absl::GetFlag(FLAGS_resume).has_value()) {
    const std::string saved = moe::JoinPath(*absl::GetFlag(FLAGS_resume), "config.textproto");
    if (moe::FileExists(saved)) absl::SetFlag(&FLAGS_config, saved);
  }
  absl::StatusOr<moe::RunConfig> config = moe::RunConfigFromFlags();
  if (!config.ok()) return fail(config.status());

  moe::RunOptions options;
  options.passes = absl::GetFlag(FLAGS_passes);
  if (options.passes == "default") options.passes.clear();
  options.disable_passes = absl::GetFlag(FLAGS_disable_passes);
  options.dump_to = absl::GetFlag(FLAGS_dump_to);
  options.dump_pass_re = absl::GetFlag(FLAGS_dump_pass_re);
  moe::PassValidator validator;
  if (absl::GetFlag(FLAGS_validate_passes)) options.validate = validator.Hook();
  options.eval_only = absl::GetFlag(FLAGS_eval_only);
  options.voice = absl::GetFlag(FLAGS_json)    ? moe::RunOptions::kJson
                  : absl::GetFlag(FLAGS_quiet) ? moe::RunOptions::kQuiet
                                               : moe::RunOptions::kText;
  options.device_timeout = absl::Seconds(absl::GetFlag(FLAGS_device_timeout));
  if (!absl::GetFlag(FLAGS_prompt).empty()) options.prompt = absl::GetFlag(FLAGS_prompt);
  options.stop = &interrupted;
  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
  const absl::Status status = absl::GetFlag(FLAGS_check_against_reference)
                                  ? moe::CheckAgainstReference(*config, options.passes, std::cout)
                                  : moe::RunTraining(*config, options, std::cout);
  return status.ok() ? 0 : fail(status);
}
