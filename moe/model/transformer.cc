#include "moe/model/transformer.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/state.h"

namespace moe::model {

std::vector<ParameterSpec> ModelParameters(const ModelConfig& c) {
  std::vector<ParameterSpec> out;
  const int64_t h = c.hidden_size(), heads = c.num_attention_heads(), kv = c.num_key_value_heads(),
                d = c.head_dim();
  // Output projections are narrower, so that the residual stream keeps its variance over the layers (Radford
  // et al. 2019, section 2.3).
  const double std = c.init_std(), out_std = std / std::sqrt(2.0 * c.num_layers());
  auto normal = [&](std::string name, std::vector<int64_t> dims, std::string role, double s,
                    bool expert = false) {
    out.push_back({std::move(name), std::move(dims), std::move(role), "normal", s, expert, true});
  };
  auto norm = [&](std::string name) {
    out.push_back({std::move(name), {h}, "norm", "ones", 0, false, false});
  };
  auto ffn = [&](const std::string& prefix, int64_t f) {
    normal(prefix + ".w_gate", {h, f}, "up", std);
    normal(prefix + ".w_up", {h, f}, "up", std);
    normal(prefix + ".w_down", {f, h}, "down", out_std);
  };
  normal("embedding", {c.vocab_size(), h}, "emb", std);
  for (int64_t l = 0; l < c.num_layers(); ++l) {
    const std::string layer = absl::StrCat("layers.", l);
    norm(layer + ".attn_norm");
    normal(layer + ".attn.wq", {h, heads, d}, "q", std);
    normal(layer + ".attn.wk", {h, kv, d}, "kv", std);
    normal(layer + ".attn.wv", {h, kv, d}, "kv", std);
    normal(layer + ".attn.wo", {heads, d, h}, "o", out_std);
    norm(layer + ".mlp_norm");
    if (!IsMoeLayer(c, l)) {
      ffn(layer + ".mlp", c.ffn_hidden_size());
      continue;
    }
    const int64_t e = c.num_experts(), f = c.moe_ffn_hidden_size();
    normal(layer + ".moe.router", {h, e}, "router", std);
    normal(layer + ".moe.w_gate", {e, h, f}, "eup", std, true);
    normal(layer + ".moe.w_up", {e, h, f}, "eup", std, true);
    normal(layer + ".moe.w_down", {e, f, h}, "edown", out_std, true);
    if (c.shared_expert_ffn_hidden_size() > 0) ffn(layer + ".moe.shared", c.shared_expert_ffn_hidden_size());
  }
  norm("final_norm");
  if (!c.tie_embeddings()) normal("head", {c.vocab_size(), h}, "head", std);
  return out;
}

double ModelFlopsPerToken(const ModelConfig& config) {
  const ModelConfig c = ResolveModelConfig(config);
  double weights =
      c.tie_embeddings() ? static_cast<double>(c.vocab_size()) * c.hidden_size() : 0;  // the head's
  for (const ParameterSpec& p : ModelParameters(c)) {
    if (p.role == "norm" || p.role == "emb") continue;
    double elements = 1;
    for (const int64_t d : p.dims) elements *= static_cast<double>(d);
    weights += p.expert ? elements * c.moe_router_topk() / c.num_experts() : elements;
  }
  const double attention =
      static_cast<double>(c.num_layers()) * c.num_attention_heads() * c.head_dim() * c.seq_length();
  return 6 * (weights + attention);
}

namespace {

// Writes @step node by node. Value names are "<scope>.<what>", so that they stay readable through all passes.
class StepWriter {
 public:
  StepWriter(const ModelConfig& config, const BuildOptions& options, Module* module)
      : c_(config),
        batch_(options.global_batch / options.microbatches),
        float_(config.dtype() == "f64" ? DType::kF64 : DType::kF32),
        module_(module),
        step_(module->AddFunction(FunctionKind::kStep)),
        b_(step_) {}

