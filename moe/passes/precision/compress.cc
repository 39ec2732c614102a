#include "moe/passes/precision/compress.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/ir/wire_format.h"
#include "moe/passes/pass.h"

namespace moe::passes {
namespace {

bool IsConversion(const Node& n) { return n.Has("axes") && absl::StartsWith(n.op_name(), "comm."); }

// Leaves every value as it is.
bool PassesOn(const Node& n) { return IsConversion(n) || n.Is("math.reshape"); }

Value SourceOf(Value v) {
  while (PassesOn(*v.node)) v = v.node->operand(0);
  return v;
}

// The uses of a value, through conversions.
void Users(Value v, std::vector<Use>* out) {
  for (const Use& u : v.node->uses(v.index)) {
    if (PassesOn(*u.user)) {
      Users(u.user->result(), out);
    } else {
      out->push_back(u);
    }
  }
}

class Classifier {
 public:
  explicit Classifier(const Module& module) : module_(module) {}

  // "dispatch", "combine", "gather", "grad", or "".
  std::string Of(const Node& n) const {
    const Value source = SourceOf(n.operand(0));
    std::vector<Use> users;
    Users(Value{const_cast<Node*>(&n), 0}, &users);
    for (const char* op : {"moe.dispatch", "moe.undispatch"}) {
      if (source.node->Is(op)) return "dispatch";
    }
    for (const char* op : {"moe.combine", "moe.combine_do"}) {
      if (source.node->Is(op)) return "combine";
    }
    // Gathered instead of exchanged: tokens that nothing but a dispatch reads, gradients for the experts
    // alone.
    const auto all = [&](auto wanted) {
      return !users.empty() && std::all_of(users.begin(), users.end(), wanted);
    };
    if (all([](const Use& u) { return u.user->Is("moe.dispatch") && u.operand == 0; })) return "dispatch";
    if (all([](const Use& u) {
          return (u.user->Is("moe.combine_do") && u.operand == 0) ||
                 (u.user->Is("moe.combine_dp") && u.operand == 1);
        })) {
      return "combine";
    }
    for (const Use& u : users) {
      if (u.user->Is("moe.undispatch") && u.operand == 0) return "dispatch";
      if ((u.user->Is("moe.combine") || u.user->Is("moe.combine_dp")) && u.operand == 0) return "combine";
      if (u.user->Is("optim.accumulate") && u.operand == 1 && KindOf(u.user->operand(0)) == "gradient")
        return "grad";
    }
    if (KindOf(source) == "gradient") return "grad";
    const Value stored = source.node->Is("math.cast") ? SourceOf(source.node->operand(0)) : source;
    return all([&](const Use& u) { return WritesCopy(u); }) ||
                   (n.phase != Phase::kUpdate && KindOf(stored) == "parameter")
               ? "gather"
               : "";
  }

 private:
  std::string KindOf(Value v) const { return v.node->Is("arg") ? KindOf(v.node->binding) : ""; }
  bool WritesCopy(const Use& u) const {
    return u.user->Is("return") && KindOf(u.user->function()->result_binding(u.operand)) == "working_copy";
  }
  std::string KindOf(const Binding& binding) const {
    if (binding.kind != Binding::kState) return "";
    const State* s = module_.FindState(binding.name);
    return s == nullptr ? "" : AttrString(s->attributes, "kind");
  }

  const Module& module_;
};

}  // namespace

bool AsksForCompression(const PassContext& context) {
  const strategy::Strategy& s = context.strategy;
  const strategy::Wire wires[] = {s.compress_dispatch, s.compress_combine, s.compress_gather,
                                  s.compress_grad};
  return std::any_of(std::begin(wires), std::end(wires),
                     [](strategy::Wire w) { return w != strategy::Wire::kAsComputed; });
}

absl::StatusOr<bool> Compress(Program& program, const PassContext& context) {
  const strategy::Strategy& s = context.strategy;
  const std::map<std::string, strategy::Wire> asked = {{"dispatch", s.compress_dispatch},
                                                       {"combine", s.compress_combine},
                                                       {"gather", s.compress_gather},
                                                       {"grad", s.compress_grad}};
  std::map<std::string, int> marked, left;
  if (!AsksForCompression(context)) return false;
  const Classifier classifier(*program.module);
  for (const auto& f : program.module->functions()) {
    for (Node* n : f->Nodes()) {
      if (!IsConversion(*n) || !n->op().Has(kCollective) || !IsFloat(n->type().dtype)) continue;
      const std::string what = classifier.Of(*n);
      if (what.empty() || asked.at(what) == strategy::Wire::kAsComputed) continue;
      const std::string wire = asked.at(what) == strategy::Wire::kF8 ? "f8e4m3" : "bf16";
      const DType dtype = n->type().dtype;
      if (WireBytes(*ParseWireFormat(wire), dtype, kWireBlock) >= kWireBlock * ByteSize(dtype)) {
        ++left[what];
        continue;
      }
      n->Set("wire", wire);
      ++marked[absl::StrCat(what, " ", strategy::Name(asked.at(what)))];
    }
  }
  std::vector<std::string> words;
  for (const auto& [what, count] : marked) words.push_back(absl::StrCat(what, " ", count));
  for (const auto& [what, count] : left)
    words.push_back(absl::StrCat(what, " ", count, " as narrow already"));
  context.Note(words.empty() ? "no such exchange" : absl::StrJoin(words, "   "));
  return !marked.empty();
}

}  // namespace moe::passes
