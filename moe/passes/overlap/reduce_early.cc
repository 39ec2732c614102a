#include "moe/passes/overlap/reduce_early.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"

namespace moe::passes {
namespace {

// Who accumulates a gradient on a stage: its function and the last value, or a null function if there are
// several.
struct Gradient {
  Function* function = nullptr;
  Value value;
};

std::map<std::string, Gradient> GradientsOf(const Program& program, int stage) {
  std::map<std::string, Gradient> gradients;
  for (const auto& f : program.module->functions()) {
    if (!f->role().IsOfMicrobatch() || program.schedule.StageOf(f->role()) != stage) continue;
    for (int r = 0; r < f->num_results(); ++r) {
      if (f->result_binding(r).kind != Binding::kState || f->result(r).node->Is("arg")) continue;
      auto [it, fresh] = gradients.try_emplace(f->result_binding(r).name, Gradient{f.get(), f->result(r)});
      if (!fresh) it->second.function = nullptr;
    }
  }
  return gradients;
}

bool IsReduction(const Node& n) {
  if (n.queue != Queue::kComm || !n.op().Has(kCollective) || !HasConversionParts(n) || n.Is("comm.start"))
    return false;
  for (const Value& v : n.operands()) {
    const bool gradient = v.node->Is("arg") && v.node->binding.kind == Binding::kState &&
                          v.type().ragged < 0 && !v.type().placement.partial.empty();
    if (!gradient) return false;
  }
  return true;
}

// The exchange in the function that accumulates, its futures returned.
absl::Status Start(const Node& n, Function* f, const std::vector<Value>& sources,
                   const std::vector<std::string>& names) {
  Attributes attributes = StartAttributes(n);
  attributes["last"] = true;
  std::vector<Type> types;
  for (int r = 0; r < n.num_results(); ++r) {
    types.push_back(n.type(r));
    types.back().future = true;
  }
  Builder b(f);
  b.phase = Phase::kBackward;
  b.scope = sources.back().node->scope;
  b.provenance = {"overlap",
                  absl::StrCat("reduces what @", n.function()->name(), " needs, in the last microbatch")};
  ASSIGN_OR_RETURN(Node * start, b.CreateTyped("comm.start", sources, std::move(attributes), std::move(types),
                                               absl::StrCat(n.result_name(), ".start")));
  start->queue = Queue::kComm;
  for (int r = 0; r < start->num_results(); ++r) f->AddResult(start->result(r), {Binding::kFuture, names[r]});
  return absl::OkStatus();
}

absl::Status Finish(Node* n, const std::vector<std::string>& names) {
  Function* f = n->function();
  std::vector<std::string> results;
  std::vector<Node*> dones;
  for (int r = 0; r < n->num_results(); ++r) {
    Type future = n->type(r);
    future.future = true;
    const Value arg = f->AddArg(f->UniqueName(absl::StrCat("future.", names[r])), std::move(future),
                                {Binding::kFuture, names[r]});
    Builder b = Builder::Before(n);
    b.provenance = {"overlap", "begun in the backward"};
    Type type = n->type(r);
    ASSIGN_OR_RETURN(Node * done, b.CreateTyped("comm.done", {arg, n->operand(r)}, {}, {std::move(type)}));
    f->ReplaceAllUses(n->result(r), done->result());
    dones.push_back(done);
    results.push_back(n->result_name(r));
  }
  f->Erase(n);
  for (size_t r = 0; r < dones.size(); ++r) dones[r]->SetResultName(0, results[r]);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> ReduceGradientsEarly(Program& program) {
  int count = 0;
  for (int stage = 0;; ++stage) {
    Function* update = program.module->Find({FunctionKind::kUpdate, stage});
    if (update == nullptr) break;
    const std::map<std::string, Gradient> gradients = GradientsOf(program, stage);
    for (Node* n : update->Nodes()) {
      if (!IsReduction(*n)) continue;
      Function* from = nullptr;
      std::vector<Value> sources;
      std::vector<std::string> names;
      bool one = true;
      for (const Value& v : n->operands()) {
        const auto it = gradients.find(v.node->binding.name);
        one = one && it != gradients.end() && it->second.function != nullptr &&
              (from == nullptr || from == it->second.function);
        if (!one) break;
        from = it->second.function;
        names.push_back(n->result_name(static_cast<int>(sources.size())));
        sources.push_back(it->second.value);
      }
      if (!one) continue;
      RETURN_IF_ERROR(Start(*n, from, sources, names));
      RETURN_IF_ERROR(Finish(n, names));
      ++count;
    }
  }
  return count;
}

}  // namespace moe::passes
