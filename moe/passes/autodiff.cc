#include "moe/passes/autodiff.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/state.h"
#include "moe/passes/pass.h"

namespace moe::passes {
namespace {

class Differentiator {
 public:
  Differentiator(Module& module, Function* step) : module_(module), step_(step), b_(step) {
    b_.phase = Phase::kBackward;
  }

  absl::Status Run() {
    const std::vector<Node*> forward = step_->Nodes();
    RETURN_IF_ERROR(FindParameters(forward));
    FindDependent(forward);
    RETURN_IF_ERROR(TakeLosses());
    for (auto n = forward.rbegin(); n != forward.rend(); ++n) {
      RETURN_IF_ERROR(Backward(*n));
      for (const std::string& p : finished_at_[*n]) RETURN_IF_ERROR(AccumulateGradient(p));
    }
    if (!unreached_.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("no loss depends on ", absl::StrJoin(unreached_, ", "),
                                                     ": every parameter must reach a loss to be trained"));
    }
    return absl::OkStatus();
  }

  // The scope in which a parameter is first used.
  const std::string& ScopeOf(const std::string& parameter) const { return scope_.at(parameter); }

 private:
  struct Contribution {
    Value value;
    std::string scope;
  };

  absl::Status FindParameters(const std::vector<Node*>& forward) {
    std::map<const Node*, int64_t> position;
    for (size_t i = 0; i < forward.size(); ++i) position[forward[i]] = i;
    for (const auto& state : module_.states()) {
      if (AttrString(state->attributes, "kind") != "parameter") continue;
      Node* arg = FindArg(*step_, Binding::kState, state->name);
      Node* first = nullptr;
      if (arg != nullptr) {
        for (const Use& use : arg->uses()) {
          if (position.count(use.user) && (first == nullptr || position[use.user] < position[first]))
            first = use.user;
        }
      }
      if (first == nullptr) {
        unreached_.push_back(state->name);
        continue;
      }
      parameter_[state->name] = arg->result();
      scope_[state->name] = first->scope;
      finished_at_[first].push_back(state->name);
    }
    if (parameter_.empty())
      return absl::FailedPreconditionError("autodiff: @step has no parameter to differentiate by");
    return absl::OkStatus();
  }

  // Values that vary with a parameter. Results of ops without gradient are among them, so that a gradient
  // which arrives there is an error; results declared not differentiable and integers are constants to the
  // gradient.
  void FindDependent(const std::vector<Node*>& forward) {
    for (const auto& [name, value] : parameter_) dependent_.insert(value);
    for (Node* n : forward) {
      if (std::none_of(n->operands().begin(), n->operands().end(),
                       [&](Value v) { return dependent_.count(v); }))
        continue;
      const std::vector<int>& constant = n->op().nodiff_results;
      for (int i = 0; i < n->num_results(); ++i) {
        if (IsFloat(n->type(i).dtype) && std::find(constant.begin(), constant.end(), i) == constant.end()) {
          dependent_.insert(n->result(i));
        }
      }
    }
  }

  absl::Status TakeLosses() {
    for (int i = step_->num_results() - 1; i >= 0; --i) {
      if (step_->result_binding(i).kind != Binding::kLoss) continue;
      const Value loss = step_->result(i);
      if (loss.type().rank() != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("autodiff: the loss %", loss.name(), " is not a scalar"));
      }
      if (!dependent_.count(loss)) {
        return absl::InvalidArgumentError(
            absl::StrCat("autodiff: the loss %", loss.name(), " depends on no parameter"));
      }
      ++losses_[loss];
      step_->RemoveResult(i);
    }
    if (losses_.empty())
      return absl::FailedPreconditionError("autodiff: no result of @step is bound to a loss");
    return absl::OkStatus();
  }

  absl::StatusOr<Value> Sum(const std::vector<Contribution>& parts, const std::string& name) {
    Value sum = parts[0].value;
    b_.scope = parts[0].scope;
    for (size_t i = 1; i < parts.size(); ++i) {
      b_.scope = parts[i].scope;
      ASSIGN_OR_RETURN(sum, b_.Create("math.add", {sum, parts[i].value}, {}, name));
    }
    return sum;
  }

