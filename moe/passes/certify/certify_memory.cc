#include <algorithm>
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/passes/certify/certify_parts.h"
#include "moe/passes/memory/plan_memory.h"
#include "moe/passes/stages/partition_stages.h"

// (e): every buffer inside its region, and no two that are needed together on the same bytes.

namespace moe::passes {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 50;  // sums of two fit 64 bits with room to spare
constexpr int kQueues = 3;

bool Overlap(int64_t a, int64_t a_bytes, int64_t b, int64_t b_bytes) {
  return a_bytes > 0 && b_bytes > 0 && a < b + b_bytes && b < a + a_bytes;
}

struct Range {
  std::string name;
  int64_t offset, bytes;
};

// Ranges lie within `limit` and apart from each other.
absl::Status CheckRegion(const std::string& where, absl::string_view region, std::vector<Range> ranges,
                         int64_t limit, int64_t alignment) {
  if (limit < 0 || limit > kMaxBytes)
    return Uncertified(where, ": the ", region, " region has ", limit, " bytes");
  for (const Range& r : ranges) {
    if (r.offset < 0 || r.bytes < 0 || r.offset > kMaxBytes || r.bytes > kMaxBytes ||
        r.offset + r.bytes > limit) {
      return Uncertified(where, ": ", r.name, " at ", r.offset, " + ", r.bytes, " leaves the ", region,
                         " region of ", limit, " bytes");
    }
    if (r.offset % alignment != 0) {
      return Uncertified(where, ": ", r.name, " at ", r.offset, " is not aligned to ", alignment);
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::tie(a.offset, a.name) < std::tie(b.offset, b.name);
  });
  const Range* before = nullptr;
  for (const Range& r : ranges) {
    if (r.bytes == 0) continue;
    if (before != nullptr && before->offset + before->bytes > r.offset) {
      return Uncertified(where, ": ", before->name, " and ", r.name, " overlap in the ", region, " region");
    }
    before = &r;
  }
  return absl::OkStatus();
}

absl::Status CheckStage(const ProgramFrame& f, int s, const CertifyOptions& options) {
  const StageMemory& m = f.program->memory.stages[s];
  const int64_t alignment = f.program->memory.alignment;
  const std::string where = StageName(*f.module, s);
  std::vector<Range> states, inputs, residuals, boundaries, futures, spill;
  for (const auto& state : f.module->states()) {
    const std::vector<int64_t> on = StagesOf(*state);
    const bool here = std::find(on.begin(), on.end(), s) != on.end();
    auto it = m.states.find(state->name);
    if (here != (it != m.states.end())) {
      return Uncertified(where, here ? ": no place for state @" : ": a place for state @", state->name,
                         here ? "" : ", which lives elsewhere");
    }
    if (!here) continue;
    const int64_t bytes = StorageOf(state->type, f.module->mesh(), options.overload).bytes;
    if (it->second.space != Space::kState || it->second.bytes < bytes) {
      return Uncertified(where, ": state @", state->name, " needs ", bytes, " bytes, has ", it->second.bytes,
                         " in the ", SpaceName(it->second.space), " region");
    }
    states.push_back({absl::StrCat("@", state->name), it->second.offset, it->second.bytes});
  }
  if (m.states.size() != states.size()) return Uncertified(where, ": places for states that do not exist");
  for (const auto& [name, ref] : m.inputs) inputs.push_back({name, ref.offset, ref.bytes});
  for (const auto& [name, ref] : m.futures) futures.push_back({name, ref.offset, ref.bytes});
  const auto add_slots = [&](const std::string& name, const StageMemory::Slots& slots,
                             std::vector<Range>* out) {
    if (slots.count < 0 || slots.count > (1 << 20) || slots.bytes < 0 ||
        slots.bytes > kMaxBytes / (slots.count + 1) || slots.spill_bytes < 0 ||
        slots.spill_bytes > kMaxBytes / (slots.count + 1)) {
      return Uncertified(where, ": ", slots.count, " slots of ", slots.bytes, " bytes for ", name);
    }
    out->push_back({name, slots.offset, slots.bytes * slots.count});
    if (slots.bytes % alignment != 0) return Uncertified(where, ": slots of ", name, " are not aligned");
    if (slots.spill_bytes > 0) spill.push_back({name, slots.spill_offset, slots.spill_bytes * slots.count});
    return absl::OkStatus();
  };
  for (const auto& [c, slots] : m.residuals) {
    RETURN_IF_ERROR(add_slots(absl::StrCat("residuals of chunk ", c), slots, &residuals));
  }
  for (const auto& [c, slots] : m.weight_residuals) {
    RETURN_IF_ERROR(
        add_slots(absl::StrCat("residuals of the weight gradient of chunk ", c), slots, &residuals));
  }
  for (const auto& [name, slots] : m.boundaries) RETURN_IF_ERROR(add_slots(name, slots, &boundaries));
  RETURN_IF_ERROR(CheckRegion(where, "state", states, m.state_bytes, alignment));
  RETURN_IF_ERROR(CheckRegion(where, "input", inputs, m.input_bytes, alignment));
  RETURN_IF_ERROR(CheckRegion(where, "residual", residuals, m.residual_bytes, alignment));
  RETURN_IF_ERROR(CheckRegion(where, "boundary", boundaries, m.boundary_bytes, alignment));
  RETURN_IF_ERROR(CheckRegion(where, "future", futures, m.future_bytes, alignment));
  RETURN_IF_ERROR(CheckRegion(where, "spill", spill, m.spill_bytes, alignment));
  RETURN_IF_ERROR(CheckRegion(where, "frame", {}, m.frame_bytes, alignment));
  if (options.memory_limit > 0 && m.peak_bytes() > options.memory_limit) {
    return Uncertified(where, ": the peak of ", BytesText(m.peak_bytes()), " is over the limit of ",
                       BytesText(options.memory_limit));
  }
  return absl::OkStatus();
}

// One function: places of its values, and order of what touches the same bytes.
class FunctionChecker {
 public:
  FunctionChecker(const ProgramFrame& f, const Function& function, int stage, const CertifyOptions& options)
      : f_(f), function_(function), stage_(f.program->memory.stages[stage]), options_(options) {}

