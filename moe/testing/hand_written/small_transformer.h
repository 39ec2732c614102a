// An oracle that shares nothing with the system: one small MoE transformer, its backward and its optimizer,
// written by hand in plain f64 loops. No graph, no registry, no kernels; formulas were derived on paper.
//
//   SmallTransformer oracle(sizes);
//   oracle.parameters()["layers.0.attn.wq"] = ...;          // names and layouts of the logical module
//   SmallTransformer::Losses l = oracle.Step(batch, learning_rate, step);
//
// Layer 0: attention, SwiGLU. Layer 1: attention, MoE with capacity and normalised top-k. Grouped queries,
// rotary positions, RMSNorm, untied head, load-balancing loss per microbatch, router z-loss, gradient
// accumulation, clipping by the global norm, AdamW.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace moe::testing {

struct SmallTransformerSizes {
  int batch = 4, microbatches = 2;  // samples per step
  int seq = 12, groups = 2;         // routing groups per sequence
  int hidden = 12, heads = 4, kv_heads = 2, head_dim = 4;
  int ffn = 20, vocab = 22;
  int experts = 5, top_k = 2, expert_ffn = 14, capacity = 3;
  double aux_coeff = 0.02, z_coeff = 0.003;
  double theta = 10000, eps = 1e-5;
  double beta1 = 0.9, beta2 = 0.95, adam_eps = 1e-8, weight_decay = 0.1, clip = 0.5;
};

class SmallTransformer {
 public:
  using Tensors = std::map<std::string, std::vector<double>>;
  struct Batch {
    std::vector<int32_t> tokens, labels;  // [batch, seq]
    std::vector<float> mask;
  };
  struct Losses {
    double lm = 0, aux = 0, z = 0;  // without coefficients
    double grad_norm = 0;
    double routed = 0, kept = 0;
  };

  explicit SmallTransformer(const SmallTransformerSizes& sizes);

  // One optimizer step over all microbatches; `step` counts from 1.
  Losses Step(const Batch& batch, double learning_rate, int step);

  Tensors& parameters() { return p_; }
  const Tensors& gradients() const { return g_; }  // of the last step, before clipping

 private:
  using Vec = std::vector<double>;
  struct AttentionSaved;
  struct DenseSaved;
  struct MoeSaved;

  void Microbatch(const int32_t* tokens, const int32_t* labels, const float* mask, double inv_tokens,
                  Losses* losses);
  Vec AttentionForward(const std::string& layer, const Vec& x, AttentionSaved* saved);
  Vec AttentionBackward(const std::string& layer, const Vec& dy, const AttentionSaved& saved);
  Vec DenseForward(const std::string& layer, const Vec& x, DenseSaved* saved);
  Vec DenseBackward(const std::string& layer, const Vec& dy, const DenseSaved& saved);
  Vec MoeForward(const std::string& layer, const Vec& x, const float* mask, double inv_tokens,
                 MoeSaved* saved, Losses* losses);
  Vec MoeBackward(const std::string& layer, const Vec& dy, const float* mask, double inv_tokens,
                  const MoeSaved& saved);
  void Update(double learning_rate, int step, double factor);

  const SmallTransformerSizes z_;
  const int tokens_;  // of one microbatch
  Tensors p_, g_, m_, v_;
};

}  // namespace moe::testing
