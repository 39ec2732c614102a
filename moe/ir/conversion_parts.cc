#include "moe/ir/conversion_parts.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe {

Type ArrivedType(Type type) {
  type.future = false;
  return type;
}

Value ArrivedValue(Value v) {
  if (!v.type().future || v.node->Is("arg") || v.node->uses(v.index).size() != 1) return v;
  Node* user = v.node->uses(v.index)[0].user;
  return user->Is("comm.done") ? user->result() : v;
}

bool CrossesFunctions(const Node& n) {
  if (!n.Is("comm.start")) return false;
  for (int r = 0; r < n.num_results(); ++r) {
    for (const Use& u : n.uses(r)) {
      if (u.user->Is("return")) return true;
    }
  }
  return false;
}

bool HasConversionParts(const Node& n) {
  // "axes" tells conversions from others that have parts, of experts say.
  return n.Has("axes") && (n.Has("steps") || n.Has("parts"));
}

absl::StatusOr<std::vector<ConversionPart>> ConversionParts(const Node& n, const Mesh& mesh) {
  const std::vector<std::string> texts =
      n.Has("parts") ? n.Strings("parts") : std::vector<std::string>{n.String("steps")};
  const int parts = static_cast<int>(texts.size());
  if (parts != n.num_operands() || parts != n.num_results()) {
    return absl::InvalidArgumentError(absl::StrCat(n.op_name(), " has ", parts, " parts for ",
                                                   n.num_operands(), " operands and ", n.num_results(),
                                                   " results"));
  }
  std::vector<ConversionPart> out;
  for (int i = 0; i < parts; ++i) {
    ConversionPart part;
    part.from = n.operand(i);
    part.to = ArrivedType(n.type(i));
    ASSIGN_OR_RETURN(part.steps, ParseSteps(texts[i], mesh));
    out.push_back(std::move(part));
  }
  return out;
}

}  // namespace moe
