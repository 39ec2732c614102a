// A training step of a program in whatever state the passes have left it, on all ranks of a virtual cluster, in
// lockstep. What validate_passes compares before and after a pass.
//
//   ASSIGN_OR_RETURN(ClusterRun run, RunStep(program, inputs, {}));
//   run.exports.at("state grad.layers.0.attn.wq");
//
// It runs the logical @step (with or without its backward), @chunk<c> with both phases, or @forward<c> and
// @backward<c> (or its halves @input_grad<c> and @weight_grad<c>); then @update<s> of all stages, meeting at
// their stage reductions, and @report<s>. Any other function is run by itself on random arguments. Conversions
// are done by their steps. Schedule and memory plan are ignored: microbatches one after the other, every value in
// a buffer of its own. Kernels, dtypes and wire formats are those of the program, so that of a complete plan it
// gives what the executor gives, to the bit.
//
// Initial states are pure functions of the seed, the state's name and the global element, so they do not
// depend on the placement. Nothing is kept between runs.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/program.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/session.h"
#include "moe/testing/virtual_cluster.h"

namespace moe::testing {

struct ClusterExport {
  std::string producer;          // "%n = optim.adamw in @update0"; empty for a state that nothing writes
  std::vector<Snapshot> copies;  // one per stage that has it
  bool summed = false;           // the copies add up (the gradient of a parameter shared by stages)
};

struct ClusterRun {
  // What leaves functions: "state S" after the step (as a logical tensor), "report R", "boundary V, microbatch
  // 0", "result 0 of @f".
  std::map<std::string, ClusterExport> exports;
  double objective = 0;  // sum of the losses, where the step still gives them
  bool has_objective = false;
  runtime::Decisions decisions;  // global
};

struct ClusterOptions {
  kernels::Backend backend = kernels::Backend::kCpu;
  uint64_t seed = 1;
  int microbatches = 0;  // at most so many of the step's; 0: all
  // Instead of the initial values: whole logical tensors by state name.
  std::map<std::string, std::vector<double>> states;
  // Sees every result of every node, after it was computed. An error ends the run.
  std::function<absl::Status(const Value& v, int microbatch, const Snapshot&)> observer;
};

absl::StatusOr<ClusterRun> RunStep(const Program& program, const runtime::StepInputs& inputs,
                                   const ClusterOptions& options);

// What a state holds before the step, as a logical tensor: parameters and expert maps as the runtime
// initialises them, moments small random numbers (second moments positive), everything else zero.
std::vector<double> InitialValues(const Module& module, const State& state, uint64_t seed);

// Makes every float an f64, attributes included, and exchanges it whole, so that what differs is wrong and not rounded.
void PromoteToF64(Module* module);

}  // namespace moe::testing
