#include "moe/testing/check_lines.h"

#include <map>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"

namespace moe::testing {
namespace {

enum class Kind { kCheck, kNext, kNot };

struct Expectation {
  Kind kind;
  std::string pattern;
  int line;  // of the text that holds it
};

absl::StatusOr<std::vector<Expectation>> ReadExpectations(absl::string_view text) {
  std::vector<Expectation> out;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (!absl::ConsumePrefix(&line, "//")) continue;
    line = absl::StripAsciiWhitespace(line);
    if (!absl::ConsumePrefix(&line, "CHECK")) continue;
    const Kind kind = absl::ConsumePrefix(&line, "-NEXT")  ? Kind::kNext
                      : absl::ConsumePrefix(&line, "-NOT") ? Kind::kNot
                                                           : Kind::kCheck;
    const bool colon = absl::ConsumePrefix(&line, ":");
    line = absl::StripAsciiWhitespace(line);
    if (!colon || line.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": write CHECK: text, CHECK-NEXT: text or CHECK-NOT: text"));
    }
    if (kind == Kind::kNext && out.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": CHECK-NEXT before any CHECK"));
    }
    out.push_back({kind, std::string(line), number});
  }
  if (out.empty()) return absl::InvalidArgumentError("there is no CHECK line");
  return out;
}

std::string Escape(absl::string_view literal) {
  std::string out;
  for (const char c : literal) {
    if (absl::StrContains("\\^$.|?*+()[]{}", absl::string_view(&c, 1))) out += '\\';
    out += c;
  }
  return out;
}

int CountGroups(absl::string_view regex) {
  int groups = 0;
  for (size_t i = 0; i < regex.size(); ++i) {
    if (regex[i] == '\\') {
      ++i;
    } else if (regex[i] == '(' && regex.substr(i + 1, 1) != "?") {
      ++groups;
    }
  }
  return groups;
}

using Variables = std::map<std::string, std::string>;

struct Compiled {
  std::string regex;
  std::map<std::string, int> captures;  // variable -> group
};

absl::StatusOr<Compiled> Compile(absl::string_view pattern, const Variables& variables) {
  Compiled out;
  int groups = 0;
  while (!pattern.empty()) {
    if (absl::ConsumePrefix(&pattern, "[[")) {
      size_t end = pattern.find("]]");
      if (end == absl::string_view::npos) return absl::InvalidArgumentError("[[ without ]]");
      while (pattern.substr(end + 2, 1) == "]") ++end;  // [[X:[a-z]]]: the expression ends in a bracket
      const std::vector<std::string> parts = absl::StrSplit(pattern.substr(0, end), absl::MaxSplits(':', 1));
      pattern.remove_prefix(end + 2);
      const std::string& name = parts[0];
      if (parts.size() == 2) {
        absl::StrAppend(&out.regex, "(", parts[1], ")");
        out.captures[name] = ++groups;
        groups += CountGroups(parts[1]);
      } else if (const auto it = out.captures.find(name); it != out.captures.end()) {
        absl::StrAppend(&out.regex, "(?:\\", it->second, ")");
      } else if (const auto known = variables.find(name); known != variables.end()) {
        absl::StrAppend(&out.regex, Escape(known->second));
        // A name goes on with word characters: %x must not match %x_1.
        if (pattern.empty() || !absl::StartsWith(pattern, "{{")) out.regex += "(?![A-Za-z0-9_.])";
      } else {
        return absl::InvalidArgumentError(absl::StrCat("[[", name, "]] has not been matched before"));
      }
    } else if (absl::ConsumePrefix(&pattern, "{{")) {
      const size_t end = pattern.find("}}");
      if (end == absl::string_view::npos) return absl::InvalidArgumentError("{{ without }}");
      absl::StrAppend(&out.regex, "(?:", pattern.substr(0, end), ")");
      groups += CountGroups(pattern.substr(0, end));
      pattern.remove_prefix(end + 2);
    } else if (absl::ascii_isspace(pattern[0])) {
      pattern = absl::StripLeadingAsciiWhitespace(pattern);
      out.regex += "\\s+";
    } else {
      out.regex += Escape(pattern.substr(0, 1));
      pattern.remove_prefix(1);
    }
  }
  return out;
}

// Does `line` contain the pattern? Takes what it captured into `variables`.
absl::StatusOr<bool> Matches(const Expectation& e, const std::string& line, Variables* variables) {
  ASSIGN_OR_RETURN(const Compiled compiled, Compile(e.pattern, *variables));
  try {  // std::regex throws on a malformed expression
    std::smatch match;
    if (!std::regex_search(line, match, std::regex(compiled.regex))) return false;
    for (const auto& [name, group] : compiled.captures) (*variables)[name] = match[group].str();
    return true;
  } catch (const std::regex_error& error) {
    return absl::InvalidArgumentError(absl::StrCat("malformed regular expression: ", error.what()));
  }
}

std::string Describe(const Expectation& e) {
  const char* kind = e.kind == Kind::kCheck ? "CHECK" : e.kind == Kind::kNext ? "CHECK-NEXT" : "CHECK-NOT";
  return absl::StrCat("line ", e.line, ": ", kind, ": ", e.pattern);
}

}  // namespace

absl::Status CheckLines(absl::string_view expectations, absl::string_view output) {
  ASSIGN_OR_RETURN(const std::vector<Expectation> all, ReadExpectations(expectations));
  const std::vector<std::string> lines = absl::StrSplit(output, '\n');
  Variables variables;
  const auto failure = [&](const Expectation& e, size_t line, absl::string_view what) {
    return absl::FailedPreconditionError(
        absl::StrCat(Describe(e), "\n", what, " line ", line + 1, " of the output:\n", output));
  };
  size_t next = 0;                          // first line not yet matched
  std::vector<const Expectation*> pending;  // CHECK-NOTs since the last match
  const auto check_not = [&](size_t begin, size_t end) -> absl::Status {
    for (const Expectation* e : pending) {
      for (size_t i = begin; i < end; ++i) {
        const absl::StatusOr<bool> found = Matches(*e, lines[i], &variables);
        if (!found.ok()) return Annotate(found.status(), Describe(*e));
        if (*found) return failure(*e, i, "was found in");
      }
    }
    pending.clear();
    return absl::OkStatus();
  };
  for (const Expectation& e : all) {
    if (e.kind == Kind::kNot) {
      pending.push_back(&e);
      continue;
    }
    const size_t start = next, end = e.kind == Kind::kNext ? std::min(next + 1, lines.size()) : lines.size();
    bool matched = false;
    for (size_t i = start; i < end && !matched; ++i) {
      Variables attempt = variables;
      const absl::StatusOr<bool> found = Matches(e, lines[i], &attempt);
      if (!found.ok()) return Annotate(found.status(), Describe(e));
      if (!*found) continue;
      RETURN_IF_ERROR(check_not(start, i));
      variables = std::move(attempt);
      matched = true;
      next = i + 1;
    }
    if (!matched) return failure(e, start, e.kind == Kind::kNext ? "is not in" : "was not found from");
  }
  return check_not(next, lines.size());
}

}  // namespace moe::testing
