#include <charconv>
#include <cmath>
#include <string>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "moe/ir/text.h"

namespace moe {
namespace {

const Mesh& MeshOf(const Function* function) {
  static const Mesh& none = *new Mesh();
  return function != nullptr && function->module() != nullptr ? function->module()->mesh() : none;
}

std::string Quote(absl::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          absl::StrAppend(&out, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

// A name as it is where the parser takes it for one word, else quoted.
std::string Name(absl::string_view name) {
  bool word = !name.empty();
  for (const char c : name) word = word && (absl::ascii_isalnum(c) || c == '_' || c == '.');
  return word ? std::string(name) : Quote(name);
}

// Shortest digits that give the same double back; never looks like an integer.
std::string Double(double value) {
  if (std::isnan(value)) return "nan";
  char buffer[32];
  const std::to_chars_result r = std::to_chars(buffer, buffer + sizeof(buffer), value);
  std::string text(buffer, r.ptr);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

struct AttributePrinter {
  const Mesh& mesh;
  std::string operator()(bool v) const { return v ? "true" : "false"; }
  std::string operator()(int64_t v) const { return absl::StrCat(v); }
  std::string operator()(double v) const { return Double(v); }
  std::string operator()(const std::string& v) const { return Quote(v); }
  std::string operator()(const std::vector<int64_t>& v) const {
    if (v.empty()) return "ints[]";
    std::string out = "[";
    for (size_t i = 0; i < v.size(); ++i) absl::StrAppend(&out, i ? ", " : "", v[i]);
    return out + "]";
  }
  std::string operator()(const std::vector<std::string>& v) const {
    if (v.empty()) return "strings[]";
    std::string out = "[";
    for (size_t i = 0; i < v.size(); ++i) absl::StrAppend(&out, i ? ", " : "", Quote(v[i]));
    return out + "]";
  }
  std::string operator()(const Axes& v) const {
    if (v.list.empty()) return "[]";
    return absl::StrCat("[", absl::StrReplaceAll(mesh.Show(v.list), {{".", ", "}}), "]");
  }
};

void AppendAttributes(const Attributes& attributes, const Mesh& mesh, std::string* out) {
  if (attributes.empty()) return;
  *out += " {";
  const char* separator = "";
  for (const auto& [name, value] : attributes) {
    absl::StrAppend(out, separator, Name(name), " = ", std::visit(AttributePrinter{mesh}, value));
    separator = ", ";
  }
  *out += "}";
}

void AppendBinding(const Binding& binding, Attributes attributes, const Mesh& mesh, std::string* out) {
  if (binding.kind != Binding::kNone) {
    attributes["kind"] = std::string(BindingKindName(binding.kind));
    attributes["name"] = binding.name;
    if (binding.peer >= 0) attributes["peer"] = int64_t{binding.peer};
  }
  AppendAttributes(attributes, mesh, out);
}

void AppendOrigin(const Node& node, std::string* out) {
  if (!node.scope.empty()) absl::StrAppend(out, " at ", Quote(node.scope));
  const Provenance& p = node.provenance;
  if (p.pass.empty() && p.reason.empty()) return;
  absl::StrAppend(out, " by ", Quote(p.reason.empty() ? p.pass : absl::StrCat(p.pass, ": ", p.reason)));
}

void AppendPlace(const Node& node, const Mesh& mesh, std::string* out) {
  if (node.assignment.empty()) return;
  const absl::StatusOr<const ShardingRule*> rule = node.Rule();
  *out += " place<";
  const char* separator = "";
  for (size_t f = 0; f < node.assignment.size(); ++f) {
    if (node.assignment[f].empty()) continue;
    const bool named = rule.ok() && f < (*rule)->factors.size();
    absl::StrAppend(out, separator, named ? (*rule)->factors[f] : absl::StrCat("?", f), "=",
                    mesh.Show(node.assignment[f]));
    separator = ", ";
  }
  *out += ">";
}

void AppendNode(const Node& node, std::string* out) {
  const Mesh& mesh = MeshOf(node.function());
  for (int i = 0; i < node.num_results(); ++i) {
    absl::StrAppend(out, i ? ", %" : "%", Name(node.result_name(i)));
  }
  absl::StrAppend(out, node.num_results() ? " = " : "", node.op_name(), "(");
  for (int i = 0; i < node.num_operands(); ++i) {
    const Value& v = node.operand(i);
    absl::StrAppend(out, i ? ", %" : "%", v.node == nullptr ? "<none>" : Name(v.name()));
  }
  *out += ")";
  AppendAttributes(node.attributes(), mesh, out);
  AppendPlace(node, mesh, out);
  if (node.queue == Queue::kComm) *out += " @comm";
  if (node.queue == Queue::kCopy) *out += " @copy";
  for (int i = 0; i < node.num_results(); ++i) {
    absl::StrAppend(out, i ? ", " : " : ", TypeToString(node.type(i), mesh));
  }
  AppendOrigin(node, out);
}

void AppendArg(const Node& arg, const Mesh& mesh, std::string* out) {
  absl::StrAppend(out, "%", Name(arg.result_name()), ": ", TypeToString(arg.type(), mesh));
  AppendBinding(arg.binding, arg.attributes(), mesh, out);
  AppendOrigin(arg, out);
}

void AppendReturn(const Function& function, const Mesh& mesh, std::string* out) {
  *out += "return";
  // One line each when there are many or when they are bound: such lists are read by name.
  const bool wrap = function.num_results() > 2;
  for (int i = 0; i < function.num_results(); ++i) {
    if (i > 0) *out += ",";
    *out += wrap && i > 0 ? "\n         %" : " %";
    *out += Name(function.result(i).name());
    AppendBinding(function.result_binding(i), {}, mesh, out);
  }
}

void AppendFunction(const Function& function, std::string* out) {
  const Mesh& mesh = MeshOf(&function);
  std::string head = absl::StrCat("func @", Name(function.name()), "(");
  const std::string separator = function.args().size() > 3 ? ",\n" + std::string(head.size(), ' ') : ", ";
  *out += head;
  for (size_t i = 0; i < function.args().size(); ++i) {
    if (i > 0) *out += separator;
    AppendArg(*function.args()[i], mesh, out);
  }
  *out += ") {\n";
  Phase phase = Phase::kForward;
  for (const std::unique_ptr<Node>& node : function.body()) {
    if (node->phase != phase) absl::StrAppend(out, PhaseName(node->phase), ":\n");
    phase = node->phase;
    *out += "  ";
    AppendNode(*node, out);
    *out += "\n";
  }
  *out += "  ";
  AppendReturn(function, mesh, out);
  *out += "\n}\n";
}

}  // namespace

std::string PrintModule(const Module& module) {
  const Mesh& mesh = module.mesh();
  std::string out = absl::StrCat("module @", Name(module.name()));
  if (!(mesh == Mesh())) absl::StrAppend(&out, " ", mesh.ToString());
  AppendAttributes(module.attributes(), mesh, &out);
  out += "\n";
  for (const std::unique_ptr<State>& state : module.states()) {
    absl::StrAppend(&out, "state @", Name(state->name), " : ", TypeToString(state->type, mesh));
    AppendAttributes(state->attributes, mesh, &out);
    out += "\n";
  }
  for (const std::unique_ptr<Function>& function : module.functions()) AppendFunction(*function, &out);
  return out;
}

std::string PrintFunction(const Function& function) {
  std::string out;
  AppendFunction(function, &out);
  return out;
}

std::string PrintNode(const Node& node) {
  std::string out;
  if (node.Is("arg")) {
    AppendArg(node, MeshOf(node.function()), &out);
  } else if (node.Is("return")) {
    AppendReturn(*node.function(), MeshOf(node.function()), &out);
  } else {
    AppendNode(node, &out);
  }
  return out;
}

}  // namespace moe
