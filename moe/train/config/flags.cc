#include "moe/train/config/flags.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <type_traits>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/internal/commandlineflag.h"
#include "absl/flags/internal/registry.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/types/optional.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/textproto.h"
#include "moe/model/config.h"
#include "moe/strategy/word.h"

// Abseil calls OnUpdate once when it registers a flag, and then each time that it is set. So --run_dir= and
// --nosomething can be told from what was not given.
#define MOE_COUNT(flag) OnUpdate([] { ++updates_of_##flag; })

static int updates_of_config = 0, updates_of_model = 0, updates_of_strategy = 0;
ABSL_FLAG(std::string, config, "", "RunConfig as textproto, laid over the defaults.").MOE_COUNT(config);
ABSL_FLAG(std::string, model, "",
          "ModelConfig as textproto; replaces the model of --config and of the defaults.")
    .MOE_COUNT(model);
ABSL_FLAG(
    std::string, strategy, "",
    "How the model is spread over ranks, in the words of docs/strategy.md; replaces the strategy of --config "
    "and of the defaults.")
    .MOE_COUNT(strategy);

// type, flag, part of RunConfig, its field, help. A flag has its field's name, or Megatron's where that is
// another. Those of the strategy come from its table of words, below.
#define MOE_VALUE_FLAGS(X)                                                                                   \
  X(int64_t, num_layers, model, num_layers, "Transformer layers.")                                           \
  X(int64_t, hidden_size, model, hidden_size, "Width of the residual stream.")                               \
  X(int64_t, num_attention_heads, model, num_attention_heads, "Query heads.")                                \
  X(int64_t, num_query_groups, model, num_key_value_heads,                                                   \
    "Key-value heads; left out: num_attention_heads.")                                                       \
  X(int64_t, kv_channels, model, head_dim, "Width of a head; left out: hidden_size / num_attention_heads.")  \
  X(int64_t, ffn_hidden_size, model, ffn_hidden_size, "Feature width of dense layers.")                      \
  X(int64_t, vocab_size, model, vocab_size, "Tokens of the vocabulary.")                                     \
  X(int64_t, seq_length, model, seq_length, "Tokens of a sample.")                                           \
  X(int64_t, num_experts, model, num_experts, "Experts of a MoE layer; 0: all layers dense.")                \
  X(int64_t, moe_router_topk, model, moe_router_topk, "Experts that a token visits.")                        \
  X(int64_t, moe_ffn_hidden_size, model, moe_ffn_hidden_size,                                                \
    "Feature width of an expert; left out: ffn_hidden_size.")                                                \
  X(int64_t, moe_shared_expert_intermediate_size, model, shared_expert_ffn_hidden_size,                      \
    "Feature width of the shared expert; 0: none.")                                                          \
  X(int64_t, first_dense_layers, model, first_dense_layers, "Dense layers before the first MoE layer.")      \
  X(int64_t, moe_layer_freq, model, moe_layer_freq, "Every how many layers is a MoE layer.")                 \
  X(double, moe_expert_capacity_factor, model, capacity_factor,                                              \
    "Slots per expert and routing group, as a multiple of a balanced share; 0: dropless.")                   \
  X(int64_t, routing_groups_per_sequence, model, routing_groups_per_sequence,                                \
    "Parts of a sequence that are routed, and lose tokens, on their own.")                                   \
  X(double, moe_aux_loss_coeff, model, aux_loss_coeff, "Coefficient of the load-balancing loss.")            \
  X(std::string, moe_aux_loss_scope, model, aux_loss_scope, "sequence, microbatch or global_batch.")         \
  X(double, moe_z_loss_coeff, model, z_loss_coeff, "Coefficient of the router's z-loss.")                    \
  X(double, rotary_base, model, rope_theta, "Base of the rotary frequencies.")                               \
  X(double, norm_epsilon, model, norm_eps, "Epsilon of RMSNorm.")                                            \
  X(double, init_method_std, model, init_std, "Standard deviation of initial weights.")                      \
  X(std::string, dtype, model, dtype, "f32 or f64.")                                                         \
  X(std::string, target, cluster, target,                                                                    \
    "Devices that the plan is made for: cpu, a100, h100, h200; left out: h100 for --device=cuda, else cpu.") \
  X(double, link_gbytes_per_second, cluster, link_gbytes_per_second,                                         \
    "Bandwidth of a device to others of its node; left out: the target's.")                                  \
  X(double, link_microseconds, cluster, link_microseconds,                                                   \
    "Time of a message inside a node; left out: the target's.")                                              \
  X(double, node_gbytes_per_second, cluster, node_gbytes_per_second,                                         \
    "Bandwidth of a device to other nodes; left out: the target's.")                                         \
  X(double, node_microseconds, cluster, node_microseconds,                                                   \
    "Time of a message between nodes; left out: the target's.")                                              \
  X(std::string, data_path, train, data_path, "Plain text; left out: the text that setup.sh makes.")         \
  X(double, held_out_fraction, train, held_out_fraction,                                                     \
    "Share of the text, from its end, kept for evaluation.")                                                 \
  X(int64_t, train_iters, train, train_iters, "Steps.")                                                      \
  X(int64_t, global_batch_size, train, global_batch_size, "Samples per step.")                               \
  X(int64_t, micro_batch_size, train, micro_batch_size, "Samples per microbatch and data-parallel rank.")    \
  X(double, lr, train, lr, "Peak learning rate.")                                                            \
  X(double, min_lr, train, min_lr, "Learning rate at the end.")                                              \
  X(int64_t, lr_warmup_iters, train, lr_warmup_iters, "Steps of linear warm-up.")                            \
  X(double, weight_decay, train, weight_decay, "Decoupled weight decay.")                                    \
  X(double, adam_beta1, train, adam_beta1, "Decay of the first moment.")                                     \
  X(double, adam_beta2, train, adam_beta2, "Decay of the second moment.")                                    \
  X(double, adam_eps, train, adam_eps, "Epsilon of AdamW.")                                                  \
  X(double, clip_grad, train, clip_grad, "Largest global gradient norm; 0: no clipping.")                    \
  X(uint64_t, seed, train, seed, "Seed of initial weights and of the data order.")                           \
  X(double, initial_loss_scale, train, initial_loss_scale, "With --fp16: the first loss scale.")             \
  X(double, min_loss_scale, train, min_loss_scale, "With --fp16: the least loss scale.")                     \
  X(int64_t, loss_scale_window, train, loss_scale_window,                                                    \
    "With --fp16: finite steps in a row after which the loss scale doubles.")                                \
  X(int64_t, hysteresis, train, hysteresis, "With --fp16: non-finite steps before the loss scale halves.")   \
  X(int64_t, log_interval, train, log_interval, "Steps between progress lines.")                             \
  X(int64_t, eval_interval, train, eval_interval, "Steps between evaluations; 0: at the end only.")          \
  X(int64_t, eval_samples, train, eval_samples, "Held-out samples per evaluation; 0: all.")                  \
  X(int64_t, save_interval, train, save_interval, "Steps between checkpoints; 0: at the end only.")          \
  X(int64_t, max_consecutive_skips, train, max_consecutive_skips,                                            \
    "Non-finite steps in a row that stop the run.")                                                          \
  X(std::string, length_buckets, train, length_buckets,                                                      \
    "Lengths as in 64,128,256: samples are lines of the text, each padded to the shortest that holds it; a " \
    "plan is compiled for each. Empty: windows of seq_length.")                                              \
  X(int64_t, micro_batch_interval, train, micro_batch_interval,                                              \
    "Steps between rounds of measuring, with --adaptive_micro_batch_size; 0: one round.")                    \
  X(std::string, device, train, device, "Where the ranks live: cpu or cuda; left out: as --target says.")    \
  X(std::string, run_dir, train, run_dir, "Folder of the run; left out: runs/<date-time>.")                  \
  X(std::string, resume, train, resume,                                                                      \
    "A run, or a checkpoint of one: go on there, with its configuration. See docs/runs.md.")

