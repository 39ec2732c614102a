// The plan-equivalence harness: a strategy, compiled and run on virtual devices, against the one-device
// reference.
//
//   EquivalenceCase c{"tp2 sp", LineModel("cap"), "tp=2 sp"};        // equivalence_lines.h
//   ASSERT_OK_AND_ASSIGN(EquivalenceResult r, CheckEquivalence(c));
//   EXPECT_LT(r.worst_gradient, 1e-9);
//
// The reference is the interpreter of the logical module in f64, with whole matrix products where the naive
// kernels take too long (Backend::kBlas; interpreter_test holds the two together). Both start from the same
// parameters and see the same batches (with padding). Compared are the gradients of the first step and the
// losses of all steps; the error of a tensor is ||out - ref|| / max(||ref||, 1e-6 x global gradient norm). In
// f32 the reference's routing decisions are replayed. Also: planned against measured peak memory per stage,
// bitwise repetition, and what the trace of the first step shows against what the cost model counts.
//
// References are computed once per model and batch and kept for the process. Not thread-safe.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/kernels/kernel.h"
#include "moe/model/config.pb.h"
#include "moe/runtime/session.h"
#include "moe/strategy/strategy.h"

namespace moe::testing {

struct EquivalenceCase {
  std::string name;
  std::string model;     // textproto of a ModelConfig
  std::string strategy;  // as ParseStrategy reads it
  int64_t global_batch = 8;
  int steps = 20;
  bool f32 = false;  // run the plan in f32 (decisions replayed); the reference stays f64. So do bf16 and f16.
  bool poison = true;
  bool twice = false;  // run the plan again and compare all reports bitwise
  std::string passes;  // "": the default pipeline
  // Whose kernels the plan runs on. kCuda has no f64: f32, and ranks on the devices that are linked in.
  kernels::Backend backend = kernels::Backend::kCpu;
  std::set<std::string> libraries;  // of the target
  // Workloads that starve something.
  bool empty_sample = false;  // the first sample of every batch is all padding
  bool one_expert = false;    // routers start at zero: by the tie rule, all tokens choose the first experts
};

struct EquivalenceResult {
  double worst_gradient = 0, worst_loss = 0, worst_parameter = 0;
  std::string worst_gradient_name;
  // The worst of the gradients that are further from the reference than 1e-7 of the norm of all: what f32
  // cannot be asked for is left out, as that the difference of two equal numbers be zero.
  double worst_gradient_beyond_f32 = 0;
  std::vector<double> losses, reference_losses;
  std::vector<int64_t> planned_peak, measured_peak;  // per stage
  bool may_spill = false;
  bool repeated_bitwise = true;
  std::string unlike_counted;  // of the first step, see UnlikeCounted
  int64_t ranks = 0;
  // Every stage used what was planned to the byte. A buffer that spills leaves its planned room empty: where
  // some may, no stage used more.
  bool MemoryIsAsPlanned() const;
  std::string ToString() const;
};

absl::StatusOr<EquivalenceResult> CheckEquivalence(const EquivalenceCase& c);
// The same for a model given as a message.
absl::StatusOr<EquivalenceResult> CheckEquivalence(const model::ModelConfig& model,
                                                   const strategy::Strategy& strategy,
                                                   const EquivalenceCase& c);

}  // namespace moe::testing
