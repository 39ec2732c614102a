// Plan: the compiled artifact. One program with its schedule and memory, the strategy and target it was made
// for, and the configurations it came from, so that a run folder explains itself.
//
//   RETURN_IF_ERROR(SavePlan(plan, run_folder));            // plan.pb and, to read, plan.txt
//   ASSIGN_OR_RETURN(Plan same, LoadPlan(run_folder));      // a folder with plan.pb, or a file
//
// A file ends in a checksum of all that stands before it, which is compared before anything else is read; a plan without
// one was written by an older build, or is cut off. Loading trusts nothing more: file and numbers have limits, the module is verified and the whole plan certified again
// (moe/passes/certify/certify.h), so whoever executes a loaded plan may index by what it says. Plain data;
// one thread at a time.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/base/proto.h"
#include "moe/cost/target.h"
#include "moe/ir/program.h"
#include "moe/plan/plan.pb.h"
#include "moe/strategy/strategy.h"

namespace moe::plan {

inline constexpr int64_t kPlanVersion = 3;

// What the file of a plan may hold at most.
inline constexpr ProtoLimits kPlanLimits = {.bytes = 1 << 28, .fields = 1 << 24, .depth = 16};
inline constexpr ProtoNumbers kPlanNumbers = {
    .most_int64 = int64_t{1} << 60,  // offsets and sizes in bytes; slots times their bytes, too
    .most_int32 = 1 << 24,           // microbatches, chunks, stages, slots
    .most_double = 1e30,             // rates
};

struct Plan {
  Program program;
  strategy::Strategy strategy;
  cost::Target target;
  std::string model_text;  // ModelConfig and TrainConfig as textproto; may be empty
  std::string train_text;
  std::string pipeline;

  const Module& module() const { return *program.module; }
  const Mesh& mesh() const { return program.module->mesh(); }
};

PlanProto PlanToProto(const Plan& plan);
// Errors: FailedPrecondition naming another version; InvalidArgument naming a malformed field, or a number beyond
// kPlanNumbers.
absl::StatusOr<Plan> PlanFromProto(const PlanProto& proto);

std::string SerializePlan(const Plan& plan);  // deterministic: equal plans give equal bytes
// Also DataLoss: the checksum is missing or another.
absl::StatusOr<Plan> ParsePlan(absl::string_view bytes);

// Everything in the plan, to read: configuration, notes, actions, module, memory.
std::string PlanToText(const Plan& plan);

absl::Status SavePlan(const Plan& plan, const std::string& folder);
absl::StatusOr<Plan> LoadPlan(const std::string& path);

Plan ClonePlan(const Plan& plan);

}  // namespace moe::plan
