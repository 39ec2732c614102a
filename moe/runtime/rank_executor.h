// RankExecutor: runs one rank's part of a Program: its stage's actions in schedule order, nodes on the
// compute queue, transfers between stages on send queues of their own.
//
//   ASSIGN_OR_RETURN(auto rank, RankExecutor::Create(program, r, world, options));
//   RETURN_IF_ERROR(rank->Run("train_step", inputs));
//
// Everything is bound when it is created: kernels, exchanges, addresses, one list per (function, slots).
// Running allocates nothing. The Program and the World outlive it. Run is called by one thread at a time.
//
// All work goes to streams of the rank's device: nodes of the compute queue to one, those of the
// communication queue to another, with an event wherever one waits for the other. The host goes ahead of the
// device and waits for it at the end of Run alone, and where an exchange of ragged rows must know their
// number. On a device with graphs the parts of a function that are the same in every run are recorded when
// they run for the second time, and launched from then on.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/comm/compute_gate.h"
#include "moe/comm/world.h"
#include "moe/ir/program.h"
#include "moe/kernels/kernel.h"
#include "moe/runtime/arena.h"
#include "moe/runtime/bucket_exchange.h"
#include "moe/runtime/comm_queue.h"
#include "moe/runtime/exchange.h"
#include "moe/runtime/flight.h"
#include "moe/runtime/local.h"
#include "moe/runtime/rank_device.h"
#include "moe/runtime/send_queue.h"
#include "moe/runtime/session.h"
#include "moe/runtime/trace.h"

namespace moe::runtime {

struct RankOptions {
  kernels::Backend backend = kernels::Backend::kCpu;
  comm::ComputeGate* gate = nullptr;
  bool poison = false;               // tests: fill frames with NaN before every action
  int64_t reserve_bytes = 0;         // where plans that share the memory need more than this one
  const Arena* memory_of = nullptr;  // run in the memory of this arena; see Arena::Share
  RankDevice* device = nullptr;      // of the kind that the back end's kernels work on
  bool graphs = true;                // record and launch, where the device can
  bool tf32 = false;                 // see ExecutorOptions
};

// Hooks around decision nodes; called on rank threads, thread-safe.
class DecisionHook {
 public:
  virtual ~DecisionHook() = default;
  // Whether the hook must be shown decisions at all.
  virtual bool Active() const = 0;
  // After a decision node ran: may record `experts` (local, at `block` of the global value) or overwrite it.
  // True if it overwrote.
  virtual bool OnDecision(const std::string& name, int microbatch, const Block& block, int32_t* experts) = 0;
};

class RankExecutor {
 public:
  static absl::StatusOr<std::unique_ptr<RankExecutor>> Create(const Program& program, int64_t rank,
                                                              comm::World* world, const RankOptions& options);
  ~RankExecutor();

  absl::Status Run(const std::string& program_name, const StepInputs& inputs);

  int64_t rank() const { return rank_; }
  int stage() const { return stage_; }
  Arena& arena() { return *arena_; }
  const Arena& arena() const { return *arena_; }
  // Storage of a state on this rank; null if its stage does not hold it.
  kernels::Tensor* FindState(const std::string& name);
  // Between runs, and by any thread: a dense tensor, filled by `fill`, which gets all its bytes to write; and
  // its bytes, in `room` unless the host can read them where they are.
  absl::Status WriteTensor(const kernels::Tensor& t, const std::function<void(char*)>& fill);
  absl::StatusOr<const char*> ReadTensor(const kernels::Tensor& t, std::vector<char>* room);
  // Reports of the last Run: from @report (to be summed over stages) and from @update (the same on all
  // stages).
  const std::map<std::string, std::vector<double>>& summed_reports() const { return summed_; }
  const std::map<std::string, std::vector<double>>& common_reports() const { return common_; }
  // Parts of functions that were recorded so far and are launched as graphs.
  int64_t graphs() const;
  // What this rank was doing last. Readable from any thread.
  const ActionLog& log() const { return log_; }

