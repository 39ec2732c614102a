// What is wrong with a strategy: every problem at once, each with what would be legal.
//
//   Facts facts;
//   facts.experts = 8, facts.layers = 4;
//   for (const Problem& p : Problems(s, facts)) std::cout << p.what << "\n  legal here: " << p.legal << "\n";
//
// Each word's row says what the word needs of other words and of the model (word.h); this visits the rows.
// Plain functions; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "moe/strategy/strategy.h"
#include "moe/strategy/word.h"

namespace moe::strategy {

inline constexpr int64_t kMaxSize = int64_t{1} << 31;

// What a strategy is for. Sizes that are 0 are not there, or are wrong themselves and told elsewhere.
struct Facts {
  int64_t layers = 0, heads = 0, kv_heads = 0, seq = 0;
  int64_t dense_ffn = 0, shared_ffn = 0;
  int64_t experts = 0, expert_ffn = 0;
  bool moe_layers = false;                         // experts without a layer that has them do not count
  bool f64 = false;                                // computes in f64
  bool global_aux_loss = false;                    // a sum over the microbatches so far
  int64_t global_batch = 1, micro_batch = 1;       // samples per step, and per microbatch and data rank
  std::string target_without_f8, targets_with_f8;  // "": whatever it is, it multiplies e4m3

  // Every size that the tensor ranks divide, with the field of the model.
  std::vector<std::pair<absl::string_view, int64_t>> OfTensor() const {
    return {{"num_attention_heads", heads},
            {"ffn_hidden_size", dense_ffn},
            {"shared_expert_ffn_hidden_size", shared_ffn}};
  }
};

// Collects problems of one word after the other.
class Report {
 public:
  template <typename... Parts>
  Problem& Add(const Parts&... parts) {
    return problems_.emplace_back(Problem{word_, absl::StrCat(parts...), "", ""});
  }
  // Hybrid sharding: `part` of the `all` data ranks share one copy of a state, if that is sharded at all.
  void AddPart(absl::string_view flag, int64_t part, absl::string_view ranks, int64_t all, bool sharded);
  void SetWord(const Word* word) { word_ = word; }
  std::vector<Problem> Take() { return std::move(problems_); }

 private:
  const Word* word_ = nullptr;
  std::vector<Problem> problems_;
};

// Resolves the strategy first (Resolve of strategy.h).
std::vector<Problem> Problems(Strategy s, const Facts& facts);

// Microbatches of a step: global_batch / (micro_batch x dp); 0 if that is not a whole number.
int64_t MicrobatchesOf(const Strategy& s, const Facts& facts);

}  // namespace moe::strategy
