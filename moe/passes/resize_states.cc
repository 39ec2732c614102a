#include "moe/passes/resize_states.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"

namespace moe::passes {

void ResizeState(Module& module, State* state, int64_t rows) {
  state->type.dims[0] = rows;
  for (const auto& f : module.functions()) {
    if (Node* arg = FindArg(*f, Binding::kState, state->name)) {
      Type type = arg->type();
      type.dims[0] = rows;
      arg->SetType(0, std::move(type));
    }
  }
}

absl::Status InferTypesAgain(Function& f) {
  for (Node* n : f.Nodes()) {
    if (n->op().variadic_results) continue;  // made with the types that the results have
    absl::StatusOr<std::vector<Type>> types = InferTypes(*n);
    if (!types.ok()) return Annotate(types.status(), absl::StrCat("%", n->result_name(), " of @", f.name()));
    for (int i = 0; i < n->num_results(); ++i) {
      Type type = n->type(i);
      type.dims = (*types)[i].dims;
      n->SetType(i, std::move(type));
    }
  }
  return absl::OkStatus();
}

}  // namespace moe::passes
