// What //tools:opt does, apart from its flags: runs a pass pipeline on IR text.
//
//   OptOptions options;
//   options.passes = "common-subexpressions,remove-dead-nodes";
//   ASSIGN_OR_RETURN(std::string text, Optimize(input, "file.moe", options));
//
// //tools:opt_main is the whole tool as a library: a binary of one's own that also links a pass of one's own
// can run it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/passes/pipeline.h"

namespace moe::tools {

struct OptOptions {
  std::string passes;    // the pipeline; empty: only parse, verify and print
  std::string strategy;  // "tp=2 dp=2": what passes that place values are told
  std::string target;    // whose rates passes go by that choose by cost; empty: cpu
  passes::PipelineOptions pipeline;
  std::vector<passes::PassResult>* results = nullptr;  // if not null: what each pass did
};

// Parses `text`, verifies it, runs the passes, prints the module. Errors name `file` with line:column, or the
// pass.
absl::StatusOr<std::string> Optimize(absl::string_view text, const std::string& file,
                                     const OptOptions& options);

// A line per registered pass, sorted, and one per step of the default pipeline, in order, with its reason.
std::string DescribePasses();

}  // namespace moe::tools