  // Traces the runs that follow, with room for so many; between runs. Events are kept until the next
  // StartTrace.
  absl::Status StartTrace(int64_t runs);
  void StopTrace() { tracing_ = false; }
  bool tracing() const { return tracing_; }
  const std::vector<TraceEvent>& trace() const { return recorder_->events(); }

  DecisionHook* decisions = nullptr;  // null: none

 private:
  struct BoundNode;
  // What the communication queue is given: the node, or to count it as done only.
  struct Job {
    BoundNode* node = nullptr;
    bool runs = true;
    int microbatch = -1;  // of the action that gives it
  };
  // An exchange that is in flight from one function to another.
  struct Flight {
    int64_t job = 0;
    const device::Event* done = nullptr;
  };
  struct BoundNode {
    const Node* node = nullptr;
    const kernels::Kernel* kernel = nullptr;
    kernels::KernelContext context;
    Exchange* exchange = nullptr;
    BucketExchange* bucket = nullptr;
    comm::Communicator* stage_group = nullptr;
    std::string what;  // "layers.0.moe %dispatch"
    Category category = Category::kOther;
    int64_t first_rank = -1;  // of a collective: the lowest rank of its group
    int expert_result = -1;   // of a node that chooses experts
    Block decision_block;
    // Queues: nodes of the other queue that must be done first (a count), and for a collective whether the
    // compute thread would wait for it at once.
    int64_t wait_for = 0;
    bool wanted_at_once = false;
    // Futures that cross functions: of a comm.start, whose job number goes there; of a comm.done, whose job
    // it waits for.
    std::vector<Flight*> gives;
    Flight* awaits = nullptr;
    bool last = false;  // runs only when its function runs for the last time in the program
    // Streams. `waits_for`: recorded in the other queue's stream, before this; null where what came before
    // this in its own stream waited for it. `done`: recorded after this; null where nobody waits for it.
    const device::Event* waits_for = nullptr;
    device::Event* done = nullptr;
    bool recordable = false;
    std::vector<device::MemoryUse> uses;  // of a kernel, on a device that checks order
    int segment = -1;                     // of the function: this node begins it
    Job run, skip;
  };
  // A part of a function that can be recorded.
  struct Segment {
    size_t end = 0;
    std::unique_ptr<device::WorkGraph> graph;
    bool refused = false;  // by the device
  };
  struct Input {   // one batch argument: runs to copy
    int kind = 0;  // tokens, labels, mask, positions
    kernels::Tensor tensor;
    struct Run {
      int64_t from, to, count;
    };
    std::vector<Run> runs;
    int64_t microbatch_elements = 0;
    int64_t staging = 0;  // offset among the inputs of an action
  };
  struct Report {
    std::string name;
    bool summed = false;
    kernels::Tensor tensor;
    int64_t staging = 0;  // offset among the reports of an action
  };
  struct BoundFunction {
    const Function* function = nullptr;
    std::vector<Input> inputs;
    std::vector<BoundNode> nodes;
    int64_t collectives = 0;      // of the communication queue
    int64_t own_collectives = 0;  // of these, up to the last one that must be done when the function ends
    std::vector<Report> reports;
    int64_t staging_bytes = 0;             // of inputs and reports
    device::Event* begun = nullptr;        // recorded in the compute stream when it begins
    const device::Event* ended = nullptr;  // of the last of its own collectives
    std::vector<Segment> segments;
    int64_t runs = 0;
  };
  struct Step {  // one action
    const Action* action = nullptr;
    BoundFunction* function = nullptr;
    kernels::Tensor buffer;  // send, recv
    comm::Communicator* peer = nullptr;
    SendQueue* queue = nullptr;
    int64_t first_rank = -1;                           // send, recv: the lower of the two ranks
    std::vector<std::pair<SendQueue*, int>> wait_for;  // slots that this action writes
    bool last = false;                                 // of its function in the program (cost::LastRuns)
    std::string name;
    int64_t staging = 0;  // offset
  };
  struct ScalarInput {
    std::string name;
    kernels::Tensor tensor;
    int64_t staging = 0;  // offset
  };

