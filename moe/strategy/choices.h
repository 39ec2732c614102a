// The choices among which words of a strategy take their values, as enums, and the names that text has for
// them (words.inc).
//
//   absl::string_view name = Name(Dispatcher::kAllGather);   // "allgather"
//   Dispatcher d;
//   if (ParseChoice("alltoall", &d)) std::cout << Name(d);   // NamesOf<Dispatcher>() has what is legal
//
// Pure functions.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace moe::strategy {

// clang-format off
#define CHOICE(type) enum class type {
#define NAME(value, ...) value,
#define END_CHOICE };
#include "moe/strategy/words.inc"
// clang-format on

struct ChoiceName {
  absl::string_view text;
  absl::string_view also = "";  // read, but not written
};
// In the order of the values.
template <typename E>
absl::Span<const ChoiceName> NamesOf();
#define CHOICE(type) \
  template <>        \
  absl::Span<const ChoiceName> NamesOf<type>();
#define NAME(...)
#define END_CHOICE
#include "moe/strategy/words.inc"

template <typename E>
absl::string_view Name(E value) {
  return NamesOf<E>()[static_cast<int>(value)].text;
}
template <typename E>
bool ParseChoice(absl::string_view text, E* value) {
  const absl::Span<const ChoiceName> names = NamesOf<E>();
  for (size_t i = 0; i < names.size(); ++i) {
    if (text.empty() || (text != names[i].text && text != names[i].also)) continue;
    *value = static_cast<E>(i);
    return true;
  }
  return false;
}
// "auto, gather, ring"
std::string JoinNames(absl::Span<const ChoiceName> names);

}  // namespace moe::strategy
