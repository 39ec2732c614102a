#include "moe/ir/rule.h"

#include <algorithm>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "moe/base/status.h"

namespace moe {
namespace {

absl::Status ParseSide(absl::string_view side, ShardingRule* rule, std::vector<FactorTerm>* terms) {
  for (absl::string_view term : absl::StrSplit(side, ',')) {
    FactorTerm dims;
    FactorDim product;
    bool open = false;
    size_t i = 0;
    while (i < term.size()) {
      const char c = term[i];
      if (absl::ascii_isspace(c)) {
        ++i;
      } else if (c == '(') {
        if (open) return absl::InvalidArgumentError("nested '(' in a sharding rule");
        open = true;
        product.clear();
        ++i;
      } else if (c == ')') {
        if (!open || product.empty()) return absl::InvalidArgumentError("stray ')' in a sharding rule");
        open = false;
        dims.push_back(product);
        ++i;
      } else if (absl::ascii_isalnum(c) || c == '_') {
        size_t j = i;
        while (j < term.size() && (absl::ascii_isalnum(term[j]) || term[j] == '_')) ++j;
        const std::string name(term.substr(i, j - i));
        int f = rule->Find(name);
        if (f < 0) {
          if (rule->factors.size() >= 100)
            return absl::InvalidArgumentError("more than 100 factors in a sharding rule");
          f = rule->num_factors();
          rule->factors.push_back(name);
          rule->fixed.push_back(false);
        }
        if (j < term.size() && term[j] == '!') {
          rule->fixed[f] = true;
          ++j;
        }
        if (open) {
          product.push_back(static_cast<FactorId>(f));
        } else {
          dims.push_back(FactorDim{static_cast<FactorId>(f)});
        }
        i = j;
      } else {
        return absl::InvalidArgumentError(
            absl::StrCat("unexpected '", std::string(1, c), "' in a sharding rule"));
      }
    }
    if (open) return absl::InvalidArgumentError("missing ')' in a sharding rule");
    terms->push_back(std::move(dims));
  }
  return absl::OkStatus();
}

bool Contains(const FactorTerm& term, FactorId f) {
  return std::any_of(term.begin(), term.end(),
                     [f](const FactorDim& d) { return std::find(d.begin(), d.end(), f) != d.end(); });
}

}  // namespace

absl::StatusOr<ShardingRule> ShardingRule::Parse(absl::string_view text) {
  const std::vector<absl::string_view> sides = absl::StrSplit(text, "->");
  if (sides.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat("a sharding rule has one '->': '", text, "'"));
  }
  ShardingRule rule;
  absl::Status status = ParseSide(sides[0], &rule, &rule.operands);
  if (status.ok()) status = ParseSide(sides[1], &rule, &rule.results);
  if (!status.ok()) return Annotate(status, absl::StrCat("'", text, "'"));
  return rule;
}

int ShardingRule::Find(absl::string_view factor) const {
  for (size_t i = 0; i < factors.size(); ++i) {
    if (factors[i] == factor) return static_cast<int>(i);
  }
  return -1;
}

bool ShardingRule::InOperands(FactorId f) const {
  return std::any_of(operands.begin(), operands.end(), [f](const FactorTerm& t) { return Contains(t, f); });
}

bool ShardingRule::InResult(int result, FactorId f) const { return Contains(results[result], f); }

std::string ShardingRule::ToString() const {
  std::string s;
  auto side = [&](const std::vector<FactorTerm>& terms) {
    for (size_t i = 0; i < terms.size(); ++i) {
      if (i) s += ", ";
      for (size_t d = 0; d < terms[i].size(); ++d) {
        if (d) s += " ";
        const FactorDim& dim = terms[i][d];
        if (dim.size() != 1) s += "(";
        for (size_t k = 0; k < dim.size(); ++k) {
          absl::StrAppend(&s, k ? " " : "", factors[dim[k]], fixed[dim[k]] ? "!" : "");
        }
        if (dim.size() != 1) s += ")";
      }
    }
  };
  side(operands);
  s += " -> ";
  side(results);
  return s;
}

absl::StatusOr<const ShardingRule*> InternRule(absl::string_view text) {
  static absl::Mutex mutex(absl::kConstInit);
  static auto& rules = *new std::map<std::string, std::unique_ptr<ShardingRule>, std::less<>>;
  absl::MutexLock lock(&mutex);
  auto it = rules.find(text);
  if (it == rules.end()) {
    ASSIGN_OR_RETURN(ShardingRule rule, ShardingRule::Parse(text));
    it = rules.emplace(std::string(text), std::make_unique<ShardingRule>(std::move(rule))).first;
  }
  return it->second.get();
}

}  // namespace moe
