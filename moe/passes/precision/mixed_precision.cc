#include "moe/passes/precision/mixed_precision.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/state.h"
#include "moe/passes/pass.h"
#include "moe/passes/shard/seeds.h"

namespace moe::passes {
namespace {

constexpr char kPass[] = "mixed-precision";
constexpr char kStream[] = "residual_stream";

class Narrower {
 public:
  Narrower(Module& module, Function* step, DType narrow) : module_(module), step_(step), narrow_(narrow) {}

  absl::Status Run() {
    for (Node* n : step_->Nodes()) {
      const bool narrow = Computes(*n);
      nodes_ += narrow;
      RETURN_IF_ERROR(Annotate(Convert(n, narrow), absl::StrCat(kPass, ": %", n->result_name())));
    }
    return absl::OkStatus();
  }

  int nodes() const { return nodes_; }
  int casts() const { return casts_; }

 private:
  bool IsParameter(Value v, absl::string_view role = "") const {
    if (!v.node->Is("arg") || v.node->binding.kind != Binding::kState) return false;
    const State* s = module_.FindState(v.node->binding.name);
    return s != nullptr && AttrString(s->attributes, "kind") == "parameter" &&
           (role.empty() || AttrString(s->attributes, "role") == role);
  }

  // Operands before this one have been converted, so types say what there is.
  bool Computes(const Node& n) const {
    if (n.op().precision != Precision::kFollows) return n.op().precision == Precision::kNarrow;
    int narrow = 0, wide = 0;
    for (const Value& v : n.operands()) {
      if (IsParameter(v, "router")) return false;
      if (IsParameter(v)) continue;
      (v.type().dtype == narrow_ ? narrow : wide) += IsFloat(v.type().dtype);
    }
    // A sum is narrow if any part of it was: its other parts are no better.
    return n.Is("math.add") ? narrow > 0 || SummedNarrow(n) : narrow > 0 && wide == 0;
  }

  // The result is part of what a narrow accumulator takes, and nothing else.
  bool SummedNarrow(const Node& n) const {
    if (n.uses().size() != 1) return false;
    const Node& user = *n.uses()[0].user;
    if (user.Is("optim.accumulate")) return user.operand(0).type().dtype == narrow_;
    return user.Is("math.add") && SummedNarrow(user);
  }

  // Everything that reads the value wants it wide: it is on its way to an f32 accumulator.
  bool ReadWide(Value v) const {
    if (v.node->uses(v.index).empty()) return false;
    for (const Use& u : v.node->uses(v.index)) {
      if (u.user->Is("optim.accumulate") && u.user->operand(0).type().dtype == narrow_) return false;
      if (u.user->op().precision == Precision::kWide && !u.user->Is("return")) continue;
      if (!u.user->Is("math.add") || !ReadWide(u.user->result())) return false;
    }
    return true;
  }

  // The dtype in which `n` reads its operand i.
  DType Reads(const Node& n, int i, bool narrow) const {
    // What an accumulator takes is as wide as it is.
    if (n.Is("optim.accumulate")) return n.operand(0).type().dtype;
    return narrow && !n.op().IsWide(i) ? narrow_ : DType::kF32;
  }

  absl::Status Convert(Node* n, bool narrow) {
    for (int i = 0; i < n->num_operands(); ++i) {
      const Value v = n->operand(i);
      if (!IsFloat(v.type().dtype)) continue;
      const DType want = Reads(*n, i, narrow);
      if (v.type().dtype == want) continue;
      ASSIGN_OR_RETURN(const Value cast, Cast(v, want, n));
      n->SetOperand(i, cast);
    }
    if (narrow && n->Is("math.einsum") && n->phase == Phase::kBackward && ReadWide(n->result())) {
      n->Set("dtype", std::string(DTypeName(DType::kF32)));
    }
    ASSIGN_OR_RETURN(const std::vector<Type> types, InferTypes(*n));
    for (int i = 0; i < n->num_results(); ++i) {
      Type t = n->type(i);
      t.dtype = types[i].dtype;
      n->SetType(i, t);
    }
    return absl::OkStatus();
  }

  // One cast per value, phase and part of the model. A narrow activation that the forward made serves the
  // backward too.
  absl::StatusOr<Value> Cast(Value v, DType to, Node* user) {
    const bool shared = to == narrow_ && !IsParameter(v);
    for (const Phase phase : {user->phase, Phase::kForward}) {
      const auto it = cast_.find({v, to, phase, user->scope});
      if (it != cast_.end() && (phase == user->phase || shared)) return it->second;
    }
    Builder b = Builder::Before(user);
    b.provenance = {kPass, absl::StrCat("for ", user->op_name(), " %", user->result_name())};
    const std::string dtype(DTypeName(to));
    ASSIGN_OR_RETURN(Node * cast,
                     b.CreateNode("math.cast", {v}, {{"dtype", dtype}}, absl::StrCat(v.name(), ".", dtype)));
    if (v.node->StringOr("tag", "") == kStream && v.index == 0) cast->Set("tag", std::string(kStream));
    // A part of a gradient is rounded where it is made: chunks that share a parameter each add up their own.
    if (to == narrow_ && user->phase == Phase::kBackward && user->Is("math.add") && !v.node->Is("arg"))
      cast->scope = v.node->scope;
    // The gradient of a value is placed like it, in whatever dtype.
    if (v.node->Has("dual")) cast->Set("dual", v.node->String("dual"));
    ++casts_;
    return cast_[{v, to, user->phase, user->scope}] = cast->result();
  }