  absl::Status Check() {
    auto it = f_.program->memory.functions.find(function_.name());
    if (it == f_.program->memory.functions.end())
      return Uncertified("no memory planned for @", function_.name());
    memory_ = &it->second;
    if (memory_->frame_bytes < 0 || memory_->frame_bytes > stage_.frame_bytes) {
      return Bad("", absl::StrCat("the frame of ", memory_->frame_bytes, " bytes exceeds the stage's ",
                                  stage_.frame_bytes));
    }
    RETURN_IF_ERROR(OrderNodes());
    for (Node* a : function_.args()) RETURN_IF_ERROR(CheckPlace(a->result()));
    for (const Node* n : nodes_) {
      for (int r = 0; r < n->num_results(); ++r) RETURN_IF_ERROR(CheckPlace(Value{const_cast<Node*>(n), r}));
    }
    RETURN_IF_ERROR(AddWorkspace());
    for (int r = 0; r < function_.num_results(); ++r) RETURN_IF_ERROR(CheckResult(r));
    RETURN_IF_ERROR(CheckOrderOfData());
    RETURN_IF_ERROR(CheckSpill());
    return CheckApart();
  }

 private:
  // A value or a node's scratch, and who touches it.
  struct Buffer {
    std::string name;
    BufferRef ref;
    Value value;           // null for scratch
    const Node* producer;  // null for arguments: there from the start
    std::vector<const Node*> readers;
    bool returned = false;  // needed after the last node
  };

  absl::Status Bad(absl::string_view value, absl::string_view what) const {
    return Uncertified("@", function_.name(), value.empty() ? "" : ", %", value, ": ", what);
  }

  // The clock of a node: per queue, how many of its nodes have certainly ended when this one starts.
  absl::Status OrderNodes() {
    std::map<std::string, const Node*> by_name;
    std::array<std::vector<const Node*>, kQueues> queues;
    for (const auto& n : function_.body()) {
      nodes_.push_back(n.get());
      std::vector<const Node*>& queue = queues[static_cast<int>(n->queue)];
      std::array<int, kQueues> clock = {0, 0, 0};
      const auto after = [&](const Node* m) {
        const std::array<int, kQueues>& c = clock_.at(m);
        for (int q = 0; q < kQueues; ++q) clock[q] = std::max(clock[q], c[q]);
        int& own = clock[static_cast<int>(m->queue)];
        own = std::max(own, index_.at(m) + 1);
      };
      if (!queue.empty()) after(queue.back());
      auto waits = memory_->waits.find(n->result_name());
      if (waits != memory_->waits.end()) {
        for (const std::string& name : waits->second) {
          auto earlier = by_name.find(name);
          if (earlier == by_name.end()) {
            return Bad(n->result_name(), absl::StrCat("waits for %", name, ", which is not an earlier node"));
          }
          after(earlier->second);
        }
      }
      index_[n.get()] = static_cast<int>(queue.size());
      queue.push_back(n.get());
      clock_[n.get()] = clock;
      by_name[n->result_name()] = n.get();
    }
    for (const auto& [name, _] : memory_->waits) {
      if (!by_name.count(name)) return Bad(name, "waits, but there is no such node");
    }
    return absl::OkStatus();
  }

