#include "moe/model/config.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/textproto.h"

namespace moe::model {
namespace {

// Above these nothing can be trained, and products of sizes would leave 64 bits.
constexpr int64_t kMaxSize = int64_t{1} << 31;
constexpr int64_t kMaxLayers = 100'000;
constexpr double kMaxNumber = 1e30;

absl::Status AllProblems(const std::vector<std::string>& problems) {
  if (problems.empty()) return absl::OkStatus();
  std::string text = absl::StrCat("this model cannot be built; ", problems.size(),
                                  problems.size() == 1 ? " problem" : " problems");
  for (size_t i = 0; i < problems.size(); ++i) absl::StrAppend(&text, "\n  ", i + 1, "  ", problems[i]);
  return absl::InvalidArgumentError(text);
}

std::string InMillions(int64_t n) {
  if (n >= 1'000'000'000) return absl::StrFormat("%.1f B", n / 1e9);
  if (n >= 100'000) return absl::StrFormat("%.1f M", n / 1e6);
  return absl::StrCat(n);
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view textproto, absl::string_view file_name) {
  ModelConfig config;
  RETURN_IF_ERROR(AllProblems(ParseTextproto(textproto, file_name, config)));
  config = ResolveModelConfig(std::move(config));
  RETURN_IF_ERROR(Annotate(ValidateModelConfig(config), file_name));
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTextprotoBytes));
  return ParseModelConfig(text, path);
}

ModelConfig ResolveModelConfig(ModelConfig c) {
  if (!c.has_num_key_value_heads()) c.set_num_key_value_heads(c.num_attention_heads());
  if (!c.has_head_dim() && c.num_attention_heads() > 0 && c.hidden_size() >= c.num_attention_heads()) {
    c.set_head_dim(c.hidden_size() / c.num_attention_heads());
  }
  if (!c.has_moe_ffn_hidden_size()) c.set_moe_ffn_hidden_size(c.num_experts() > 0 ? c.ffn_hidden_size() : 0);
  if (!c.has_vocab_blocks()) {
    int64_t blocks = 8;
    while (c.vocab_size() % blocks != 0) blocks /= 2;
    c.set_vocab_blocks(blocks);
  }
  SetDefaults(c);
  return c;
}

std::vector<std::string> ModelProblems(const ModelConfig& c) {
  std::vector<std::string> problems;
  auto add = [&](auto&&... parts) { problems.push_back(absl::StrCat(parts...)); };
  auto positive = [&](absl::string_view field, int64_t value, int64_t most = kMaxSize) {
    const bool ok = value >= 1 && value <= most;
    if (!ok) add(field, " = ", value, "; it must be between 1 and ", most);
    return ok;
  };
  auto finite = [&](absl::string_view field, double value, bool zero_is_legal) {
    const bool ok = value <= kMaxNumber && (zero_is_legal ? value >= 0 : value > 0);
    if (!ok) {
      add(field, " = ", value, "; it must be ", zero_is_legal ? "not negative" : "positive", " and at most ",
          kMaxNumber);
    }
    return ok;
  };
  if (c.name().empty()) add("name is empty; leave it out for '", ModelConfig::default_instance().name(), "'");
  positive("num_layers", c.num_layers(), kMaxLayers);
  const bool hidden = positive("hidden_size", c.hidden_size());
  const bool heads = positive("num_attention_heads", c.num_attention_heads());
  if (positive("num_key_value_heads", c.num_key_value_heads()) && heads &&
      c.num_attention_heads() % c.num_key_value_heads() != 0) {
    add("num_key_value_heads = ", c.num_key_value_heads(),
        " does not divide num_attention_heads = ", c.num_attention_heads());
  }
  if (heads && hidden) {
    if (!c.has_head_dim()) {
      add("head_dim is not given and hidden_size = ", c.hidden_size(),
          " is below num_attention_heads = ", c.num_attention_heads());
    } else if (positive("head_dim", c.head_dim()) && c.head_dim() % 2 != 0) {
      add("head_dim = ", c.head_dim(), " is odd; rotary positions turn pairs of elements");
    }
  }
  const bool vocab = positive("vocab_size", c.vocab_size());
  const bool seq = positive("seq_length", c.seq_length());
  if (positive("vocab_blocks", c.vocab_blocks()) && vocab && c.vocab_size() % c.vocab_blocks() != 0) {
    add("vocab_blocks = ", c.vocab_blocks(), " does not divide vocab_size = ", c.vocab_size());
  }
  if (c.num_experts() < 0)
    add("num_experts = ", c.num_experts(), "; it must be 0 (all layers dense) or positive");
  bool any_dense = c.num_experts() <= 0;
  if (c.num_experts() > 0) {
    const bool experts = positive("num_experts", c.num_experts());
    if (c.first_dense_layers() < 0 || c.first_dense_layers() > c.num_layers()) {
      add("first_dense_layers = ", c.first_dense_layers(),
          "; it must be between 0 and num_layers = ", c.num_layers());
    }
    if (positive("moe_layer_freq", c.moe_layer_freq()) && c.num_layers() <= kMaxLayers) {
      for (int64_t l = 0; l < c.num_layers() && !any_dense; ++l) any_dense = !IsMoeLayer(c, l);
    }
    if (positive("moe_router_topk", c.moe_router_topk()) && experts &&
        c.moe_router_topk() > c.num_experts()) {
      add("moe_router_topk = ", c.moe_router_topk(), " exceeds num_experts = ", c.num_experts());
    }
    if (c.norm_topk_prob() && c.moe_router_topk() == 1) {
      add("norm_topk_prob with moe_router_topk = 1 makes every probability 1, so the router would learn "
          "nothing from the language; use top-k >= 2 or norm_topk_prob: false");
    }
    positive("moe_ffn_hidden_size", c.moe_ffn_hidden_size());
    if (c.shared_expert_ffn_hidden_size() < 0) {
      add("shared_expert_ffn_hidden_size = ", c.shared_expert_ffn_hidden_size(),
          "; it must be 0 (no shared expert) or positive");
    } else if (c.shared_expert_ffn_hidden_size() > 0) {
      positive("shared_expert_ffn_hidden_size", c.shared_expert_ffn_hidden_size());
    }
    if (positive("routing_groups_per_sequence", c.routing_groups_per_sequence()) && seq &&
        c.seq_length() % c.routing_groups_per_sequence() != 0) {
      add("routing_groups_per_sequence = ", c.routing_groups_per_sequence(),
          " does not divide seq_length = ", c.seq_length());
    }
    if (finite("capacity_factor", c.capacity_factor(), true) && c.capacity_factor() > 1e6) {
      add("capacity_factor = ", c.capacity_factor(), "; use 0 for dropless routing");
    }
    finite("aux_loss_coeff", c.aux_loss_coeff(), true);
    finite("z_loss_coeff", c.z_loss_coeff(), true);
    if (c.aux_loss_scope() != "sequence" && c.aux_loss_scope() != "microbatch" &&
        c.aux_loss_scope() != "global_batch") {
      add("aux_loss_scope = '", c.aux_loss_scope(), "'; legal are sequence, microbatch, global_batch");
    }
  }
  if (any_dense) {
    positive("ffn_hidden_size", c.ffn_hidden_size());
  } else if (c.ffn_hidden_size() < 0) {
    add("ffn_hidden_size = ", c.ffn_hidden_size(), "; it must be at least 0");
  }
  if (finite("rope_theta", c.rope_theta(), false) && c.rope_theta() < 1) {
    add("rope_theta = ", c.rope_theta(), "; it must be at least 1");
  }
  finite("norm_eps", c.norm_eps(), false);
  finite("init_std", c.init_std(), false);
  if (c.dtype() != "f32" && c.dtype() != "f64") add("dtype = '", c.dtype(), "'; legal are f32, f64");
  if (problems.empty()) {
    // Each tensor is within the bounds of the IR, so that byte counts fit 64 bits.
    const double largest =
        std::max({1.0 * c.vocab_size() * c.hidden_size(),
                  1.0 * c.hidden_size() * c.num_attention_heads() * c.head_dim(),
                  1.0 * c.hidden_size() * std::max(c.ffn_hidden_size(), c.moe_ffn_hidden_size()) *
                      std::max<int64_t>(1, c.num_experts())});
    if (largest > 0x1p50) add("a parameter of ", largest, " elements; at most 2^50 can be addressed");
  }
  return problems;
}

absl::Status ValidateModelConfig(const ModelConfig& config) { return AllProblems(ModelProblems(config)); }

bool IsMoeLayer(const ModelConfig& c, int64_t layer) {
  return c.num_experts() > 0 && layer >= c.first_dense_layers() &&
         (layer - c.first_dense_layers()) % std::max<int64_t>(1, c.moe_layer_freq()) == 0;
}

int64_t NumMoeLayers(const ModelConfig& c) {
  int64_t n = 0;
  for (int64_t l = 0; l < c.num_layers(); ++l) n += IsMoeLayer(c, l);
  return n;
}

bool IsDropless(const ModelConfig& c) { return c.capacity_factor() == 0; }

int64_t TokensPerGroup(const ModelConfig& c) { return c.seq_length() / c.routing_groups_per_sequence(); }

int64_t SlotsPerExpert(const ModelConfig& c) {
  const double choices = static_cast<double>(TokensPerGroup(c)) * c.moe_router_topk();
  const double factor = IsDropless(c) ? 1.0 : c.capacity_factor();
  // The product is rounded before the ceiling: 1.1 x 10 is 11 slots, although 1.1 in binary is a little more.
  const double slots = std::ceil(factor * choices / c.num_experts() - 1e-9);
  // An expert cannot be chosen twice by one token.
  return std::clamp<int64_t>(static_cast<int64_t>(slots), 1, TokensPerGroup(c));
}

double ExpectedDropShare(const ModelConfig& c) {
  if (c.num_experts() == 0 || IsDropless(c)) return 0;
  const double n = static_cast<double>(TokensPerGroup(c)) * c.moe_router_topk();
  const double p = 1.0 / c.num_experts();
  const int64_t slots = SlotsPerExpert(c);
  if (p == 1) return std::max(0.0, n - slots) / n;
  // Sum of (x - slots) P(X = x) over x > slots; terms by logarithms, for large groups.
  double excess = 0;
  for (int64_t x = slots + 1; x <= n; ++x) {
    const double log_p = std::lgamma(n + 1) - std::lgamma(x + 1.0) - std::lgamma(n - x + 1) +
                         x * std::log(p) + (n - x) * std::log1p(-p);
    const double term = (x - slots) * std::exp(log_p);
    excess += term;
    if (x > n * p && term < 1e-15) break;
  }
  return excess / (n * p);
}

ParameterCount CountParameters(const ModelConfig& c) {
  const int64_t h = c.hidden_size();
  ParameterCount n;
  auto add = [&](int64_t total, int64_t active) { n.total += total, n.active += active; };
  auto dense = [&](int64_t total) { add(total, total); };
  dense(c.vocab_size() * h * (c.tie_embeddings() ? 1 : 2) + h);
  for (int64_t l = 0; l < c.num_layers(); ++l) {
    dense(2 * h + 2 * h * c.num_attention_heads() * c.head_dim() +
          2 * h * c.num_key_value_heads() * c.head_dim());
    if (!IsMoeLayer(c, l)) {
      dense(3 * h * c.ffn_hidden_size());
      continue;
    }
    dense(h * c.num_experts() + 3 * h * c.shared_expert_ffn_hidden_size());
    const int64_t expert = 3 * h * c.moe_ffn_hidden_size();
    add(c.num_experts() * expert, c.moe_router_topk() * expert);
  }
  return n;
}

std::string DescribeModel(const ModelConfig& c) {
  std::string text = absl::StrCat(c.name(), ": ", c.num_layers(), " layers, hidden ", c.hidden_size(), ", ",
                                  c.num_attention_heads(), " heads (", c.num_key_value_heads(), " kv)");
  if (NumMoeLayers(c) > 0) {
    absl::StrAppend(&text, ", ", c.num_experts(), " experts top-", c.moe_router_topk(), " ffn ",
                    c.moe_ffn_hidden_size());
    if (NumMoeLayers(c) < c.num_layers()) absl::StrAppend(&text, " in ", NumMoeLayers(c), " layers");
    absl::StrAppend(&text, IsDropless(c) ? ", dropless" : absl::StrCat(", capacity x", c.capacity_factor()));
  } else {
    absl::StrAppend(&text, ", ffn ", c.ffn_hidden_size());
  }
  const ParameterCount n = CountParameters(c);
  absl::StrAppend(&text, ", vocab ", c.vocab_size(), "   ", InMillions(n.total), " parameters, ",
                  InMillions(n.active), " active");
  return text;
}

std::string ModelConfigToText(const ModelConfig& config) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(config, &text);
  return text;
}

}  // namespace moe::model