  absl::Status Write() {
    for (const ParameterSpec& p : ModelParameters(c_)) AddParameter(p);
    const std::vector<int64_t> tokens = {batch_, c_.seq_length()};
    tokens_ = step_->AddArg("tokens", Type(DType::kS32, tokens), {Binding::kBatch, "tokens"});
    labels_ = step_->AddArg("labels", Type(DType::kS32, tokens), {Binding::kBatch, "labels"});
    mask_ = step_->AddArg("mask", Type(float_, tokens), {Binding::kBatch, "mask"});
    positions_ =
        step_->AddArg("positions", Type(DType::kS32, {c_.seq_length()}), {Binding::kBatch, "positions"});
    inv_tokens_ = step_->AddArg("inv_tokens", Type(float_, {}), {Binding::kScalar, "inv_tokens"});

    b_.scope = "embedding";
    ASSIGN_OR_RETURN(x_, Op("nn.embed", {tokens_, Parameter("embedding")}, {}, "x"));
    x_.node->Set("tag", std::string("residual_stream"));
    for (int64_t l = 0; l < c_.num_layers(); ++l) {
      layer_ = absl::StrCat("layers.", l);
      RETURN_IF_ERROR(Attention());
      RETURN_IF_ERROR(IsMoeLayer(c_, l) ? Moe() : Dense());
    }
    RETURN_IF_ERROR(Head());
    for (auto& [value, binding] : results_) step_->AddResult(value, binding);
    return Report();
  }

 private:
  void AddParameter(const ParameterSpec& p) {
    State s;
    s.name = p.name;
    s.type = Type(float_, p.dims);
    s.attributes["kind"] = std::string("parameter");
    s.attributes["role"] = p.role;
    s.attributes["class"] = std::string(p.expert ? "expert" : "dense");
    s.attributes["init"] = p.init;
    if (p.init == "normal") s.attributes["std"] = p.std;
    s.attributes["decay"] = p.decay;
    parameters_[p.name] = step_->AddArg(p.name, s.type, {Binding::kState, p.name});
    module_->AddState(std::move(s));
  }

  Value Parameter(const std::string& name) const { return parameters_.at(name); }
  Value LayerParameter(absl::string_view name) const {
    return parameters_.at(absl::StrCat(layer_, ".", name));
  }

  absl::StatusOr<Value> Op(absl::string_view op, std::vector<Value> operands, Attributes attributes,
                           absl::string_view what) {
    return b_.Create(op, std::move(operands), std::move(attributes), absl::StrCat(b_.scope, ".", what));
  }
  absl::StatusOr<Value> Einsum(std::string eq, std::vector<Value> operands, absl::string_view what) {
    return Op("math.einsum", std::move(operands), {{"eq", std::move(eq)}}, what);
  }
  absl::StatusOr<Value> ToFloat(Value x, absl::string_view what) {
    return Op("math.cast", {x}, {{"dtype", std::string(DTypeName(float_))}}, what);
  }
  absl::StatusOr<Value> Norm(const std::string& weight) {
    return Op("nn.rms_norm", {x_, Parameter(weight)}, {{"eps", c_.norm_eps()}}, "norm");
  }
  absl::Status AddToResidualStream(Value y) {
    ASSIGN_OR_RETURN(x_, Op("math.add", {x_, y}, {}, "x"));
    x_.node->Set("tag", std::string("residual_stream"));
    return absl::OkStatus();
  }

  // Adds `value` to a per-step accumulator; gives the sum over the microbatches so far. With a `report`,
  // @report hands it to the host under that name.
  absl::StatusOr<Value> Accumulate(const std::string& state, Value value, const std::string& report) {
    State s;
    s.name = state;
    s.type = value.type();
    s.attributes = {{"kind", std::string("accumulator")},
                    {"reset", std::string("step")},
                    {"combine", std::string("sum")}};
    if (!report.empty()) s.attributes["report"] = report;
    const Value arg = step_->AddArg(state, s.type, {Binding::kState, state});
    ASSIGN_OR_RETURN(Value sum, b_.Create("optim.accumulate", {arg, value}, {}, state + ".sum"));
    module_->AddState(std::move(s));
    results_.emplace_back(sum, Binding(Binding::kState, state));
    return sum;
  }
  // A loss: its unscaled value is reported, the scaled one is a result.
  absl::Status AddLoss(Value raw, double coefficient, const std::string& state, const std::string& report) {
    RETURN_IF_ERROR(Accumulate(state, raw, report).status());
    Value scaled = raw;
    if (coefficient != 1) {
      ASSIGN_OR_RETURN(scaled, b_.Create("math.scale", {raw}, {{"by", coefficient}}, raw.name() + "_scaled"));
    }
    results_.emplace_back(scaled, Binding(Binding::kLoss, state.substr(state.find('.') + 1)));
    return absl::OkStatus();
  }

