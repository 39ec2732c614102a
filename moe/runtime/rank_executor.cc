#include "moe/runtime/rank_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "moe/base/clock.h"
#include "moe/base/status.h"
#include "moe/cost/step_runs.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/state.h"
#include "moe/runtime/graph_segments.h"

namespace moe::runtime {
namespace {

enum BatchKind { kTokens, kLabels, kMask, kPositions };

absl::StatusOr<int> BatchKindOf(absl::string_view name) {
  if (name == "tokens") return kTokens;
  if (name == "labels") return kLabels;
  if (name == "mask") return kMask;
  if (name == "positions") return kPositions;
  return absl::InvalidArgumentError(
      absl::StrCat("unknown batch input '", name, "'; known: tokens, labels, mask, positions"));
}

std::string SlotKey(const Action& a, int stage) {
  std::string key = absl::StrCat(RoleOf(a, stage).Name(), "/", a.residual_slot, "/", a.weight_slot);
  for (const auto& [name, slot] : a.boundary_slots) absl::StrAppend(&key, "/", name, "=", slot);
  return key;
}

// The boundary value that a value of `f` is: the binding of the argument or result.
std::string BoundaryOf(Value v) {
  v = ArrivedValue(v);
  if (v.node->binding.kind == Binding::kBoundary) return v.node->binding.name;
  const Function& f = *v.node->function();
  for (int i = 0; i < f.num_results(); ++i) {
    if (f.result(i) == v && f.result_binding(i).kind == Binding::kBoundary) {
      return f.result_binding(i).name;
    }
  }
  return "";
}

// That a rank of a ring sends to reduce the value.
int64_t BytesInRing(const kernels::Tensor& t, int ranks) {
  return 2 * t.elements() / ranks * (ranks - 1) * ByteSize(t.dtype);
}

// The lowest rank of those that the steps of an exchange bring together with `rank`; -1 if none does.
int64_t FirstRankOf(absl::Span<const ConversionPart> parts, const Mesh& mesh, int64_t rank) {
  std::set<AxisId> axes;
  for (const ConversionPart& part : parts) {
    for (const ConversionStep& step : part.steps) {
      if (IsLocal(step.kind)) continue;
      for (const AxisId axis : step.axes()) axes.insert(axis);
    }
  }
  return axes.empty() ? -1 : mesh.Group(rank, AxisList(axes.begin(), axes.end())).front();
}

constexpr char kQueue[] = "compute";

}  // namespace

absl::StatusOr<std::unique_ptr<RankExecutor>> RankExecutor::Create(const Program& program, int64_t rank,
                                                                   comm::World* world,
                                                                   const RankOptions& options) {
  std::unique_ptr<RankExecutor> r(new RankExecutor(program, rank, world, options));
  absl::Status status = r->Bind();
  if (!status.ok()) return Annotate(status, absl::StrCat("rank ", rank));
  return r;
}

RankExecutor::~RankExecutor() = default;

absl::Status RankExecutor::Bind() {
  stage_ = static_cast<int>(mesh_.Stage(rank_));
  if (stage_ >= static_cast<int>(program_.memory.stages.size())) {
    return absl::FailedPreconditionError(absl::StrCat("the plan has no memory for stage ", stage_));
  }
  const StageMemory& memory = program_.memory.stages[stage_];
  device_ = options_.device->device();
  on_host_ = device_->host_accessible();
  RETURN_IF_ERROR(device_->Use());
  ASSIGN_OR_RETURN(compute_, options_.device->StreamOf("compute"));
  ASSIGN_OR_RETURN(comm_, options_.device->StreamOf("comm"));
  ASSIGN_OR_RETURN(recorder_, TraceRecorder::Create(compute_, comm_));
  ASSIGN_OR_RETURN(arena_, options_.memory_of != nullptr
                               ? Arena::Share(memory, *options_.memory_of)
                               : Arena::Create(memory, device_, options_.reserve_bytes));
  for (const auto& [name, ref] : memory.states) {
    const State* state = program_.module->FindState(name);
    if (state == nullptr)
      return absl::FailedPreconditionError(absl::StrCat("the plan stores an unknown state ", name));
    states_[name] = LocalTensor(state->type, mesh_, arena_->At(Space::kState, ref.offset), ref.bytes);
    arena_->MarkUsed(arena_->OffsetOf(arena_->At(Space::kState, ref.offset)) + ref.bytes);
    if (AttrString(state->attributes, "reset") == "step") reset_states_.push_back(name);
  }
  for (const auto& [program_name, stages] : program_.schedule.actions) {
    std::vector<Step>& steps = programs_[program_name];
    for (const Action& a : stages[stage_]) {
      Step step;
      step.action = &a;
      step.name = ActionToString(a);
      switch (a.kind) {
        case Action::kReset:
          break;
        case Action::kSend:
        case Action::kRecv: {
          // The type is that of the argument or result bound to the boundary value in any function of this
          // stage.
          const Type* type = nullptr;
          for (const auto& f : program_.module->functions()) {
            if (Node* arg = FindArg(*f, Binding::kBoundary, a.boundary)) type = &arg->type();
            for (int i = 0; i < f->num_results(); ++i) {
              if (f->result_binding(i).kind == Binding::kBoundary &&
                  f->result_binding(i).name == a.boundary) {
                type = &f->result(i).type();
              }
            }
          }
          if (type == nullptr) {
            return absl::FailedPreconditionError(
                absl::StrCat(step.name, ": no function has boundary ", a.boundary));
          }
          ASSIGN_OR_RETURN(step.buffer, BoundaryTensor(a.boundary, *type, a.slot));
          const int64_t peer = rank_ + (a.peer_stage - stage_) * mesh_.ranks_per_stage();
          std::vector<int64_t> pair = {std::min(rank_, peer), std::max(rank_, peer)};
          step.first_rank = pair[0];
          device::Stream* stream = compute_;  // what arrives is wanted next
          if (a.kind == Action::kSend) {
            ASSIGN_OR_RETURN(stream, options_.device->StreamOf("copy", a.boundary));
          }
          ASSIGN_OR_RETURN(step.peer,
                           world_->Group(pair, absl::StrCat("transfer ", a.boundary), MeetingStream(stream)));
          if (a.kind == Action::kSend) {
            auto& queue = send_queues_[a.boundary];
            if (queue == nullptr) {
              ASSIGN_OR_RETURN(queue, SendQueue::Create(step.peer, stream, rank_ < peer ? 1 : 0,
                                                        memory.boundaries.at(a.boundary).count, step.name));
            }
            step.queue = queue.get();
          }
          break;
        }
        default: {
          ASSIGN_OR_RETURN(step.function, BindFunction(a));
          break;
        }
      }
      steps.push_back(std::move(step));
    }
  }
  int64_t collectives = 0, left_behind = 0;
  for (const auto& [_, f] : functions_) {
    collectives = std::max(collectives, f->collectives);
    for (const BoundNode& n : f->nodes) left_behind += !n.gives.empty();
  }
  comm_queue_ = std::make_unique<CommQueue>(
      [this](CommQueue::Job job) {
        RETURN_IF_ERROR(device_->Use());
        return RunExchange(*static_cast<const Job*>(job));
      },
      options_.gate, collectives + left_behind);
  for (auto& [name, steps] : programs_) {
    const std::vector<bool> last = cost::LastRuns(program_.schedule.actions.at(name)[stage_]);
    for (size_t i = 0; i < steps.size(); ++i) steps[i].last = last[i];
  }
  for (auto& [_, steps] : programs_) {  // an action waits for the pending sends of the slots that it writes
    for (Step& s : steps) {
      if (s.function == nullptr) continue;
      for (int i = 0; i < s.function->function->num_results(); ++i) {
        const Binding& binding = s.function->function->result_binding(i);
        if (binding.kind != Binding::kBoundary) continue;
        const std::string name(binding.name);
        auto queue = send_queues_.find(name);
        if (queue != send_queues_.end())
          s.wait_for.push_back({queue->second.get(), s.action->boundary_slots.at(name)});
      }
    }
  }
  return BindStaging();
}

absl::Status RankExecutor::BindStaging() {
  int64_t scalars = 0, most = 0;
  for (ScalarInput& s : scalars_) s.staging = std::exchange(scalars, scalars + 8);
  for (auto& [_, steps] : programs_) {
    int64_t at = scalars;
    for (Step& s : steps) {
      if (s.function != nullptr) s.staging = std::exchange(at, at + s.function->staging_bytes);
    }
    most = std::max(most, at);
  }
  ASSIGN_OR_RETURN(staging_, device_->AllocateStaging(most));
  return absl::OkStatus();
}

absl::StatusOr<device::Event*> RankExecutor::NewEvent() {
  ASSIGN_OR_RETURN(events_.emplace_back(), device_->NewEvent());
  return events_.back().get();
}

absl::StatusOr<kernels::Tensor> RankExecutor::BoundaryTensor(const std::string& name, const Type& type,
                                                             int slot) {
  const StageMemory& memory = program_.memory.stages[stage_];
  auto it = memory.boundaries.find(name);
  if (it == memory.boundaries.end() || slot < 0 || slot >= it->second.count) {
    return absl::FailedPreconditionError(
        absl::StrCat("the plan has no slot ", slot, " for boundary value ", name));
  }
  char* p = arena_->At(Space::kBoundary, it->second.offset + slot * it->second.bytes);
  return LocalTensor(type, mesh_, p, it->second.bytes);
}

absl::StatusOr<kernels::Tensor> RankExecutor::TensorOf(Value v, const FunctionMemory& memory,
                                                       const Action& action) {
  auto it = memory.values.find(v.name());
  if (it == memory.values.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the plan has no storage for %", v.name(), " of @", v.node->function()->name()));
  }
  const BufferRef& ref = it->second;
  const StageMemory& stage = program_.memory.stages[stage_];
  int64_t base = 0, spill_base = 0;
  if (ref.space == Space::kResidual || ref.space == Space::kWeightResidual) {
    const bool saved = ref.space == Space::kResidual;  // by the forward; else by the input gradient
    const std::map<int, StageMemory::Slots>& sets = saved ? stage.residuals : stage.weight_residuals;
    const int slot = saved ? action.residual_slot : action.weight_slot;
    auto slots = sets.find(action.chunk);
    if (slots == sets.end() || slot < 0 || slot >= slots->second.count) {
      return absl::FailedPreconditionError(absl::StrCat(ActionToString(action), ": no ", SpaceName(ref.space),
                                                        " slot ", slot, " for chunk ", action.chunk));
    }
    base = slots->second.offset + slot * slots->second.bytes;
    spill_base = slots->second.spill_offset + slot * slots->second.spill_bytes;
  } else if (ref.space == Space::kBoundary) {
    const std::string boundary = BoundaryOf(v);
    auto slot = action.boundary_slots.find(boundary);
    auto slots = stage.boundaries.find(boundary);
    if (slot == action.boundary_slots.end() || slots == stage.boundaries.end()) {
      return absl::FailedPreconditionError(absl::StrCat(
          ActionToString(action), ": no slot for boundary value '", boundary, "' (%", v.name(), ")"));
    }
    base = slots->second.offset + slot->second * slots->second.bytes;
  }
  char* p = arena_->At(ref.space, base + ref.offset);
  const int64_t end = arena_->OffsetOf(p) + ref.bytes;
  if (ref.offset < 0 || ref.bytes < 0 || end > arena_->planned_bytes()) {
    return absl::FailedPreconditionError(absl::StrCat("the plan places %", v.name(), " outside its arena"));
  }
  char* spill = ref.spill_offset >= 0 ? arena_->At(Space::kSpill, spill_base + ref.spill_offset) : nullptr;
  return LocalTensor(v.type(), mesh_, p, ref.bytes, spill);
}

absl::StatusOr<RankExecutor::BoundFunction*> RankExecutor::BindFunction(const Action& action) {
  std::unique_ptr<BoundFunction>& bound = functions_[SlotKey(action, stage_)];
  if (bound != nullptr) return bound.get();
  bound = std::make_unique<BoundFunction>();
  const Function* f = FunctionOf(*program_.module, action, stage_);
  auto memory = program_.memory.functions.find(RoleOf(action, stage_).Name());
  if (f == nullptr || memory == program_.memory.functions.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat(ActionToString(action), ": no function @", RoleOf(action, stage_).Name()));
  }
  bound->function = f;
  const auto stage = [&](const kernels::Tensor& t) {
    const int64_t bytes = (t.elements() * ByteSize(t.dtype) + 63) / 64 * 64;
    return std::exchange(bound->staging_bytes, bound->staging_bytes + bytes);
  };
  for (Node* arg : f->args()) {
    if (arg->binding.kind == Binding::kBatch) {
      Input in;
      ASSIGN_OR_RETURN(in.kind, BatchKindOf(arg->binding.name));
      ASSIGN_OR_RETURN(in.tensor, TensorOf(arg->result(), memory->second, action));
      ForEachRun(LocalBlock(arg->type(), mesh_, rank_), [&](int64_t from, int64_t to, int64_t count) {
        in.runs.push_back({from, to, count});
      });
      in.microbatch_elements = in.kind == kPositions ? 0 : arg->type().num_elements();
      in.staging = stage(in.tensor);
      bound->inputs.push_back(std::move(in));
    } else if (arg->binding.kind == Binding::kScalar) {
      ASSIGN_OR_RETURN(kernels::Tensor t, TensorOf(arg->result(), memory->second, action));
      scalars_.push_back({arg->binding.name, t});
    }
  }
  for (const auto& n : f->body()) {
    absl::Status status = BindNode(*n, memory->second, action, bound.get());
    if (!status.ok()) return Annotate(status, absl::StrCat("@", f->name(), " %", n->result_name()));
  }
  RETURN_IF_ERROR(BindQueues(memory->second, bound.get()));
  if (options_.graphs && device_->has_graphs()) BindSegments(bound.get());
  for (int i = 0; i < f->num_results(); ++i) {
    if (f->result_binding(i).kind != Binding::kReport) continue;
    Report r;
    r.name = f->result_binding(i).name;
    r.summed = action.kind == Action::kReport;
    ASSIGN_OR_RETURN(r.tensor, TensorOf(f->result(i), memory->second, action));
    r.staging = stage(r.tensor);
    (r.summed ? summed_ : common_)[r.name].assign(r.tensor.elements(), 0);
    bound->reports.push_back(std::move(r));
  }
  return bound.get();
}