  // The gradient that has arrived at `v`; null if none has.
  absl::StatusOr<Value> Total(Value v) {
    std::vector<Contribution> parts = contributions_[v];
    if (auto loss = losses_.find(v); loss != losses_.end()) {
      b_.scope = v.node->scope;
      ASSIGN_OR_RETURN(Value one, b_.Create("math.constant", {},
                                            {{"value", static_cast<double>(loss->second)},
                                             {"dtype", std::string(DTypeName(v.type().dtype))}},
                                            absl::StrCat("d.", v.name())));
      parts.push_back({one, v.node->scope});
    }
    if (parts.empty()) return Value();
    b_.provenance = {"autodiff", absl::StrCat("sum of the gradients of %", v.name())};
    ASSIGN_OR_RETURN(Value total, Sum(parts, absl::StrCat("d.", v.name())));
    if (v.node->StringOr("tag", "") == "residual_stream" && v.index == 0 && total.index == 0 &&
        !total.node->Has("tag")) {
      total.node->Set("tag", std::string("residual_stream"));
    }
    return total;
  }

  absl::Status Backward(Node* n) {
    std::vector<Value> dys(n->num_results());
    bool any = false;
    for (int i = 0; i < n->num_results(); ++i) {
      if (!dependent_.count(n->result(i))) continue;
      ASSIGN_OR_RETURN(dys[i], Total(n->result(i)));
      any = any || dys[i];
    }
    if (!any) return absl::OkStatus();
    const OpDef& op = n->op();
    if (op.no_gradient || !op.gradient) {
      return absl::InvalidArgumentError(absl::StrCat(
          "autodiff: a loss depends on %", n->result_name(), " in ", n->scope.empty() ? "@step" : n->scope,
          ", but ", op.name, " has no gradient; its operands depend on a parameter"));
    }
    b_.scope = n->scope;
    b_.provenance = {"autodiff", absl::StrCat("gradient of ", op.name, " %", n->result_name())};
    std::vector<Value> dxs(n->num_operands());
    RETURN_IF_ERROR(
        Annotate(op.gradient(n, dys, b_, &dxs), absl::StrCat("autodiff: gradient of %", n->result_name())));
    for (int i = 0; i < n->num_operands(); ++i) {
      const Value x = n->operand(i), d = dxs[i];
      if (!dependent_.count(x)) continue;
      if (!d) {
        return absl::InvalidArgumentError(absl::StrCat("autodiff: ", op.name,
                                                       " gives no gradient for its operand %", x.name(),
                                                       ", which depends on a parameter"));
      }
      if (std::find(dys.begin(), dys.end(), d) == dys.end()) NameAfter(d, x);
      contributions_[x].push_back({d, n->scope});
    }
    return absl::OkStatus();
  }

  // Names a gradient after its value and says how to place it.
  void NameAfter(Value d, Value x) {
    d.node->SetResultName(d.index, absl::StrCat("d.", x.name()));
    if (d.node->num_results() != 1 || d.node->Has("dual")) return;
    d.node->Set("dual", x.name());
    absl::StatusOr<const ShardingRule*> rule = d.node->Rule();
    if (!rule.ok()) return;
    for (FactorId f = 0; f < (*rule)->num_factors(); ++f) {
      if (!(*rule)->InOperands(f)) {
        d.node->Set("like", x.name());
        return;
      }
    }
  }

  absl::Status AccumulateGradient(const std::string& name) {
    const Value p = parameter_.at(name);
    const std::vector<Contribution>& all = contributions_[p];
    if (all.empty()) {
      unreached_.push_back(name);
      return absl::OkStatus();
    }
    State gradient;
    gradient.name = absl::StrCat("grad.", name);
    gradient.type = p.type();
    gradient.attributes = {{"kind", std::string("gradient")},
                           {"of", name},
                           {"reset", std::string("step")},
                           {"combine", std::string("sum")}};
    const Value state = step_->AddArg(gradient.name, gradient.type, {Binding::kState, gradient.name});
    b_.provenance = {"autodiff", absl::StrCat("gradient of parameter %", name)};
    ASSIGN_OR_RETURN(Value d, Sum(all, absl::StrCat("d.", name)));
    ASSIGN_OR_RETURN(Value sum,
                     b_.Create("optim.accumulate", {state, d}, {}, absl::StrCat("grad.", name, ".sum")));
    step_->AddResult(sum, {Binding::kState, gradient.name});
    module_.AddState(std::move(gradient));
    return absl::OkStatus();
  }

  Module& module_;
  Function* const step_;
  Builder b_;
  std::map<std::string, Value> parameter_;  // those used in @step
  std::map<std::string, std::string> scope_;
  std::map<const Node*, std::vector<std::string>> finished_at_;  // first user -> parameters
  std::vector<std::string> unreached_;
  std::set<Value> dependent_;
  std::map<Value, int> losses_;
  std::map<Value, std::vector<Contribution>> contributions_;
};

void RemoveDeadNodes(Function* f) {
  std::vector<Node*> nodes = f->Nodes();
  for (auto n = nodes.rbegin(); n != nodes.rend(); ++n) {
    if (!(*n)->HasUses() && !(*n)->op().Has(kStateful) && !(*n)->op().Has(kCollective)) f->Erase(*n);
  }
}

