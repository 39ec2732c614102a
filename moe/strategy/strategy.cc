#include "moe/strategy/strategy.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/ir/stored_rows.h"
#include "moe/strategy/word.h"

namespace moe::strategy {
namespace {

constexpr std::pair<absl::string_view, int> kByteUnits[] = {{"GiB", 30}, {"MiB", 20}, {"KiB", 10}};

// The word that a part of the text without '=' is about, and its value; null if there is none. Switches are
// written "sp" and "no_sp"; of a bare choice, its values, and "no_bf16" for whatever else it is.
const Word* FindBare(absl::string_view text, const Strategy& s, std::string* value) {
  const bool off = absl::ConsumePrefix(&text, "no_");
  for (const Word& w : Words()) {
    if (w.is_switch && w.name == text) return *value = off ? "false" : "true", &w;
    Strategy read;
    if (!w.is_bare || w.read(w, text, read)) continue;
    *value = w.Value(read);
    if (off) *value = w.Value(*value == w.Value(s) ? Strategy() : s);
    return &w;
  }
  return nullptr;
}

std::string UnknownWord() {
  std::vector<std::string> known;
  for (const Word& w : Words()) {
    if (!w.is_bare) {
      known.push_back(w.is_switch ? w.name : w.name + "=");
      continue;
    }
    for (const Word::FlagOf& f : w.flags) known.push_back(f.value);
  }
  return absl::StrJoin(known, " ");
}

}  // namespace

std::string ScheduleChoice::ToString() const {
  return kind == ScheduleKind::kFile ? absl::StrCat("file:", path) : std::string(Name(kind));
}

std::string Strategy::ToString() const {
  std::vector<std::string> words;
  for (const Word& w : Words()) {
    if (!w.IsDefault(*this)) words.push_back(w.Spell(w.Value(*this)));
  }
  return words.empty() ? "dp=1" : absl::StrJoin(words, " ");
}

bool ParsedStrategy::Names(absl::string_view word) const {
  return std::any_of(named.begin(), named.end(), [&](const Word* w) { return w->name == word; });
}

ParsedStrategy ParseWords(absl::string_view text) {
  ParsedStrategy out;
  if (static_cast<int64_t>(text.size()) > kMaxStrategyBytes) {
    out.problems.push_back(
        {nullptr, absl::StrCat("a text of ", text.size(), " bytes; at most ", kMaxStrategyBytes, " are read"),
         UnknownWord(), ""});
    return out;
  }
  Strategy& s = out.strategy;
  for (absl::string_view part : absl::StrSplit(text, absl::ByAnyChar(" ,\t\n"), absl::SkipEmpty())) {
    const std::string written(part);
    std::pair<std::string, std::string> pair = absl::StrSplit(part, absl::MaxSplits('=', 1));
    auto& [key, value] = pair;
    const Word* w = FindWord(key);
    if (key == written) w = FindBare(part, s, &value);
    if (w == nullptr) {
      out.problems.push_back(
          {nullptr, absl::StrCat("unknown word '", written.substr(0, 80), "'"), UnknownWord(), written});
      continue;
    }
    out.named.push_back(w);
    if (w->is_bare && key == written && !w->IsDefault(s) && value != w->Value(s) &&
        value != w->Value(Strategy())) {
      out.problems.push_back(
          {w, absl::StrCat(w->Value(s), " and ", value, " at once"), "one of them, or neither", written});
      continue;
    }
    if (const std::optional<std::string> why = w->Set(value, s)) {
      double number;
      const char* quote = absl::SimpleAtod(value, &number) ? "" : "'";
      out.problems.push_back(
          {w, absl::StrCat(w->label(), " = ", quote, value, quote, why->empty() ? "" : ": ", *why), w->legal,
           written});
    }
  }
  return out;
}

absl::StatusOr<Strategy> ParseStrategy(absl::string_view text) {
  const ParsedStrategy parsed = ParseWords(text);
  if (parsed.problems.empty()) return parsed.strategy;
  std::vector<std::string> problems;
  for (const Problem& p : parsed.problems) {
    problems.push_back(p.word == nullptr
                           ? absl::StrCat(p.what, "; known: ", p.legal)
                           : absl::StrCat("'", p.written, "': ", p.what, "; legal is ", p.legal));
  }
  return absl::InvalidArgumentError(absl::StrCat("strategy: ", absl::StrJoin(problems, "\n")));
}

void Resolve(bool experts, Strategy& s) {
  if (!experts) s.ep = 1;  // a default meant for another model must not stand in a dense one's way
  if (s.etp == 0) s.etp = experts ? std::max<int64_t>(1, s.tp) : 1;
  if (s.dp == 0) {
    int64_t others = 1;
    const bool fits = !__builtin_mul_overflow(s.pp, s.cp, &others) &&
                      !__builtin_mul_overflow(others, s.tp, &others) && others > 0;
    s.dp = fits && s.world_size >= others ? s.world_size / others : 1;
  }
}

absl::StatusOr<int64_t> ParseByteSize(absl::string_view text) {
  int shift = 0;
  absl::string_view number = text;
  for (const auto& [unit, bits] : kByteUnits) {
    if (absl::ConsumeSuffix(&number, unit)) shift = bits;
  }
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !(value > 0) || std::ldexp(value, shift) >= std::ldexp(1.0, 62)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a number of bytes; legal is 1048576, 512KiB, 38.5MiB, 80GiB"));
  }
  return static_cast<int64_t>(std::ldexp(value, shift));
}

