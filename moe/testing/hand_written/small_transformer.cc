#include "moe/testing/hand_written/small_transformer.h"

#include <algorithm>
#include <cmath>

namespace moe::testing {
namespace {

using Vec = std::vector<double>;

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// y[t, o] = sum_i x[t, i] w[i, o]
Vec Linear(const Vec& x, const Vec& w, int rows, int in, int out) {
  Vec y(rows * out, 0.0);
  for (int t = 0; t < rows; ++t)
    for (int i = 0; i < in; ++i)
      for (int o = 0; o < out; ++o) y[t * out + o] += x[t * in + i] * w[i * out + o];
  return y;
}

// dw += x^T dy; gives dx = dy w^T.
Vec LinearBackward(const Vec& x, const Vec& w, const Vec& dy, int rows, int in, int out, Vec* dw) {
  Vec dx(rows * in, 0.0);
  for (int t = 0; t < rows; ++t)
    for (int i = 0; i < in; ++i)
      for (int o = 0; o < out; ++o) {
        (*dw)[i * out + o] += x[t * in + i] * dy[t * out + o];
        dx[t * in + i] += dy[t * out + o] * w[i * out + o];
      }
  return dx;
}

Vec RmsNorm(const Vec& x, const Vec& w, int rows, int h, double eps) {
  Vec y(rows * h);
  for (int t = 0; t < rows; ++t) {
    double mean = 0;
    for (int i = 0; i < h; ++i) mean += x[t * h + i] * x[t * h + i] / h;
    for (int i = 0; i < h; ++i) y[t * h + i] = x[t * h + i] / std::sqrt(mean + eps) * w[i];
  }
  return y;
}

// With s = mean x^2 + eps: y_i = x_i w_i s^(-1/2), ds/dx_j = 2 x_j / h, so
// dx_j = dy_j w_j s^(-1/2) - x_j / h s^(-3/2) sum_i dy_i w_i x_i.
Vec RmsNormBackward(const Vec& x, const Vec& w, const Vec& dy, int rows, int h, double eps, Vec* dw) {
  Vec dx(rows * h);
  for (int t = 0; t < rows; ++t) {
    double s = eps, dot = 0;
    for (int i = 0; i < h; ++i) {
      s += x[t * h + i] * x[t * h + i] / h;
      dot += dy[t * h + i] * w[i] * x[t * h + i];
    }
    for (int i = 0; i < h; ++i) {
      (*dw)[i] += dy[t * h + i] * x[t * h + i] / std::sqrt(s);
      dx[t * h + i] = dy[t * h + i] * w[i] / std::sqrt(s) - x[t * h + i] * dot / (h * s * std::sqrt(s));
    }
  }
  return dx;
}

// Turns the pair (i, i + d/2) of every head by sign x position / theta^(2i/d).
void Rotate(Vec* x, int rows, int seq, int heads, int d, double theta, double sign) {
  for (int t = 0; t < rows; ++t)
    for (int n = 0; n < heads; ++n)
      for (int i = 0; i < d / 2; ++i) {
        const double angle = sign * (t % seq) / std::pow(theta, 2.0 * i / d);
        double& a = (*x)[(t * heads + n) * d + i];
        double& b = (*x)[(t * heads + n) * d + i + d / 2];
        const double a0 = a, b0 = b;
        a = a0 * std::cos(angle) - b0 * std::sin(angle);
        b = a0 * std::sin(angle) + b0 * std::cos(angle);
      }
}

struct Ffn {  // of one expert or layer
  Vec gate, up, act;
};

Vec FfnForward(const Vec& x, const Vec& wg, const Vec& wu, const Vec& wd, int rows, int h, int f,
               Ffn* saved) {
  saved->gate = Linear(x, wg, rows, h, f);
  saved->up = Linear(x, wu, rows, h, f);
  saved->act.resize(rows * f);
  for (int i = 0; i < rows * f; ++i) saved->act[i] = saved->gate[i] * Sigmoid(saved->gate[i]) * saved->up[i];
  return Linear(saved->act, wd, rows, f, h);
}

Vec FfnBackward(const Vec& x, const Vec& wg, const Vec& wu, const Vec& wd, const Vec& dy, const Ffn& saved,
                int rows, int h, int f, Vec* dwg, Vec* dwu, Vec* dwd) {
  const Vec da = LinearBackward(saved.act, wd, dy, rows, f, h, dwd);
  Vec dg(rows * f), du(rows * f);
  for (int i = 0; i < rows * f; ++i) {
    const double s = Sigmoid(saved.gate[i]);
    du[i] = da[i] * saved.gate[i] * s;
    dg[i] = da[i] * saved.up[i] * (s + saved.gate[i] * s * (1 - s));
  }
  Vec dx = LinearBackward(x, wg, dg, rows, h, f, dwg);
  const Vec dx_up = LinearBackward(x, wu, du, rows, h, f, dwu);
  for (size_t i = 0; i < dx.size(); ++i) dx[i] += dx_up[i];
  return dx;
}

// The e-th of equal blocks, as a copy, and adding it back.
Vec Slice(const Vec& all, int e, int size) {
  return Vec(all.begin() + e * size, all.begin() + (e + 1) * size);
}
void AddSlice(const Vec& part, int e, Vec* all) {
  for (size_t i = 0; i < part.size(); ++i) (*all)[e * part.size() + i] += part[i];
}

void AddTo(Vec* x, const Vec& y) {
  for (size_t i = 0; i < y.size(); ++i) (*x)[i] += y[i];
}

}  // namespace

struct SmallTransformer::AttentionSaved {
  Vec x, h, q, k, v, o;
  Vec p;  // [sample, head, query, key]
};

struct SmallTransformer::DenseSaved {
  Vec x, h;
  Ffn ffn;
};

struct SmallTransformer::MoeSaved {
  Vec x, h, probability, lse;
  double valid = 0;
  Vec f;  // [expert] load share
  struct Choice {
    int token, expert;
    double p, weight, sum;  // probability, normalised, what it was divided by
    int nth;                // which of the token's choices
    bool kept;
    Vec out;
    Ffn ffn;
  };
  std::vector<Choice> choices;
};

SmallTransformer::SmallTransformer(const SmallTransformerSizes& sizes)
    : z_(sizes), tokens_(sizes.batch / sizes.microbatches * sizes.seq) {
  const int h = z_.hidden, q = z_.heads * z_.head_dim, kv = z_.kv_heads * z_.head_dim;
  auto add = [&](const std::string& name, int n) {
    p_[name].resize(n), g_[name].resize(n), m_[name].resize(n), v_[name].resize(n);
  };
  add("embedding", z_.vocab * h);
  for (const std::string layer : {"layers.0", "layers.1"}) {
    add(layer + ".attn_norm", h);
    add(layer + ".attn.wq", h * q);
    add(layer + ".attn.wk", h * kv);
    add(layer + ".attn.wv", h * kv);
    add(layer + ".attn.wo", q * h);
    add(layer + ".mlp_norm", h);
  }
  for (const char* w : {"w_gate", "w_up", "w_down"}) {
    add(std::string("layers.0.mlp.") + w, h * z_.ffn);
    add(std::string("layers.1.moe.") + w, z_.experts * h * z_.expert_ffn);
  }
  add("layers.1.moe.router", h * z_.experts);
  add("final_norm", h);
  add("head", z_.vocab * h);
}

Vec SmallTransformer::AttentionForward(const std::string& layer, const Vec& x, AttentionSaved* s) {
  const int h = z_.hidden, n = z_.heads, kv = z_.kv_heads, d = z_.head_dim, seq = z_.seq;
  s->x = x;
  s->h = RmsNorm(x, p_[layer + ".attn_norm"], tokens_, h, z_.eps);
  s->q = Linear(s->h, p_[layer + ".attn.wq"], tokens_, h, n * d);
  s->k = Linear(s->h, p_[layer + ".attn.wk"], tokens_, h, kv * d);
  s->v = Linear(s->h, p_[layer + ".attn.wv"], tokens_, h, kv * d);
  Rotate(&s->q, tokens_, seq, n, d, z_.theta, 1);
  Rotate(&s->k, tokens_, seq, kv, d, z_.theta, 1);
  s->o.assign(tokens_ * n * d, 0.0);
  s->p.assign(tokens_ * n * seq, 0.0);
  for (int b = 0; b < tokens_ / seq; ++b)
    for (int head = 0; head < n; ++head)
      for (int i = 0; i < seq; ++i) {
        const int g = head / (n / kv);  // the key head it shares
        double* p = &s->p[((b * n + head) * seq + i) * seq];
        double total = 0;
        for (int j = 0; j <= i; ++j) {
          double score = 0;
          for (int c = 0; c < d; ++c)
            score += s->q[((b * seq + i) * n + head) * d + c] * s->k[((b * seq + j) * kv + g) * d + c];
          p[j] = std::exp(score / std::sqrt(d));
          total += p[j];
        }
        for (int j = 0; j <= i; ++j) {
          p[j] /= total;
          for (int c = 0; c < d; ++c)
            s->o[((b * seq + i) * n + head) * d + c] += p[j] * s->v[((b * seq + j) * kv + g) * d + c];
        }
      }
  return Linear(s->o, p_[layer + ".attn.wo"], tokens_, n * d, h);
}

Vec SmallTransformer::AttentionBackward(const std::string& layer, const Vec& dy, const AttentionSaved& s) {
  const int h = z_.hidden, n = z_.heads, kv = z_.kv_heads, d = z_.head_dim, seq = z_.seq;
  const Vec d_o = LinearBackward(s.o, p_[layer + ".attn.wo"], dy, tokens_, n * d, h, &g_[layer + ".attn.wo"]);
  Vec dq(s.q.size(), 0.0), dk(s.k.size(), 0.0), dv(s.v.size(), 0.0);
  for (int b = 0; b < tokens_ / seq; ++b)
    for (int head = 0; head < n; ++head)
      for (int i = 0; i < seq; ++i) {
        const int g = head / (n / kv);
        const double* p = &s.p[((b * n + head) * seq + i) * seq];
        const double* out = &d_o[((b * seq + i) * n + head) * d];
        Vec dp(i + 1, 0.0);
        double mean = 0;
        for (int j = 0; j <= i; ++j) {
          for (int c = 0; c < d; ++c) {
            dp[j] += out[c] * s.v[((b * seq + j) * kv + g) * d + c];
            dv[((b * seq + j) * kv + g) * d + c] += p[j] * out[c];
          }
          mean += p[j] * dp[j];
        }
        for (int j = 0; j <= i; ++j) {
          const double ds = p[j] * (dp[j] - mean) / std::sqrt(d);
          for (int c = 0; c < d; ++c) {
            dq[((b * seq + i) * n + head) * d + c] += ds * s.k[((b * seq + j) * kv + g) * d + c];
            dk[((b * seq + j) * kv + g) * d + c] += ds * s.q[((b * seq + i) * n + head) * d + c];
          }
        }
      }
  // A rotation is orthogonal: its gradient is the rotation back.
  Rotate(&dq, tokens_, seq, n, d, z_.theta, -1);
  Rotate(&dk, tokens_, seq, kv, d, z_.theta, -1);
  Vec dh = LinearBackward(s.h, p_[layer + ".attn.wq"], dq, tokens_, h, n * d, &g_[layer + ".attn.wq"]);
  AddTo(&dh, LinearBackward(s.h, p_[layer + ".attn.wk"], dk, tokens_, h, kv * d, &g_[layer + ".attn.wk"]));
  AddTo(&dh, LinearBackward(s.h, p_[layer + ".attn.wv"], dv, tokens_, h, kv * d, &g_[layer + ".attn.wv"]));
  return RmsNormBackward(s.x, p_[layer + ".attn_norm"], dh, tokens_, h, z_.eps, &g_[layer + ".attn_norm"]);
}

Vec SmallTransformer::DenseForward(const std::string& layer, const Vec& x, DenseSaved* s) {
  s->x = x;
  s->h = RmsNorm(x, p_[layer + ".mlp_norm"], tokens_, z_.hidden, z_.eps);
  return FfnForward(s->h, p_[layer + ".mlp.w_gate"], p_[layer + ".mlp.w_up"], p_[layer + ".mlp.w_down"],
                    tokens_, z_.hidden, z_.ffn, &s->ffn);
}

Vec SmallTransformer::DenseBackward(const std::string& layer, const Vec& dy, const DenseSaved& s) {
  const Vec dh = FfnBackward(
      s.h, p_[layer + ".mlp.w_gate"], p_[layer + ".mlp.w_up"], p_[layer + ".mlp.w_down"], dy, s.ffn, tokens_,
      z_.hidden, z_.ffn, &g_[layer + ".mlp.w_gate"], &g_[layer + ".mlp.w_up"], &g_[layer + ".mlp.w_down"]);
  return RmsNormBackward(s.x, p_[layer + ".mlp_norm"], dh, tokens_, z_.hidden, z_.eps,
                         &g_[layer + ".mlp_norm"]);
}

Vec SmallTransformer::MoeForward(const std::string& layer, const Vec& x, const float* mask, double inv_tokens,
                                 MoeSaved* s, Losses* losses) {
  const int h = z_.hidden, e = z_.experts, f = z_.expert_ffn;
  s->x = x;
  s->h = RmsNorm(x, p_[layer + ".mlp_norm"], tokens_, h, z_.eps);
  const Vec logits = Linear(s->h, p_[layer + ".moe.router"], tokens_, h, e);
  s->probability.resize(tokens_ * e);
  s->lse.resize(tokens_);
  for (int t = 0; t < tokens_; ++t) {
    double total = 0;
    for (int i = 0; i < e; ++i) total += std::exp(logits[t * e + i]);
    s->lse[t] = std::log(total);
    for (int i = 0; i < e; ++i) s->probability[t * e + i] = std::exp(logits[t * e + i]) / total;
  }

  Vec y(tokens_ * h, 0.0), count(e, 0.0);
  const int group = z_.seq / z_.groups;
  std::vector<int> used(e, 0);
  for (int t = 0; t < tokens_; ++t) {
    if (t % group == 0) used.assign(e, 0);
    if (mask[t] == 0) continue;
    std::vector<int> chosen;
    double sum = 0;
    for (int k = 0; k < z_.top_k; ++k) {
      int best = -1;
      for (int i = 0; i < e; ++i) {
        bool taken = false;
        for (const int c : chosen) taken = taken || c == i;
        if (!taken && (best < 0 || s->probability[t * e + i] > s->probability[t * e + best])) best = i;
      }
      chosen.push_back(best);
      sum += s->probability[t * e + best];
    }
    for (int k = 0; k < z_.top_k; ++k) {
      MoeSaved::Choice c;
      c.token = t, c.expert = chosen[k], c.nth = k, c.sum = sum;
      c.p = s->probability[t * e + c.expert];
      c.weight = c.p / sum;
      ++count[c.expert];
      c.kept = used[c.expert]++ < z_.capacity;
      losses->routed += 1, losses->kept += c.kept;
      if (c.kept) {
        c.out = FfnForward(Slice(s->h, t, h), Slice(p_[layer + ".moe.w_gate"], c.expert, h * f),
                           Slice(p_[layer + ".moe.w_up"], c.expert, h * f),
                           Slice(p_[layer + ".moe.w_down"], c.expert, f * h), 1, h, f, &c.ffn);
        for (int i = 0; i < h; ++i) y[t * h + i] += c.weight * c.out[i];
      }
      s->choices.push_back(c);
    }
  }

  Vec mean(e, 0.0);
  for (int t = 0; t < tokens_; ++t) {
    s->valid += mask[t];
    losses->z += mask[t] * s->lse[t] * s->lse[t] * inv_tokens;
    for (int i = 0; i < e; ++i) mean[i] += mask[t] * s->probability[t * e + i];
  }
  s->valid = std::max(s->valid, 1.0);
  s->f.resize(e);
  for (int i = 0; i < e; ++i) {
    s->f[i] = count[i] * e / (z_.top_k * s->valid);
    losses->aux += s->f[i] * mean[i] / s->valid / z_.microbatches;
  }
  return y;
}

Vec SmallTransformer::MoeBackward(const std::string& layer, const Vec& dy, const float* mask,
                                  double inv_tokens, const MoeSaved& s) {
  const int h = z_.hidden, e = z_.experts, f = z_.expert_ffn;
  Vec dp(tokens_ * e, 0.0), dh(tokens_ * h, 0.0);
  // d(weight) of each choice; a dropped one contributes nothing to y.
  Vec dweight(s.choices.size(), 0.0);
  for (size_t n = 0; n < s.choices.size(); ++n) {
    const MoeSaved::Choice& c = s.choices[n];
    if (!c.kept) continue;
    Vec d_out(h);
    for (int i = 0; i < h; ++i) {
      dweight[n] += dy[c.token * h + i] * c.out[i];
      d_out[i] = dy[c.token * h + i] * c.weight;
    }
    Vec dwg(h * f, 0.0), dwu(h * f, 0.0), dwd(f * h, 0.0);
    const Vec dx = FfnBackward(Slice(s.h, c.token, h), Slice(p_[layer + ".moe.w_gate"], c.expert, h * f),
                               Slice(p_[layer + ".moe.w_up"], c.expert, h * f),
                               Slice(p_[layer + ".moe.w_down"], c.expert, f * h), d_out, c.ffn, 1, h, f, &dwg,
                               &dwu, &dwd);
    AddSlice(dwg, c.expert, &g_[layer + ".moe.w_gate"]);
    AddSlice(dwu, c.expert, &g_[layer + ".moe.w_up"]);
    AddSlice(dwd, c.expert, &g_[layer + ".moe.w_down"]);
    AddSlice(dx, c.token, &dh);
  }
  // weight_k = p_k / sum: dp_k = (dweight_k - sum_j dweight_j weight_j) / sum.
  for (size_t n = 0; n < s.choices.size(); ++n) {
    const MoeSaved::Choice& c = s.choices[n];
    double dot = 0;
    for (int j = 0; j < z_.top_k; ++j) dot += dweight[n - c.nth + j] * s.choices[n - c.nth + j].weight;
    dp[c.token * e + c.expert] += (dweight[n] - dot) / c.sum;
  }
  Vec dlogits(tokens_ * e);
  for (int t = 0; t < tokens_; ++t) {
    double dot = 0;
    for (int i = 0; i < e; ++i) {
      dp[t * e + i] += z_.aux_coeff * mask[t] * s.f[i] / s.valid / z_.microbatches;
      dot += dp[t * e + i] * s.probability[t * e + i];
    }
    for (int i = 0; i < e; ++i) {
      const double p = s.probability[t * e + i];
      dlogits[t * e + i] = p * (dp[t * e + i] - dot) + z_.z_coeff * 2 * s.lse[t] * p * mask[t] * inv_tokens;
    }
  }
  AddTo(&dh,
        LinearBackward(s.h, p_[layer + ".moe.router"], dlogits, tokens_, h, e, &g_[layer + ".moe.router"]));
  return RmsNormBackward(s.x, p_[layer + ".mlp_norm"], dh, tokens_, h, z_.eps, &g_[layer + ".mlp_norm"]);
}

void SmallTransformer::Microbatch(const int32_t* tokens, const int32_t* labels, const float* mask,
                                  double inv_tokens, Losses* losses) {
  const int h = z_.hidden, v = z_.vocab;
  Vec x(tokens_ * h);
  for (int t = 0; t < tokens_; ++t)
    for (int i = 0; i < h; ++i) x[t * h + i] = p_["embedding"][tokens[t] * h + i];
  AttentionSaved attention0, attention1;
  DenseSaved dense;
  MoeSaved experts;
  AddTo(&x, AttentionForward("layers.0", x, &attention0));
  AddTo(&x, DenseForward("layers.0", x, &dense));
  AddTo(&x, AttentionForward("layers.1", x, &attention1));
  AddTo(&x, MoeForward("layers.1", x, mask, inv_tokens, &experts, losses));

  const Vec hidden = RmsNorm(x, p_["final_norm"], tokens_, h, z_.eps);
  Vec dhidden(tokens_ * h, 0.0);
  for (int t = 0; t < tokens_; ++t) {
    Vec logit(v, 0.0);
    double total = 0;
    for (int w = 0; w < v; ++w) {
      for (int i = 0; i < h; ++i) logit[w] += hidden[t * h + i] * p_["head"][w * h + i];
      total += std::exp(logit[w]);
    }
    losses->lm += mask[t] * (std::log(total) - logit[labels[t]]) * inv_tokens;
    for (int w = 0; w < v; ++w) {
      const double d = mask[t] * inv_tokens * (std::exp(logit[w]) / total - (w == labels[t]));
      for (int i = 0; i < h; ++i) {
        g_["head"][w * h + i] += d * hidden[t * h + i];
        dhidden[t * h + i] += d * p_["head"][w * h + i];
      }
    }
  }

  Vec dx = RmsNormBackward(x, p_["final_norm"], dhidden, tokens_, h, z_.eps, &g_["final_norm"]);
  AddTo(&dx, MoeBackward("layers.1", dx, mask, inv_tokens, experts));
  AddTo(&dx, AttentionBackward("layers.1", dx, attention1));
  AddTo(&dx, DenseBackward("layers.0", dx, dense));
  AddTo(&dx, AttentionBackward("layers.0", dx, attention0));
  for (int t = 0; t < tokens_; ++t)
    for (int i = 0; i < h; ++i) g_["embedding"][tokens[t] * h + i] += dx[t * h + i];
}

SmallTransformer::Losses SmallTransformer::Step(const Batch& batch, double learning_rate, int step) {
  for (auto& [name, g] : g_) g.assign(g.size(), 0.0);
  double valid = 0;
  for (const float m : batch.mask) valid += m;
  Losses losses;
  for (int j = 0; j < z_.microbatches; ++j) {
    const int begin = j * tokens_;
    Microbatch(&batch.tokens[begin], &batch.labels[begin], &batch.mask[begin], 1 / valid, &losses);
  }
  double squares = 0;
  for (const auto& [name, g] : g_)
    for (const double x : g) squares += x * x;
  losses.grad_norm = std::sqrt(squares);
  Update(learning_rate, step, std::min(1.0, z_.clip / (losses.grad_norm + 1e-6)));
  return losses;
}

void SmallTransformer::Update(double learning_rate, int step, double factor) {
  const double bias1 = 1 - std::pow(z_.beta1, step), bias2 = 1 - std::pow(z_.beta2, step);
  for (auto& [name, p] : p_) {
    const double decay = name.find("norm") == std::string::npos ? z_.weight_decay : 0;
    Vec &m = m_[name], &v = v_[name];
    for (size_t i = 0; i < p.size(); ++i) {
      const double g = factor * g_[name][i];
      m[i] = z_.beta1 * m[i] + (1 - z_.beta1) * g;
      v[i] = z_.beta2 * v[i] + (1 - z_.beta2) * g * g;
      p[i] -= learning_rate * (m[i] / bias1 / (std::sqrt(v[i] / bias2) + z_.adam_eps) + decay * p[i]);
    }
  }
}

}  // namespace moe::testing
