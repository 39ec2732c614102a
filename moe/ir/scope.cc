#include "moe/ir/scope.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace moe {

Scope ParseScope(absl::string_view scope) {
  const auto is = [&](absl::string_view name) {
    return scope == name || (absl::StartsWith(scope, name) && scope[name.size()] == '.');
  };
  Scope out;
  out.layer_text = out.part = scope;
  if (is("embedding")) out.kind = Scope::kEmbedding;
  if (is("head")) out.kind = Scope::kHead;
  absl::string_view rest = scope;
  if (!absl::ConsumePrefix(&rest, "layers.")) return out;
  const absl::string_view number = rest.substr(0, rest.find('.'));
  int layer = -1;
  if (!absl::SimpleAtoi(number, &layer) || layer < 0) return out;
  out.kind = Scope::kLayer;
  out.layer = layer;
  out.layer_text = scope.substr(0, scope.size() - rest.size() + number.size());
  out.part = number.size() < rest.size() ? rest.substr(number.size() + 1) : absl::string_view();
  return out;
}

}  // namespace moe
