// Runs passes of a given registry by a textual pipeline: what RunPipeline (pass.h) does with the built-in
// ones.
//
//   PassRegistry registry;
//   registry.Add({"remove-dead-nodes", "...", ForEachFunction(RemoveDeadNodes)});
//   RETURN_IF_ERROR(RunPipelineOf(registry, "remove-dead-nodes", program, context, options).status());
//
// A pipeline is names separated by commas, each with options in braces: "autodiff, fuse{only=adamw, trace}".
// An option without a value is "true". The same pass may stand several times.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/passes/pass.h"

namespace moe::passes {

struct PipelineStep {
  std::string pass;
  std::map<std::string, std::string> options;
};

// Errors (InvalidArgument): what is malformed, at which character. An empty text is an empty pipeline.
absl::StatusOr<std::vector<PipelineStep>> ParsePipeline(absl::string_view text);

absl::StatusOr<std::vector<PassResult>> RunPipelineOf(const PassRegistry& registry,
                                                      absl::string_view pipeline, Program& program,
                                                      PassContext context,
                                                      const PipelineOptions& options = {});

}  // namespace moe::passes