  absl::Status Attention() {
    b_.scope = layer_ + ".attn";
    ASSIGN_OR_RETURN(Value h, Norm(layer_ + ".attn_norm"));
    const char* project = "b s h, h n d -> b s n d";
    const Attributes rope = {{"theta", c_.rope_theta()}};
    ASSIGN_OR_RETURN(Value q, Einsum(project, {h, LayerParameter("attn.wq")}, "q"));
    ASSIGN_OR_RETURN(Value k, Einsum(project, {h, LayerParameter("attn.wk")}, "k"));
    ASSIGN_OR_RETURN(Value v, Einsum(project, {h, LayerParameter("attn.wv")}, "v"));
    ASSIGN_OR_RETURN(q, Op("nn.rope", {q, positions_}, rope, "q_rope"));
    ASSIGN_OR_RETURN(k, Op("nn.rope", {k, positions_}, rope, "k_rope"));
    ASSIGN_OR_RETURN(Node * attention, b_.CreateNode("nn.attention", {q, k, v, positions_, positions_}, {},
                                                     b_.scope + ".attention"));
    ASSIGN_OR_RETURN(
        Value y, Einsum("b s n d, n d h -> b s h", {attention->result(0), LayerParameter("attn.wo")}, "y"));
    return AddToResidualStream(y);
  }

  // down(swiglu(gate(h), up(h))) with the three weights under `prefix`.
  absl::StatusOr<Value> Ffn(Value h, const std::string& prefix, const std::string& what) {
    ASSIGN_OR_RETURN(Value gate,
                     Einsum("b s h, h f -> b s f", {h, LayerParameter(prefix + ".w_gate")}, what + "gate"));
    ASSIGN_OR_RETURN(Value up,
                     Einsum("b s h, h f -> b s f", {h, LayerParameter(prefix + ".w_up")}, what + "up"));
    ASSIGN_OR_RETURN(Value a, Op("nn.swiglu", {gate, up}, {}, what + "a"));
    return Einsum("b s f, f h -> b s h", {a, LayerParameter(prefix + ".w_down")}, what + "y");
  }

  absl::Status Dense() {
    b_.scope = layer_ + ".mlp";
    ASSIGN_OR_RETURN(Value h, Norm(layer_ + ".mlp_norm"));
    ASSIGN_OR_RETURN(Value y, Ffn(h, "mlp", ""));
    return AddToResidualStream(y);
  }

