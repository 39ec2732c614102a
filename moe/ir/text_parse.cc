#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/limits.h"
#include "moe/ir/text.h"
#include "moe/ir/text_scanner.h"
#include "moe/ir/verifier.h"
#include "moe/ir/verify_placement.h"

namespace moe {
namespace {

class Parser {
 public:
  Parser(absl::string_view text, const OpRegistry& registry) : s_(text), registry_(registry) {}

  absl::StatusOr<std::unique_ptr<Module>> Parse();

 private:
  // ---- module level
  absl::Status ParseMesh();
  absl::Status ParseState();
  absl::Status ParseFunction();

  // ---- pieces
  absl::StatusOr<Type> ParseType();
  absl::Status ParseDim(Type* type);
  absl::Status ParsePartial(Type* type);
  // One word such as "dp" or "a.b", as axes.
  absl::StatusOr<AxisList> ParseAxes();
  // `op` tells which attributes exist; null where every key is legal (arguments, states).
  absl::StatusOr<Attributes> ParseAttributes(const OpDef* op);
  absl::StatusOr<Attribute> ParseAttribute(const AttrDef* def);
  absl::StatusOr<Attribute> ParseList(const AttrDef* def);
  // Attributes with a binding among them: {kind = "state", name = "wq"}. What else there is stays in
  // `attributes`.
  absl::StatusOr<Binding> ParseBinding(Attributes* attributes);
  absl::Status ParseOrigin(Node* node);

  // ---- function level
  absl::Status ParseArg();
  absl::Status ParseLine(bool* done);
  absl::Status ParseNode();
  absl::Status ParsePlace(Node* node, size_t at);
  absl::Status ParseReturn();
  absl::StatusOr<std::string> ParseNewName();
  absl::StatusOr<Value> ParseOperand();
  absl::Status Undefined(const std::string& name, size_t at);