  bool Before(const Node* m, const Node* n) const {
    return index_.at(m) < clock_.at(n)[static_cast<int>(m->queue)];
  }

  int Chunk() const { return function_.role().IsOfMicrobatch() ? function_.role().index : -1; }

  const Binding* ResultBinding(Value v, Binding::Kind kind) const {
    for (const Use& u : v.node->uses(v.index)) {
      if (u.user->Is("return") && function_.result_binding(u.operand).kind == kind) {
        return &function_.result_binding(u.operand);
      }
    }
    return nullptr;
  }

  absl::Status CheckPlace(Value v) {
    auto it = memory_->values.find(v.name());
    if (it == memory_->values.end()) return Bad(v.name(), "has no place");
    const BufferRef& ref = it->second;
    const LocalStorage storage = StorageOf(v.type(), f_.module->mesh(), options_.overload);
    if (ref.offset < 0 || ref.offset > kMaxBytes || ref.bytes < storage.bytes || ref.bytes > kMaxBytes) {
      return Bad(v.name(),
                 absl::StrCat("needs ", storage.bytes, " bytes, has ", ref.bytes, " at ", ref.offset));
    }
    if (storage.spill_bytes > 0 && ref.spill_offset < 0)
      return Bad(v.name(), "is ragged and has no room to overflow");
    RETURN_IF_ERROR(v.node->Is("arg") ? CheckArgument(v, ref) : CheckNodeResult(v, ref));
    Buffer b{v.name(), ref, v, v.node->Is("arg") ? nullptr : v.node, {}, false};
    for (const Use& u : v.node->uses(v.index)) {
      if (u.user->Is("return")) {
        b.returned = true;
      } else {
        b.readers.push_back(u.user);
      }
    }
    buffers_.push_back(std::move(b));
    return absl::OkStatus();
  }

  absl::Status CheckArgument(Value v, const BufferRef& ref) {
    const auto& [kind, name, peer] = v.node->binding;
    if (kind == Binding::kState) {
      auto it = stage_.states.find(name);
      if (it == stage_.states.end() || !(it->second == ref))
        return Bad(v.name(), "does not lie where its state does");
      return absl::OkStatus();
    }
    if (kind == Binding::kBatch || kind == Binding::kScalar) {
      auto it = stage_.inputs.find(InputName(v.node->binding));
      if (it == stage_.inputs.end() || ref.space != Space::kInput || ref.offset != it->second.offset ||
          ref.bytes > it->second.bytes) {
        return Bad(v.name(), "does not lie where its input does");
      }
      return absl::OkStatus();
    }
    if (kind == Binding::kBoundary) return CheckBoundary(v, ref, name);
    if (kind == Binding::kFuture) return CheckFuture(v, ref, name);
    if (kind == Binding::kResidual || kind == Binding::kWeightResidual) {
      const bool of_forward = kind == Binding::kResidual;
      if ((ref.space == Space::kResidual) != of_forward)
        return Bad(v.name(), "lies in a residual set of the other kind");
      RETURN_IF_ERROR(CheckResidual(v, ref));
      // Saved there by the forward or the input gradient.
      const FunctionRole saver(of_forward ? FunctionKind::kForward : FunctionKind::kInputGrad,
                               function_.role().index);
      const Function* g = function_.role().IsOfMicrobatch() ? f_.module->Find(saver) : nullptr;
      const std::string forward = g == nullptr ? "" : g->name();
      auto memory = f_.program->memory.functions.find(forward);
      if (g == nullptr || g == &function_ || memory == f_.program->memory.functions.end()) {
        return Bad(v.name(), "no function saves it");
      }
      const Value result = SavedBy(*g, kind, name);
      if (!result) return Bad(v.name(), absl::StrCat("@", forward, " does not save it"));
      auto saved = memory->second.values.find(result.name());
      if (saved == memory->second.values.end() || !(saved->second == ref) || !(result.type() == v.type())) {
        return Bad(v.name(), absl::StrCat("@", forward, " saves it elsewhere or as something else"));
      }
      return absl::OkStatus();
    }
    return Bad(v.name(), absl::StrCat("is bound to a '", BindingKindName(kind), "', which has no place"));
  }