absl::Status WriteUpdate(Module& module, const Differentiator& scopes) {
  std::vector<const State*> parameters;
  for (const auto& s : module.states()) {
    if (AttrString(s->attributes, "kind") == "parameter") parameters.push_back(s.get());
  }
  Function* f = module.AddFunction(FunctionKind::kUpdate);
  Builder b(f);
  b.phase = Phase::kUpdate;
  b.scope = "update";
  b.provenance = {"autodiff", "update"};
  struct Operands {
    Value p, gradient, m, v;
  };
  std::vector<Operands> operands;
  for (const State* p : parameters) {
    auto arg = [&](const std::string& name) { return f->AddArg(name, p->type, {Binding::kState, name}); };
    operands.push_back(
        {arg(p->name), arg("grad." + p->name), arg("adam.m." + p->name), arg("adam.v." + p->name)});
  }
  const Type scalar(parameters[0]->type.dtype, {});
  std::vector<Value> scalars;
  for (const char* name : {"learning_rate", "bias1", "bias2"}) {
    scalars.push_back(f->AddArg(name, scalar, {Binding::kScalar, name}));
  }

  Value norm_squared;
  for (size_t i = 0; i < parameters.size(); ++i) {
    b.scope = scopes.ScopeOf(parameters[i]->name);
    ASSIGN_OR_RETURN(Value square, b.Create("math.sum_squares", {operands[i].gradient}, {},
                                            absl::StrCat("norm_squared.", parameters[i]->name)));
    b.scope = "update";
    if (!norm_squared) {
      norm_squared = square;
      continue;
    }
    ASSIGN_OR_RETURN(norm_squared, b.Create("math.add", {norm_squared, square}, {}, "norm_squared"));
  }
  const Attributes& hyper = module.attributes();
  ASSIGN_OR_RETURN(Node * clip, b.CreateNode("optim.clip", {norm_squared},
                                             {{"max_norm", AttrFloat(hyper, "clip_grad", 0)}}, "clip"));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i]->name;
    b.scope = scopes.ScopeOf(name);
    const bool decay = AttrBool(parameters[i]->attributes, "decay", true);
    ASSIGN_OR_RETURN(Node * adamw,
                     b.CreateNode("optim.adamw",
                                  {operands[i].p, operands[i].gradient, operands[i].m, operands[i].v,
                                   clip->result(1), clip->result(2), scalars[0], scalars[1], scalars[2]},
                                  {{"beta1", AttrFloat(hyper, "beta1", 0.9)},
                                   {"beta2", AttrFloat(hyper, "beta2", 0.95)},
                                   {"eps", AttrFloat(hyper, "eps", 1e-8)},
                                   {"weight_decay", decay ? AttrFloat(hyper, "weight_decay", 0) : 0.0}},
                                  absl::StrCat("new.", name)));
    f->AddResult(adamw->result(0), {Binding::kState, name});
    f->AddResult(adamw->result(1), {Binding::kState, "adam.m." + name});
    f->AddResult(adamw->result(2), {Binding::kState, "adam.v." + name});
  }
  f->AddResult(clip->result(0), {Binding::kReport, "grad norm"});
  f->AddResult(clip->result(2), {Binding::kReport, "finite"});

  for (const char* moment : {"adam.m.", "adam.v."}) {
    for (const State* p : parameters) {
      State s;
      s.name = moment + p->name;
      s.type = p->type;
      s.attributes = {{"kind", std::string("moment")}, {"of", p->name}};
      module.AddState(std::move(s));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Differentiate(Module& module) {
  Function* step = module.Find(FunctionKind::kStep);
  if (step == nullptr) return absl::FailedPreconditionError("autodiff: the module has no function @step");
  if (module.Find(FunctionKind::kUpdate) != nullptr) {
    return absl::FailedPreconditionError("autodiff: the module has an @update already; autodiff runs once");
  }
  Differentiator d(module, step);
  RETURN_IF_ERROR(d.Run());
  RemoveDeadNodes(step);
  return WriteUpdate(module, d);
}

absl::StatusOr<bool> Autodiff(Program& program, const PassContext& context) {
  const Function* step = program.module->Find(FunctionKind::kStep);
  const int64_t before = step == nullptr ? 0 : step->num_nodes();
  RETURN_IF_ERROR(Differentiate(*program.module));
  context.Note(
      absl::StrCat(before, " -> ", program.module->Find(FunctionKind::kStep)->num_nodes(), " nodes"));
  return true;
}

}  // namespace moe::passes