// flag, part of RunConfig, its field, help. Apart, because --flag and --noflag work for plain bools only.
#define MOE_SWITCH_FLAGS(X)                                                                  \
  X(norm_topk_prob, model, norm_topk_prob, "Renormalise the chosen probabilities to sum 1.") \
  X(tie_embeddings, model, tie_embeddings, "The head shares the embedding's weights.")       \
  X(allow_shorter_sequences, train, allow_shorter_sequences,                                 \
    "Halve the sequence where no micro_batch_size fits the memory limit.")                   \
  X(adaptive_micro_batch_size, train, adaptive_micro_batch_size,                             \
    "Measure several microbatch sizes while training, and keep the fastest.")                \
  X(cudnn_attention, train, cudnn_attention,                                                 \
    "With --device=cuda: attention by cuDNN's kernels where they compute the same.")         \
  X(tf32, train, tf32,                                                                       \
    "With --device=cuda: dense products of f32 may round their operands to TF32, of 10 bits of mantissa.")

#define MOE_DEFINE(type, flag, part, field, help) \
  static int updates_of_##flag = 0;               \
  ABSL_FLAG(absl::optional<type>, flag, absl::nullopt, help).MOE_COUNT(flag);
MOE_VALUE_FLAGS(MOE_DEFINE)
#undef MOE_DEFINE