  TextScanner s_;
  const OpRegistry& registry_;
  std::unique_ptr<Module> module_;
  Function* function_ = nullptr;
  Phase phase_ = Phase::kForward;
  // Values of the current function. A name whose line is still being read stands here without a node.
  absl::flat_hash_map<std::string, Value> values_;
};

absl::StatusOr<std::unique_ptr<Module>> Parser::Parse() {
  if (!s_.AcceptWord("module")) return s_.Expected("'module @name'");
  RETURN_IF_ERROR(s_.Expect("@"));
  ASSIGN_OR_RETURN(const std::string name, s_.Name("the name of the module"));
  module_ = std::make_unique<Module>(name);
  if (s_.AcceptWord("mesh")) RETURN_IF_ERROR(ParseMesh());
  ASSIGN_OR_RETURN(module_->attributes(), ParseAttributes(nullptr));
  while (!s_.AtEnd()) {
    if (s_.AcceptWord("state")) {
      RETURN_IF_ERROR(ParseState());
    } else if (s_.AcceptWord("func")) {
      RETURN_IF_ERROR(ParseFunction());
    } else {
      return s_.Expected("'state', 'func' or the end of the text");
    }
  }
  return std::move(module_);
}

absl::Status Parser::ParseMesh() {
  RETURN_IF_ERROR(s_.Expect("<"));
  std::vector<MeshAxis> axes;
  std::map<std::string, AxisId> ids;
  std::map<std::string, AxisList> aliases;
  int64_t ranks = 1;
  const auto read_name = [&]() -> absl::StatusOr<std::string> {
    const size_t at = s_.Here();
    ASSIGN_OR_RETURN(std::string name, s_.Word("the name of a mesh axis"));
    if (absl::StrContains(name, ".") || absl::ascii_isdigit(name[0])) {
      return s_.Error(
          absl::StrCat("'", name,
                       "' is not the name of an axis: legal are letters, digits and '_', a digit not first"),
          at);
    }
    return name;
  };
  if (s_.Accept(">")) return absl::OkStatus();
  while (!s_.Peek(";") && !s_.Peek(">")) {
    if (!axes.empty()) RETURN_IF_ERROR(s_.Expect(","));
    const size_t at = s_.Here();
    ASSIGN_OR_RETURN(const std::string name, read_name());
    RETURN_IF_ERROR(s_.Expect("="));
    ASSIGN_OR_RETURN(const int64_t size, s_.Int("the size of an axis", 1, kMaxAxisSize));
    if (axes.size() >= kMaxMeshAxes)
      return s_.Error(absl::StrCat("a mesh has at most ", kMaxMeshAxes, " axes"), at);
    if (!ids.emplace(name, static_cast<AxisId>(axes.size())).second) {
      return s_.Error(absl::StrCat("mesh axis '", name, "' appears twice"), at);
    }
    if (name == "pp" && !axes.empty()) return s_.Error("the axis 'pp' must be the first of the mesh", at);
    if (size > kMaxRanks / ranks)
      return s_.Error(absl::StrCat("the mesh has more than ", kMaxRanks, " ranks"), at);
    ranks *= size;
    axes.push_back({name, size});
  }
  if (s_.Accept(";")) {
    while (!s_.Peek(">")) {
      if (!aliases.empty()) RETURN_IF_ERROR(s_.Expect(","));
      const size_t at = s_.Here();
      ASSIGN_OR_RETURN(const std::string name, read_name());
      RETURN_IF_ERROR(s_.Expect("="));
      AxisList list;
      for (absl::string_view part : absl::StrSplit(s_.PeekWord(), '.', absl::SkipEmpty())) {
        const auto it = ids.find(std::string(part));
        if (it == ids.end())
          return s_.Error(absl::StrCat("alias '", name, "' names '", part, "', which is not an axis"));
        for (const AxisId axis : list) {
          if (axis == it->second)
            return s_.Error(absl::StrCat("alias '", name, "' names '", part, "' twice"));
        }
        list.push_back(it->second);
      }
      s_.Skip(s_.PeekWord());
      if (aliases.size() >= kMaxAliases) {
        return s_.Error(absl::StrCat("a mesh has at most ", kMaxAliases, " aliases"), at);
      }
      const auto axis = ids.find(name);
      if (axis != ids.end() && !(list.size() == 1 && list[0] == axis->second)) {
        return s_.Error(absl::StrCat("alias '", name, "' has the name of an axis but means something else"),
                        at);
      }
      if (!aliases.emplace(name, list).second)
        return s_.Error(absl::StrCat("alias '", name, "' appears twice"), at);
    }
  }
  RETURN_IF_ERROR(s_.Expect(">"));
  module_->mesh() = Mesh(std::move(axes), std::move(aliases));
  return absl::OkStatus();
}

absl::Status Parser::ParseState() {
  RETURN_IF_ERROR(s_.Expect("@"));
  const size_t at = s_.Here();
  State state;
  ASSIGN_OR_RETURN(state.name, s_.Name("the name of the state"));
  if (module_->FindState(state.name) != nullptr)
    return s_.Error(absl::StrCat("state @", state.name, " appears twice"), at);
  if (static_cast<int64_t>(module_->states().size()) >= kMaxStates) {
    return s_.Error(absl::StrCat("a module has at most ", kMaxStates, " states"), at);
  }
  RETURN_IF_ERROR(s_.Expect(":"));
  ASSIGN_OR_RETURN(state.type, ParseType());
  ASSIGN_OR_RETURN(state.attributes, ParseAttributes(nullptr));
  module_->AddState(std::move(state));
  return absl::OkStatus();
}

absl::Status Parser::ParseFunction() {
  RETURN_IF_ERROR(s_.Expect("@"));
  const size_t at = s_.Here();
  ASSIGN_OR_RETURN(const std::string name, s_.Name("the name of the function"));
  if (module_->Find(name) != nullptr) return s_.Error(absl::StrCat("function @", name, " appears twice"), at);
  if (static_cast<int64_t>(module_->functions().size()) >= kMaxFunctions) {
    return s_.Error(absl::StrCat("a module has at most ", kMaxFunctions, " functions"), at);
  }
  function_ = module_->AddFunction(name);
  phase_ = Phase::kForward;
  values_.clear();
  RETURN_IF_ERROR(s_.Expect("("));
  while (!s_.Accept(")")) {
    if (!function_->args().empty()) RETURN_IF_ERROR(s_.Expect(","));
    RETURN_IF_ERROR(ParseArg());
  }
  RETURN_IF_ERROR(s_.Expect("{"));
  bool done = false;
  while (!done) RETURN_IF_ERROR(ParseLine(&done));
  return s_.Expect("}");
}

// ----------------------------------------------------------------------------------------------------------
// types

absl::StatusOr<AxisList> Parser::ParseAxes() {
  const size_t at = s_.Here();
  ASSIGN_OR_RETURN(const std::string word, s_.Word("mesh axes"));
  const Mesh& mesh = module_->mesh();
  const absl::StatusOr<AxisList> axes = mesh.ParseAxes(word);
  if (axes.ok() && !axes->empty()) return *axes;
  std::vector<std::string> legal;
  for (const MeshAxis& axis : mesh.axes()) legal.push_back(axis.name);
  for (const auto& [alias, list] : mesh.aliases()) {
    if (!list.empty()) legal.push_back(alias);
  }
  return s_.Error(absl::StrCat("'", word, "' names no axes of the mesh; it has ",
                               legal.empty() ? "none" : absl::StrJoin(legal, ", ")),
                  at);
}

absl::Status Parser::ParseDim(Type* type) {
  const size_t at = s_.Here();
  if (type->rank() >= kMaxRank) return s_.Error(absl::StrCat("a type has at most ", kMaxRank, " dims"), at);
  const bool ragged = s_.Accept("~");
  ASSIGN_OR_RETURN(const int64_t extent, s_.Int("a dim", 1, kMaxExtent));
  if (ragged) {
    if (type->ragged >= 0) return s_.Error("a type has at most one ragged dim", at);
    type->ragged = type->rank();
    RETURN_IF_ERROR(s_.Expect("<="));
    ASSIGN_OR_RETURN(type->ragged_bound, s_.Int("the bound of a ragged dim", 1, kMaxExtent));
  }
  AxisList axes;
  if (s_.Accept("@")) {
    ASSIGN_OR_RETURN(axes, ParseAxes());
  }
  type->dims.push_back(extent);
  type->placement.dims.push_back(std::move(axes));
  return absl::OkStatus();
}

absl::Status Parser::ParsePartial(Type* type) {
  RETURN_IF_ERROR(s_.Expect("("));
  while (true) {
    const size_t at = s_.Here();
    Reduction kind = Reduction::kSum;
    const absl::string_view word = s_.PeekWord();
    if (word == "max" || word == "sum") {
      // Also a legal name of an axis: it is the kind only before a colon.
      TextScanner ahead = s_;
      ahead.Skip(word);
      if (ahead.Accept(":")) {
        s_ = ahead;
        kind = word == "max" ? Reduction::kMax : Reduction::kSum;
      }
    }
    ASSIGN_OR_RETURN(const AxisList axes, ParseAxes());
    for (const AxisId axis : axes) {
      if (type->placement.Role(axis) != Placement::kNone) {
        return s_.Error(absl::StrCat("axis '", module_->mesh().name(axis), "' appears twice in this type"),
                        at);
      }
      type->placement.AddPartial({axis, kind});
    }
    if (s_.Accept(")")) return absl::OkStatus();
    RETURN_IF_ERROR(s_.Expect(","));
  }
}

absl::StatusOr<Type> Parser::ParseType() {
  const size_t at = s_.Here();
  ASSIGN_OR_RETURN(const std::string word, s_.Word("a type such as f32[8, 16]"));
  const std::optional<DType> dtype = ParseDType(word);
  if (!dtype && word == "future") {
    RETURN_IF_ERROR(s_.Expect("<"));
    // Not `future<future<...`, however often: the parser does not go deeper.
    if (s_.PeekWord() == "future") return s_.Error("a future of a future");
    ASSIGN_OR_RETURN(Type type, ParseType());
    type.future = true;
    RETURN_IF_ERROR(s_.Expect(">"));
    return type;
  }
  if (!dtype) {
    return s_.Error(
        absl::StrCat("unknown dtype '", word, "'; legal are pred, s32, s64, bf16, f16, f32, f64, f8e4m3"),
        at);
  }
  Type type(*dtype, Dims{});
  RETURN_IF_ERROR(s_.Expect("["));
  while (!s_.Accept("]")) {
    if (type.rank() > 0) RETURN_IF_ERROR(s_.Expect(","));
    RETURN_IF_ERROR(ParseDim(&type));
  }
  if (s_.AcceptWord("partial")) RETURN_IF_ERROR(ParsePartial(&type));
  const absl::Status legal = VerifyType(type, module_->mesh());
  if (!legal.ok()) return s_.Error(legal.message(), at);
  return type;
}

// -----------------------------------------------------------------------------------------------------
// attributes

absl::StatusOr<Attribute> Parser::ParseList(const AttrDef* def) {
  RETURN_IF_ERROR(s_.Expect("["));
  if (s_.Accept("]")) {
    // The bare empty list is a list of axes unless the op says otherwise.
    if (def != nullptr && def->kind == AttrKind::kInts) return Attribute(std::vector<int64_t>{});
    if (def != nullptr && def->kind == AttrKind::kStrings) return Attribute(std::vector<std::string>{});
    return Attribute(Axes{});
  }
  std::vector<int64_t> ints;
  std::vector<std::string> strings;
  Axes axes;
  const bool of_strings = s_.Peek("\"");
  const absl::string_view first = s_.PeekNumber();
  const bool of_ints = !of_strings && !first.empty() && (absl::ascii_isdigit(first[0]) || first[0] == '-');
  for (int64_t count = 0;; ++count) {
    if (count >= kMaxListLength)
      return s_.Error(absl::StrCat("a list has at most ", kMaxListLength, " elements"));
    if (of_strings) {
      ASSIGN_OR_RETURN(std::string element, s_.String("a string"));
      strings.push_back(std::move(element));
    } else if (of_ints) {
      ASSIGN_OR_RETURN(const int64_t element, s_.Int("an element", std::numeric_limits<int64_t>::min(),
                                                     std::numeric_limits<int64_t>::max()));
      ints.push_back(element);
    } else {
      ASSIGN_OR_RETURN(const AxisList element, ParseAxes());
      axes.list.insert(axes.list.end(), element.begin(), element.end());
    }
    if (s_.Accept("]")) break;
    RETURN_IF_ERROR(s_.Expect(","));
  }
  if (of_strings) return Attribute(std::move(strings));
  if (of_ints) return Attribute(std::move(ints));
  return Attribute(std::move(axes));
}

absl::StatusOr<Attribute> Parser::ParseAttribute(const AttrDef* def) {
  if (s_.Peek("\"")) {
    ASSIGN_OR_RETURN(std::string text, s_.String("a string"));
    return Attribute(std::move(text));
  }
  if (s_.Peek("[")) return ParseList(def);
  if (s_.AcceptWord("true")) return Attribute(true);
  if (s_.AcceptWord("false")) return Attribute(false);
  const absl::string_view number = s_.PeekNumber();
  if (number == "ints" || number == "strings") {
    s_.Skip(number);
    RETURN_IF_ERROR(s_.Expect("["));
    RETURN_IF_ERROR(s_.Expect("]"));
    return number == "ints" ? Attribute(std::vector<int64_t>{}) : Attribute(std::vector<std::string>{});
  }
  if (number == "nan") {
    s_.Skip(number);
    return Attribute(std::numeric_limits<double>::quiet_NaN());
  }
  const bool infinite = number == "inf" || number == "-inf";
  if (number.empty() || (!infinite && !absl::ascii_isdigit(number[0]) && number[0] != '-')) {
    return s_.Expected("a value: true, a number, a \"string\", [1, 2], [\"a\"] or [axis]");
  }
  const bool integral = number.find_first_of(".eEin") == absl::string_view::npos;
  if (integral && !(def != nullptr && def->kind == AttrKind::kFloat)) {
    ASSIGN_OR_RETURN(const int64_t value, s_.Int("an integer", std::numeric_limits<int64_t>::min(),
                                                 std::numeric_limits<int64_t>::max()));
    return Attribute(value);
  }
  double value = 0;
  const std::from_chars_result r = std::from_chars(number.data(), number.data() + number.size(), value);
  if (r.ec != std::errc() || r.ptr != number.data() + number.size()) {
    return s_.Error(absl::StrCat("'", number.substr(0, 40), "' is not a number that a double can hold"));
  }
  s_.Skip(number);
  return Attribute(value);
}

absl::StatusOr<Attributes> Parser::ParseAttributes(const OpDef* op) {
  Attributes attributes;
  if (!s_.Accept("{")) return attributes;
  while (!s_.Accept("}")) {
    if (!attributes.empty()) RETURN_IF_ERROR(s_.Expect(","));
    const size_t at = s_.Here();
    ASSIGN_OR_RETURN(const std::string name, s_.Name("an attribute"));
    if (static_cast<int64_t>(attributes.size()) >= kMaxAttributes) {
      return s_.Error(absl::StrCat("at most ", kMaxAttributes, " attributes are allowed"), at);
    }
    const AttrDef* def = op == nullptr ? nullptr : op->FindAttr(name);
    if (op != nullptr && def == nullptr) {
      std::vector<std::string> legal;
      for (const AttrDef& a : op->attrs) legal.push_back(a.name);
      return s_.Error(absl::StrCat(op->name, " has no attribute '", name, "'; it has ",
                                   legal.empty() ? "none" : absl::StrJoin(legal, ", ")),
                      at);
    }
    RETURN_IF_ERROR(s_.Expect("="));
    const size_t value_at = s_.Here();
    ASSIGN_OR_RETURN(Attribute value, ParseAttribute(def));
    if (def != nullptr && AttrKindOf(value) != def->kind) {
      return s_.Error(absl::StrCat("attribute '", name, "' of ", op->name, " must be of kind ",
                                   AttrKindName(def->kind), ", not ", AttrKindName(AttrKindOf(value))),
                      value_at);
    }
    if (!attributes.emplace(name, std::move(value)).second) {
      return s_.Error(absl::StrCat("attribute '", name, "' appears twice"), at);
    }
  }
  return attributes;
}

absl::StatusOr<Binding> Parser::ParseBinding(Attributes* attributes) {
  const size_t at = s_.Here();
  ASSIGN_OR_RETURN(*attributes, ParseAttributes(nullptr));
  const auto take = [&](absl::string_view key) -> std::optional<Attribute> {
    const auto it = attributes->find(key);
    if (it == attributes->end()) return std::nullopt;
    return std::move(attributes->extract(it).mapped());
  };
  const std::optional<Attribute> kind = take("kind"), name = take("name"), peer = take("peer");
  if (!kind && !name && !peer) return Binding();
  if (!kind) return s_.Error("a binding without a kind", at);
  const std::string* kind_name = std::get_if<std::string>(&*kind);
  const std::optional<Binding::Kind> parsed =
      kind_name == nullptr ? std::nullopt : ParseBindingKind(*kind_name);
  if (!parsed) {
    return s_.Error(absl::StrCat("unknown kind of binding",
                                 kind_name == nullptr ? "" : absl::StrCat(" '", *kind_name, "'"),
                                 "; legal are ", BindingKindNames([](Binding::Kind) { return true; })),
                    at);
  }
  Binding binding(*parsed, "");
  if (name) {
    if (!std::holds_alternative<std::string>(*name)) return s_.Error("the name of a binding is a string", at);
    binding.name = std::get<std::string>(*name);
  }
  if (peer) {
    const int64_t* chunk = std::get_if<int64_t>(&*peer);
    if (binding.kind != Binding::kBoundary || chunk == nullptr || *chunk < 0 || *chunk > kMaxFunctions) {
      return s_.Error("the peer of a binding is the number of a chunk, and only a boundary has one", at);
    }
    binding.peer = static_cast<int>(*chunk);
  }
  return binding;
}

absl::Status Parser::ParseOrigin(Node* node) {
  if (s_.AcceptWord("at")) {
    ASSIGN_OR_RETURN(node->scope, s_.String("a scope"));
  }
  if (s_.AcceptWord("by")) {
    ASSIGN_OR_RETURN(const std::string text, s_.String("\"pass: reason\""));
    const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits(": ", 1));
    node->provenance.pass = parts[0];
    node->provenance.reason = parts.size() > 1 ? parts[1] : "";
  }
  return absl::OkStatus();
}

// -------------------------------------------------------------------------------------------------------
// functions

// A value that this line defines.
absl::StatusOr<std::string> Parser::ParseNewName() {
  RETURN_IF_ERROR(s_.Expect("%"));
  const size_t at = s_.Here();
  ASSIGN_OR_RETURN(std::string name, s_.Name("the name of a value"));
  if (!values_.emplace(name, Value{}).second) {
    return s_.Error(absl::StrCat("%", name, " is defined twice in @", function_->name()), at);
  }
  return name;
}

absl::StatusOr<Value> Parser::ParseOperand() {
  if (!s_.Peek("%")) return s_.Expected("a value such as %x");
  const size_t at = s_.Here();
  RETURN_IF_ERROR(s_.Expect("%"));
  ASSIGN_OR_RETURN(const std::string name, s_.Name("the name of a value"));
  const auto it = values_.find(name);
  if (it == values_.end()) return Undefined(name, at);
  if (!it->second) {
    return s_.Error(
        absl::StrCat("%", name, " is an operand of the node that computes it: a graph has no cycles"), at);
  }
  return it->second;
}

// Tells a misspelled name from one that is defined further down.
absl::Status Parser::Undefined(const std::string& name, size_t at) {
  size_t offset = s_.position();
  const absl::string_view text = s_.text();
  while (offset < text.size()) {
    const size_t end = std::min(text.find('\n', offset), text.size());
    const absl::string_view line = absl::StripLeadingAsciiWhitespace(text.substr(offset, end - offset));
    if (absl::StartsWith(line, "}")) break;
    if (absl::StartsWith(line, "%")) {
      for (absl::string_view word : absl::StrSplit(line.substr(0, line.find('=')), ',')) {
        if (absl::ConsumePrefix(&(word = absl::StripAsciiWhitespace(word)), "%") && word == name) {
          return s_.Error(
              absl::StrCat("%", name, " is used before its definition at ",
                           s_.Where(word.data() - 1 - text.data()),
                           "; operands stand before their users, so this is a wrong order or a cycle"),
              at);
        }
      }
    }
    offset = end + 1;
  }
  return s_.Error(absl::StrCat("%", name, " is not defined in @", function_->name()), at);
}

absl::Status Parser::ParseArg() {
  const size_t at = s_.Here();
  if (static_cast<int64_t>(function_->args().size()) >= kMaxArgs) {
    return s_.Error(absl::StrCat("a function has at most ", kMaxArgs, " arguments"), at);
  }
  ASSIGN_OR_RETURN(const std::string name, ParseNewName());
  RETURN_IF_ERROR(s_.Expect(":"));
  ASSIGN_OR_RETURN(Type type, ParseType());
  Attributes attributes;
  ASSIGN_OR_RETURN(Binding binding, ParseBinding(&attributes));
  const Value arg = function_->AddArg(name, std::move(type), std::move(binding), std::move(attributes));
  values_[name] = arg;
  return ParseOrigin(arg.node);
}

absl::Status Parser::ParseLine(bool* done) {
  for (const Phase phase : {Phase::kForward, Phase::kBackward, Phase::kUpdate}) {
    if (s_.PeekWord() != PhaseName(phase)) continue;
    s_.Skip(s_.PeekWord());
    phase_ = phase;
    return s_.Expect(":");
  }
  if (s_.AcceptWord("return")) {
    *done = true;
    return ParseReturn();
  }
  return ParseNode();
}

absl::Status Parser::ParseNode() {
  if (function_->num_nodes() >= kMaxNodes) {
    return s_.Error(absl::StrCat("a function has at most ", kMaxNodes, " nodes"));
  }
  const size_t start = s_.Here();
  std::vector<std::string> names;
  while (s_.Peek("%")) {
    if (static_cast<int64_t>(names.size()) >= kMaxResults) {
      return s_.Error(absl::StrCat("a node has at most ", kMaxResults, " results"));
    }
    ASSIGN_OR_RETURN(std::string name, ParseNewName());
    names.push_back(std::move(name));
    if (!s_.Accept(",")) break;
    if (!s_.Peek("%")) return s_.Expected("another result such as %y");
  }
  if (!names.empty()) RETURN_IF_ERROR(s_.Expect("="));

  const size_t op_at = s_.Here();
  if (s_.PeekWord().empty() && names.empty()) {
    return s_.Expected(absl::StrCat("a node, 'backward:', 'update:' or 'return' in @", function_->name()));
  }
  ASSIGN_OR_RETURN(const std::string op_name, s_.Word("the name of an op"));
  const OpDef* op = registry_.Find(op_name);
  if (op == nullptr || op_name == "arg" || op_name == "return") {
    const std::string nearest = registry_.Nearest(op_name);
    return s_.Error(absl::StrCat("unknown op '", op_name, "'",
                                 nearest.empty() ? "" : absl::StrCat("; the nearest known is ", nearest)),
                    op_at);
  }
  const std::string results = absl::StrJoin(op->result_names, ", ");
  if (!op->variadic_results && names.size() != op->result_names.size()) {
    return s_.Error(absl::StrCat(op_name, " has ", op->result_names.size(), " results (", results, "), not ",
                                 names.size()),
                    start);
  }

  RETURN_IF_ERROR(s_.Expect("("));
  std::vector<Value> operands;
  while (!s_.Accept(")")) {
    if (!operands.empty()) RETURN_IF_ERROR(s_.Expect(","));
    if (static_cast<int64_t>(operands.size()) >= kMaxOperands) {
      return s_.Error(absl::StrCat("a node has at most ", kMaxOperands, " operands"));
    }
    ASSIGN_OR_RETURN(const Value operand, ParseOperand());
    operands.push_back(operand);
  }
  const bool arity_ok = op->variadic ? !operands.empty() : operands.size() == op->operand_names.size();
  if (!arity_ok) {
    return s_.Error(
        absl::StrCat(op_name, " takes ",
                     op->variadic ? "one or more" : absl::StrCat(op->operand_names.size()), " operands (",
                     absl::StrJoin(op->operand_names, ", "), "), not ", operands.size()),
        op_at);
  }

  ASSIGN_OR_RETURN(Attributes attributes, ParseAttributes(op));
  for (const AttrDef& def : op->attrs) {
    if (def.required && attributes.count(def.name) == 0) {
      return s_.Error(
          absl::StrCat(op_name, " needs the attribute '", def.name, "' of kind ", AttrKindName(def.kind)),
          op_at);
    }
  }
  std::vector<Type> types(names.size());
  Node* node = function_->Insert(nullptr, op, std::move(operands), types, std::move(attributes), names);
  node->phase = phase_;
  for (size_t i = 0; i < names.size(); ++i) values_[names[i]] = node->result(i);

  const bool placed = s_.AcceptWord("place");
  if (placed) RETURN_IF_ERROR(ParsePlace(node, op_at));
  if (s_.Accept("@")) {
    const size_t at = s_.Here();
    ASSIGN_OR_RETURN(const std::string queue, s_.Word("a queue"));
    if (queue != "compute" && queue != "comm" && queue != "copy") {
      return s_.Error(absl::StrCat("unknown queue '", queue, "'; legal are compute, comm, copy"), at);
    }
    node->queue = queue == "comm" ? Queue::kComm : queue == "copy" ? Queue::kCopy : Queue::kCompute;
  }
  if (s_.Accept(":")) {
    for (size_t i = 0; i < names.size(); ++i) {
      if (i > 0) RETURN_IF_ERROR(s_.Expect(","));
      ASSIGN_OR_RETURN(Type type, ParseType());
      node->SetType(i, std::move(type));
    }
  } else {
    // Types left out: as inferred; replicated, but for conversions that tell more.
    const absl::StatusOr<std::vector<Type>> inferred = InferPlacedTypes(*node);
    if (!inferred.ok()) return s_.Error(absl::StrCat(op_name, ": ", inferred.status().message()), op_at);
    if (inferred->size() != names.size())
      return s_.Error(absl::StrCat("the types of ", op_name, " are not known"), op_at);
    for (size_t i = 0; i < names.size(); ++i) node->SetType(i, (*inferred)[i]);
  }
  RETURN_IF_ERROR(ParseOrigin(node));
  const absl::Status legal = VerifyNode(*node);
  if (!legal.ok()) return s_.Error(legal.message(), op_at);
  if (!placed && !IsConversion(*op)) {
    // Left out: as the types show.
    const absl::StatusOr<FactorAssignment> shown = AssignmentFromTypes(*node, module_->mesh());
    if (!shown.ok()) return s_.Error(absl::StrCat(op_name, ": ", shown.status().message()), op_at);
    node->assignment = *shown;
  }
  return absl::OkStatus();
}

absl::Status Parser::ParsePlace(Node* node, size_t at) {
  const absl::StatusOr<const ShardingRule*> rule = node->Rule();
  if (!rule.ok()) return s_.Error(absl::StrCat("no sharding rule: ", rule.status().message()), at);
  const std::vector<std::string>& factors = (*rule)->factors;
  node->assignment.resize(factors.size());
  RETURN_IF_ERROR(s_.Expect("<"));
  bool first = true;
  while (!s_.Accept(">")) {
    if (!first) RETURN_IF_ERROR(s_.Expect(","));
    first = false;
    const size_t here = s_.Here();
    ASSIGN_OR_RETURN(const std::string factor, s_.Word("a factor"));
    const int f = (*rule)->Find(factor);
    if (f < 0) {
      return s_.Error(
          absl::StrCat("'", factor, "' is not a factor of this node; its rule is ", (*rule)->ToString()),
          here);
    }
    RETURN_IF_ERROR(s_.Expect("="));
    if (!node->assignment[f].empty())
      return s_.Error(absl::StrCat("factor '", factor, "' appears twice"), here);
    ASSIGN_OR_RETURN(node->assignment[f], ParseAxes());
  }
  return absl::OkStatus();
}

absl::Status Parser::ParseReturn() {
  while (s_.Peek("%")) {
    if (function_->num_results() >= kMaxArgs) {
      return s_.Error(absl::StrCat("a function has at most ", kMaxArgs, " results"));
    }
    ASSIGN_OR_RETURN(const Value value, ParseOperand());
    const size_t at = s_.Here();
    Attributes others;
    ASSIGN_OR_RETURN(Binding binding, ParseBinding(&others));
    if (!others.empty()) {
      return s_.Error(
          absl::StrCat("a result has a binding (kind, name, peer), not '", others.begin()->first, "'"), at);
    }
    function_->AddResult(value, std::move(binding));
    if (!s_.Accept(",")) return absl::OkStatus();
    if (!s_.Peek("%")) return s_.Expected("another result such as %y");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Module>> ParseModule(absl::string_view text, const OpRegistry& registry) {
  if (static_cast<int64_t>(text.size()) > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text.size(), " bytes; at most ", kMaxTextBytes, " are allowed"));
  }
  return Parser(text, registry).Parse();
}

}  // namespace moe
