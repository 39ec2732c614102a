// generate: continues a prompt from a checkpoint. See --help.

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
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/model/config.h"
#include "moe/train/checkpoint/checkpoint.h"
#include "moe/train/checkpoint/session_state.h"
#include "moe/train/run/generator.h"
#include "tools/tool.h"
#include "tools/working_directory.h"

ABSL_FLAG(std::string, checkpoint, "", "A checkpoint, a folder of them, or a run directory.");
ABSL_FLAG(std::string, prompt, moe::train::kSamplePrompt, "What the text begins with.");
ABSL_FLAG(int64_t, tokens, 200, "How many tokens to add.");
ABSL_FLAG(double, temperature, 0.7, "Sharpness of the choice; 0: always the likeliest token.");
ABSL_FLAG(int64_t, top_k, 0, "Choose among the k likeliest tokens; 0: among all.");
ABSL_FLAG(uint64_t, seed, 1, "Of the choices.");

namespace {

absl::Status Generate() {
  RETURN_IF_ERROR(moe::tools::EnterWorkingDirectory());
  const std::string path = absl::GetFlag(FLAGS_checkpoint);
  if (path.empty()) {
    return absl::InvalidArgumentError(
        "--checkpoint is needed: a checkpoint, a folder of them, or a run directory");
  }
  ASSIGN_OR_RETURN(const std::string dir, moe::train::FindCheckpoint(path));
  ASSIGN_OR_RETURN(const std::unique_ptr<moe::train::Checkpoint> checkpoint,
                   moe::train::Checkpoint::Open(dir));
  ASSIGN_OR_RETURN(
      const moe::model::ModelConfig model,
      moe::model::ParseModelConfig(checkpoint->meta().model_config, moe::JoinPath(dir, "manifest.json")));
  ASSIGN_OR_RETURN(const std::unique_ptr<moe::train::Generator> generator,
                   moe::train::Generator::Create(model));
  RETURN_IF_ERROR(generator->Load(dir));
  moe::train::GenerateOptions options;
  options.tokens = absl::GetFlag(FLAGS_tokens);
  options.temperature = absl::GetFlag(FLAGS_temperature);
  options.top_k = absl::GetFlag(FLAGS_top_k);
  options.seed = absl::GetFlag(FLAGS_seed);
  bool begun = false;
  const std::string prompt = absl::GetFlag(FLAGS_prompt);
  options.sink = [&](absl::string_view piece) {
    if (!begun) std::cout << prompt;
    begun = true;
    std::cout << piece << std::flush;
  };
  RETURN_IF_ERROR(generator->Continue(prompt, options).status());
  if (!begun) std::cout << prompt;
  std::cout << "\n";
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  moe::tools::BeginTool();
  absl::SetProgramUsageMessage(
      "Continues a prompt from a checkpoint.\n"
      "  generate --checkpoint=runs/mine --prompt=\"In the beginning\" --tokens=300");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) { return absl::EndsWith(file, "generate.cc"); };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> args = absl::ParseCommandLine(argc, argv);
  return moe::tools::EndTool(
      args.size() > 1 ? absl::InvalidArgumentError(absl::StrCat(
                            "'", args[1], "' is not a flag; every argument begins with --, see --help"))
                      : Generate());
}
