// Facts: what a pass may need of the program that it is given, and what it leaves. A pass declares them where it is
// registered; the pipeline checks them before it runs the pass, and says which pass is missing, or stands too early.
//
//   registry.Add({.name = "split-phases", .doc = "...", .run = SplitPhases,
//                 .needs = {Fact::kChunks}, .provides = {Fact::kPhases}, .ends = {Fact::kChunks}});
//   // partition-stages,split-phases,split-phases: "split-phases needs the functions @chunk0, ..., and there is no
//   // @chunk0; run partition-stages before it; it cannot stand after split-phases"
//
// A fact is read from the program alone, so one that was read from a file or made by hand is held to the same as one that
// passes have made. Pure functions; thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "moe/ir/program.h"

namespace moe::passes {

enum class Fact : uint8_t {
  kStep,       // there is a function @step
  kForward,    // @step has no backward, and there is no @update
  kUpdate,     // there is a function @update
  kUnplaced,   // no value, state or node is spread over an axis of the mesh
  kLowered,    // there is no comm.convert
  kChunks,     // there are functions @chunk<c>, one for each chunk of the schedule
  kPhases,     // there are functions @forward<c>, one for each chunk of the schedule
  kScheduled,  // every stage has its actions, and the functions that they run
};

// What a pass that needs the fact asks for: "a function @step".
absl::string_view DescribeFact(Fact fact);

// What of the program is not so: "there is no @step"; empty if the fact holds.
std::string WhyNot(Fact fact, const Program& program);

}  // namespace moe::passes
