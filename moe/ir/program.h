// Program: what passes rewrite. Module + schedule + memory plan, plain structs.
//
// Life of a program, in functions by their roles (FunctionRole). The front end gives one function @step (one
// microbatch, forward) and the parameters. `autodiff` appends the backward phase to it and adds @update and
// @report. `partition-stages` cuts @step into @chunk0..@chunkN-1, each with a forward and a backward phase,
// and @update / @report into one per stage (@update0, ...). `shard` and `insert-collectives` place them.
// `checkpoint` and `fuse` rewrite them. `split-phases` cuts each chunk into @forward<c> and @backward<c>,
// whose residuals are explicit; where the schedule asks for it, `split-backward` cuts @backward<c> into
// @input_grad<c> and @weight_grad<c>. `schedule` resolves the actions of every stage, `plan-memory` their
// storage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"

namespace moe {

// One thing that a stage does. Functions are executed whole.
struct Action {
  enum Kind : uint8_t {
    kForward,
    kBackward,
    kInputGrad,
    kWeightGrad,
    kSend,
    kRecv,
    kReset,
    kUpdate,
    kReport
  };
  Kind kind = kForward;
  int chunk = -1;          // F/B/I/W: the chunk; send/recv: the chunk that produces the value
  int microbatch = -1;     // -1 for reset, update, report
  int residual_slot = -1;  // F/B/I/W: which residual set of the chunk
  int weight_slot = -1;    // I/W: which set of what the weight gradient needs of the input gradient
  std::map<std::string, int> boundary_slots;  // F/B/I/W: boundary value -> its slot (arguments and results)
  // send/recv: which boundary value, in which slot, with which stage
  std::string boundary;
  int slot = -1;
  int peer_stage = -1;
  friend bool operator==(const Action&, const Action&) = default;
};
std::string ActionToString(const Action& a);  // "F0.3", "send act.0 mb3 -> stage 1"

// The kind of function that an action runs; kOther if none.
FunctionKind KindOfFunction(Action::Kind kind);
// The role of the function that an action of the stage runs: kind and chunk, or kind and stage.
FunctionRole RoleOf(const Action& a, int stage);
// That function; null if the action runs none, or the module does not have it.
Function* FunctionOf(const Module& module, const Action& a, int stage);

struct Schedule {
  std::string name;  // "1f1b", "gpipe", ..., or the table's file
  int microbatches = 1;
  std::vector<int> chunk_stage;  // chunk -> pp rank
  // A bidirectional schedule has the model twice: chunks [0, n) are one copy, [n, 2n) the other, on the
  // stages in reverse, and a microbatch goes through one of them. Otherwise 1.
  int copies = 1;
  int chunks_per_copy() const { return std::max(1, static_cast<int>(chunk_stage.size()) / copies); }
  bool IsFirst(int chunk) const { return chunk % chunks_per_copy() == 0; }
  bool IsLast(int chunk) const { return (chunk + 1) % chunks_per_copy() == 0; }
  int CopyOfChunk(int chunk) const { return chunk / chunks_per_copy(); }
  int CopyOfMicrobatch(int microbatch) const;  // the copy that the table runs it through; 0 if none
  int StageOf(FunctionRole role) const;  // which stage runs the function; -1 for those that no stage runs
  // The table: one row per pp rank, cells in order: "F0.0", "B1.3", ...
  struct Cell {
    char kind = 'F';  // F B I W
    int chunk = 0, microbatch = 0;
    friend bool operator==(const Cell&, const Cell&) = default;
  };
  std::vector<std::vector<Cell>> table;
  // Resolved actions per stage and program: "train_step", "eval".
  std::map<std::string, std::vector<std::vector<Action>>> actions;
};

// Where a value lives. A rank's arena has a region for each space, in the order kState, kInput, kResidual,
// kBoundary, kFuture, kFrame; kSpill follows on a page of its own, and kWeightResidual has no region of its
// own but lies in that of kResidual.
enum class Space : uint8_t {
  kState,           // parameters, moments, gradients, accumulators: for the whole run
  kInput,           // batch and scalars of one microbatch / step
  kResidual,        // residual sets: (chunk, slot)
  kBoundary,        // boundary values: (value, slot)
  kFrame,           // everything else of the function that runs now
  kSpill,           // overflow of ragged values; reserved address space, touched only on overflow
  kWeightResidual,  // what @weight_grad needs of @input_grad, (chunk, slot)
  kFuture,          // what exchanges write that are in flight from one function to another
};
// The key of an argument in StageMemory::inputs: "batch:tokens", "scalar:inv_tokens".
std::string InputName(const Binding& binding);
absl::string_view SpaceName(Space space);

struct BufferRef {
  Space space = Space::kFrame;
  int64_t offset = 0;  // from the start of the space; of residuals and boundary values, of their slot
  int64_t bytes = 0;
  int64_t spill_offset = -1;  // ragged only; see StageMemory::Slots
  friend bool operator==(const BufferRef&, const BufferRef&) = default;
};

// Between two functions the compute queue is idle, and the communication queue has nothing but exchanges
// whose futures cross: these touch states and the future region alone. So lifetimes and waits count within
// one function. A value that updates a state lies in the state's own bytes.
struct FunctionMemory {
  std::map<std::string, BufferRef> values;  // by value name; arguments included
  std::map<std::string, BufferRef>
      workspace;  // by name of the node's first result: scratch bytes of its kernel
  int64_t frame_bytes = 0;
  int64_t live_bytes = 0;  // most bytes of the frame that hold something at one time; no layout needs less
  // Waits that order memory reuse and data across queues: node (by first result name) -> nodes it must wait
  // for.
  std::map<std::string, std::vector<std::string>> waits;
};

struct StageMemory {
  std::map<std::string, BufferRef> states;  // by state name
  std::map<std::string, BufferRef> inputs;  // by InputName
  struct Slots {
    int64_t offset = 0, bytes = 0;  // slot i is at offset + i * bytes
    int count = 0;
    // Residuals: overflow of ragged values, in the spill space; slot i is at spill_offset + i * spill_bytes,
    // and BufferRef::spill_offset counts from there. (In a frame, it counts from the start of the spill
    // space.)
    int64_t spill_offset = 0, spill_bytes = 0;
    friend bool operator==(const Slots&, const Slots&) = default;
  };
  std::map<int, Slots> residuals;            // per chunk
  std::map<int, Slots> weight_residuals;     // per chunk whose backward is split; in the residual region too
  std::map<std::string, Slots> boundaries;   // per boundary value
  std::map<std::string, BufferRef> futures;  // by name of the future that crosses functions
  int64_t state_bytes = 0, input_bytes = 0, residual_bytes = 0, boundary_bytes = 0, future_bytes = 0,
          frame_bytes = 0, spill_bytes = 0;
  // spill_bytes: address space, not counted in peak_bytes().
  // Of state_bytes, for the report.
  std::map<std::string, int64_t> state_bytes_by_kind;
  int64_t peak_bytes() const {
    return state_bytes + input_bytes + residual_bytes + boundary_bytes + future_bytes + frame_bytes;
  }
};

struct MemoryPlan {
  std::map<std::string, FunctionMemory> functions;
  std::vector<StageMemory> stages;
  int64_t alignment = 64;
};

// A node of the model, noted when `partition-stages` cuts it into chunks, so that the finished plan can be
// held against it. Later passes may replace a node by others; the pipeline then notes which pass did.
struct LogicalNode {
  std::string op, name;  // `name`: of the first result
  std::vector<int>
      chunks;  // one; several only for what is computed anew from inputs alone wherever it is used
  std::string rewritten_by;  // the pass after which the node was gone; empty: it still stands
  friend bool operator==(const LogicalNode&, const LogicalNode&) = default;
};

struct Program {
  std::unique_ptr<Module> module;
  Schedule schedule;
  MemoryPlan memory;
  // What each pass had to say, for the table of compile_and_train: pass -> lines.
  std::vector<std::pair<std::string, std::string>> notes;
  std::vector<LogicalNode> inventory;  // from partition-stages on
};

Program CloneProgram(const Program& program);

}  // namespace moe