absl::Status RankExecutor::BindNode(const Node& n, const FunctionMemory& memory, const Action& action,
                                    BoundFunction* out) {
  BoundNode b;
  b.node = &n;
  b.what = absl::StrCat(n.scope, n.scope.empty() ? "" : " ", "%", n.result_name(), " = ", n.op_name());
  b.category = CategoryOf(n);
  BindFutures(n, &b);
  device::Stream* const stream = n.queue == Queue::kComm ? comm_ : compute_;
  if (n.Is("comm.done")) {
    b.context.node = &n;
    b.recordable = true;  // there is nothing to do
  } else if (n.op().Has(kCollective) || n.Is("comm.zero") || n.Is("comm.slice")) {
    b.context.node = &n;
    if (n.Is("comm.stage_reduce")) {
      std::vector<int64_t> group;
      for (int64_t s : n.Ints("stages")) group.push_back(rank_ + (s - stage_) * mesh_.ranks_per_stage());
      ASSIGN_OR_RETURN(b.stage_group, world_->Group(group, kQueue, MeetingStream(comm_)));
      b.first_rank = *std::min_element(group.begin(), group.end());
    } else {
      ASSIGN_OR_RETURN(const std::vector<ConversionPart> parts, ConversionParts(n, mesh_));
      const std::string key = absl::StrCat(n.function()->name(), "/", n.result_name());
      b.first_rank = FirstRankOf(parts, mesh_, rank_);
      if (parts.size() > 1) {
        std::unique_ptr<BucketExchange>& e = buckets_[key];
        if (e == nullptr) {
          ASSIGN_OR_RETURN(e, BucketExchange::Create(parts, mesh_, rank_, world_, kQueue, WireOf(n), stream));
        }
        b.bucket = e.get();
      } else {
        std::unique_ptr<Exchange>& e = exchanges_[key];
        if (e == nullptr) {
          ASSIGN_OR_RETURN(e, Exchange::Create(parts[0].from.type(), parts[0].to, parts[0].steps, mesh_,
                                               rank_, world_, kQueue, WireOf(n), stream));
        }
        b.exchange = e.get();
        const std::vector<StepLayout>& steps = e->layout().steps;
        b.recordable =
            e->layout().src.ragged < 0 &&
            std::all_of(steps.begin(), steps.end(), [](const StepLayout& l) { return IsLocal(l.kind); });
      }
    }
  } else {
    ASSIGN_OR_RETURN(b.kernel, kernels::Kernels().Lookup(n, options_.backend));
    ASSIGN_OR_RETURN(b.context, LocalContext(n, mesh_, rank_));
    if (options_.backend == kernels::Backend::kCuda) b.context.stream = stream;
    b.context.tf32 = options_.tf32;
    b.recordable = true;
  }
  for (Value v : n.operands()) {
    ASSIGN_OR_RETURN(kernels::Tensor t, TensorOf(v, memory, action));
    b.context.in.push_back(t);
  }
  for (int i = 0; i < n.num_results(); ++i) {
    ASSIGN_OR_RETURN(kernels::Tensor t, TensorOf(Value{const_cast<Node*>(&n), i}, memory, action));
    b.context.out.push_back(t);
  }
  auto ws = memory.workspace.find(n.result_name());
  if (ws != memory.workspace.end() && ws->second.bytes > 0) {
    b.context.workspace = arena_->At(ws->second.space, ws->second.offset);
    b.context.workspace_bytes = ws->second.bytes;
  }
  if (b.kernel != nullptr) RETURN_IF_ERROR(Annotate(b.kernel->Prepare(b.context), b.what));
  if (b.kernel != nullptr && device_->checks_order()) BindUses(&b);
  b.expert_result = n.op().Has(kDecision) ? n.op().FindResult("expert") : -1;
  if (b.expert_result >= 0) b.decision_block = LocalBlockInOrder(n, n.type(b.expert_result), mesh_, rank_);
  out->nodes.push_back(std::move(b));
  return absl::OkStatus();
}

