// Executor: a whole cluster in one process, or this process's part of one. One thread per virtual device runs
// its RankExecutor, on the devices and over the worlds of a DeviceWorlds; at most as many compute at once as
// there are cores. The same Program on N ranks and the one-device Interpreter are both Sessions, so any plan
// can be checked against the oracle.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Executor> e, Executor::Create(program, {}));
//   RETURN_IF_ERROR(e->InitializeState(seed));
//   ASSIGN_OR_RETURN(Reports r, e->TrainStep(inputs));
//
// With several processes, all make the same calls in the same order, and each gets the same results; steps
// and reading a state communicate. After a failed step only Flight() is of use. A rank that never comes back
// from a failed step is left behind, with its memory.
//
// The back end's kernels say on what kind of device the ranks live: those of Backend::kCuda on GPUs.
//
// The Program outlives the Executor. Used by one thread at a time; Flight() by any.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "moe/comm/device_worlds.h"
#include "moe/comm/recorded_world.h"
#include "moe/runtime/flight.h"
#include "moe/runtime/logical_session.h"
#include "moe/runtime/rank_executor.h"

namespace moe::runtime {

class Executor;

struct ExecutorOptions {
  kernels::Backend backend = kernels::Backend::kCpu;
  int compute_threads = 0;  // ranks that compute at once; 0: the number of cores
  // A rank that waits longer for its peers ends the run with an error.
  absl::Duration timeout = absl::Seconds(60);
  bool poison = false;  // tests: frames hold NaN before every action
  bool graphs = true;   // record and launch what is the same in every step, on devices that can
  bool tf32 = false;    // dense products of f32 may round their operands to TF32, on devices that can
  // The ranks of this process, of those of the mesh: their devices and how they meet. Outlives the executor.
  // Null: those of `memory_of`, or else all ranks, opened by the executor.
  const comm::DeviceWorlds* worlds = nullptr;
  comm::Communicator* host = nullptr;  // with several processes: one member each, in the order of their ranks
  // A signal handler sets it when the user asks the run to end; see Executor::stop.
  const std::atomic<bool>* stop = nullptr;
  // Programs that share state (ir/state_layout.h) share memory too, one running at a time. The first executor
  // is told of the programs to come, the others of the first, which must outlive their runs.
  std::vector<const Program*> room_for;
  const Executor* memory_of = nullptr;
};

class Executor : public LogicalSession, private DecisionHook {
 public:
  static absl::StatusOr<std::unique_ptr<Executor>> Create(const Program& program,
                                                          const ExecutorOptions& options);
  ~Executor() override;

  absl::Status InitializeState(uint64_t seed) override;
  absl::StatusOr<Reports> TrainStep(const StepInputs& inputs) override {
    return RunProgram("train_step", inputs);
  }
  absl::StatusOr<Reports> EvalStep(const StepInputs& inputs) override { return RunProgram("eval", inputs); }
  void RecordDecisions(Decisions* into) override { record_ = into; }
  void ReplayDecisions(const Decisions* from) override { replay_ = from; }

  int64_t num_ranks() const { return program_.module->mesh().num_ranks(); }
  int64_t num_local_ranks() const { return static_cast<int64_t>(ranks_.size()); }
  const RankExecutor& rank(int64_t local) const { return *ranks_[local]; }
  const device::Device& device(int64_t local) const { return *devices_[local]->device(); }
  const Program& program() const { return program_; }
  bool failed() const { return !failed_.ok(); }  // in an earlier step; it cannot go on
  // Highest byte in use on any rank of this process of each stage, to compare with the plan; 0 of other
  // stages.
  std::vector<int64_t> MeasuredPeakPerStage() const;

  // ExecutorOptions::stop as all processes agreed after the last program: they stop at the same place.
  const std::atomic<bool>* stop() const { return host_ == nullptr ? options_stop_ : &agreed_stop_; }

  // What the ranks of this process did last. `step` is what the caller says it is at.
  std::vector<FlightRecord> Flight() const;
  void NameStep(int64_t step) { step_ = step; }
  int64_t step() const { return step_; }

  // Tracing of the steps that follow, with room for so many; off by default. Events are kept until the next
  // StartTrace. Error: that of a device which makes no more events.
  absl::Status StartTrace(int64_t steps);
  void StopTrace();
  bool tracing() const { return ranks_[0]->tracing(); }
  // The events of all ranks, with the times of process 0's clock. With several processes all call it, and
  // process 0 gets them; the others get those of their own ranks.
  absl::StatusOr<Trace> GatherTrace();

 private:
  explicit Executor(const Program& program);
  const Module& module() const override { return *program_.module; }
  absl::StatusOr<std::vector<double>> ReadStored(const State& state) override;
  absl::Status WriteStored(const State& state, absl::Span<const double> values) override;
  absl::StatusOr<Reports> RunProgram(const std::string& name, const StepInputs& inputs);
  absl::Status RunRanks(const std::string& name, const StepInputs& inputs);
  bool Active() const override { return record_ != nullptr || replay_ != nullptr; }
  bool OnDecision(const std::string& name, int microbatch, const Block& block, int32_t* experts) override;

  // The reports of all stages by the rank that gives them; local ones, and with several processes those of
  // others.
  struct StageReports {
    Reports summed, common;
  };
  absl::StatusOr<std::map<int64_t, StageReports>> GatherReports(const std::string& name);
  // The bytes of a state on every rank that holds it: whole of those that `speak`, of the others a hash. What
  // has to be copied for it lies in `memory`.
  struct Held {
    const char* data = nullptr;
    uint64_t hash = 0;
  };
  absl::StatusOr<std::map<int64_t, Held>> GatherState(const std::string& name, const Type& type,
                                                      const std::set<int64_t>& speakers,
                                                      std::list<std::vector<char>>* memory);
  bool Holds(int64_t rank, const std::string& name) const;
  // What the clock of each process is ahead of that of process 0, in ns.
  absl::StatusOr<std::vector<int64_t>> CompareClocks();

  // What the rank threads work on: one job at a time, which every thread runs, and then counts itself done.
  // Lives as long as its last thread.
  struct Crew;
  static void RankLoop(std::shared_ptr<Crew> crew, RankExecutor* rank, comm::World* world,
                       comm::ComputeGate* gate, size_t at);

  const Program& program_;
  const bool masks_by_index_;  // some attention is, so that positions have to ascend
  comm::Communicator* host_ = nullptr;
  absl::Duration timeout_;
  std::unique_ptr<comm::ComputeGate> gate_;
  std::unique_ptr<comm::DeviceWorlds> own_;
  const comm::DeviceWorlds* meeting_ = nullptr;
  std::vector<std::unique_ptr<comm::RecordedWorld>> worlds_;
  std::vector<std::shared_ptr<RankDevice>> devices_;  // per rank of this process
  std::vector<std::unique_ptr<RankExecutor>> ranks_;
  std::shared_ptr<Crew> crew_;
  std::vector<std::thread> threads_;

  std::mutex decision_mutex_;
  Decisions* record_ = nullptr;
  const Decisions* replay_ = nullptr;
  absl::Status failed_;  // of an earlier step: the ranks are out of step and cannot go on
  std::atomic<int64_t> step_{0};
  const std::atomic<bool>* options_stop_ = nullptr;
  std::atomic<bool> agreed_stop_{false};
};

}  // namespace moe::runtime