  RankExecutor(const Program& program, int64_t rank, comm::World* world, const RankOptions& options)
      : program_(program), mesh_(program.module->mesh()), rank_(rank), world_(world), options_(options) {}
  absl::Status Bind();
  absl::StatusOr<BoundFunction*> BindFunction(const Action& action);
  absl::Status BindNode(const Node& n, const FunctionMemory& memory, const Action& action,
                        BoundFunction* out);
  absl::StatusOr<kernels::Tensor> TensorOf(Value v, const FunctionMemory& memory, const Action& action);
  absl::StatusOr<kernels::Tensor> BoundaryTensor(const std::string& name, const Type& type, int slot);
  void BindUses(BoundNode* b) const;
  void BindFutures(const Node& n, BoundNode* b);
  absl::Status BindQueues(const FunctionMemory& memory, BoundFunction* f);
  void BindSegments(BoundFunction* f);
  absl::Status BindStaging();
  absl::StatusOr<device::Event*> NewEvent();
  absl::StatusOr<device::Event*> DoneOf(BoundNode* n);  // makes it
  absl::Status RunFunction(BoundFunction& f, const Step& step, const StepInputs& inputs);
  absl::Status FillInputs(const BoundFunction& f, const Step& step, const StepInputs& inputs);
  absl::StatusOr<bool> RunSegment(BoundFunction& f, size_t at, int microbatch);
  absl::Status RunNode(BoundNode& n, int microbatch);
  absl::Status RunExchange(const Job& job);
  // The compute stream waits for that job of the communication queue, and so for all before it.
  absl::Status AwaitJob(int64_t number, const device::Event* done);
  absl::Status ShowDecision(BoundNode& n, int microbatch);
  absl::Status ResetAccumulators();
  static TraceRecorder::Of StreamOf(const BoundNode& n) {
    return n.node->queue == Queue::kComm ? TraceRecorder::kComm : TraceRecorder::kCompute;
  }
  static void ReplayTopK(const BoundNode& n, kernels::KernelContext& c);
  // Where the host writes what belongs at `to`, and the copy that brings it there.
  char* Window(void* to, int64_t staging) const {
    return on_host_ ? static_cast<char*>(to) : staging_->data() + staging;
  }
  absl::Status CopyFromWindow(void* to, int64_t staging, int64_t bytes) {
    return on_host_ ? absl::OkStatus() : compute_->Copy(to, staging_->data() + staging, bytes);
  }

  const Program& program_;
  const Mesh& mesh_;
  const int64_t rank_;
  int stage_ = 0;
  comm::World* world_;
  const RankOptions options_;
  device::Device* device_ = nullptr;
  device::Stream *compute_ = nullptr, *comm_ = nullptr;
  bool on_host_ = true;  // the host can read and write the arena
  std::vector<std::unique_ptr<device::Event>> events_;
  std::unique_ptr<device::DeviceMemory>
      staging_;  // scalars, then inputs and reports of each action of a program
  std::unique_ptr<Arena> arena_;
  std::map<std::string, kernels::Tensor> states_;
  std::vector<std::string> reset_states_;
  std::vector<ScalarInput> scalars_;
  std::map<std::string, std::unique_ptr<Exchange>> exchanges_;  // by function and node
  std::map<std::string, std::unique_ptr<BucketExchange>> buckets_;
  std::map<std::string, std::unique_ptr<BoundFunction>> functions_;  // by function and slots
  std::map<std::string, std::unique_ptr<SendQueue>> send_queues_;    // by boundary value
  std::map<std::string, std::vector<Step>> programs_;
  std::map<std::string, Flight> in_flight_;  // by future that crosses functions
  int64_t awaited_ = 0;                      // the last job that the compute stream waited for
  std::unique_ptr<CommQueue> comm_queue_;    // last but for plain data: its thread uses what stands above
  std::map<std::string, std::vector<double>> summed_, common_;
  ActionLog log_;
  std::unique_ptr<TraceRecorder> recorder_;
  bool tracing_ = false;
};

}  // namespace moe::runtime