void RankExecutor::BindUses(BoundNode* b) const {
  const auto add = [&](const kernels::Tensor& t, const Type& type, bool writes) {
    if (!t.is_ragged()) {
      b->uses.push_back({t.data, t.elements() * ByteSize(t.dtype), writes});
      return;
    }
    const LocalStorage s = StorageOf(type, mesh_);
    const int64_t row = t.row_elements * ByteSize(t.dtype);
    b->uses.push_back({t.sizes, t.cells * static_cast<int64_t>(sizeof(int32_t)), writes});
    b->uses.push_back({t.arena_rows, t.capacity_rows * row, writes});
    if (t.spill_rows != nullptr) b->uses.push_back({t.spill_rows, s.worst_rows * row, writes});
  };
  const Node& n = *b->node;
  for (int i = 0; i < n.num_operands(); ++i) add(b->context.in[i], n.operand(i).type(), false);
  for (int i = 0; i < n.num_results(); ++i) add(b->context.out[i], n.type(i), true);
  if (b->context.workspace_bytes > 0) {
    b->uses.push_back({b->context.workspace, b->context.workspace_bytes, true});
  }
}

void RankExecutor::BindFutures(const Node& n, BoundNode* b) {
  const Function& f = *n.function();
  if (n.Is("comm.done") && n.operand(0).node->Is("arg")) {
    b->awaits = &in_flight_[n.operand(0).node->binding.name];
  }
  b->last = !cost::RunsIn(n, /*last_run=*/false);
  if (!CrossesFunctions(n)) return;
  for (int i = 0; i < f.num_results(); ++i) {
    if (f.result(i).node == &n) b->gives.push_back(&in_flight_[f.result_binding(i).name]);
  }
}