  Module& module_;
  Function* const step_;
  const DType narrow_;
  std::map<std::tuple<Value, DType, Phase, std::string>, Value> cast_;
  int nodes_ = 0, casts_ = 0;
};

// The backward begins with the loss scale instead of 1.
absl::Status ScaleLosses(Function* step) {
  Value scale;
  for (Node* one : step->NodesOf("math.constant")) {
    if (one->phase != Phase::kBackward) continue;
    if (!scale) scale = step->AddArg("loss_scale", one->type(), {Binding::kScalar, "loss_scale"});
    Value start = scale;
    if (one->Float("value") != 1) {
      Builder b = Builder::Before(one);
      b.provenance = {kPass, "a loss that counts several times"};
      ASSIGN_OR_RETURN(start, b.Create("math.scale", {scale}, {{"by", one->Float("value")}}));
    }
    step->ReplaceAllUses(one->result(), start);
    step->Erase(one);
  }
  if (!scale)
    return absl::FailedPreconditionError(absl::StrCat(kPass, ": no backward; it runs after autodiff"));
  return absl::OkStatus();
}

// Norm and gradients of the update without the loss scale.
absl::Status UnscaleUpdate(Function* update) {
  const std::vector<Node*> clips = update->NodesOf("optim.clip");
  if (clips.size() != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(kPass, ": @update has ", clips.size(), " optim.clip, not one"));
  }
  const Value inverse =
      update->AddArg("inv_loss_scale", clips[0]->type(), {Binding::kScalar, "inv_loss_scale"});
  Value squared;
  for (Node* term : update->NodesOf("math.sum_squares")) {
    Builder b = Builder::After(term);
    b.provenance = {kPass, "without the loss scale"};
    if (!squared) {
      ASSIGN_OR_RETURN(squared, b.Create("math.mul", {inverse, inverse}, {}, "inv_loss_scale_squared"));
      b = Builder::After(squared.node);
      b.provenance = {kPass, "without the loss scale"};
    }
    ASSIGN_OR_RETURN(Node * unscaled, b.CreateNode("math.mul", {term->result(), squared}));
    const std::vector<Use> uses = term->uses();
    for (const Use& u : uses) {
      if (u.user != unscaled) u.user->SetOperand(u.operand, unscaled->result());
    }
  }
  Builder b = Builder::After(clips[0]);
  b.provenance = {kPass, "clips, and takes the loss scale away"};
  const std::vector<Use> uses = clips[0]->uses(1);
  ASSIGN_OR_RETURN(const Value factor,
                   b.Create("math.mul", {clips[0]->result(1), inverse}, {}, "clip.unscaled"));
  for (const Use& u : uses) u.user->SetOperand(u.operand, factor);
  return absl::OkStatus();
}

// Gradients are accumulated, and so exchanged, in `narrow`.
void NarrowGradients(Module& module, DType narrow) {
  for (const auto& s : module.states()) {
    if (AttrString(s->attributes, "kind") != "gradient") continue;
    s->type.dtype = narrow;
    for (const auto& f : module.functions()) {
      if (Node* arg = FindArg(*f, Binding::kState, s->name)) arg->SetType(0, s->type);
    }
  }
}

// Working copies. Where optimizer state is sharded and the parameter is not (ZeRO-1 and -2), the parameter
// becomes a part of the optimizer state, stored like the moments, and what the step reads is a narrow copy
// that every rank has and the update writes. A parameter that anything reads wide is left alone.
class WorkingCopies {
 public:
  WorkingCopies(Module& module, const strategy::Strategy& strategy, DType narrow)
      : module_(module),
        step_(module.Find(FunctionKind::kStep)),
        update_(module.Find(FunctionKind::kUpdate)),
        seeds_(module.mesh(), strategy, AxisOrders()),
        narrow_(narrow) {}

  absl::StatusOr<int> Make() {
    std::vector<const State*> parameters;
    for (const auto& s : module_.states()) {
      if (AttrString(s->attributes, "kind") == "parameter" && Wanted(*s)) parameters.push_back(s.get());
    }
    for (const State* s : parameters) RETURN_IF_ERROR(MakeFor(*s));
    return static_cast<int>(parameters.size());
  }

 private:
  bool Wanted(const State& parameter) const {
    if (IsPlaced(parameter.type)) return false;
    const Placement computes = seeds_.Compute(parameter);
    if (seeds_.Storage(parameter) != computes || seeds_.Optimizer(parameter) == computes) return false;
    const Node* arg = FindArg(*step_, Binding::kState, parameter.name);
    return arg != nullptr && NewValue(parameter).node != nullptr &&
           std::all_of(arg->uses().begin(), arg->uses().end(), [&](const Use& u) {
             return u.user->Is("math.cast") && u.user->type().dtype == narrow_;
           });
  }

