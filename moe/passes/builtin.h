// The built-in passes: one sorted table, and the order in which training runs them, with the reason for each
// place.
//
//   RETURN_IF_ERROR(RunPipeline(Passes(), DefaultPipeline(), program, context).status());
//
// A registry of one's own, with other passes beside the built-in ones:
//
//   PassRegistry registry;
//   RegisterBuiltinPasses(&registry);
//
// All references are valid for the life of the process. Thread-safe, except against RegisterPass.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/passes/pass.h"

namespace moe::passes {

void RegisterBuiltinPasses(PassRegistry* registry);

// The built-in ones, and what RegisterPass has added.
PassRegistry& Passes();

// A step of the default pipeline.
struct DefaultStep {
  absl::string_view step;    // the name of a pass, with options where it has any: "fuse{only=router}"
  absl::string_view reason;  // why it stands where it stands, a sentence
};

// The default training pipeline, in order.
absl::Span<const DefaultStep> DefaultSteps();
// The same as text for RunPipeline.
std::string DefaultPipeline();

}  // namespace moe::passes