absl::Status RankExecutor::BindQueues(const FunctionMemory& memory, BoundFunction* f) {
  std::map<std::string, int64_t> done_at;  // node -> its number in its queue
  std::vector<BoundNode*> in_order[2];     // by number
  int64_t count[2] = {0, 0};
  for (BoundNode& n : f->nodes) {
    const int queue = n.node->queue == Queue::kComm ? 1 : 0;
    in_order[queue].push_back(&n);
    auto waits = memory.waits.find(n.node->result_name());
    if (waits != memory.waits.end()) {
      for (const std::string& other : waits->second) n.wait_for = std::max(n.wait_for, done_at.at(other));
    }
    done_at[n.node->result_name()] = ++count[queue];
  }
  f->collectives = count[1];
  // From the end: a collective is wanted at once if the next compute node waits for it or a later one, or if
  // there is no compute node left.
  int64_t number = count[1], wanted = number;
  for (auto n = f->nodes.rbegin(); n != f->nodes.rend(); ++n) {
    if (n->node->queue == Queue::kComm) {
      const bool crosses = !n->gives.empty();
      if (!crosses) f->own_collectives = std::max(f->own_collectives, number);
      n->wanted_at_once = wanted >= number && !crosses;
      --number;
    } else {
      wanted = n->wait_for;
    }
  }
  for (BoundNode* n : in_order[1]) {
    n->run = {n, true, -1};
    n->skip = {n, false, -1};
    if (!n->gives.empty()) RETURN_IF_ERROR(DoneOf(n).status());
    if (n->wait_for > 0) {
      ASSIGN_OR_RETURN(n->waits_for, DoneOf(in_order[0][n->wait_for - 1]));
    } else if (n == in_order[1].front()) {  // the others come after it
      ASSIGN_OR_RETURN(f->begun, NewEvent());
      n->waits_for = f->begun;
    }
  }
  for (BoundNode* n : in_order[0]) {
    if (n->wait_for > 0) {
      ASSIGN_OR_RETURN(n->waits_for, DoneOf(in_order[1][n->wait_for - 1]));
    }
  }
  if (f->own_collectives > 0) {
    ASSIGN_OR_RETURN(f->ended, DoneOf(in_order[1][f->own_collectives - 1]));
  }
  return absl::OkStatus();
}