  // The result of `g` bound to (kind, name), or null.
  Value SavedBy(const Function& g, Binding::Kind kind, absl::string_view name) {
    Saved& saved = saved_by_[&g];
    if (saved.empty()) {
      for (int r = 0; r < g.num_results(); ++r) {
        const Binding& binding = g.result_binding(r);
        saved.try_emplace({binding.kind, binding.name}, g.result(r));
      }
    }
    auto it = saved.find({kind, name});
    return it == saved.end() ? Value{} : it->second;
  }

  absl::Status CheckFuture(Value v, const BufferRef& ref, absl::string_view name) const {
    auto it = stage_.futures.find(std::string(name));
    if (it == stage_.futures.end() || ref.space != Space::kFuture || !(it->second == ref)) {
      return Bad(v.name(), absl::StrCat("does not lie where the future ", name, " does"));
    }
    return absl::OkStatus();
  }

  absl::Status CheckBoundary(Value v, const BufferRef& ref, absl::string_view name) const {
    auto it = stage_.boundaries.find(std::string(name));
    if (it == stage_.boundaries.end() || ref.space != Space::kBoundary || ref.offset != 0 ||
        ref.bytes > it->second.bytes) {
      return Bad(v.name(), absl::StrCat("does not fit the slots of ", name));
    }
    return absl::OkStatus();
  }

  absl::Status CheckResidual(Value v, const BufferRef& ref) const {
    const bool of_forward = ref.space == Space::kResidual;
    const auto& sets = of_forward ? stage_.residuals : stage_.weight_residuals;
    const auto slots = sets.find(Chunk());
    if (slots == sets.end() || (!of_forward && ref.space != Space::kWeightResidual) ||
        ref.offset + ref.bytes > slots->second.bytes) {
      return Bad(v.name(), "does not fit the chunk's residual slots");
    }
    return absl::OkStatus();
  }

  absl::Status CheckNodeResult(Value v, const BufferRef& ref) const {
    // What arrives lies where the exchange wrote it, and the exchange writes where that shall lie.
    if (v.node->Is("comm.done") && !(memory_->values.at(v.node->operand(0).name()) == ref)) {
      return Bad(v.name(), absl::StrCat("does not lie where %", v.node->operand(0).name(), " was written"));
    }
    v = ArrivedValue(v);
    if (v.node->Is("comm.done") && v.node->operand(0).node->Is("arg")) {
      return CheckFuture(v, ref, v.node->operand(0).node->binding.name);
    }
    switch (ref.space) {
      case Space::kFrame:
        if (ref.offset + ref.bytes > memory_->frame_bytes) {
          return Bad(v.name(), absl::StrCat("leaves the frame of ", memory_->frame_bytes, " bytes"));
        }
        return absl::OkStatus();
      case Space::kState: {
        const auto here = [&](const BufferRef& state) { return state == ref; };
        if (const Binding* binding = ResultBinding(v, Binding::kState)) {
          auto it = stage_.states.find(binding->name);
          if (it != stage_.states.end() && here(it->second)) return absl::OkStatus();
        }
        // A step of several updates of one state.
        const int taken = InPlaceOperand(*v.node, v.index);
        if (taken >= 0 && !v.node->Is("comm.done") &&
            here(memory_->values.at(v.node->operand(taken).name()))) {
          return absl::OkStatus();
        }
        return Bad(v.name(), "lies in the bytes of a state that it does not update");
      }
      case Space::kFuture: {
        const Binding* binding = ResultBinding(v, Binding::kFuture);
        if (binding == nullptr)
          return Bad(v.name(), "lies among futures that cross functions and does not cross");
        return CheckFuture(v, ref, binding->name);
      }
      case Space::kBoundary:
      case Space::kResidual:
      case Space::kWeightResidual: {
        const bool boundary = ref.space == Space::kBoundary;
        const Binding* binding = ResultBinding(v, boundary                        ? Binding::kBoundary
                                                  : ref.space == Space::kResidual ? Binding::kResidual
                                                                                  : Binding::kWeightResidual);
        if (binding == nullptr)
          return Bad(v.name(), absl::StrCat("is not a ", SpaceName(ref.space), " value"));
        return boundary ? CheckBoundary(v, ref, binding->name) : CheckResidual(v, ref);
      }
      default:
        return Bad(v.name(), absl::StrCat("lies in the ", SpaceName(ref.space), " space"));
    }
  }

