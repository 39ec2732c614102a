#include "moe/ir/builder.h"

#include <iterator>
#include <optional>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_steps.h"

namespace moe {

Builder::Builder(Function* f, const OpRegistry& registry) : function_(f), registry_(&registry) {}

Builder Builder::Before(Node* n) {
  Builder b(n->function());
  b.before_ = n;
  b.phase = n->phase;
  b.scope = n->scope;
  b.provenance = n->provenance;
  return b;
}

Builder Builder::After(Node* n) {
  Builder b = Before(n);
  const auto& body = n->function()->body();
  b.before_ = nullptr;
  for (auto it = body.begin(); it != body.end(); ++it) {
    if (it->get() == n) {
      if (std::next(it) != body.end()) b.before_ = std::next(it)->get();
      break;
    }
  }
  return b;
}

absl::StatusOr<Node*> Builder::CreateTyped(absl::string_view name, std::vector<Value> operands,
                                           Attributes attributes, std::vector<Type> types,
                                           absl::string_view name_hint) {
  const OpDef* op = registry_->Find(name);
  if (op == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown op '", name, "'; nearest: ", registry_->Nearest(name)));
  }
  if (op->variadic ? operands.empty() : operands.size() != op->operand_names.size()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " takes ", op->variadic ? "at least 1" : "",
                                                   op->variadic ? "" : absl::StrCat(op->operand_names.size()),
                                                   " operands, not ", operands.size()));
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    if (!operands[i]) return absl::InvalidArgumentError(absl::StrCat(name, ": operand ", i, " is missing"));
  }
  RETURN_IF_ERROR(Annotate(op->CheckAttributes(attributes), op->name));
  std::vector<std::string> names;
  if (!name_hint.empty()) {
    for (size_t i = 0; i < types.size(); ++i) {
      names.push_back(types.size() == 1 ? std::string(name_hint)
                                        : absl::StrCat(name_hint, ".",
                                                       i < op->result_names.size() ? op->result_names[i]
                                                                                   : absl::StrCat(i)));
    }
  }
  Node* n = function_->Insert(before_, op, std::move(operands), std::move(types), std::move(attributes),
                              std::move(names));
  n->phase = phase;
  n->scope = scope;
  n->provenance = provenance;
  if (op->Has(kCollective)) n->queue = Queue::kComm;
  return n;
}

absl::StatusOr<Node*> Builder::CreateNode(absl::string_view name, std::vector<Value> operands,
                                          Attributes attributes, absl::string_view name_hint) {
  const OpDef* op = registry_->Find(name);
  if (op == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown op '", name, "'; nearest: ", registry_->Nearest(name)));
  }
  // Inference needs the node, so it is made with empty results first.
  const size_t results = std::max<size_t>(1, op->result_names.size());
  ASSIGN_OR_RETURN(Node * n, CreateTyped(name, std::move(operands), std::move(attributes),
                                         std::vector<Type>(results), name_hint));
  absl::StatusOr<std::vector<Type>> types = InferPlacedTypes(*n);
  if (types.ok() && !op->variadic_results && types->size() != results) {
    types = absl::InvalidArgumentError(
        absl::StrCat(name, " has ", results, " results; inference gives ", types->size(), " types"));
  }
  if (types.ok() && op->verify) {
    absl::Status status = op->verify(*n);
    if (!status.ok()) types = status;
  }
  if (!types.ok()) {
    function_->Erase(n);
    return types.status();
  }
  for (size_t i = 0; i < types->size() && i < results; ++i)
    n->SetType(static_cast<int>(i), std::move((*types)[i]));
  return n;
}

absl::StatusOr<Value> Builder::Create(absl::string_view op, std::vector<Value> operands,
                                      Attributes attributes, absl::string_view name_hint) {
  ASSIGN_OR_RETURN(Node * n, CreateNode(op, std::move(operands), std::move(attributes), name_hint));
  if (n->num_results() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, " has ", n->num_results(), " results; use CreateNode"));
  }
  return n->result();
}

absl::StatusOr<std::vector<Type>> InferPlacedTypes(const Node& n) {
  const std::optional<StepKind> kind = StepKindOfOp(n.op_name());
  if (!kind || n.Has("steps")) return InferTypes(n);
  static const Mesh& none = *new Mesh();
  const Module* module = n.function()->module();
  std::optional<int> dim;
  if (n.Has("dim")) dim = static_cast<int>(n.Int("dim"));
  absl::StatusOr<Type> type =
      TypeAfter(*kind, n.operand(0).type(), n.axes(), dim, module == nullptr ? none : module->mesh());
  if (!type.ok()) return Annotate(type.status(), n.op_name());
  return std::vector<Type>{*std::move(type)};
}

}  // namespace moe