absl::StatusOr<device::Event*> RankExecutor::DoneOf(BoundNode* n) {
  if (n->done == nullptr) {
    ASSIGN_OR_RETURN(n->done, NewEvent());
  }
  return n->done;
}

void RankExecutor::BindSegments(BoundFunction* f) {
  std::vector<QueueNode> nodes;
  for (const BoundNode& n : f->nodes) {
    QueueNode& q = nodes.emplace_back();
    q.on_compute = n.node->queue != Queue::kComm;
    if (!q.on_compute) continue;
    q.recordable = n.recordable;
    q.waits = n.wait_for > 0 || n.awaits != nullptr;
    q.waited_for = n.done != nullptr;
  }
  for (const GraphSegment& s : GraphSegments(nodes, 2)) {
    f->nodes[s.begin].segment = static_cast<int>(f->segments.size());
    f->segments.emplace_back().end = s.end;
  }
}

absl::Status RankExecutor::WriteTensor(const kernels::Tensor& t, const std::function<void(char*)>& fill) {
  if (on_host_) {
    fill(t.As<char>());
    return absl::OkStatus();
  }
  std::vector<char> bytes(t.elements() * ByteSize(t.dtype));
  fill(bytes.data());
  RETURN_IF_ERROR(device_->Use());
  RETURN_IF_ERROR(compute_->Copy(t.data, bytes.data(), static_cast<int64_t>(bytes.size())));
  return compute_->Synchronize();
}

absl::StatusOr<const char*> RankExecutor::ReadTensor(const kernels::Tensor& t, std::vector<char>* room) {
  if (on_host_) return t.As<char>();
  room->resize(t.elements() * ByteSize(t.dtype));
  RETURN_IF_ERROR(device_->Use());
  RETURN_IF_ERROR(compute_->Copy(room->data(), t.data, static_cast<int64_t>(room->size())));
  RETURN_IF_ERROR(compute_->Synchronize());
  return room->data();
}

absl::Status RankExecutor::StartTrace(int64_t runs) {
  int64_t events = 0, marks[TraceRecorder::kStreams] = {0, 0};  // of the program that has most
  for (const auto& [_, steps] : programs_) {
    int64_t nodes[TraceRecorder::kStreams] = {static_cast<int64_t>(steps.size()), 0};
    for (const Step& s : steps) {
      if (s.function == nullptr) continue;
      for (const BoundNode& n : s.function->nodes) ++nodes[StreamOf(n)];
    }
    events = std::max(events, nodes[0] + nodes[1]);
    for (int i = 0; i < TraceRecorder::kStreams; ++i) marks[i] = std::max(marks[i], 2 * nodes[i]);
  }
  RETURN_IF_ERROR(device_->Use());
  RETURN_IF_ERROR(recorder_->Reserve(runs * events, marks[0], marks[1]));
  tracing_ = true;
  return absl::OkStatus();
}

int64_t RankExecutor::graphs() const {
  int64_t n = 0;
  for (const auto& [_, f] : functions_) {
    for (const Segment& s : f->segments) n += s.graph != nullptr;
  }
  return n;
}

kernels::Tensor* RankExecutor::FindState(const std::string& name) {
  auto it = states_.find(name);
  return it == states_.end() ? nullptr : &it->second;
}

absl::Status RankExecutor::ResetAccumulators() {
  for (const std::string& name : reset_states_) {
    const kernels::Tensor& t = states_.at(name);
    RETURN_IF_ERROR(compute_->Fill(t.data, 0, t.elements() * ByteSize(t.dtype)));
  }
  return absl::OkStatus();
}