  // Bound results lie where the next reader looks for them.
  absl::Status CheckResult(int r) const {
    const Value v = function_.result(r);
    const auto& [kind, name, peer] = function_.result_binding(r);
    const BufferRef& ref = memory_->values.at(v.name());
    if (kind == Binding::kState) {
      auto it = stage_.states.find(name);
      if (it == stage_.states.end() || !(it->second == ref)) {
        return Bad(v.name(), absl::StrCat("updates @", name, " but does not lie in its bytes"));
      }
    } else if (kind == Binding::kBoundary && ref.space != Space::kBoundary) {
      return Bad(v.name(), absl::StrCat("is sent as ", name, " but lies in the ", SpaceName(ref.space)));
    } else if (kind == Binding::kResidual && ref.space != Space::kResidual) {
      return Bad(v.name(), absl::StrCat("is saved for the backward but lies in the ", SpaceName(ref.space)));
    } else if (kind == Binding::kFuture && ref.space != Space::kFuture) {
      return Bad(v.name(),
                 absl::StrCat("is in flight when the function ends but lies in the ", SpaceName(ref.space)));
    } else if (kind == Binding::kWeightResidual && ref.space != Space::kWeightResidual) {
      return Bad(v.name(),
                 absl::StrCat("is saved for the weight gradient but lies in the ", SpaceName(ref.space)));
    }
    return absl::OkStatus();
  }

  absl::Status AddWorkspace() {
    for (const Node* n : nodes_) {
      auto it = memory_->workspace.find(n->result_name());
      if (it == memory_->workspace.end()) continue;
      const BufferRef& ref = it->second;
      if (CrossesFunctions(*n)) {
        auto scratch = stage_.futures.find(FutureScratchName(function_, *n));
        if (scratch == stage_.futures.end() || !(scratch->second == ref)) {
          return Bad(n->result_name(), "is in flight when the function ends, and its scratch is not held");
        }
        buffers_.push_back({absl::StrCat(n->result_name(), " (scratch)"), ref, Value{}, n, {}, true});
        continue;
      }
      if (ref.space != Space::kFrame || ref.offset < 0 || ref.bytes < 0 || ref.offset > kMaxBytes ||
          ref.bytes > kMaxBytes || ref.offset + ref.bytes > memory_->frame_bytes) {
        return Bad(n->result_name(), "the scratch of its kernel leaves the frame");
      }
      buffers_.push_back({absl::StrCat(n->result_name(), " (scratch)"), ref, Value{}, n, {}, false});
    }
    return absl::OkStatus();
  }

