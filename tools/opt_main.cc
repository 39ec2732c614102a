#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/file.h"
#include "moe/ir/limits.h"
#include "moe/passes/builtin.h"
#include "tools/opt.h"
#include "tools/tool.h"
#include "tools/working_directory.h"

ABSL_FLAG(
    std::string, passes, "",
    "The passes to run, in order: name,name{option=value,...}. 'default' stands for the default pipeline. "
    "Empty: only parse, verify and print.");
ABSL_FLAG(bool, print_passes, false, "List the passes and the default pipeline, and stop.");
ABSL_FLAG(std::string, strategy, "", "What placing passes are told, such as \"pp=2 dp=2 tp=2 ep=2\".");
ABSL_FLAG(std::string, target, "cpu", "The devices that the module is meant for: cpu, a100, h100 or h200.");
ABSL_FLAG(std::string, dump_to, "", "Folder for the module after each pass that changed something.");
ABSL_FLAG(std::string, dump_pass_re, ".*",
          "Dump only after passes whose names contain a match of this expression.");
ABSL_FLAG(std::vector<std::string>, disable_passes, {},
          "Passes of the pipeline to skip, separated by commas.");
ABSL_FLAG(bool, verify, true, "Verify after each pass that changed something.");
ABSL_FLAG(bool, stats, false, "Say on standard error what each pass did.");
ABSL_FLAG(std::string, output, "-", "File for the resulting module; - is standard output.");

namespace {

absl::StatusOr<std::string> ReadInput(const std::string& file) {
  if (file != "-") return moe::ReadFile(file, moe::kMaxTextBytes);
  return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
}

void PrintStats(const std::vector<moe::passes::PassResult>& results) {
  for (const moe::passes::PassResult& r : results) {
    std::cerr << absl::StreamFormat("%-26s %-3s %6d -> %6d nodes %9.1f ms  %s\n", r.name,
                                    r.changed ? "yes" : "no", r.nodes_before, r.nodes_after, r.milliseconds,
                                    absl::StrJoin(r.notes, "; "));
  }
}

}  // namespace

int main(int argc, char** argv) {
  using moe::tools::EndTool;
  moe::tools::BeginTool();
  absl::SetProgramUsageMessage(
      "Runs passes on IR text and prints the resulting module.\n"
      "  opt --passes=common-subexpressions,remove-dead-nodes file.moe\n"
      "  opt --passes=default --strategy=\"tp=2 dp=2\" --dump_to=dumps -      (reads standard input)\n"
      "  opt --print_passes\n"
      "Exit code 1 for any error, with what was wrong and where on standard error.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) { return absl::EndsWith(file, "opt_main.cc"); };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> args = absl::ParseCommandLine(argc, argv);
  if (absl::GetFlag(FLAGS_print_passes)) {
    std::cout << moe::tools::DescribePasses();
    return EndTool(absl::OkStatus());
  }
  if (args.size() != 2) {
    return EndTool(absl::InvalidArgumentError(absl::StrFormat(
        "one input file is needed (- for standard input), not %d; see --help", args.size() - 1)));
  }
  const absl::Status entered = moe::tools::EnterWorkingDirectory();
  if (!entered.ok()) return EndTool(entered);
  const std::string file = args[1];
  std::vector<moe::passes::PassResult> results;
  moe::tools::OptOptions options;
  options.passes = absl::GetFlag(FLAGS_passes);
  if (options.passes == "default") options.passes = moe::passes::DefaultPipeline();
  options.strategy = absl::GetFlag(FLAGS_strategy);
  options.target = absl::GetFlag(FLAGS_target);
  options.pipeline.dump_to = absl::GetFlag(FLAGS_dump_to);
  options.pipeline.dump_pass_re = absl::GetFlag(FLAGS_dump_pass_re);
  options.pipeline.disable_passes = absl::GetFlag(FLAGS_disable_passes);
  options.pipeline.verify = absl::GetFlag(FLAGS_verify);
  options.results = &results;

  const absl::StatusOr<std::string> text = ReadInput(file);
  if (!text.ok()) return EndTool(text.status());
  const absl::StatusOr<std::string> out =
      moe::tools::Optimize(*text, file == "-" ? "<stdin>" : file, options);
  if (!out.ok()) return EndTool(out.status());
  if (absl::GetFlag(FLAGS_stats)) PrintStats(results);
  const std::string output = absl::GetFlag(FLAGS_output);
  if (output != "-") {
    return EndTool(moe::WriteFile(output, *out));
  }
  std::cout << *out;
  return EndTool(absl::OkStatus());
}