// With replayed experts the probabilities must follow: top[i] = probability[expert[i]], and for the fused
// router the counts too.
void RankExecutor::ReplayTopK(const BoundNode& n, kernels::KernelContext& c) {
  const OpDef& op = n.node->op();
  const int made = op.FindResult("probability"), counted = op.FindResult("count");
  const kernels::Tensor& probability = made >= 0 ? c.out[made] : c.in[0];
  const kernels::Tensor& top = c.out[op.FindResult("top")];
  const int32_t* experts = c.out[n.expert_result].As<int32_t>();
  const int64_t k = top.dims[3], e = probability.dims[3];
  int32_t* count = counted >= 0 ? c.out[counted].As<int32_t>() : nullptr;
  if (count != nullptr) std::fill(count, count + e, 0);
  for (int64_t i = 0; i < top.elements(); ++i) {
    const bool chosen = experts[i] >= 0;
    kernels::StoreElement(
        top.dtype, top.data, i,
        chosen ? kernels::LoadElement(probability.dtype, probability.data, i / k * e + experts[i]) : 0.0);
    if (count != nullptr && chosen) ++count[experts[i]];
  }
}

absl::Status RankExecutor::ShowDecision(BoundNode& n, int microbatch) {
  kernels::KernelContext host = n.context;
  std::vector<std::vector<char>> copies;
  std::vector<std::pair<kernels::Tensor*, void*>> tensors;  // and where they lie on the device
  if (!on_host_) {
    for (std::vector<kernels::Tensor>* side : {&host.in, &host.out}) {
      for (kernels::Tensor& t : *side) {
        if (t.is_ragged()) continue;
        std::vector<char>& bytes = copies.emplace_back(t.elements() * ByteSize(t.dtype));
        RETURN_IF_ERROR(compute_->Copy(bytes.data(), t.data, static_cast<int64_t>(bytes.size())));
        tensors.push_back({&t, std::exchange(t.data, bytes.data())});
      }
    }
    RETURN_IF_ERROR(AwaitStream(compute_));
  }
  if (!decisions->OnDecision(n.node->result_name(n.expert_result), microbatch, n.decision_block,
                             host.out[n.expert_result].As<int32_t>())) {
    return absl::OkStatus();
  }
  ReplayTopK(n, host);
  for (auto& [t, at] : tensors) {
    RETURN_IF_ERROR(compute_->Copy(at, t->data, t->elements() * ByteSize(t->dtype)));
  }
  return AwaitStream(compute_);  // the copies go
}

// Of the communication queue: on its stream, after what it waits for there.
absl::Status RankExecutor::RunExchange(const Job& job) {
  BoundNode& n = *job.node;
  // One that does not run waits all the same: those after it count on that.
  if (n.waits_for != nullptr) RETURN_IF_ERROR(comm_->Wait(n.waits_for));
  if (job.runs) RETURN_IF_ERROR(RunNode(n, job.microbatch));
  return n.done == nullptr ? absl::OkStatus() : comm_->Record(n.done);
}

absl::Status RankExecutor::AwaitJob(int64_t number, const device::Event* done) {
  if (number <= awaited_) return absl::OkStatus();
  RETURN_IF_ERROR(comm_queue_->WaitFor(number));
  awaited_ = number;
  return compute_->Wait(done);
}

// Whether the part of the function that begins here is done by a graph.
absl::StatusOr<bool> RankExecutor::RunSegment(BoundFunction& f, size_t at, int microbatch) {
  Segment& s = f.segments[f.nodes[at].segment];
  // What kernels do once only, such as choosing a way, they do in the first run.
  if (s.refused || f.runs == 0) return false;
  if (s.graph == nullptr) {
    RETURN_IF_ERROR(compute_->BeginGraph());
    absl::Status status;
    for (size_t i = at; i < s.end && status.ok(); ++i) {
      if (f.nodes[i].node->queue != Queue::kComm) status = RunNode(f.nodes[i], microbatch);
    }
    absl::StatusOr<std::unique_ptr<device::WorkGraph>> graph = compute_->EndGraph();
    if (!status.ok() || !graph.ok()) {
      LOG(WARNING) << "rank " << rank_ << ", @" << f.function->name() << " from " << f.nodes[at].what
                   << ": not recorded as a graph: " << (status.ok() ? graph.status() : status);
      s.refused = true;
      return false;
    }
    s.graph = *std::move(graph);
  }
  log_.Node(&f.nodes[at].what);
  RETURN_IF_ERROR(compute_->Launch(s.graph.get()));
  return true;
}

