#include <cmath>
#include <limits>
#include <type_traits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/strategy/needs.h"
#include "moe/strategy/problems.h"
#include "moe/strategy/word.h"

namespace moe::strategy {
namespace {

// How the types of fields are written and read. Read gives false where the value is not legal; what more
// there is to say goes to `why`.

std::string Write(const Word& w, int64_t v) {
  return w.is_bytes && v > 0 ? ByteSizeToString(v) : absl::StrCat(v);
}
bool Read(const Word& w, absl::string_view text, int64_t* v, std::string*) {
  if (w.is_bytes) {
    const absl::StatusOr<int64_t> bytes = text == "0" ? 0 : ParseByteSize(text);
    *v = bytes.value_or(-1);
    return bytes.ok() && *v >= w.least;
  }
  return absl::SimpleAtoi(text, v) && *v >= w.least && *v <= w.most;
}

std::string Write(const Word&, bool v) { return v ? "true" : "false"; }
bool Read(const Word&, absl::string_view text, bool* v, std::string*) { return absl::SimpleAtob(text, v); }

std::string Write(const Word&, double v) {
  const std::string shortest = absl::StrCat(v);
  double again = 0;
  return absl::SimpleAtod(shortest, &again) && again == v ? shortest : absl::StrFormat("%.17g", v);
}
bool Read(const Word&, absl::string_view text, double* v, std::string*) {
  return absl::SimpleAtod(text, v) && std::isfinite(*v) && *v >= 0;
}

std::string Write(const Word&, const std::vector<int64_t>& v) { return absl::StrJoin(v, ":"); }
bool Read(const Word&, absl::string_view text, std::vector<int64_t>* v, std::string* why) {
  absl::StatusOr<std::vector<int64_t>> map = ParseExpertMap(text);
  if (map.ok()) *v = *std::move(map);
  *why = std::string(map.status().message());
  return map.ok();
}

std::string Write(const Word&, const ScheduleChoice& v) { return v.ToString(); }
bool Read(const Word&, absl::string_view text, ScheduleChoice* v, std::string*) {
  constexpr absl::string_view kPrefix = "file:";
  if (absl::StartsWith(text, kPrefix) && text.size() > kPrefix.size()) {
    *v = ScheduleChoice(ScheduleKind::kFile, std::string(text.substr(kPrefix.size())));
    return true;
  }
  return ParseChoice(text, &v->kind) && v->kind != ScheduleKind::kFile;
}

std::string Write(const Word&, const CheckpointPolicy& v) { return v.ToString(); }
bool Read(const Word&, absl::string_view text, CheckpointPolicy* v, std::string* why) {
  absl::StatusOr<CheckpointPolicy> policy = ParseCheckpointPolicy(text);
  if (policy.ok()) *v = *std::move(policy);
  *why = std::string(policy.status().message());
  return policy.ok();
}

template <typename E>
requires std::is_enum_v<E> std::string Write(const Word&, E v) { return std::string(Name(v)); }
template <typename E>
requires std::is_enum_v<E>
bool Read(const Word&, absl::string_view text, E* v, std::string*) { return ParseChoice(text, v); }

template <typename T>
std::string LegalOf() {
  if constexpr (std::is_enum_v<T>) return JoinNames(NamesOf<T>());
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_same_v<T, double>) return "0 or a positive number";
  if constexpr (std::is_same_v<T, std::vector<int64_t>>) return "experts and -1, separated by ':'";
  if constexpr (std::is_same_v<T, CheckpointPolicy>) {
    return absl::StrCat(JoinNames(NamesOf<CheckpointMode>()), ", or ops joined by '+'");
  }
  if constexpr (std::is_same_v<T, ScheduleChoice>) {
    return absl::StrCat(JoinNames(NamesOf<ScheduleKind>()), ":PATH");
  }
  return "";
}

// A row before its setters.
template <typename T>
Word Row(absl::string_view field, T Strategy::*member) {
  Word w;
  w.Named(field).Flag(field);
  w.is_switch = std::is_same_v<T, bool>;
  w.is_list = std::is_same_v<T, std::vector<int64_t>>;
  w.legal = LegalOf<T>();
  w.write = [member](const Word& word, const Strategy& s) { return Write(word, s.*member); };
  w.read = [member](const Word& word, absl::string_view text, Strategy& s) -> std::optional<std::string> {
    T value{};
    std::string why;
    if (!Read(word, text, &value, &why)) return why;
    s.*member = value;
    return std::nullopt;
  };
  w.copy = [member](const Strategy& from, Strategy& to) { to.*member = from.*member; };
  return w;
}

std::vector<Word> MakeWords() {
  std::vector<Word> words;
#define WORD(type, field, initial, ...) words.push_back(Row(#field, &Strategy::field) __VA_ARGS__);
#include "moe/strategy/words.inc"
  return words;
}

}  // namespace