  absl::Status Moe() {
    b_.scope = layer_ + ".moe";
    const int64_t experts = c_.num_experts(), slots = SlotsPerExpert(c_);
    const bool dropless = IsDropless(c_);
    const std::vector<std::string> groups = {absl::StrCat("c=", c_.routing_groups_per_sequence()),
                                             absl::StrCat("t=", TokensPerGroup(c_))};
    ASSIGN_OR_RETURN(Value h, Norm(layer_ + ".mlp_norm"));
    ASSIGN_OR_RETURN(Value tokens,
                     Op("math.reshape", {h},
                        {{"eq", std::string("b (c t) h -> b c t h")}, {"extents", groups}}, "tokens"));
    ASSIGN_OR_RETURN(Value mask, Op("math.reshape", {mask_},
                                    {{"eq", std::string("b (c t) -> b c t")}, {"extents", groups}}, "mask"));
    ASSIGN_OR_RETURN(Value logits,
                     Einsum("b c t h, h e -> b c t e", {tokens, LayerParameter("moe.router")}, "logits"));
    ASSIGN_OR_RETURN(Value probability, Op("nn.softmax", {logits}, {}, "probability"));
    ASSIGN_OR_RETURN(Node * top, b_.CreateNode("moe.top_k", {probability, mask},
                                               {{"k", c_.moe_router_topk()}}, b_.scope + ".route"));
    Value weight = top->result(0);
    const Value expert = top->result(1);
    if (c_.norm_topk_prob()) {
      ASSIGN_OR_RETURN(weight, Op("moe.normalize", {weight}, {}, "weight"));
    }
    ASSIGN_OR_RETURN(Value slot,
                     Op("moe.slots", {expert},
                        {{"experts", experts}, {"capacity", slots}, {"dropless", dropless}}, "slot"));
    ASSIGN_OR_RETURN(Value d, Op("moe.dispatch", {tokens, expert, slot},
                                 {{"experts", experts}, {"slots", slots}, {"dropless", dropless}}, "d"));
    const char* project = "e b c p h, e h f -> e b c p f";
    ASSIGN_OR_RETURN(Value gate, Einsum(project, {d, LayerParameter("moe.w_gate")}, "gate"));
    ASSIGN_OR_RETURN(Value up, Einsum(project, {d, LayerParameter("moe.w_up")}, "up"));
    ASSIGN_OR_RETURN(Value a, Op("nn.swiglu", {gate, up}, {}, "a"));
    ASSIGN_OR_RETURN(Value o,
                     Einsum("e b c p f, e f h -> e b c p h", {a, LayerParameter("moe.w_down")}, "o"));
    ASSIGN_OR_RETURN(Value combined,
                     Op("moe.combine", {o, weight, expert, slot}, {{"dropless", dropless}}, "combined"));
    ASSIGN_OR_RETURN(Value y, Op("math.reshape", {combined},
                                 {{"eq", std::string("b c t h -> b (c t) h")}, {"extents", groups}}, "y"));
    if (c_.shared_expert_ffn_hidden_size() > 0) {
      ASSIGN_OR_RETURN(Value shared, Ffn(h, "moe.shared", "shared_"));
      ASSIGN_OR_RETURN(y, Op("math.add", {y, shared}, {}, "y_all"));
    }
    RETURN_IF_ERROR(AddToResidualStream(y));
    return RouterLosses(logits, probability, mask, expert, slot);
  }

  absl::Status RouterLosses(Value logits, Value probability, Value mask, Value expert, Value slot) {
    ASSIGN_OR_RETURN(Value count, Op("moe.count", {expert}, {{"experts", c_.num_experts()}}, "count"));
    ASSIGN_OR_RETURN(Value load, ToFloat(count, "load"));
    ASSIGN_OR_RETURN(Value total_load, Accumulate("report.load." + layer_, load, "load " + layer_));
    ASSIGN_OR_RETURN(Value routed, Einsum("e ->", {load}, "routed"));
    RETURN_IF_ERROR(Accumulate("report.routed." + layer_, routed, "routed").status());
    ASSIGN_OR_RETURN(Value kept, Op("moe.count_kept", {slot}, {}, "count_kept"));
    ASSIGN_OR_RETURN(kept, ToFloat(kept, "kept"));
    RETURN_IF_ERROR(Accumulate("report.kept." + layer_, kept, "kept").status());

    if (c_.aux_loss_coeff() > 0) {
      absl::StatusOr<Value> aux;
      if (c_.aux_loss_scope() == "sequence") {
        aux = AuxPerSequence(probability, mask, expert);
      } else if (c_.aux_loss_scope() == "microbatch") {
        aux = AuxPerMicrobatch(probability, mask, load);
      } else {
        aux = AuxPerGlobalBatch(probability, mask, total_load);
      }
      RETURN_IF_ERROR(aux.status());
      RETURN_IF_ERROR(AddLoss(*aux, c_.aux_loss_coeff(), "report.aux_loss." + layer_, "aux loss"));
    }
    if (c_.z_loss_coeff() > 0) {
      ASSIGN_OR_RETURN(Value lse, Op("nn.log_sum_exp", {logits}, {}, "lse"));
      ASSIGN_OR_RETURN(Value square, Op("math.mul", {lse, lse}, {}, "lse_squared"));
      ASSIGN_OR_RETURN(Value z, Einsum("b c t, b c t, ->", {square, mask, inv_tokens_}, "z"));
      RETURN_IF_ERROR(AddLoss(z, c_.z_loss_coeff(), "report.z_loss." + layer_, "z loss"));
    }
    return absl::OkStatus();
  }