absl::Status RankExecutor::RunNode(BoundNode& n, int microbatch) {
  log_.Node(&n.what);
  if (n.node->Is("comm.done")) return absl::OkStatus();  // the value lies where the exchange wrote it
  kernels::KernelContext& c = n.context;
  if (device_->checks_order()) (n.node->queue == Queue::kComm ? comm_ : compute_)->Uses(n.what, n.uses);
  // Kernels that work on a stream find the rows of ragged values themselves, and exchanges where the host
  // cannot.
  const bool places = n.kernel != nullptr ? c.stream == nullptr : on_host_;
  for (kernels::Tensor& t : c.in) {
    if (t.is_ragged() && places) RETURN_IF_ERROR(t.PlaceRows());
  }
  const TraceRecorder::Of stream = StreamOf(n);
  int64_t begin = 0, cpu_begin = 0;
  if (tracing_) {
    ASSIGN_OR_RETURN(begin, recorder_->Mark(stream));
    cpu_begin = ThreadCpuNanos();
  }
  absl::Status status;
  if (n.exchange != nullptr) {
    status = n.exchange->Run(c.in[0], c.out[0], c.workspace, c.workspace_bytes, n.what);
  } else if (n.bucket != nullptr) {
    status = n.bucket->Run(c.in, absl::MakeConstSpan(c.out), c.workspace, c.workspace_bytes, n.what);
  } else if (n.stage_group != nullptr) {
    const Reduction kind = n.node->String("reduction") == "max" ? Reduction::kMax : Reduction::kSum;
    status = n.stage_group->AllReduce(c.in[0].data, c.out[0].data, c.in[0].elements(), c.in[0].dtype, kind,
                                      n.what);
  } else {
    status = n.kernel->Run(c);
  }
  if (!status.ok()) return Annotate(status, n.what);
  if (tracing_) {
    const int64_t sent = n.exchange != nullptr      ? n.exchange->bytes_sent()
                         : n.bucket != nullptr      ? n.bucket->bytes_sent()
                         : n.stage_group != nullptr ? BytesInRing(c.in[0], n.stage_group->size())
                                                    : 0;
    const int64_t cpu = ThreadCpuNanos() - cpu_begin;
    ASSIGN_OR_RETURN(const int64_t end, recorder_->Mark(stream));
    recorder_->Add({n.node->op_name().c_str(), &n.node->result_name(), 0, 0, microbatch, stream, n.category,
                    sent, cpu, n.first_rank},
                   stream, begin, end);
  }
  for (const kernels::Tensor& t : c.out) {
    if (t.is_ragged() && !on_host_) {  // how many rows there are is not known here
      arena_->MarkUsed(arena_->OffsetOf(t.arena_rows) + t.capacity_rows * t.row_elements * ByteSize(t.dtype));
    } else if (t.data != nullptr) {
      arena_->MarkUsed(arena_->OffsetOf(t.data) + t.elements() * ByteSize(t.dtype));
    }
  }
  if (c.workspace_bytes > 0) arena_->MarkUsed(arena_->OffsetOf(c.workspace) + c.workspace_bytes);
  if (n.expert_result >= 0 && decisions != nullptr && decisions->Active()) return ShowDecision(n, microbatch);
  return absl::OkStatus();
}

absl::Status RankExecutor::FillInputs(const BoundFunction& f, const Step& step, const StepInputs& inputs) {
  for (const Input& in : f.inputs) {
    const kernels::Tensor& t = in.tensor;
    const int64_t at = std::max(0, step.action->microbatch) * in.microbatch_elements;
    const int64_t bytes = t.elements() * ByteSize(t.dtype);
    char* const to = Window(t.data, step.staging + in.staging);
    device_->HostUses("inputs", {{to, bytes, true}});
    for (const Input::Run& r : in.runs) {
      if (in.kind == kMask) {
        for (int64_t i = 0; i < r.count; ++i) {
          kernels::StoreElement(t.dtype, to, r.to + i, inputs.mask[at + r.from + i]);
        }
      } else {
        const std::vector<int32_t>& from = in.kind == kTokens   ? inputs.tokens
                                           : in.kind == kLabels ? inputs.labels
                                                                : inputs.positions;
        std::memcpy(reinterpret_cast<int32_t*>(to) + r.to, from.data() + at + r.from,
                    r.count * sizeof(int32_t));
      }
    }
    RETURN_IF_ERROR(CopyFromWindow(t.data, step.staging + in.staging, bytes));
    arena_->MarkUsed(arena_->OffsetOf(t.data) + bytes);
  }
  return absl::OkStatus();
}

absl::Status RankExecutor::RunFunction(BoundFunction& f, const Step& step, const StepInputs& inputs) {
  const int microbatch = step.action->microbatch;
  if (options_.poison) {
    RETURN_IF_ERROR(compute_->Fill(arena_->At(Space::kFrame, 0), 0xff,
                                   program_.memory.functions.at(f.function->name()).frame_bytes));
  }
  RETURN_IF_ERROR(FillInputs(f, step, inputs));
  const int64_t earlier = comm_queue_->BeginFunction();  // jobs
  if (f.begun != nullptr) RETURN_IF_ERROR(compute_->Record(f.begun));
  // Graphs hide their nodes from who wants to see them.
  const bool graphs = !f.segments.empty() && !tracing_ && !(decisions != nullptr && decisions->Active());
  size_t recorded = 0;  // nodes before this one are done, as part of a graph
  for (size_t i = 0; i < f.nodes.size(); ++i) {
    BoundNode& n = f.nodes[i];
    if (n.node->queue != Queue::kComm) {
      if (n.wait_for > 0) RETURN_IF_ERROR(AwaitJob(earlier + n.wait_for, n.waits_for));
      if (n.awaits != nullptr) RETURN_IF_ERROR(AwaitJob(n.awaits->job, n.awaits->done));
      if (graphs && n.segment >= 0) {
        ASSIGN_OR_RETURN(const bool done, RunSegment(f, i, microbatch));
        if (done) recorded = f.segments[n.segment].end;
      }
      if (i >= recorded) RETURN_IF_ERROR(RunNode(n, microbatch));
      if (n.done != nullptr) RETURN_IF_ERROR(compute_->Record(n.done));
      comm_queue_->ComputeDone();
    } else if (n.wanted_at_once && comm_queue_->Idle()) {
      n.run.microbatch = microbatch;
      RETURN_IF_ERROR(RunExchange(n.run));
      comm_queue_->CountInline();
    } else {
      Job& job = n.last && !step.last ? n.skip : n.run;
      job.microbatch = microbatch;
      const int64_t number = comm_queue_->Post(&job, n.wait_for);
      for (Flight* flight : n.gives) *flight = {number, n.done};
    }
  }
  // What earlier functions left behind has left the queue, too, which has room for so many.
  RETURN_IF_ERROR(comm_queue_->WaitFor(earlier + f.own_collectives));
  if (f.ended != nullptr) RETURN_IF_ERROR(AwaitJob(earlier + f.own_collectives, f.ended));
  for (const Report& r : f.reports) {
    RETURN_IF_ERROR(compute_->Copy(staging_->data() + step.staging + r.staging, r.tensor.data,
                                   r.tensor.elements() * ByteSize(r.tensor.dtype)));
  }
  ++f.runs;
  return absl::OkStatus();
}

