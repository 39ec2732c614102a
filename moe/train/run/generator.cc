#include "moe/train/run/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/state.h"
#include "moe/model/config.h"
#include "moe/model/transformer.h"
#include "moe/runtime/init.h"
#include "moe/train/checkpoint/session_state.h"

namespace moe::train {
namespace {

// Replaces everything from the head on by the logits.
absl::Status CutAtLogits(Module& module) {
  Function* step = module.Find(FunctionKind::kStep);
  const std::vector<Node*> heads = step->NodesOf("nn.head_stats");
  if (heads.size() != 1) return absl::InternalError("the model has no single head");
  Builder b = Builder::Before(heads[0]);
  ASSIGN_OR_RETURN(const Value logits, b.Create("math.einsum", {heads[0]->operand(0), heads[0]->operand(1)},
                                                {{"eq", std::string("b s h, v h -> b s v")}}, "logits"));
  while (step->num_results() > 0) step->RemoveResult(step->num_results() - 1);
  step->AddResult(logits, {Binding::kLoss, "logits"});
  std::vector<Node*> nodes = step->Nodes();
  for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
    if (!(*it)->HasUses()) step->Erase(*it);
  }
  return absl::OkStatus();
}

int32_t Choose(const std::vector<double>& logits, const GenerateOptions& options, int64_t index,
               size_t bytes) {
  std::vector<int32_t> order(std::min(logits.size(), bytes));  // tokens beyond the bytes have no text
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (options.temperature == 0) return order[0];
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(order.size())) order.resize(options.top_k);
  std::vector<double> weight;
  double total = 0;
  for (int32_t token : order) {
    weight.push_back(std::exp((logits[token] - logits[order[0]]) / options.temperature));
    total += weight.back();
  }
  double u =
      static_cast<double>(runtime::CounterBits(options.seed, runtime::StreamOf("generate"), index) >> 11) *
      0x1p-53 * total;
  for (size_t i = 0; i < order.size(); ++i) {
    if ((u -= weight[i]) < 0) return order[i];
  }
  return order[0];
}

}  // namespace

absl::StatusOr<std::unique_ptr<Generator>> Generator::Create(const model::ModelConfig& model) {
  std::unique_ptr<Generator> g(new Generator);
  g->model_ = model::ResolveModelConfig(model);
  if (g->model_.vocab_size() < g->tokenizer_.vocab_size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "vocab_size = ", g->model_.vocab_size(),
        ", but text is read and written as bytes; it must be at least ", g->tokenizer_.vocab_size()));
  }
  ASSIGN_OR_RETURN(g->module_, model::BuildModel(g->model_, {.global_batch = 1, .microbatches = 1}));
  RETURN_IF_ERROR(CutAtLogits(*g->module_));
  runtime::InterpreterOptions options;
  options.backend = kernels::Backend::kCpu;
  options.poison = false;
  options.observer = [p = g.get()](const Value& v, int, const kernels::Tensor& t) {
    if (v.name() != "logits") return;
    p->logits_.resize(t.elements());
    for (int64_t i = 0; i < t.elements(); ++i) {
      p->logits_[i] = t.dtype == DType::kF64 ? t.As<double>()[i] : t.As<float>()[i];
    }
  };
  ASSIGN_OR_RETURN(g->interpreter_, runtime::Interpreter::Create(*g->module_, std::move(options)));
  return g;
}

absl::Status Generator::Load(const std::string& checkpoint) {
  ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(checkpoint));
  return RestoreSession(dir, model_, *module_, *interpreter_, /*moments=*/false).status();
}

absl::Status Generator::LoadFrom(runtime::Session& session) {
  for (const TensorSpec& spec : PersistentTensors(*module_, /*moments=*/false)) {
    ASSIGN_OR_RETURN(const std::vector<double> values, session.ReadState(spec.name));
    RETURN_IF_ERROR(interpreter_->WriteState(spec.name, values));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> Generator::NextLogits(absl::Span<const int32_t> tokens) {
  const size_t seq = model_.seq_length();
  if (tokens.empty() || tokens.size() > seq) {
    return absl::InvalidArgumentError(absl::StrCat(tokens.size(), " tokens; a window has 1 to ", seq));
  }
  runtime::StepInputs in;
  in.tokens.assign(tokens.begin(), tokens.end());
  in.tokens.resize(seq, 0);
  in.labels.assign(seq, 0);
  in.mask.assign(tokens.size(), 1.0f);
  in.mask.resize(seq, 0.0f);
  in.positions.resize(seq);
  std::iota(in.positions.begin(), in.positions.end(), 0);
  in.scalars = {{"inv_tokens", 1.0}, {"inv_microbatches", 1.0}};
  RETURN_IF_ERROR(interpreter_->EvalStep(in).status());
  const int64_t vocab = model_.vocab_size();
  const auto first = logits_.begin() + static_cast<int64_t>(tokens.size() - 1) * vocab;
  return std::vector<double>(first, first + vocab);
}

absl::StatusOr<std::string> Generator::Continue(absl::string_view prompt, const GenerateOptions& options) {
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt is empty; it needs at least one byte");
  if (options.tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat("tokens = ", options.tokens, "; it must be at least 0"));
  }
  if (options.top_k < 0) {
    return absl::InvalidArgumentError(absl::StrCat("top_k = ", options.top_k, "; it must be at least 0"));
  }
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature = ", options.temperature, "; it must be finite and at least 0"));
  }
  std::vector<int32_t> window = tokenizer_.Encode(prompt);
  const size_t seq = model_.seq_length();
  std::string text;
  for (int64_t i = 0; i < options.tokens; ++i) {
    if (window.size() > seq) window.erase(window.begin(), window.end() - static_cast<int64_t>(seq));
    ASSIGN_OR_RETURN(const std::vector<double> logits, NextLogits(window));
    for (int32_t token = 0; token < tokenizer_.vocab_size(); ++token) {
      if (std::isfinite(logits[token])) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("token ", i + 1, ": a logit is ", logits[token],
                       "; the weights are not finite, or too large for what the model computes"));
    }
    window.push_back(Choose(logits, options, i, tokenizer_.vocab_size()));
    const std::string piece = tokenizer_.Decode({&window.back(), 1});
    if (options.sink) options.sink(piece);
    text += piece;
  }
  return text;
}

}  // namespace moe::train