#define MOE_DEFINE(flag, part, field, help) \
  static int updates_of_##flag = 0;         \
  ABSL_FLAG(bool, flag, false, help " (If not given: as configured.)").MOE_COUNT(flag);
MOE_SWITCH_FLAGS(MOE_DEFINE)
#undef MOE_DEFINE
#undef MOE_COUNT

namespace moe::train {
namespace {

using ::absl::flags_internal::FlagFastTypeId;
using ::absl::flags_internal::FlagSettingMode;
using ::absl::flags_internal::FlagStateInterface;
using ::absl::flags_internal::ValueSource;

// A flag of a strategy word. ABSL_FLAG wants a variable each; these are made by the table. What is given is
// read with the whole strategy, so that all that is wrong is told at once.
class WordFlag final : public absl::CommandLineFlag {
 public:
  WordFlag(const strategy::Word& word, const strategy::Word::FlagOf& flag) : word_(word), flag_(flag) {}

  absl::string_view Name() const override { return flag_.name; }
  std::string Filename() const override { return __FILE__; }
  std::string Help() const override {
    return absl::StrCat(word_.help, is_switch() ? "" : absl::StrCat(" (", word_.legal, ")"),
                        flag_.value.empty() ? "" : absl::StrCat(": ", flag_.value),
                        ". If not given: as configured.");
  }
  std::string DefaultValue() const override { return ""; }
  std::string CurrentValue() const override { return given_.value_or(""); }

  // As a word of the strategy's text; "" if it was not given. Error: what a text cannot hold.
  absl::StatusOr<std::string> Spelled() const {
    if (!given_) return std::string();
    if (flag_.value.empty()) {
      // A list may have its commas; elsewhere they separate words.
      const std::string value = word_.is_list ? absl::StrReplaceAll(*given_, {{",", ":"}}) : *given_;
      if (value.find_first_of(", \t\n") != std::string::npos) {
        return absl::InvalidArgumentError(
            absl::StrCat("--", flag_.name, "='", *given_, "': values have no spaces and no commas"));
      }
      return word_.Spell(value);
    }
    return absl::StrCat(*given_ == "true" ? "" : "no_", flag_.value);
  }

 private:
  bool is_switch() const { return word_.is_switch || !flag_.value.empty(); }

  bool ParseFrom(absl::string_view value, FlagSettingMode, ValueSource, std::string& error) override {
    bool on = false;
    if (is_switch() && !absl::SimpleAtob(value, &on)) {
      error = absl::StrCat("'", value, "' is neither true nor false");
      return false;
    }
    given_ = is_switch() ? on ? "true" : "false" : std::string(value);
    return true;
  }
  FlagFastTypeId TypeId() const override {
    return is_switch() ? absl::base_internal::FastTypeId<bool>()
                       : absl::base_internal::FastTypeId<std::string>();
  }
  std::unique_ptr<FlagStateInterface> SaveState() override { return nullptr; }
  void Read(void* dst) const override {
    if (is_switch()) {
      *static_cast<bool*>(dst) = given_ == "true";
    } else {
      new (dst) std::string(CurrentValue());
    }
  }
  bool IsSpecifiedOnCommandLine() const override { return given_.has_value(); }
  bool ValidateInputValue(absl::string_view) const override { return true; }
  void CheckDefaultValueParsingRoundtrip() const override {}

  const strategy::Word& word_;
  const strategy::Word::FlagOf& flag_;
  std::optional<std::string> given_;
};

const std::vector<WordFlag*>& WordFlags() {
  static const std::vector<WordFlag*>& flags = *[] {
    auto* all = new std::vector<WordFlag*>;
    for (const strategy::Word& word : strategy::Words()) {
      for (const strategy::Word::FlagOf& flag : word.flags) {
        all->push_back(new WordFlag(word, flag));
        absl::flags_internal::RegisterCommandLineFlag(*all->back(), __FILE__);
      }
    }
    return all;
  }();
  return flags;
}
// Before main parses any.
[[maybe_unused]] const size_t registered = WordFlags().size();

// Of a flag that was given. An optional flag takes the empty text as no value.
template <typename T>
absl::StatusOr<T> ValueOf(absl::string_view flag, const absl::optional<T>& value) {
  if (value || std::is_same_v<T, std::string>) return value.value_or(T());
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, "= is empty; give it a number, or leave it out"));
}