absl::Status RankExecutor::Run(const std::string& program_name, const StepInputs& inputs) {
  auto it = programs_.find(program_name);
  if (it == programs_.end())
    return absl::NotFoundError(absl::StrCat("the plan has no program ", program_name));
  RETURN_IF_ERROR(device_->Use());
  if (tracing_) RETURN_IF_ERROR(recorder_->BeginStep());
  for (const ScalarInput& s : scalars_) {
    auto value = inputs.scalars.find(s.name);
    if (value == inputs.scalars.end() && program_name == "train_step") {
      return absl::InvalidArgumentError(absl::StrCat("the step needs the scalar ", s.name));
    }
    const int64_t bytes = ByteSize(s.tensor.dtype);
    char* const to = Window(s.tensor.data, s.staging);
    device_->HostUses("scalars", {{to, bytes, true}});
    kernels::StoreElement(s.tensor.dtype, to, 0, value == inputs.scalars.end() ? 0.0 : value->second);
    RETURN_IF_ERROR(CopyFromWindow(s.tensor.data, s.staging, bytes));
    arena_->MarkUsed(arena_->OffsetOf(s.tensor.data) + bytes);
  }
  for (auto& [_, values] : summed_) std::fill(values.begin(), values.end(), 0.0);
  for (Step& step : it->second) {
    const Action& a = *step.action;
    log_.Action(&step.name, NowNanos());
    compute_->Uses(step.name, {});
    int64_t begin = 0;
    if (tracing_) {
      ASSIGN_OR_RETURN(begin, recorder_->Mark(TraceRecorder::kCompute));
    }
    switch (a.kind) {
      case Action::kReset:
        RETURN_IF_ERROR(ResetAccumulators());
        break;
      case Action::kRecv: {
        const int peer = a.peer_stage < stage_ ? 0 : 1;
        arena_->MarkUsed(arena_->OffsetOf(step.buffer.data) +
                         step.buffer.elements() * ByteSize(step.buffer.dtype));
        RETURN_IF_ERROR(
            Annotate(step.peer->Recv(step.buffer.data, step.buffer.elements() * ByteSize(step.buffer.dtype),
                                     peer, a.microbatch, step.name),
                     step.name));
        break;
      }
      case Action::kSend:
        RETURN_IF_ERROR(step.queue->Post(a.slot, step.buffer.data,
                                         step.buffer.elements() * ByteSize(step.buffer.dtype), a.microbatch,
                                         compute_));
        break;
      default:
        for (auto& [queue, slot] : step.wait_for) RETURN_IF_ERROR(queue->WaitFor(slot, compute_));
        RETURN_IF_ERROR(Annotate(RunFunction(*step.function, step, inputs), step.name));
    }
    if (tracing_ && a.kind != Action::kReset) {
      ASSIGN_OR_RETURN(const int64_t end, recorder_->Mark(TraceRecorder::kCompute));
      const int64_t sent = a.kind == Action::kSend ? step.buffer.elements() * ByteSize(step.buffer.dtype) : 0;
      recorder_->Add({step.name.c_str(), step.first_rank < 0 ? nullptr : &a.boundary, 0, 0, a.microbatch, 2,
                      Category::kOther, sent, 0, step.first_rank},
                     TraceRecorder::kCompute, begin, end);
    }
  }
  for (auto& [_, queue] : send_queues_) RETURN_IF_ERROR(queue->WaitForAll(compute_));
  RETURN_IF_ERROR(AwaitStream(compute_));
  RETURN_IF_ERROR(world_->Failure());
  if (tracing_) {
    CHECK(comm_queue_->Idle()) << "rank " << rank_ << " ends " << program_name << " before its exchanges";
    RETURN_IF_ERROR(recorder_->EndStep());
  }
  for (const Step& step : it->second) {
    if (step.function == nullptr) continue;
    for (const Report& r : step.function->reports) {
      std::vector<double>& out = (r.summed ? summed_ : common_)[r.name];
      const char* const values = staging_->data() + step.staging + r.staging;
      device_->HostUses("reports", {{values, r.tensor.elements() * ByteSize(r.tensor.dtype), false}});
      for (int64_t i = 0; i < r.tensor.elements(); ++i) {
        out[i] = (r.summed ? out[i] : 0) + kernels::LoadElement(r.tensor.dtype, values, i);
      }
    }
  }
  arena_->ReleaseSpill();
  return absl::OkStatus();
}

}  // namespace moe::runtime
