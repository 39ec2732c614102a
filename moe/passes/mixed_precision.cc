#include "moe/passes/mixed_precision.h"

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

namespace moe {
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
    if (!v.node->Is("arg") || BindingKind(v.node->attributes()) != "state") return false;
    const State* s = module_.FindState(BindingName(v.node->attributes()));
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
    return n.Is("math.add") ? narrow > 0 : narrow > 0 && wide == 0;
  }

  // Everything that reads the value wants it wide: it is on its way to an accumulator.
  bool ReadWide(Value v) const {
    if (v.node->uses(v.index).empty()) return false;
    for (const Use& u : v.node->uses(v.index)) {
      if (u.user->op().precision == Precision::kWide && !u.user->Is("return")) continue;
      if (!u.user->Is("math.add") || !ReadWide(u.user->result())) return false;
    }
    return true;
  }

  absl::Status Convert(Node* n, bool narrow) {
    for (int i = 0; i < n->num_operands(); ++i) {
      const Value v = n->operand(i);
      if (!IsFloat(v.type().dtype)) continue;
      const DType want = narrow && !n->op().IsWide(i) ? narrow_ : DType::kF32;
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
    if (!scale) scale = step->AddArg("loss_scale", one->type(), Bind("scalar", "loss_scale"));
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
  const Value inverse = update->AddArg("inv_loss_scale", clips[0]->type(), Bind("scalar", "inv_loss_scale"));
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

}  // namespace

absl::StatusOr<bool> MixedPrecision(Program& program, const PassContext& context) {
  const std::string word = context.OptionOr("to", context.strategy.precision);
  if (word.empty()) return false;
  if (word != "bf16" && word != "f16") {
    return absl::InvalidArgumentError(
        absl::StrCat(kPass, ": no computing in '", word, "'; legal are bf16 and f16"));
  }
  Module& module = *program.module;
  Function* const step = module.Find("step");
  Function* const update = module.Find("update");
  if (step == nullptr || update == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        kPass, " wants functions @step and @update: it runs after autodiff, before partition-stages"));
  }
  for (const auto& s : module.states()) {
    if (AttrString(s->attributes, "kind") != "parameter" || s->type.dtype == DType::kF32) continue;
    return absl::InvalidArgumentError(absl::StrCat(kPass, ": parameter ", s->name, " is ",
                                                   DTypeName(s->type.dtype), "; masters of ", word,
                                                   " are f32: set dtype to f32"));
  }
  const DType narrow = *ParseDType(word);
  Narrower narrower(module, step, narrow);
  RETURN_IF_ERROR(narrower.Run());
  if (narrow == DType::kF16) {
    RETURN_IF_ERROR(ScaleLosses(step));
    RETURN_IF_ERROR(UnscaleUpdate(update));
  }
  context.Note(absl::StrCat(word, ": ", narrower.nodes(), " of ", step->num_nodes() - narrower.casts(),
                            " nodes, ", narrower.casts(), " casts",
                            narrow == DType::kF16 ? ", scaled losses" : ""));
  return true;
}

}  // namespace moe
