// Runs passes of a registry by a textual pipeline, verifies after each that changed something, and dumps
// where asked.
//
//   Program program = ...;
//   ASSIGN_OR_RETURN(const std::vector<PassResult> results,
//                    RunPipeline(Passes(), "autodiff, fuse{only=adamw}", program, PassContext()));
//
// A pipeline is names separated by commas, each with options in braces: "autodiff, fuse{only=adamw, trace}".
// An option without a value is "true". The same pass may stand several times.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
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

// The pass of that name. Error (InvalidArgument): the name is unknown; lists the known ones.
absl::StatusOr<const PassDef*> FindPass(const PassRegistry& registry, absl::string_view name);

struct PassResult {
  std::string name;
  bool changed = false;
  double milliseconds = 0;
  int64_t nodes_before = 0, nodes_after = 0;
  std::vector<std::string> notes;
  std::map<std::string, int64_t> counts;
};

struct PipelineOptions {
  std::string dump_to;  // folder; empty: no dumps
  std::string dump_pass_re = ".*";
  std::vector<std::string> disable_passes;
  bool verify = true;
  // Called after each pass that changed something (validate_passes). An error ends the pipeline.
  std::function<absl::Status(const std::string& pass, const Program& before, const Program& after)> validate;
};

// Verifies the module and runs the passes in order, each if what it needs of the program holds (PassDef::needs). After one that changed something, nodes without uses are
// removed and the module is verified. Errors: unknown passes and malformed text before anything runs; then
// the first pass that lacks something (FailedPrecondition: what, and which pass provides it), or the first error of a
// pass, with its name. Each pass's notes are also appended to program.notes.
absl::StatusOr<std::vector<PassResult>> RunPipeline(const PassRegistry& registry, absl::string_view pipeline,
                                                    Program& program, PassContext context,
                                                    const PipelineOptions& options = {});

}  // namespace moe::passes
