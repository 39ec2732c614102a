// Strategy: how a model is spread over ranks, in the field's words.
//
//   ASSIGN_OR_RETURN(strategy::Strategy s, strategy::ParseStrategy("pp=2 dp=2 tp=2 ep=4 sp zero=1"));
//   s.ToString();                                    // the same words again
//   if (s.dispatcher == strategy::Dispatcher::kAuto) ...
//
// Each field is a word, and each word a row of words.inc, which docs/strategy.md shows; what rows know is in
// word.h. Plain data and pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/strategy/checkpoint_policy.h"
#include "moe/strategy/choices.h"

namespace moe::strategy {

// A schedule by its kind, or the table in a file.
struct ScheduleChoice {
  ScheduleChoice(ScheduleKind kind = ScheduleKind::k1F1B, std::string path = "")  // NOLINT: a kind is one
      : kind(kind), path(std::move(path)) {}
  std::string ToString() const;  // "zb-h1", "file:PATH"

  ScheduleKind kind;
  std::string path;  // of kFile
};

struct Strategy {
#define WORD(type, field, initial, ...) type field = initial;
#include "moe/strategy/words.inc"

  int64_t stage_ranks() const { return dp * cp * tp; }
  int64_t world() const { return pp * stage_ranks(); }
  int64_t edp() const { return stage_ranks() / (ep * etp); }
  int64_t expert_zero_stage() const { return expert_zero < 0 ? zero : expert_zero; }
  // The words that differ from their defaults, in the order of the table; "dp=1" where none does.
  std::string ToString() const;
};

// The inverse of ToString; words are separated by spaces or commas, and of one that stands twice the last
// counts. InvalidArgument with every word that is unknown or has a value that is not legal, and what is.
absl::StatusOr<Strategy> ParseStrategy(absl::string_view text);

// What depends on other words: dp = 0 becomes what world_size leaves, or 1; etp = 0 becomes tp, or 1 without
// experts, where ep is 1, too.
void Resolve(bool experts, Strategy& s);

// Of the text of a strategy; each word has the bounds of its row in words.inc.
inline constexpr int64_t kMaxStrategyBytes = int64_t{4} << 20;
inline constexpr int64_t kMaxExpertSlots = int64_t{1} << 20;

// "1048576", "512KiB", "38.5MiB", "80GiB", and the inverse in the largest unit that is exact.
absl::StatusOr<int64_t> ParseByteSize(absl::string_view text);
std::string ByteSizeToString(int64_t bytes);

// "0,1,2,-1", with commas or colons, as numbers.
absl::StatusOr<std::vector<int64_t>> ParseExpertMap(absl::string_view text);
// Slots that so many experts are stored in: expert_slots, or as many as expert_map has, or one for each.
int64_t SlotsOf(const Strategy& s, int64_t experts);
// Slot -> expert as the strategy has it for so many experts: expert_map, or the experts spread evenly over
// expert_slots. Error: slots that ep does not divide or that are too few, a map of another length, an entry
// that is not an expert, an expert without a slot.
absl::StatusOr<std::vector<int64_t>> ExpertMapOf(const Strategy& s, int64_t experts);

}  // namespace moe::strategy
