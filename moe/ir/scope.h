// What the scope of a node names: which part of the model it belongs to.
//
//   const Scope scope = ParseScope("layers.3.moe");  // of layer 3, whose scope is "layers.3": the part "moe"
//   if (scope.kind == Scope::kLayer) layers.insert(scope.layer);
//
// Points into the text that it was parsed from. Any thread.
#pragma once

#include "absl/strings/string_view.h"

namespace moe {

struct Scope {
  enum Kind { kOther, kEmbedding, kLayer, kHead };
  Kind kind = kOther;
  int layer = -1;                // of kLayer
  absl::string_view layer_text;  // "layers.3"; where there is no layer, the whole scope
  absl::string_view part;        // "moe", empty in "layers.3"; where there is no layer, the whole scope
};
// "embedding", "layers.<number>" and "head", each alone or with ".<part>" behind it. All else is kOther.
Scope ParseScope(absl::string_view scope);

}  // namespace moe