  absl::Status CheckOrderOfData() const {
    for (const Node* n : nodes_) {
      for (const Value& v : n->operands()) {
        if (!v.node->Is("arg") && !Before(v.node, n)) {
          return Bad(n->result_name(), absl::StrCat("may run before %", v.name(),
                                                    " is there: it is on another queue and does not wait"));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckSpill() const {
    std::vector<Range> frame, forward_set, input_set;
    int64_t limit = stage_.spill_bytes;
    for (const auto* sets : {&stage_.residuals, &stage_.weight_residuals}) {
      for (const auto& [_, s] : *sets) {
        if (s.spill_bytes > 0) limit = std::min(limit, s.spill_offset);
      }
    }
    for (const Buffer& b : buffers_) {
      if (!b.value || b.value.node->Is("comm.done")) continue;  // which is where its future is
      const int64_t bytes = StorageOf(b.value.type(), f_.module->mesh(), options_.overload).spill_bytes;
      if (bytes == 0) continue;
      (b.ref.space == Space::kResidual         ? forward_set
       : b.ref.space == Space::kWeightResidual ? input_set
                                               : frame)
          .push_back({b.name, b.ref.spill_offset, bytes});
    }
    RETURN_IF_ERROR(CheckRegion(absl::StrCat("@", function_.name()), "spill", frame, limit,
                                f_.program->memory.alignment));
    const int chunk = Chunk();
    const auto check_set = [&](const std::vector<Range>& set, const std::map<int, StageMemory::Slots>& sets) {
      if (set.empty()) return absl::OkStatus();
      return CheckRegion(absl::StrCat("@", function_.name()), "residual spill", set,
                         sets.at(chunk).spill_bytes, f_.program->memory.alignment);
    };
    RETURN_IF_ERROR(check_set(forward_set, stage_.residuals));
    return check_set(input_set, stage_.weight_residuals);
  }

  // Everything that happens to `earlier` is over when `producer` starts to write its bytes.
  bool OverBefore(const Buffer& earlier, const Buffer& later) const {
    const Node* n = later.producer;
    if (n == nullptr || earlier.returned) return false;
    if (earlier.producer != nullptr && !Before(earlier.producer, n)) return false;
    for (const Node* reader : earlier.readers) {
      if (reader == n) {
        // Only an update in place may write what it reads.
        if (!later.value) return false;
        const int taken = InPlaceOperand(*n, later.value.index);
        if (taken < 0 || n->operand(taken) != earlier.value || !(earlier.ref == later.ref)) {
          return false;
        }
        for (int i = 0; i < n->num_operands(); ++i) {
          if (i != taken && n->operand(i) == earlier.value) return false;
        }
      } else if (!Before(reader, n)) {
        return false;
      }
    }
    return true;
  }

  absl::Status CheckApart() {
    std::sort(buffers_.begin(), buffers_.end(), [](const Buffer& a, const Buffer& b) {
      return std::tie(a.ref.space, a.ref.offset, a.name) < std::tie(b.ref.space, b.ref.offset, b.name);
    });
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const Buffer& a = buffers_[i];
      if (a.ref.offset % f_.program->memory.alignment != 0) return Bad(a.name, "is not aligned");
      for (size_t j = i + 1; j < buffers_.size(); ++j) {
        const Buffer& b = buffers_[j];
        if (b.ref.space != a.ref.space || b.ref.offset >= a.ref.offset + a.ref.bytes) break;
        if (a.ref.space == Space::kBoundary && NameOfBoundary(a) != NameOfBoundary(b)) continue;
        if (!Overlap(a.ref.offset, a.ref.bytes, b.ref.offset, b.ref.bytes)) continue;
        if (OverBefore(a, b) || OverBefore(b, a)) continue;
        return Bad(a.name, absl::StrCat("shares bytes of the ", SpaceName(a.ref.space), " with %", b.name,
                                        " while both are needed"));
      }
    }
    return absl::OkStatus();
  }

  // Offsets of boundary values count from their own slots.
  std::string NameOfBoundary(const Buffer& b) const {
    const Value v = ArrivedValue(b.value);
    if (v.node->Is("arg")) return v.node->binding.name;
    return ResultBinding(v, Binding::kBoundary)->name;
  }

  const ProgramFrame& f_;
  const Function& function_;
  const StageMemory& stage_;
  const CertifyOptions& options_;
  const FunctionMemory* memory_ = nullptr;
  std::vector<const Node*> nodes_;
  absl::flat_hash_map<const Node*, int> index_;  // in its queue
  absl::flat_hash_map<const Node*, std::array<int, kQueues>> clock_;
  std::vector<Buffer> buffers_;
  using Saved = absl::flat_hash_map<std::pair<Binding::Kind, absl::string_view>, Value>;
  std::map<const Function*, Saved> saved_by_;
};

}  // namespace

absl::Status CheckMemory(const ProgramFrame& f, const CertifyOptions& options) {
  const int64_t alignment = f.program->memory.alignment;
  if (alignment < 1 || alignment > 4096) return Uncertified("an alignment of ", alignment, " bytes");
  for (int s = 0; s < f.stages; ++s) RETURN_IF_ERROR(CheckStage(f, s, options));
  for (const auto& function : f.module->functions()) {
    const std::string& name = function->name();
    int stage = -1;
    for (int c = 0; c < f.chunks; ++c) {
      const auto& backward = f.backward[c];
      const bool back = std::find(backward.begin(), backward.end(), function.get()) != backward.end();
      if (back || function.get() == f.forward[c]) stage = f.program->schedule.chunk_stage[c];
    }
    for (int s = 0; s < f.stages; ++s) {
      if (function.get() == f.update[s] || function.get() == f.report[s]) stage = s;
    }
    if (stage < 0) return Uncertified("nothing runs @", name);
    RETURN_IF_ERROR(FunctionChecker(f, *function, stage, options).Check());
  }
  return absl::OkStatus();
}

}  // namespace moe::passes