  // 1 / max(1, n): nothing is routed where n is 0, so the guard only avoids 0 / 0.
  absl::StatusOr<Value> GuardedInverse(Value n, const std::string& what) {
    ASSIGN_OR_RETURN(Value positive, Op("math.at_least", {n}, {{"value", 1.0}}, what + "_positive"));
    return Op("math.reciprocal", {positive}, {}, "inv_" + what);
  }
  double ExpertsPerChoice() const { return static_cast<double>(c_.num_experts()) / c_.moe_router_topk(); }

  absl::StatusOr<Value> AuxPerSequence(Value probability, Value mask, Value expert) {
    ASSIGN_OR_RETURN(
        Value count,
        Op("moe.count", {expert}, {{"experts", c_.num_experts()}, {"per_sequence", true}}, "sequence_count"));
    ASSIGN_OR_RETURN(Value load, ToFloat(count, "sequence_load"));
    ASSIGN_OR_RETURN(Value n, Einsum("b c t -> b", {mask}, "sequence_tokens"));
    ASSIGN_OR_RETURN(Value inverse, GuardedInverse(n, "sequence_tokens"));
    ASSIGN_OR_RETURN(Value f, Einsum("b e, b -> b e", {load, inverse}, "share"));
    ASSIGN_OR_RETURN(f, Op("math.scale", {f}, {{"by", ExpertsPerChoice()}}, "f"));
    ASSIGN_OR_RETURN(Value p,
                     Einsum("b c t e, b c t, -> b e", {probability, mask, inv_tokens_}, "mean_probability"));
    return Einsum("b e, b e ->", {f, p}, "aux");
  }

  absl::StatusOr<Value> AuxPerMicrobatch(Value probability, Value mask, Value load) {
    const Value inv_microbatches = InvMicrobatches();
    ASSIGN_OR_RETURN(Value n, Einsum("b c t ->", {mask}, "tokens_routed"));
    ASSIGN_OR_RETURN(Value inverse, GuardedInverse(n, "tokens_routed"));
    ASSIGN_OR_RETURN(Value f, Einsum("e, -> e", {load, inverse}, "share"));
    ASSIGN_OR_RETURN(f, Op("math.scale", {f}, {{"by", ExpertsPerChoice()}}, "f"));
    ASSIGN_OR_RETURN(Value p,
                     Einsum("b c t e, b c t, -> e", {probability, mask, inverse}, "mean_probability"));
    return Einsum("e, e, ->", {f, p, inv_microbatches}, "aux");
  }

  // f is a value of its own: the sums so far live in storage that the next microbatch overwrites, and the
  // backward of this one may come later.
  absl::StatusOr<Value> AuxPerGlobalBatch(Value probability, Value mask, Value total_load) {
    ASSIGN_OR_RETURN(Value n, Einsum("b c t ->", {mask}, "tokens_routed"));
    ASSIGN_OR_RETURN(Value total, Accumulate("aux.tokens." + layer_, n, ""));
    ASSIGN_OR_RETURN(Value inverse, GuardedInverse(total, "tokens_so_far"));
    ASSIGN_OR_RETURN(Value f, Einsum("e, -> e", {total_load, inverse}, "share"));
    ASSIGN_OR_RETURN(f, Op("math.scale", {f}, {{"by", ExpertsPerChoice()}}, "f"));
    ASSIGN_OR_RETURN(Value p,
                     Einsum("b c t e, b c t, -> e", {probability, mask, inv_tokens_}, "mean_probability"));
    return Einsum("e, e ->", {f, p}, "aux");
  }