  // What @update makes of the parameter, or nothing.
  Value NewValue(const State& parameter) const {
    for (int r = 0; r < update_->num_results(); ++r) {
      const Binding& binding = update_->result_binding(r);
      if (binding.kind == Binding::kState && binding.name == parameter.name) return update_->result(r);
    }
    return {};
  }

  absl::Status MakeFor(const State& parameter) {
    State copy;
    copy.name = absl::StrCat("copy.", parameter.name);
    copy.type = parameter.type;
    copy.type.dtype = narrow_;
    copy.attributes = {{"kind", std::string("working_copy")}, {"of", parameter.name}};
    for (const char* stored : {"expert_map", "logical_rows"}) {
      if (const auto it = parameter.attributes.find(stored); it != parameter.attributes.end())
        copy.attributes.insert(*it);
    }

    Node* const master = FindArg(*step_, Binding::kState, parameter.name);
    const Value reads = step_->AddArg(copy.name, copy.type, {Binding::kState, copy.name});
    const std::vector<Use> uses = master->uses();
    for (const Use& u : uses) {
      step_->ReplaceAllUses(u.user->result(), reads);
      step_->Erase(u.user);
    }
    for (Node* n : step_->Nodes()) {  // what is placed like the parameter
      for (const char* hint : {"dual", "like"}) {
        if (n->StringOr(hint, "") == master->result_name()) n->Set(hint, copy.name);
      }
    }
    step_->EraseArg(master);

    const Value updated = NewValue(parameter);
    Builder b = Builder::After(updated.node);
    b.provenance = {kPass, absl::StrCat("working copy of @", parameter.name)};
    ASSIGN_OR_RETURN(const Value written,
                     b.Create("math.cast", {updated}, {{"dtype", std::string(DTypeName(narrow_))}},
                              absl::StrCat("new.", copy.name)));
    update_->AddResult(written, {Binding::kState, copy.name});
    module_.AddState(std::move(copy));
    return absl::OkStatus();
  }

  Module& module_;
  Function* const step_;
  Function* const update_;
  const Seeds seeds_;
  const DType narrow_;
};

// What is computed in, and what gradients are summed in, where it is said.
std::string Word(const PassContext& context) {
  const strategy::Precision precision = context.strategy.precision;
  return context.OptionOr("to", precision == strategy::Precision::kAsModel ? "" : strategy::Name(precision));
}
std::string GradientsWord(const PassContext& context) {
  const strategy::GradientType grads = context.strategy.grads;
  return context.OptionOr("grads", grads == strategy::GradientType::kF32 ? "" : strategy::Name(grads));
}

}  // namespace

bool AsksForMixedPrecision(const PassContext& context) {
  return !Word(context).empty() || !GradientsWord(context).empty();
}

absl::StatusOr<bool> MixedPrecision(Program& program, const PassContext& context) {
  const std::string word = Word(context), gradients = GradientsWord(context);
  if (!AsksForMixedPrecision(context)) return false;
  if (!gradients.empty() && gradients != word) {
    return absl::InvalidArgumentError(absl::StrCat(kPass, ": gradients summed in ", gradients, " where ",
                                                   word.empty() ? "f32" : word,
                                                   " is computed in; legal are f32 and what is computed in"));
  }
  if (word != "bf16" && word != "f16") {
    return absl::InvalidArgumentError(
        absl::StrCat(kPass, ": no computing in '", word, "'; legal are bf16 and f16"));
  }
  Module& module = *program.module;
  Function* const step = module.Find(FunctionKind::kStep);
  Function* const update = module.Find(FunctionKind::kUpdate);
  for (const auto& s : module.states()) {
    if (AttrString(s->attributes, "kind") != "parameter" || s->type.dtype == DType::kF32) continue;
    return absl::InvalidArgumentError(absl::StrCat(kPass, ": parameter ", s->name, " is ",
                                                   DTypeName(s->type.dtype), "; masters of ", word,
                                                   " are f32: set dtype to f32"));
  }
  const DType narrow = *ParseDType(word);
  if (!gradients.empty()) NarrowGradients(module, narrow);
  Narrower narrower(module, step, narrow);
  RETURN_IF_ERROR(narrower.Run());
  if (narrow == DType::kF16) {
    RETURN_IF_ERROR(ScaleLosses(step));
    RETURN_IF_ERROR(UnscaleUpdate(update));
  }
  ASSIGN_OR_RETURN(const int copies, WorkingCopies(module, context.strategy, narrow).Make());
  context.Note(absl::StrCat(word, ": ", narrower.nodes(), " of ", step->num_nodes() - narrower.casts(),
                            " nodes, ", narrower.casts(), " casts",
                            copies > 0 ? absl::StrCat(", ", copies, " working copies") : "",
                            gradients.empty() ? "" : absl::StrCat(", gradients in ", word),
                            narrow == DType::kF16 ? ", scaled losses" : ""));
  return true;
}

}  // namespace moe::passes
