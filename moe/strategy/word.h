// Word: what is known of one word of a strategy, and Words(), the table of all of them. A row of words.inc is
// a chain of the setters below.
//
//   for (const Word& w : Words()) std::cout << w.name << " " << w.legal << ": " << w.help << "\n";
//   if (const Word* w = FindWord("zero")) w->Set("2", s);
//
// Everything that goes over all words visits this table: the parser and printer of strategy.h, the flags of
// the trainer, the checks (problems.h), the search for the nearest legal strategy (nearest.h), the covering
// array and the table of what composes (moe/testing), and the page docs/strategy.md.
//
// The table is made once and immutable afterwards; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "moe/strategy/strategy.h"

namespace moe::strategy {

struct Facts;  // problems.h
class Report;

inline constexpr int64_t kMaxDegree = int64_t{1} << 20;

struct Word {
  // A flag sets the word to its value; one with a value of its own is a switch between that and the default.
  struct FlagOf {
    std::string name, value;
  };
  // Something to be tested together with everything else: one value of the word, or ("") any but its default,
  // and a value of the word that this one wants; or what `has` says.
  struct FeatureOf {
    std::string name, value;
    bool (*has)(const Strategy&) = nullptr;
  };

  std::string name;  // in the text of a strategy
  std::string help;
  std::string see;    // where the docs say more
  std::string legal;  // "1 to 1048576", "auto, gather, ring", "on or off"
  std::vector<FlagOf> flags;
  bool is_switch = false;  // "sp", "no_sp", without a value
  bool is_bare = false;    // a choice written by its value alone: "bf16"
  bool is_bytes = false;
  bool is_list = false;          // numbers between ':'
  bool rounds = false;           // computes or sends narrower than the model
  int64_t least = 0, most = -1;  // of a number, whose default is legal besides; most < least: no number
  void (*needs)(const Strategy&, const Facts&, Report&) = nullptr;
  // For the covering array: words beside the default, and the word without which they do nothing.
  std::vector<std::string> tried;
  std::string wants;
  std::vector<FeatureOf> features;

  // How the field is written ("2", "on", "38.5MiB"; a switch is "true" or "false"), read and copied. Reading
  // gives what is wrong, besides not being legal; "" where there is nothing more to say.
  std::function<std::string(const Word&, const Strategy&)> write;
  std::function<std::optional<std::string>(const Word&, absl::string_view text, Strategy&)> read;
  std::function<void(const Strategy& from, Strategy& to)> copy;

  std::string Value(const Strategy& s) const { return write(*this, s); }
  // The default's own text sets it, also where it is not among the legal values.
  std::optional<std::string> Set(absl::string_view text, Strategy& s) const;
  void Reset(Strategy& s) const { copy(Strategy(), s); }
  bool IsDefault(const Strategy& s) const { return Value(s) == Value(Strategy()); }
  // The value as a word of the text: "tp=2", "sp", "no_kv_axis", "bf16".
  std::string Spell(absl::string_view value) const;
  // The flag that sets the value: "--zero_stage=1", "--nosequence_parallel".
  std::string FlagFor(const Strategy& s) const;
  bool HasFeature(const FeatureOf& feature, const Strategy& s) const;
  // Its name for messages about values: that of the flag, if there is one.
  const std::string& label() const { return is_bare || flags.empty() ? name : flags[0].name; }

  // Setters of rows. Without Flag or NoFlag, the flag has the field's name; without Named, so has the word.
  Word& Named(absl::string_view text) { return name = std::string(text), *this; }
  Word& Flag(absl::string_view flag) { return flags = {{std::string(flag), ""}}, *this; }
  Word& NoFlag() { return flags.clear(), *this; }
  Word& Range(int64_t from, int64_t to);
  Word& Bytes(int64_t from);
  Word& Bare(std::vector<FlagOf> switches) { return is_bare = true, flags = std::move(switches), *this; }
  Word& Help(absl::string_view text) { return help = std::string(text), *this; }
  Word& See(absl::string_view page) { return see = std::string(page), *this; }
  Word& Needs(void (*f)(const Strategy&, const Facts&, Report&)) { return needs = f, *this; }
  Word& Tried(std::vector<std::string> words, absl::string_view without = "") {
    return tried = std::move(words), wants = std::string(without), *this;
  }
  Word& Rounds() { return rounds = true, *this; }
  Word& Feature(absl::string_view feature, absl::string_view of = "") {
    return features.push_back({std::string(feature), std::string(of)}), *this;
  }
  Word& Feature(absl::string_view feature, bool (*has)(const Strategy&)) {
    return features.push_back({std::string(feature), "", has}), *this;
  }
};

const std::vector<Word>& Words();
// By the name in the text; null if there is none.
const Word* FindWord(absl::string_view name);

// Whether some word makes the strategy round where the model does not.
bool Rounds(const Strategy& s);

// Something wrong with a strategy.
struct Problem {
  const Word* word = nullptr;  // null: an unknown word
  std::string what;            // the value, and what it violates
  std::string legal;           // "1, 2, 4, 8"; may be empty where `what` says it
  std::string written;         // as it stands in the text, of a word that could not be read
};

// Reads all that can be read; words with problems keep their defaults.
struct ParsedStrategy {
  Strategy strategy;
  std::vector<Problem> problems;
  std::vector<const Word*> named;  // that stand in the text, also with their defaults

  bool Names(absl::string_view word) const;
};
ParsedStrategy ParseWords(absl::string_view text);

}  // namespace moe::strategy