  Value InvMicrobatches() {
    if (!inv_microbatches_) {
      inv_microbatches_ =
          step_->AddArg("inv_microbatches", Type(float_, {}), {Binding::kScalar, "inv_microbatches"});
    }
    return inv_microbatches_;
  }

  absl::Status Head() {
    b_.scope = "head";
    ASSIGN_OR_RETURN(Value h, Norm("final_norm"));
    const Value weight = Parameter(c_.tie_embeddings() ? "embedding" : "head");
    ASSIGN_OR_RETURN(Node * stats, b_.CreateNode("nn.head_stats", {h, weight, labels_},
                                                 {{"blocks", c_.vocab_blocks()}, {"vocab", c_.vocab_size()}},
                                                 "head.block"));
    ASSIGN_OR_RETURN(Value max,
                     Op("math.reduce_max", {stats->result(0)}, {{"eq", std::string("b s u -> b s")}}, "max"));
    ASSIGN_OR_RETURN(Value sum, Op("nn.merge_sum_exp", {stats->result(0), stats->result(1), max}, {}, "sum"));
    ASSIGN_OR_RETURN(Value log, Op("math.log", {sum}, {}, "log"));
    ASSIGN_OR_RETURN(Value lse, Op("math.add", {log, max}, {}, "lse"));
    ASSIGN_OR_RETURN(Value minus, Op("math.scale", {stats->result(2)}, {{"by", -1.0}}, "minus_label_logit"));
    ASSIGN_OR_RETURN(Value nll, Op("math.add", {lse, minus}, {}, "nll"));
    ASSIGN_OR_RETURN(Value loss, Einsum("b s, b s, ->", {nll, mask_, inv_tokens_}, "loss"));
    return AddLoss(loss, 1, "report.lm_loss", "lm loss");
  }

  absl::Status Report() {
    Function* report = module_->AddFunction(FunctionKind::kReport);
    for (const auto& s : module_->states()) {
      const std::string name = AttrString(s->attributes, "report");
      if (name.empty()) continue;
      report->AddResult(report->AddArg(s->name, s->type, {Binding::kState, s->name}),
                        {Binding::kReport, name});
    }
    return absl::OkStatus();
  }

  const ModelConfig& c_;
  const int64_t batch_;
  const DType float_;
  Module* const module_;
  Function* const step_;
  Builder b_;
  std::string layer_;
  std::map<std::string, Value> parameters_;
  std::vector<std::pair<Value, Binding>> results_;
  Value tokens_, labels_, mask_, positions_, inv_tokens_, inv_microbatches_;
  Value x_;  // the residual stream
};

}  // namespace

absl::StatusOr<std::unique_ptr<Module>> BuildModel(const ModelConfig& config, const BuildOptions& options) {
  const ModelConfig c = ResolveModelConfig(config);
  std::vector<std::string> problems = ModelProblems(c);
  if (options.microbatches < 1) {
    problems.push_back(absl::StrCat("microbatches = ", options.microbatches, "; it must be at least 1"));
  } else if (options.global_batch < 1 || options.global_batch % options.microbatches != 0) {
    problems.push_back(absl::StrCat("global_batch = ", options.global_batch,
                                    " must be a positive multiple of microbatches = ", options.microbatches));
  }
  if (!problems.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("this model cannot be built; ", problems.size(),
                                                   " problems\n  ", absl::StrJoin(problems, "\n  ")));
  }
  std::string name = c.name();
  for (char& ch : name) {
    if (!isalnum(static_cast<unsigned char>(ch))) ch = '_';
  }
  auto module = std::make_unique<Module>(name);
  module->attributes() = {{"model", c.name()},
                          {"seed", options.seed},
                          {"beta1", options.beta1},
                          {"beta2", options.beta2},
                          {"eps", options.eps},
                          {"weight_decay", options.weight_decay},
                          {"clip_grad", options.clip_grad},
                          {"global_batch", options.global_batch},
                          {"microbatches", options.microbatches},
                          {"seq_length", c.seq_length()},
                          {"kv_heads", c.num_key_value_heads()}};
  RETURN_IF_ERROR(StepWriter(c, options, module.get()).Write());
  return module;
}

}  // namespace moe::model
