#include "moe/passes/use_libraries.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/ir/graph.h"
#include "moe/ir/state.h"
#include "moe/passes/pass.h"

namespace moe::passes {
namespace {

constexpr char kCudnn[] = "cudnn";

bool IsAttention(const Node& n) { return n.Is("nn.attention") || n.Is("nn.attention_grad"); }

// The batch's positions as they come, which ascend (runtime/session.h).
bool Ascends(Value positions) {
  return positions.node->Is("arg") && positions.node->binding.kind == Binding::kBatch &&
         positions.node->binding.name == "positions";
}

// Why cuDNN cannot compute an attention node with so much scratch; empty if it can.
std::string WhyNot(const Node& n, const Mesh& mesh, int64_t most_scratch) {
  if (n.operand(3) != n.operand(4)) return "keys with positions of their own";
  if (!Ascends(n.operand(3))) return "positions in another order";
  const Type& q = n.operand(0).type();
  if (q.dtype != DType::kBF16 && q.dtype != DType::kF16) return absl::StrCat("in ", DTypeName(q.dtype));
  const int64_t d = q.dims[3];
  if (d % 8 != 0 || d > 256) return absl::StrCat("heads of ", d);
  const Dims queries = q.LocalDims(mesh), keys = n.operand(1).type().LocalDims(mesh);
  if (queries[1] != keys[1]) return "fewer queries than keys";
  const int64_t s = q.dims[1] / n.IntOr("blocks", 1), sharing = queries[2] / keys[2];
  if (n.Is("nn.attention_grad") && sharing * s * s * 2 > most_scratch) {
    return absl::StrCat("sequences of ", s, ", whose backward needs ", sharing * s * s * 2 >> 20,
                        " MiB of scratch");
  }
  return "";
}

}  // namespace

absl::StatusOr<bool> UseLibraries(Program& program, const PassContext& context) {
  for (const std::string& library : context.target.libraries) {
    if (library != kCudnn) {
      return absl::InvalidArgumentError(absl::StrCat("target ", context.target.name, " has library '",
                                                     library, "'; the only legal library is cudnn"));
    }
  }
  if (context.target.libraries.empty()) return false;
  const Mesh& mesh = program.module->mesh();
  int64_t given = 0;
  std::map<std::string, int64_t> kept;
  for (const auto& function : program.module->functions()) {
    for (Node* n : function->Nodes()) {
      if (!IsAttention(*n) || n->Has("library")) continue;
      const std::string why = WhyNot(*n, mesh, context.strategy.library_scratch);
      if (why.empty()) n->Set("library", std::string(kCudnn));
      why.empty() ? ++given : ++kept[why];
    }
  }
  if (given > 0 || !kept.empty()) {
    std::vector<std::string> reasons;
    for (const auto& [why, count] : kept) reasons.push_back(absl::StrCat(count, " ", why));
    context.Note(absl::StrCat(
        "attention: ", given, " nodes by cuDNN",
        kept.empty() ? "" : absl::StrCat("; by the target's kernels ", absl::StrJoin(reasons, ", "))));
  }
  return given > 0;
}

}  // namespace moe::passes
