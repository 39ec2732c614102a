// The parts of certify, each with the facts of the program that it needs. Private to certify*.cc.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "moe/ir/program.h"
#include "moe/passes/certify/certify.h"

namespace moe::passes {

// What the program claims to be. BuildFrame checks its shape, and the other parts index by it without asking
// again.
struct ProgramFrame {
  const Program* program = nullptr;
  const Module* module = nullptr;
  int stages = 0, chunks = 0, microbatches = 0;
  std::vector<const Function*> forward;                // by chunk
  std::vector<std::vector<const Function*>> backward;  // by chunk: @backward, or @input_grad and @weight_grad
  std::vector<const Function*> update, report;         // by stage; may be null
  bool Split(int chunk) const { return backward[chunk].size() > 1; }
  // Boundary values that a function takes and gives.
  struct Ports {
    std::set<std::string> in, out;
  };
  std::map<FunctionRole, Ports> ports;
};

template <typename... Args>
absl::Status Uncertified(const Args&... args) {
  return absl::FailedPreconditionError(absl::StrCat("certify: ", args...));
}

// "stage 1 (ranks 4-7)"
std::string StageName(const Module& module, int stage);

absl::Status BuildFrame(const Program& program, ProgramFrame* frame);
// (c); indices and names of every action are within bounds.
absl::Status CheckActions(const ProgramFrame& f);
// (a) within a function.
absl::Status CheckCollectives(const ProgramFrame& f);
// (d)
absl::Status CheckCoverage(const ProgramFrame& f);
// (b); the rendezvous of stage_reduce of (a), the transfers of (c), and the contents of slots of (e).
absl::Status CheckWaits(const ProgramFrame& f, const std::string& name);
// (e)
absl::Status CheckMemory(const ProgramFrame& f, const CertifyOptions& options);
// (f) between functions.
absl::Status CheckFutures(const ProgramFrame& f);

}  // namespace moe::passes
