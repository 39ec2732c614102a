// The model front end: a configuration becomes the logical module that all passes start from.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Module> m, BuildModel(config, {.global_batch = 32, .microbatches = 4}));
//
// @step is the forward of one microbatch of global_batch / microbatches samples; its results are the losses,
// each already scaled so that the objective is the sum of all of them over the microbatches of a step, and
// the accumulators of the reports. @report hands those to the host. Names and bindings: see BuildModel in the
// .cc and state.h.
//
// Reports, all sums over a step: "lm loss" (mean over valid tokens of the global batch), "aux loss" and "z
// loss" (without their coefficients, summed over MoE layers; a balanced router has an aux loss of 1 per
// layer), "load layers.L" (choices per expert, dropped ones too), "routed" and "kept" (choices, over all
// layers). Absent parts have no report.
//
// Losses (m = validity mask, N = valid tokens of the global batch, E experts, K choices, over tokens t):
//   lm             sum m nll / N
//   aux            coefficient x sum over e of f_e P_e; no gradient through f
//     sequence     per sequence b with n_b valid tokens: f = count_b E / (K n_b), P = sum m p / N. A sequence
//                  weighs as many tokens as it has, so the value depends neither on the layout nor on the
//                  microbatches
//     microbatch   f = count E / (K n), P = sum m p / n over the n valid tokens of the microbatch; times
//                  1 / microbatches
//     global_batch f = C E / (K n') from the counts C and tokens n' of the step's microbatches so far;
//                  P = sum m p / N
//   z              coefficient x sum m lse(router logits)^2 / N      (Zoph et al. 2022, eq. 5)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/model/config.h"

namespace moe::model {

struct BuildOptions {
  int64_t global_batch = 8;  // samples per step
  int64_t microbatches = 1;
  int64_t seed = 1;
  // AdamW and clipping; kept as module attributes for `autodiff`, which writes the update.
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;
  double clip_grad = 1.0;  // 0: no clipping
};

// One parameter of a model, in order of the layers.
struct ParameterSpec {
  std::string name;  // "layers.0.attn.wq"
  std::vector<int64_t> dims;
  std::string role;  // see state.h
  std::string init;  // "normal" | "ones"
  double std = 0;
  bool expert = false;  // has a dim of experts
  bool decay = true;
};
std::vector<ParameterSpec> ModelParameters(const ModelConfig& config);

// Floating-point operations of the model for a token, forward and backward: 6 for each weight that the token
// is multiplied with (of experts, the k chosen ones), and for attention 6 x layers x heads x head_dim x
// sequence, half of all pairs, which is what the causal mask leaves. Nothing else counts: neither lookups,
// norms and softmax, nor what is computed twice, padded or dropped. (Chowdhery et al. 2022, appendix B, there
// without the half; Narayanan et al. 2021, appendix.)
double ModelFlopsPerToken(const ModelConfig& config);

// Errors: InvalidArgument with everything wrong with the model and the batch.
absl::StatusOr<std::unique_ptr<Module>> BuildModel(const ModelConfig& config, const BuildOptions& options);

}  // namespace moe::model