std::string ByteSizeToString(int64_t bytes) {
  for (const auto& [unit, bits] : kByteUnits) {
    if (bytes != 0 && bytes % (int64_t{1} << bits) == 0) return absl::StrCat(bytes >> bits, unit);
  }
  return absl::StrCat(bytes);
}

absl::StatusOr<std::vector<int64_t>> ParseExpertMap(absl::string_view text) {
  std::vector<int64_t> map;
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(",:"))) {
    int64_t expert;
    if (!absl::SimpleAtoi(word, &expert) || expert < -1) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert_map '", text, "': '", word,
                       "' is not an expert; legal are numbers from 0 on, and -1 "
                       "for an empty slot"));
    }
    map.push_back(expert);
    if (static_cast<int64_t>(map.size()) > kMaxExpertSlots) {
      return absl::InvalidArgumentError(absl::StrCat("expert_map has more than ", kMaxExpertSlots, " slots"));
    }
  }
  return map;
}

int64_t SlotsOf(const Strategy& s, int64_t experts) {
  if (s.expert_slots > 0) return s.expert_slots;
  return s.expert_map.empty() ? experts : static_cast<int64_t>(s.expert_map.size());
}

absl::StatusOr<std::vector<int64_t>> ExpertMapOf(const Strategy& s, int64_t experts) {
  std::vector<int64_t> map = s.expert_map;
  const int64_t slots = SlotsOf(s, experts);
  if (slots < experts || slots > kMaxExpertSlots) {
    return absl::InvalidArgumentError(absl::StrCat(slots, " expert slots for ", experts,
                                                   " experts; legal are ", experts, " to ", kMaxExpertSlots,
                                                   ", in multiples of ep = ", s.ep));
  }
  if (slots % s.ep != 0) {
    return absl::InvalidArgumentError(absl::StrCat(slots, " expert slots do not divide over ep = ", s.ep,
                                                   "; the next that do: ", (slots + s.ep - 1) / s.ep * s.ep));
  }
  if (map.empty()) {
    map.assign(slots, -1);
    for (int64_t e = 0; e < experts; ++e) map[e * slots / experts] = e;
  }
  if (static_cast<int64_t>(map.size()) != slots) {
    return absl::InvalidArgumentError(absl::StrCat("expert_map has ", map.size(), " entries for ", slots,
                                                   " expert slots; it needs one each"));
  }
  const std::string problem = ExpertMapProblem(map, experts);
  if (!problem.empty()) return absl::InvalidArgumentError(absl::StrCat("expert_map: ", problem));
  return map;
}

}  // namespace moe::strategy