// clang-format off
#define CHOICE(type)                          \
  template <>                                 \
  absl::Span<const ChoiceName> NamesOf<type>() { \
    static constexpr ChoiceName names[] = {
#define NAME(value, ...) {__VA_ARGS__},
#define END_CHOICE \
    };             \
    return names;  \
  }
#include "moe/strategy/words.inc"
// clang-format on

std::string JoinNames(absl::Span<const ChoiceName> names) {
  return absl::StrJoin(names, ", ",
                       [](std::string* out, const ChoiceName& n) { absl::StrAppend(out, n.text); });
}

Word& Word::Range(int64_t from, int64_t to) {
  least = from, most = to;
  const std::string initial = Value(Strategy());
  int64_t n = 0;
  const bool outside = !absl::SimpleAtoi(initial, &n) || n < from || n > to;
  if (to - from > 8) {
    legal = absl::StrCat(outside ? initial + ", or " : "", from, " to ", to);
    return *this;
  }
  std::vector<int64_t> all;
  for (int64_t i = from; i <= to; ++i) all.push_back(i);
  legal = absl::StrJoin(all, ", ");
  return *this;
}

Word& Word::Bytes(int64_t from) {
  Range(from, std::numeric_limits<int64_t>::max());
  is_bytes = true;
  legal = absl::StrCat(Value(Strategy()), from == 0 ? ", 0" : "",
                       ", or a number of bytes, as 1048576, 512KiB, 38.5MiB, 80GiB");
  return *this;
}

std::optional<std::string> Word::Set(absl::string_view text, Strategy& s) const {
  if (text != Value(Strategy())) return read(*this, text, s);
  Reset(s);
  return std::nullopt;
}

std::string Word::Spell(absl::string_view value) const {
  if (is_switch) return absl::StrCat(value == "true" ? "" : "no_", name);
  if (is_bare && value != this->Value(Strategy())) return std::string(value);
  return absl::StrCat(name, "=", value);
}

std::string Word::FlagFor(const Strategy& s) const {
  const std::string value = Value(s);
  for (const FlagOf& f : flags) {
    if (is_switch) return absl::StrCat("--", value == "true" ? "" : "no", f.name);
    if (!is_bare) return absl::StrCat("--", f.name, "=", value);
    if (f.value == value) return absl::StrCat("--", f.name);
  }
  // A choice among switches, of which none is on.
  return absl::StrJoin(flags, " ",
                       [](std::string* out, const FlagOf& f) { absl::StrAppend(out, "--no", f.name); });
}

bool Word::HasFeature(const FeatureOf& feature, const Strategy& s) const {
  if (feature.has != nullptr) return feature.has(s);
  const bool has = feature.value.empty() ? !IsDefault(s) : Value(s) == feature.value;
  return has && (wants.empty() || !FindWord(wants)->IsDefault(s));
}

const std::vector<Word>& Words() {
  static const std::vector<Word>& words = *new std::vector<Word>(MakeWords());
  return words;
}

const Word* FindWord(absl::string_view name) {
  for (const Word& w : Words()) {
    if (w.name == name) return &w;
  }
  return nullptr;
}

bool Rounds(const Strategy& s) {
  for (const Word& w : Words()) {
    if (w.rounds && !w.IsDefault(s)) return true;
  }
  return false;
}

}  // namespace moe::strategy
