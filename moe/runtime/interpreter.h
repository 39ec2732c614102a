// Interpreter: runs the logical module on one device, node by node, in list order. With reference kernels in
// f64 it is the oracle that every plan is compared with.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Interpreter> oracle, Interpreter::Create(module));
//   RETURN_IF_ERROR(oracle->InitializeState(1));
//   ASSIGN_OR_RETURN(Reports r, oracle->TrainStep(inputs));
//
// The module has @step (forward, and after `autodiff` backward), @update and @report, before partitioning:
// one device, no placement. A step is: reset, @step per microbatch in order, @update, @report. The module is
// copied. After a failed step the state is undefined. Gradients of the last step stay readable as states
// grad.<parameter>.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/logical_session.h"

namespace moe::runtime {

struct InterpreterOptions {
  kernels::Backend backend = kernels::Backend::kReference;
  bool poison = true;  // fill results with NaN before a kernel writes them
  // Sees every result of every node: the value, the microbatch (-1 in @update and @report), and its data.
  std::function<void(const Value&, int microbatch, const kernels::Tensor&)> observer;
};

class Interpreter : public LogicalSession {
 public:
  // Errors: FailedPrecondition if the module lacks @step or @report, is partitioned, or has placed values;
  // InvalidArgument for an unknown binding; NotFound if an op has no kernel.
  static absl::StatusOr<std::unique_ptr<Interpreter>> Create(const Module& module,
                                                             InterpreterOptions options = {});
  ~Interpreter() override;

  absl::Status InitializeState(uint64_t seed) override;
  absl::StatusOr<Reports> TrainStep(const StepInputs& inputs) override;
  absl::StatusOr<Reports> EvalStep(const StepInputs& inputs) override;

  void RecordDecisions(Decisions* into) override { record_ = into; }
  void ReplayDecisions(const Decisions* from) override { replay_ = from; }

 private:
  struct Buffer;
  using BufferPtr = std::shared_ptr<Buffer>;
  struct Program;  // a function, prepared

  const Module& module() const override { return *module_; }
  absl::StatusOr<std::vector<double>> ReadStored(const State& state) override;
  absl::Status WriteStored(const State& state, absl::Span<const double> values) override;

  Interpreter(std::unique_ptr<Module> module, InterpreterOptions options);
  absl::StatusOr<std::unique_ptr<Program>> Prepare(const Function& f, bool forward_only) const;
  absl::StatusOr<Reports> Step(const StepInputs& inputs, bool train);
  absl::Status CheckInputs(const StepInputs& inputs) const;
  absl::Status Run(const Program& program, const StepInputs& inputs, int microbatch, Reports* reports);
  absl::StatusOr<BufferPtr> InputOf(const Binding& binding, const Type& type, const StepInputs& inputs,
                                    int microbatch) const;
  absl::Status Replay(const Node& n, int microbatch, kernels::KernelContext& c) const;
  void Record(const Node& n, int microbatch, const kernels::KernelContext& c) const;

  const std::unique_ptr<Module> module_;
  const InterpreterOptions options_;
  std::unique_ptr<Program> step_, forward_, update_, report_;
  std::map<std::string, BufferPtr> states_;
  BufferPtr workspace_;
  Decisions* record_ = nullptr;
  const Decisions* replay_ = nullptr;
};

}  // namespace moe::runtime
