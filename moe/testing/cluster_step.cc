#include "moe/testing/cluster_step.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/device/reduce.h"
#include "moe/ir/state.h"
#include "moe/ir/stored_rows.h"
#include "moe/passes/stages/partition_stages.h"
#include "moe/runtime/init.h"
#include "moe/runtime/local.h"

namespace moe::testing {
namespace {

double NormalNumber(uint64_t seed, uint64_t stream, uint64_t i) {
  const double u = (static_cast<double>(runtime::CounterBits(seed, stream, 2 * i) >> 11) + 1) * 0x1p-53;
  const double v = static_cast<double>(runtime::CounterBits(seed, stream, 2 * i + 1) >> 11) * 0x1p-53;
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

class Step {
 public:
  Step(const Program& program, const runtime::StepInputs& inputs, const ClusterOptions& options)
      : program_(program),
        module_(*program.module),
        mesh_(module_.mesh()),
        inputs_(inputs),
        options_(options),
        cluster_(mesh_, options.backend, Conversions::kBySteps) {}

  absl::StatusOr<ClusterRun> Run() {
    for (const auto& s : module_.states()) {
      RETURN_IF_ERROR(VirtualCluster::CheckDType(s->type, s->name));
      const auto given = options_.states.find(s->name);
      std::vector<double> global =
          given == options_.states.end() ? InitialValues(module_, *s, options_.seed) : given->second;
      if (const std::optional<StoredRows> rows = StoredRowsOf(module_, *s)) {
        global = rows->ToStored(global, /*once=*/false);
      }
      for (const int64_t stage : passes::StagesOf(*s)) {
        if (stage >= mesh_.num_stages()) continue;
        states_[{stage, s->name}] = cluster_.Distribute(s->type, global, stage);
      }
    }
    int microbatches = static_cast<int>(AttrInt(module_.attributes(), "microbatches", 1));
    if (options_.microbatches > 0) microbatches = std::min(microbatches, options_.microbatches);
    microbatches_ = microbatches;
    std::vector<const Function*> chunks, forwards, backwards, weights, updates, reports, others;
    for (const auto& f : module_.functions()) {
      switch (f->role().kind) {
        case FunctionKind::kStep:
        case FunctionKind::kChunk:
          chunks.push_back(f.get());
          break;
        case FunctionKind::kForward:
          forwards.push_back(f.get());
          break;
        case FunctionKind::kBackward:
        case FunctionKind::kInputGrad:
          backwards.push_back(f.get());
          break;
        case FunctionKind::kWeightGrad:
          weights.push_back(f.get());
          break;
        case FunctionKind::kUpdate:
          updates.push_back(f.get());
          break;
        case FunctionKind::kReport:
          reports.push_back(f.get());
          break;
        case FunctionKind::kOther:
          others.push_back(f.get());
          break;
      }
    }
    const auto by_number = [&](std::vector<const Function*>* list) {
      std::sort(list->begin(), list->end(),
                [](const Function* a, const Function* b) { return Number(*a) < Number(*b); });
    };
    for (auto* list : {&chunks, &forwards, &backwards, &weights, &updates, &reports}) by_number(list);
    for (int j = 0; j < microbatches; ++j) {
      boundaries_.clear();
      residuals_.clear();
      std::map<const Function*, Frame> frames;
      // Of a model that is there twice, the copy that the microbatch goes through.
      const Schedule& schedule = program_.schedule;
      const int copy = schedule.CopyOfMicrobatch(j);
      const auto mine = [&](const std::vector<const Function*>& list) {
        std::vector<const Function*> out;
        for (const Function* f : list) {
          if (schedule.copies == 1 || schedule.CopyOfChunk(Number(*f)) == copy) out.push_back(f);
        }
        return out;
      };
      const std::vector<const Function*> through = mine(chunks), back = mine(backwards);
      for (const Function* f : through) RETURN_IF_ERROR(RunPhase(*f, Phase::kForward, j, &frames[f]));
      for (const Function* f : mine(forwards)) RETURN_IF_ERROR(RunWhole(*f, j));
      for (auto f = through.rbegin(); f != through.rend(); ++f) {
        RETURN_IF_ERROR(RunPhase(**f, Phase::kBackward, j, &frames[*f]));
      }
      for (auto f = back.rbegin(); f != back.rend(); ++f) RETURN_IF_ERROR(RunWhole(**f, j));
      for (const Function* f : mine(weights)) RETURN_IF_ERROR(RunWhole(*f, j));
    }
    RETURN_IF_ERROR(RunTogether(updates));
    for (const Function* f : reports) RETURN_IF_ERROR(RunWhole(*f, -1));
    for (const Function* f : others) RETURN_IF_ERROR(RunWhole(*f, -1));
    RETURN_IF_ERROR(ExportStates());
    return std::move(run_);
  }

 private:
  struct Frame {
    std::map<Value, Placed> values;
    std::map<Value, size_t> unused;  // uses that are still to come
  };

  static int Number(const Function& f) { return std::max(0, f.role().index); }
  // The key under which a value is kept from one function to another.
  static std::string KeptAs(const Binding& binding, const Function& f, int64_t stage) {
    if (binding.kind == Binding::kBoundary) return binding.name;
    const bool future = binding.kind == Binding::kFuture;
    return absl::StrCat(future ? stage : Number(f), " ", BindingKindName(binding.kind), " ", binding.name);
  }
  int64_t StageOf(const Function& f) const {
    const int n = Number(f);
    if (f.role().kind == FunctionKind::kUpdate || f.role().kind == FunctionKind::kReport) return n;
    const auto& stage = program_.schedule.chunk_stage;
    return n < static_cast<int>(stage.size()) ? stage[n] : 0;
  }

  // One argument. States are read when the phase that first uses them begins.
  absl::StatusOr<Placed> Argument(const Node& arg, int64_t stage, int microbatch) {
    const auto& [kind, name, peer] = arg.binding;
    const Type& type = arg.type();
    RETURN_IF_ERROR(VirtualCluster::CheckDType(type, absl::StrCat("%", arg.result_name())));
    if (kind == Binding::kState) {
      const auto it = states_.find({stage, name});
      if (it == states_.end()) {
        return absl::FailedPreconditionError(absl::StrCat("argument %", arg.result_name(), " of @",
                                                          arg.function()->name(), ": no state '", name,
                                                          "' on stage ", stage));
      }
      return it->second;
    }
    if (kind == Binding::kBoundary || kind == Binding::kResidual || kind == Binding::kWeightResidual ||
        kind == Binding::kFuture) {
      const auto& from = kind == Binding::kBoundary ? boundaries_ : residuals_;
      const auto it = from.find(KeptAs(arg.binding, *arg.function(), stage));
      if (it == from.end()) {
        return absl::FailedPreconditionError(absl::StrCat("argument %", arg.result_name(), " of @",
                                                          arg.function()->name(), ": nothing gives the ",
                                                          BindingKindName(kind), " value '", name, "'"));
      }
      if (!(it->second.first == type)) {
        return absl::FailedPreconditionError(absl::StrCat(
            "argument %", arg.result_name(), " of @", arg.function()->name(), " is ",
            TypeToString(type, mesh_), ", what comes is ", TypeToString(it->second.first, mesh_)));
      }
      return it->second.second;
    }
    const int64_t n = type.num_elements();
    std::vector<double> global(n);
    if (kind == Binding::kScalar) {
      const auto it = inputs_.scalars.find(name);
      if (it == inputs_.scalars.end()) {
        return absl::InvalidArgumentError(absl::StrCat("step inputs: scalar '", name, "' is missing"));
      }
      global.assign(n, it->second);
    } else if (kind == Binding::kBatch && microbatch >= 0) {
      const auto part = [&](const auto& all) {
        const int64_t begin = name == "positions" ? 0 : microbatch * n;
        for (int64_t i = 0; i < n && begin + i < static_cast<int64_t>(all.size()); ++i)
          global[i] = all[begin + i];
      };
      if (name == "mask") {
        part(inputs_.mask);
      } else {
        part(name == "tokens" ? inputs_.tokens : name == "labels" ? inputs_.labels : inputs_.positions);
      }
    } else {  // of a function that is no part of a training step
      for (int64_t i = 0; i < n; ++i) {
        global[i] =
            type.dtype == DType::kS32
                ? static_cast<double>(
                      runtime::CounterBits(options_.seed, runtime::StreamOf(arg.result_name()), i) % 2)
                : 0.4 * NormalNumber(options_.seed, runtime::StreamOf(arg.result_name()), i);
      }
    }
    return cluster_.Distribute(type, global, stage);
  }

  absl::Status LoadArguments(const Function& f, int microbatch,
                             const std::function<bool(const Node*)>& wanted, Frame* frame) {
    for (Node* arg : f.args()) {
      if (frame->values.count(arg->result())) continue;
      bool used = false;
      for (const Use& use : arg->uses()) used |= use.user != f.return_node() && wanted(use.user);
      if (!used) continue;
      ASSIGN_OR_RETURN(frame->values[arg->result()], Argument(*arg, StageOf(f), microbatch));
    }
    return absl::OkStatus();
  }

  absl::Status RunPhase(const Function& f, Phase phase, int microbatch, Frame* frame) {
    const auto wanted = [&](const Node* n) {
      return (n->phase == Phase::kForward) == (phase == Phase::kForward);
    };
    RETURN_IF_ERROR(LoadArguments(f, microbatch, wanted, frame));
    for (const auto& n : f.body()) {
      if (wanted(n.get())) RETURN_IF_ERROR(RunNode(n.get(), StageOf(f), microbatch, frame));
    }
    return Commit(f, microbatch, wanted, frame);
  }

  absl::Status RunWhole(const Function& f, int microbatch) {
    Frame frame;
    const auto all = [](const Node*) { return true; };
    RETURN_IF_ERROR(LoadArguments(f, microbatch, all, &frame));
    for (const auto& n : f.body()) RETURN_IF_ERROR(RunNode(n.get(), StageOf(f), microbatch, &frame));
    return Commit(f, microbatch, all, &frame);
  }

  // Functions of all stages at once: each runs to its next stage reduction, and these run when all have come.
  absl::Status RunTogether(const std::vector<const Function*>& functions) {
    struct Part {
      const Function* f;
      std::vector<Node*> nodes;
      size_t at = 0;
      Frame frame;
    };
    std::map<int64_t, Part> parts;  // by stage
    const auto all = [](const Node*) { return true; };
    for (const Function* f : functions) {
      Part& p = parts[StageOf(*f)];
      p.f = f;
      p.nodes = f->Nodes();
      RETURN_IF_ERROR(LoadArguments(*f, -1, all, &p.frame));
    }
    for (bool moved = true; moved;) {
      moved = false;
      for (auto& [stage, p] : parts) {
        for (; p.at < p.nodes.size() && !p.nodes[p.at]->Is("comm.stage_reduce"); ++p.at) {
          RETURN_IF_ERROR(RunNode(p.nodes[p.at], stage, -1, &p.frame));
          moved = true;
        }
      }
      for (auto& [stage, p] : parts) {
        if (p.at == p.nodes.size()) continue;
        const std::vector<int64_t>& stages = p.nodes[p.at]->Ints("stages");
        bool ready = true;
        for (const int64_t s : stages) {
          const auto it = parts.find(s);
          ready &= it != parts.end() && it->second.at < it->second.nodes.size() &&
                   it->second.nodes[it->second.at]->Is("comm.stage_reduce") &&
                   it->second.nodes[it->second.at]->Ints("stages") == stages;
        }
        if (!ready) continue;
        std::vector<std::pair<Node*, Frame*>> members;
        for (const int64_t s : stages)
          members.push_back({parts.at(s).nodes[parts.at(s).at++], &parts.at(s).frame});
        RETURN_IF_ERROR(StageReduce(stages, members));
        moved = true;
        break;
      }
    }
    for (auto& [stage, p] : parts) {
      if (p.at < p.nodes.size()) {
        return absl::InternalError(absl::StrCat("%", p.nodes[p.at]->result_name(), " of @", p.f->name(),
                                                " waits for stages that never reduce with it"));
      }
      RETURN_IF_ERROR(Commit(*p.f, -1, all, &p.frame));
    }
    return absl::OkStatus();
  }

  absl::Status StageReduce(const std::vector<int64_t>& stages,
                           const std::vector<std::pair<Node*, Frame*>>& members) {
    const Type& type = members[0].first->type();
    const Reduction kind = members[0].first->String("reduction") == "max" ? Reduction::kMax : Reduction::kSum;
    RETURN_IF_ERROR(device::CheckReducible(type.dtype, kind));
    Placed sum = cluster_.Allocate(type);
    for (int64_t r = 0; r < cluster_.ranks(); ++r) {
      std::vector<const void*> in;
      for (const auto& [node, frame] : members) {
        if (!(node->type() == type)) {
          return absl::InternalError(
              absl::StrCat("%", node->result_name(), ": stages reduce values of different types"));
        }
        in.push_back(frame->values.at(node->operand(0))[r]->data());
      }
      device::ReduceInOrder(in, sum[r]->data(), type.LocalElements(mesh_), type.dtype, kind);
    }
    for (size_t m = 0; m < members.size(); ++m) {
      members[m].second->values[members[m].first->result()] = sum;
      RETURN_IF_ERROR(Observe(members[m].first, stages[m], -1, members[m].second));
    }
    return absl::OkStatus();
  }

  absl::Status RunNode(Node* n, int64_t stage, int microbatch, Frame* frame) {
    if (n->BoolOr("last", false) && microbatch + 1 < microbatches_) return absl::OkStatus();
    std::vector<Placed> in;
    for (const Value& v : n->operands()) {
      const auto it = frame->values.find(v);
      if (it == frame->values.end()) {
        return absl::InternalError(absl::StrCat("%", n->result_name(), " = ", n->op_name(), " in @",
                                                n->function()->name(), ": its operand %", v.name(),
                                                " was never computed"));
      }
      in.push_back(it->second);
    }
    ASSIGN_OR_RETURN(std::vector<Placed> out, cluster_.Run(*n, in, stage));
    for (int i = 0; i < n->num_results(); ++i) frame->values[n->result(i)] = std::move(out[i]);
    RETURN_IF_ERROR(Observe(n, stage, microbatch, frame));
    // What nobody will read any more goes.
    for (const Value& v : n->operands()) {
      if (v.node->Is("arg")) continue;
      auto [left, first] = frame->unused.emplace(v, v.node->uses(v.index).size());
      if (--left->second == 0) frame->values.erase(v);
    }
    for (int i = 0; i < n->num_results(); ++i) {
      if (n->uses(i).empty()) frame->values.erase(n->result(i));
    }
    return absl::OkStatus();
  }

  absl::Status Observe(Node* n, int64_t stage, int microbatch, Frame* frame) {
    const int expert = n->op().Has(kDecision) ? n->op().FindResult("expert") : -1;
    if (expert >= 0) {
      const Snapshot s = cluster_.Read(n->type(expert), frame->values.at(n->result(expert)), stage);
      const std::vector<double> global = s.Global(mesh_);
      run_.decisions[{n->result_name(expert), microbatch}].assign(global.begin(), global.end());
    }
    if (!options_.observer) return absl::OkStatus();
    for (int i = 0; i < n->num_results(); ++i) {
      const Value v = n->result(i);
      RETURN_IF_ERROR(options_.observer(v, microbatch, cluster_.Read(v.type(), frame->values.at(v), stage)));
    }
    return absl::OkStatus();
  }

  // Results of the nodes that just ran go to where they are bound.
  absl::Status Commit(const Function& f, int microbatch, const std::function<bool(const Node*)>& ran,
                      Frame* frame) {
    const int64_t stage = StageOf(f);
    for (int i = 0; i < f.num_results(); ++i) {
      const Value v = f.result(i);
      if (!v.node->Is("arg") && !ran(v.node)) continue;
      const auto it = frame->values.find(v);
      if (it == frame->values.end()) {
        if (v.node->Is("arg")) continue;  // given back as it came
        if (v.type().future) continue;    // begins in the last microbatch
        return absl::InternalError(
            absl::StrCat("@", f.name(), " returns %", v.name(), ", which was never computed"));
      }
      const auto& [kind, name, peer] = f.result_binding(i);
      const std::string producer = absl::StrCat("%", v.name(), " = ", v.node->op_name(), " in @", f.name());
      if (kind == Binding::kState) {
        states_[{stage, name}] = it->second;
        producers_[{stage, name}] = producer;
        continue;
      }
      if (kind == Binding::kFuture || kind == Binding::kResidual || kind == Binding::kWeightResidual) {
        residuals_[KeptAs(f.result_binding(i), f, stage)] = {v.type(), it->second};
        continue;
      }
      Snapshot s = cluster_.Read(v.type(), it->second, stage);
      if (kind == Binding::kBoundary) {
        boundaries_[name] = {v.type(), it->second};
        run_.exports[absl::StrCat("boundary ", name, ", microbatch ", microbatch)] = {
            producer, {std::move(s)}, false};
      } else if (kind == Binding::kLoss) {
        run_.objective += s.local[0][0];
        run_.has_objective = true;
      } else if (kind == Binding::kReport) {
        ClusterExport& e = run_.exports[absl::StrCat("report ", name)];
        e.producer = producer;
        e.summed = true;
        e.copies.push_back(std::move(s));
      } else {
        run_.exports[absl::StrCat("result ", i, " of @", f.name())] = {producer, {std::move(s)}, false};
      }
    }
    return absl::OkStatus();
  }

  // By logical rows, on every rank: with its own part of the stored rows, and those of the others around it.
  absl::StatusOr<Snapshot> Logical(const State& state, Snapshot s) const {
    const std::optional<StoredRows> rows = StoredRowsOf(module_, state);
    if (!rows) return s;
    const std::vector<double> global = s.Global(mesh_);
    for (int64_t r = 0; r < cluster_.ranks(); ++r) {
      std::vector<double> stored = global;
      runtime::ForEachRun(runtime::LocalBlock(s.type, mesh_, cluster_.RankOf(s.stage, r)),
                          [&](int64_t to, int64_t from, int64_t n) {
                            std::copy_n(s.local[r].begin() + from, n, stored.begin() + to);
                          });
      ASSIGN_OR_RETURN(s.local[r],
                       rows->ToLogical(stored, AttrString(state.attributes, "kind") == "gradient"));
    }
    s.type = LogicalType(module_, state);
    return s;
  }

  absl::Status ExportStates() {
    for (const auto& s : module_.states()) {
      ClusterExport e;
      e.summed = AttrString(s->attributes, "kind") == "gradient";
      for (const int64_t stage : passes::StagesOf(*s)) {
        const auto it = states_.find({stage, s->name});
        if (it == states_.end()) continue;
        absl::StatusOr<Snapshot> copy = Logical(*s, cluster_.Read(s->type, it->second, stage));
        if (!copy.ok()) return Annotate(copy.status(), absl::StrCat("state ", s->name));
        e.copies.push_back(*std::move(copy));
        const auto producer = producers_.find({stage, s->name});
        if (producer != producers_.end()) e.producer = producer->second;
      }
      run_.exports[absl::StrCat("state ", s->name)] = std::move(e);
    }
    return absl::OkStatus();
  }

  const Program& program_;
  const Module& module_;
  const Mesh& mesh_;
  const runtime::StepInputs& inputs_;
  const ClusterOptions& options_;
  VirtualCluster cluster_;
  int microbatches_ = 1;
  std::map<std::pair<int64_t, std::string>, Placed> states_;  // (stage, name)
  std::map<std::pair<int64_t, std::string>, std::string> producers_;
  std::map<std::string, std::pair<Type, Placed>> boundaries_, residuals_;  // of the microbatch that runs
  ClusterRun run_;
};

}  // namespace

std::vector<double> InitialValues(const Module& module, const State& state, uint64_t seed) {
  if (AttrString(state.attributes, "kind") == "working_copy")
    return InitialValues(module, *module.FindState(AttrString(state.attributes, "of")), seed);
  State logical = state;  // the values of a parameter are a function of its logical elements
  logical.type = LogicalType(module, state);
  logical.attributes.erase("expert_map");
  logical.attributes.erase("logical_rows");
  std::vector<double> values(logical.type.num_elements(), 0);
  const std::string kind = AttrString(state.attributes, "kind");
  if (kind == "parameter" || kind == "expert_map") {
    const runtime::Initializer init(module, logical, seed);
    for (size_t i = 0; i < values.size(); ++i) values[i] = init(static_cast<int64_t>(i));
  } else if (kind == "moment") {
    const bool second = absl::StartsWith(state.name, "adam.v.");
    for (size_t i = 0; i < values.size(); ++i) {
      const double x = NormalNumber(seed, runtime::StreamOf(state.name), i);
      values[i] = second ? 1e-4 + 1e-3 * x * x : 1e-2 * x;
    }
  }
  return values;
}

void PromoteToF64(Module* module) {
  const auto promote = [](Type type) {
    if (IsFloat(type.dtype)) type.dtype = DType::kF64;
    return type;
  };
  for (const auto& s : module->states()) s->type = promote(s->type);
  for (const auto& f : module->functions()) {
    for (Node* a : f->args()) a->SetType(0, promote(a->type()));
    for (const auto& n : f->body()) {
      for (int i = 0; i < n->num_results(); ++i) n->SetType(i, promote(n->type(i)));
      const std::optional<DType> dtype = ParseDType(n->StringOr("dtype", ""));
      if (dtype && IsFloat(*dtype)) n->Set("dtype", std::string("f64"));
      for (const char* narrower : {"wire", "multiply"}) {  // exchanged and multiplied as it is
        if (n->Has(narrower)) n->Set(narrower, std::string());
      }
    }
  }
}

absl::StatusOr<ClusterRun> RunStep(const Program& program, const runtime::StepInputs& inputs,
                                   const ClusterOptions& options) {
  return Step(program, inputs, options).Run();
}

}  // namespace moe::testing
