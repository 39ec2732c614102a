// Executor: a whole cluster in one process. One thread per virtual device runs its RankExecutor over an
// InProcessWorld; at most as many compute at once as there are cores. The same Program on N ranks and the
// one-device Interpreter are both Sessions, so any plan can be checked against the oracle.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Executor> e, Executor::Create(program, {}));
//   RETURN_IF_ERROR(e->InitializeState(seed));
//   ASSIGN_OR_RETURN(Reports r, e->TrainStep(inputs));
//
// The Program outlives the Executor. Used by one thread at a time.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/runtime/rank_executor.h"
#include "moe/runtime/session.h"

namespace moe {

class Executor;

struct ExecutorOptions {
  Backend backend = Backend::kCpu;
  int compute_threads = 0;  // ranks that compute at once; 0: the number of cores
  absl::Duration timeout =
      absl::Seconds(60);  // a rank that waits longer for its peers ends the run with an error
  bool poison = false;    // tests: frames hold NaN before every action
  // Programs that share state (ir/state_layout.h) share memory too, one running at a time. The first executor
  // is told of the programs to come, the others of the first, which must outlive their runs.
  std::vector<const Program*> room_for;
  const Executor* memory_of = nullptr;
};

class Executor : public Session, private DecisionHook {
 public:
  static absl::StatusOr<std::unique_ptr<Executor>> Create(const Program& program,
                                                          const ExecutorOptions& options);
  ~Executor() override;

  absl::Status InitializeState(uint64_t seed) override;
  absl::StatusOr<Reports> TrainStep(const StepInputs& inputs) override {
    return RunProgram("train_step", inputs);
  }
  absl::StatusOr<Reports> EvalStep(const StepInputs& inputs) override { return RunProgram("eval", inputs); }
  std::vector<std::string> StateNames() const override;
  absl::StatusOr<Type> StateType(const std::string& name) const override;
  absl::StatusOr<std::vector<double>> ReadState(const std::string& name) override;
  absl::Status WriteState(const std::string& name, absl::Span<const double> values) override;
  void RecordDecisions(Decisions* into) override { record_ = into; }
  void ReplayDecisions(const Decisions* from) override { replay_ = from; }

  int64_t num_ranks() const { return static_cast<int64_t>(ranks_.size()); }
  const RankExecutor& rank(int64_t r) const { return *ranks_[r]; }
  const Program& program() const { return program_; }
  // Highest byte in use on any rank of each stage, to compare with the plan.
  std::vector<int64_t> MeasuredPeakPerStage() const;

  // Tracing of the steps that follow; off by default. Events are kept until the next StartTrace.
  void StartTrace(int64_t events_per_rank);
  void StopTrace();
  std::vector<const TraceRecorder*> trace() const;

 private:
  explicit Executor(const Program& program) : program_(program) {}
  absl::StatusOr<Reports> RunProgram(const std::string& name, const StepInputs& inputs);
  bool OnDecision(const std::string& name, int microbatch, const Block& block, int32_t* experts) override;
  void RankLoop(int64_t rank);

  const Program& program_;
  std::unique_ptr<ComputeGate> gate_;
  std::unique_ptr<InProcessWorld> world_;
  std::vector<std::unique_ptr<RankExecutor>> ranks_;
  std::vector<std::unique_ptr<TraceRecorder>> recorders_;
  std::vector<std::thread> threads_;

  // One job at a time: every rank thread runs `job_`, then counts itself done.
  std::mutex mutex_;
  std::condition_variable start_, done_;
  int64_t generation_ = 0, running_ = 0;
  bool stop_ = false;
  std::string job_;
  const StepInputs* inputs_ = nullptr;
  std::vector<absl::Status> statuses_;

  std::mutex decision_mutex_;
  Decisions* record_ = nullptr;
  const Decisions* replay_ = nullptr;
  absl::Status failed_;  // of an earlier step: the ranks are out of step and cannot go on
};

}  // namespace moe
