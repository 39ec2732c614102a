#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/passes/certify/certify_parts.h"
#include "moe/passes/stages/partition_stages.h"

// (d): the model is all there. What a pass adds later (conversions, recomputation) is not of the model.

namespace moe::passes {
namespace {

bool OfTheModel(const Node& n) {
  const std::string& pass = n.provenance.pass;
  return pass.empty() || pass == "autodiff" || pass == "context-parallel" || pass == "expert-slots" ||
         pass == "mixed-precision" || pass == "partition-stages";
}

// The chunks in which nodes of the model stand, ascending, by op and first result.
using Chunks = absl::flat_hash_map<std::pair<absl::string_view, absl::string_view>, std::vector<int>>;

Chunks ChunksOfNodes(const Module& module, int chunks) {
  Chunks out;
  for (int c = 0; c < chunks; ++c) {
    for (const FunctionKind kind : {FunctionKind::kForward, FunctionKind::kBackward, FunctionKind::kInputGrad,
                                    FunctionKind::kWeightGrad}) {
      const Function* f = module.Find({kind, c});
      if (f == nullptr) continue;
      for (const auto& n : f->body()) {
        if (!OfTheModel(*n)) continue;
        std::vector<int>& in = out[{n->op_name(), n->result_name()}];
        if (in.empty() || in.back() != c) in.push_back(c);
      }
    }
  }
  return out;
}

// Every node of the model in its chunk, and in no other.
absl::Status CheckInventory(const ProgramFrame& f) {
  if (f.program->inventory.empty()) return Uncertified("the plan has no inventory of the model's nodes");
  const Chunks where = ChunksOfNodes(*f.module, f.chunks);
  for (const LogicalNode& n : f.program->inventory) {
    const auto what = [&] { return absl::StrCat("node %", n.name, " (", n.op, ") of the model"); };
    if (!n.rewritten_by.empty()) {
      const OpDef* op = Ops().Find(n.op);
      const bool keep = op == nullptr || op->Has(kStateful) || (op->Has(kDecision) && !op->cheap);
      if (keep && n.rewritten_by != "fuse") return Uncertified(what(), " is gone since ", n.rewritten_by);
      continue;
    }
    auto it = where.find({n.op, n.name});
    if (it == where.end())
      return Uncertified(what(), " is in no chunk; it belongs to chunk ", absl::StrJoin(n.chunks, ", "));
    // Copies of what inputs alone determine may be gone where a chunk no longer needs them.
    const bool once = static_cast<int>(n.chunks.size()) == f.program->schedule.copies;
    const bool right =
        once ? it->second == n.chunks
             : std::includes(n.chunks.begin(), n.chunks.end(), it->second.begin(), it->second.end());
    if (!right) {
      return Uncertified(what(), " stands in chunks ", absl::StrJoin(it->second, ", "),
                         "; it belongs to chunk ", absl::StrJoin(n.chunks, ", "));
    }
  }
  return absl::OkStatus();
}

// What a value is computed from: states read, and whether something updates state on the way.
struct Ancestry {
  absl::flat_hash_set<absl::string_view> states;
  bool updates = false;
};

Ancestry AncestryOf(const Node* node) {
  Ancestry out;
  absl::flat_hash_set<const Node*> seen;
  std::vector<const Node*> stack = {node};
  while (!stack.empty()) {
    const Node* n = stack.back();
    stack.pop_back();
    if (!seen.insert(n).second) continue;
    if (n->Is("arg") && n->binding.kind == Binding::kState) out.states.insert(n->binding.name);
    out.updates = out.updates || n->op().Has(kStateful);
    // A norm is computed from all gradients; whose update this is, says the path that does not lead through
    // it.
    if (n->Is("optim.clip")) continue;
    for (const Value& operand : n->operands()) stack.push_back(operand.node);
  }
  return out;
}

struct Write {
  const Function* function;
  int stage;
  enum { kForward, kBackward, kUpdate, kReport } phase;
  Value value;
};

std::map<std::string, std::vector<Write>> StateWrites(const ProgramFrame& f) {
  std::map<std::string, std::vector<Write>> writes;
  const auto add = [&](const Function* function, int stage, auto phase) {
    if (function == nullptr) return;
    for (int r = 0; r < function->num_results(); ++r) {
      if (function->result_binding(r).kind != Binding::kState) continue;
      writes[function->result_binding(r).name].push_back({function, stage, phase, function->result(r)});
    }
  };
  for (int c = 0; c < f.chunks; ++c) {
    const int stage = f.program->schedule.chunk_stage[c];
    add(f.forward[c], stage, Write::kForward);
    for (const Function* backward : f.backward[c]) add(backward, stage, Write::kBackward);
  }
  for (int s = 0; s < f.stages; ++s) {
    add(f.update[s], s, Write::kUpdate);
    add(f.report[s], s, Write::kReport);
  }
  return writes;
}

absl::Status CheckStates(const ProgramFrame& f) {
  const std::map<std::string, std::vector<Write>> writes = StateWrites(f);
  std::map<std::string, std::string> gradient_of;
  std::map<const Node*, Ancestry> ancestry;
  for (const auto& s : f.module->states()) {
    if (AttrString(s->attributes, "kind") == "gradient")
      gradient_of[AttrString(s->attributes, "of")] = s->name;
    for (const int64_t stage : StagesOf(*s)) {
      if (stage < 0 || stage >= f.stages) return Uncertified("state @", s->name, " lives on stage ", stage);
    }
  }
  for (const auto& s : f.module->states()) {
    const std::string kind = AttrString(s->attributes, "kind");
    const std::vector<int64_t> stages = StagesOf(*s);
    auto it = writes.find(s->name);
    const std::vector<Write> none;
    const std::vector<Write>& all = it == writes.end() ? none : it->second;
    for (const Write& w : all) {
      if (std::find(stages.begin(), stages.end(), w.stage) == stages.end()) {
        return Uncertified("@", w.function->name(), " writes @", s->name, ", which does not live on ",
                           StageName(*f.module, w.stage));
      }
      if (kind == "expert_map")
        return Uncertified("@", w.function->name(), " writes the expert map @", s->name);
      const bool in_update = w.phase == Write::kUpdate;
      const bool copy = kind == "working_copy";
      const bool right = kind == "parameter" || kind == "moment" || copy ? in_update
                         : kind == "gradient"                            ? w.phase == Write::kBackward
                                                                         : w.phase == Write::kForward;
      if (!right) return Uncertified("@", w.function->name(), " writes the ", kind, " @", s->name);
      const auto [known, fresh] = ancestry.try_emplace(w.value.node);  // one node updates many tensors
      if (fresh) known->second = AncestryOf(w.value.node);
      const Ancestry& from = known->second;
      const std::string of = copy ? AttrString(s->attributes, "of") : s->name;
      if (!from.updates || !from.states.count(of)) {
        return Uncertified("@", w.function->name(), " overwrites @", s->name, " without updating ",
                           copy ? absl::StrCat("@", of) : "it", " (%", w.value.name(), ")");
      }
      if (kind == "parameter" && gradient_of.count(s->name) && !from.states.count(gradient_of[s->name])) {
        return Uncertified("@", w.function->name(), " updates @", s->name, " without its gradient @",
                           gradient_of[s->name]);
      }
    }
    if (kind == "gradient" || kind == "accumulator") {
      if (all.empty()) return Uncertified("nothing accumulates the ", kind, " @", s->name);
    } else if (kind == "parameter" || kind == "moment" || kind == "working_copy") {
      if (kind == "parameter" && gradient_of.count(s->name) == 0) {
        return Uncertified("the parameter @", s->name, " has no gradient to be updated by");
      }
      for (const int64_t stage : stages) {
        const int64_t n =
            std::count_if(all.begin(), all.end(), [&](const Write& w) { return w.stage == stage; });
        if (n != 1) {
          return Uncertified("the ", kind, " @", s->name, " is updated ", n, " times on ",
                             StageName(*f.module, stage), ", not once");
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCoverage(const ProgramFrame& f) {
  RETURN_IF_ERROR(CheckInventory(f));
  return CheckStates(f);
}

}  // namespace moe::passes