// What flags say of a batch stands over what a file says: of global_batch_size, micro_batch_size and the
// strategy's `microbatches`, two decide the third, so a file's gives way where flags name others.
void MakeRoomForBatch(bool microbatches, RunConfig& config) {
  const bool global = absl::GetFlag(FLAGS_global_batch_size).has_value();
  const bool micro = absl::GetFlag(FLAGS_micro_batch_size).has_value();
  if (microbatches && !micro) config.mutable_train()->clear_micro_batch_size();
  if (microbatches && micro && !global) config.mutable_train()->clear_global_batch_size();
  if (!micro || microbatches) return;
  std::vector<absl::string_view> words =
      absl::StrSplit(config.strategy(), absl::ByAnyChar(" ,\t\n"), absl::SkipEmpty());
  words.erase(std::remove_if(words.begin(), words.end(),
                             [](absl::string_view w) { return absl::StartsWith(w, "microbatches="); }),
              words.end());
  config.set_strategy(absl::StrJoin(words, " "));
}

}  // namespace

absl::StatusOr<RunConfig> RunConfigFromFlags(const RunConfig& base) {
  RunConfig config = base;
  if (updates_of_config > 1) {
    RETURN_IF_ERROR(Annotate(MergeRunConfigFile(absl::GetFlag(FLAGS_config), config), "--config"));
  }
  if (updates_of_model > 1) {
    const std::string path = absl::GetFlag(FLAGS_model);
    const absl::StatusOr<std::string> text = ReadFile(path, kMaxTextprotoBytes);
    RETURN_IF_ERROR(Annotate(text.status(), "--model"));
    config.clear_model();
    RETURN_IF_ERROR(Annotate(MergeTextproto(*text, path, *config.mutable_model()), "--model"));
  }
  bool microbatches = false;
  if (updates_of_strategy > 1) {
    const std::string words = absl::GetFlag(FLAGS_strategy);
    RETURN_IF_ERROR(Annotate(strategy::ParseStrategy(words).status(), "--strategy"));
    microbatches = strategy::ParseWords(words).Names("microbatches");
    config.set_strategy(words);
  }
  MakeRoomForBatch(microbatches, config);
  for (const WordFlag* flag : WordFlags()) {
    ASSIGN_OR_RETURN(const std::string word, flag->Spelled());
    if (!word.empty()) absl::StrAppend(config.mutable_strategy(), " ", word);
  }
#define MOE_OVERLAY(type, flag, part, field, help)                                         \
  if (updates_of_##flag > 1) {                                                             \
    ASSIGN_OR_RETURN(const type value, ValueOf<type>(#flag, absl::GetFlag(FLAGS_##flag))); \
    config.mutable_##part()->set_##field(value);                                           \
  }
  MOE_VALUE_FLAGS(MOE_OVERLAY)
#undef MOE_OVERLAY
#define MOE_OVERLAY(flag, part, field, help) \
  if (updates_of_##flag > 1) config.mutable_##part()->set_##field(absl::GetFlag(FLAGS_##flag));
  MOE_SWITCH_FLAGS(MOE_OVERLAY)
#undef MOE_OVERLAY
  const bool resumes = !absl::GetFlag(FLAGS_resume).value_or("").empty();
  if (resumes && !absl::GetFlag(FLAGS_run_dir)) config.mutable_train()->clear_run_dir();
  return ResolveRunConfig(std::move(config));
}

std::vector<std::string> RunConfigFlagNames() {
  std::vector<std::string> names;
#define MOE_NAME(type, flag, part, field, help) names.push_back(#flag);
  MOE_VALUE_FLAGS(MOE_NAME)
#undef MOE_NAME
#define MOE_NAME(flag, part, field, help) names.push_back(#flag);
  MOE_SWITCH_FLAGS(MOE_NAME)
#undef MOE_NAME
  for (const WordFlag* flag : WordFlags()) names.push_back(std::string(flag->Name()));
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace moe::train
