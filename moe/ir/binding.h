// Binding: what an argument of a function reads, or where a result of a function goes.
//
//   Value w = f.AddArg("wq", type, {Binding::kState, "layers.0.wq"});
//   f.AddResult(y, {Binding::kBoundary, "act.0", /*peer=*/1});
//   if (w.node->binding.kind == Binding::kState) ...
//
// In the text form: %wq: f32[64] {kind = "state", name = "layers.0.wq"}. Plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace moe {

struct Binding {
  enum Kind : uint8_t {
    kNone,
    kState,     // reads the state of that name, or gives its new value (in the state's storage)
    kBatch,     // argument: tokens, labels, mask, positions of one microbatch of the data
    kScalar,    // argument: given by the host for every step: inv_tokens, learning_rate, bias1, bias2, ...
    kBoundary,  // crosses between chunks; the value comes from, or goes to, the chunk `peer`
    kResidual,  // crosses from @forward<c> to @backward<c>, from split-phases on
    kWeightResidual,  // crosses from @input_grad<c> to @weight_grad<c>, from split-backward on
    kFuture,          // an exchange in flight from one function to a later one, from overlap on
    kReport,          // result: a scalar or a small vector for the host, which sums those of one name
    kLoss,            // result, before autodiff: a scalar; the objective is the sum of all of them
  };

  Binding() = default;
  Binding(Kind kind, std::string name, int peer = -1) : kind(kind), name(std::move(name)), peer(peer) {}
  // To a state of that name.
  bool IsState() const { return kind == kState; }

  Kind kind = kNone;
  std::string name;
  int peer = -1;  // kBoundary: a chunk, -1 if not known
  friend bool operator==(const Binding&, const Binding&) = default;
};

// "state", "weight_residual"; empty for kNone.
absl::string_view BindingKindName(Binding::Kind kind);
// The kind of that name; none for kNone, which has no name.
std::optional<Binding::Kind> ParseBindingKind(absl::string_view name);
// Whether arguments, or results, may have bindings of this kind.
bool IsOfArguments(Binding::Kind kind);
bool IsOfResults(Binding::Kind kind);
// "batch, boundary, ...": the names of the kinds for which `legal` holds, sorted, for error messages.
std::string BindingKindNames(bool (*legal)(Binding::Kind));

}  // namespace moe
