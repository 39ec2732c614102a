#include "moe/ir/diff.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_map>

#include "absl/strings/str_cat.h"

namespace moe {
namespace {

// As ==, but NaN equals itself, and 0.0 is not -0.0.
bool SameAttribute(const Attribute& a, const Attribute& b) {
  const double *x = std::get_if<double>(&a), *y = std::get_if<double>(&b);
  if (x == nullptr || y == nullptr) return a == b;
  if (std::isnan(*x) || std::isnan(*y)) return std::isnan(*x) && std::isnan(*y);
  return *x == *y && std::signbit(*x) == std::signbit(*y);
}

std::string DiffAttributes(const Attributes& a, const Attributes& b) {
  for (const auto& [name, value] : a) {
    const auto it = b.find(name);
    if (it == b.end()) return absl::StrCat("attribute '", name, "' is only in the first");
    if (!SameAttribute(value, it->second)) return absl::StrCat("attribute '", name, "' differs");
  }
  for (const auto& [name, value] : b) {
    if (a.count(name) == 0) return absl::StrCat("attribute '", name, "' is only in the second");
  }
  return "";
}

std::string DiffText(absl::string_view what, absl::string_view a, absl::string_view b) {
  return a == b ? "" : absl::StrCat(what, " is '", a, "' and '", b, "'");
}

std::string DiffBindings(const Binding& a, const Binding& b) {
  if (a == b) return "";
  const auto text = [](const Binding& x) {
    return absl::StrCat(BindingKindName(x.kind), " ", x.name, " ", x.peer);
  };
  return DiffText("binding", text(a), text(b));
}

std::string DiffNodes(const Node& a, const Node& b, const Mesh& mesh) {
  if (std::string d = DiffText("op", a.op_name(), b.op_name()); !d.empty()) return d;
  if (a.num_results() != b.num_results())
    return absl::StrCat("has ", a.num_results(), " and ", b.num_results(), " results");
  for (int i = 0; i < a.num_results(); ++i) {
    if (std::string d = DiffText("name", a.result_name(i), b.result_name(i)); !d.empty()) return d;
    if (!(a.type(i) == b.type(i))) {
      return absl::StrCat("%", a.result_name(i), " is ", TypeToString(a.type(i), mesh), " and ",
                          TypeToString(b.type(i), mesh));
    }
  }
  if (std::string d = DiffAttributes(a.attributes(), b.attributes()); !d.empty()) return d;
  if (std::string d = DiffBindings(a.binding, b.binding); !d.empty()) return d;
  if (std::string d = DiffText("phase", PhaseName(a.phase), PhaseName(b.phase)); !d.empty()) return d;
  if (a.queue != b.queue) return "queue differs";
  if (std::string d = DiffText("scope", a.scope, b.scope); !d.empty()) return d;
  if (std::string d = DiffText("pass", a.provenance.pass, b.provenance.pass); !d.empty()) return d;
  if (std::string d = DiffText("reason", a.provenance.reason, b.provenance.reason); !d.empty()) return d;
  if (a.assignment != b.assignment) return "placement of factors differs";
  return "";
}

std::string Label(const Node& node) {
  return absl::StrCat(node.num_results() ? absl::StrCat("%", node.result_name(), " = ") : "", node.op_name());
}

bool SameMesh(const Mesh& a, const Mesh& b) {
  const auto named = [](const Mesh& mesh) {
    std::map<std::string, AxisList> out;
    for (const auto& [name, axes] : mesh.aliases()) {
      if (!axes.empty()) out[name] = axes;  // an alias for no axes says nothing
    }
    return out;
  };
  return a.axes() == b.axes() && named(a) == named(b);
}

}  // namespace

std::string DiffFunctions(const Function& a, const Function& b) {
  static const Mesh& none = *new Mesh();
  const Mesh& mesh = a.module() == nullptr ? none : a.module()->mesh();
  const std::string where = absl::StrCat("@", a.name(), ": ");
  if (std::string d = DiffText("name", a.name(), b.name()); !d.empty()) return where + d;
  if (a.args().size() != b.args().size()) {
    return absl::StrCat(where, a.args().size(), " and ", b.args().size(), " arguments");
  }
  std::unordered_map<const Node*, const Node*> twin;
  for (size_t i = 0; i < a.args().size(); ++i) {
    const Node &x = *a.args()[i], &y = *b.args()[i];
    if (std::string d = DiffNodes(x, y, mesh); !d.empty())
      return absl::StrCat(where, "argument ", i, ": ", d);
    twin[&x] = &y;
  }
  const auto operands = [&](const Node& x, const Node& y) -> std::string {
    if (x.num_operands() != y.num_operands()) {
      return absl::StrCat("has ", x.num_operands(), " and ", y.num_operands(), " operands");
    }
    for (int i = 0; i < x.num_operands(); ++i) {
      const Value &v = x.operand(i), &w = y.operand(i);
      const auto it = twin.find(v.node);
      if (it == twin.end() || it->second != w.node || v.index != w.index)
        return absl::StrCat("operand ", i, " differs");
    }
    return "";
  };
  auto it = b.body().begin();
  int64_t place = 0;
  for (const std::unique_ptr<Node>& x : a.body()) {
    if (it == b.body().end())
      return absl::StrCat(where, "node ", place, " (", Label(*x), ") is only in the first");
    const Node& y = **it++;
    std::string d = DiffNodes(*x, y, mesh);
    if (d.empty()) d = operands(*x, y);
    if (!d.empty()) return absl::StrCat(where, "node ", place, " (", Label(*x), "): ", d);
    twin[x.get()] = &y;
    ++place;
  }
  if (it != b.body().end())
    return absl::StrCat(where, "node ", place, " (", Label(**it), ") is only in the second");
  if (std::string d = operands(*a.return_node(), *b.return_node()); !d.empty())
    return absl::StrCat(where, "return: ", d);
  for (int i = 0; i < a.num_results(); ++i) {
    if (std::string d = DiffBindings(a.result_binding(i), b.result_binding(i)); !d.empty()) {
      return absl::StrCat(where, "result ", i, ": ", d);
    }
  }
  return "";
}

std::string DiffModules(const Module& a, const Module& b) {
  if (std::string d = DiffText("name", a.name(), b.name()); !d.empty()) return d;
  if (!SameMesh(a.mesh(), b.mesh()))
    return absl::StrCat("mesh is ", a.mesh().ToString(), " and ", b.mesh().ToString());
  if (std::string d = DiffAttributes(a.attributes(), b.attributes()); !d.empty()) return d;
  if (a.states().size() != b.states().size())
    return absl::StrCat(a.states().size(), " and ", b.states().size(), " states");
  for (size_t i = 0; i < a.states().size(); ++i) {
    const State &x = *a.states()[i], &y = *b.states()[i];
    std::string d = DiffText("name", x.name, y.name);
    if (d.empty() && !(x.type == y.type)) d = "type differs";
    if (d.empty()) d = DiffAttributes(x.attributes, y.attributes);
    if (!d.empty()) return absl::StrCat("state @", x.name, ": ", d);
  }
  if (a.functions().size() != b.functions().size()) {
    return absl::StrCat(a.functions().size(), " and ", b.functions().size(), " functions");
  }
  for (size_t i = 0; i < a.functions().size(); ++i) {
    if (std::string d = DiffFunctions(*a.functions()[i], *b.functions()[i]); !d.empty()) return d;
  }
  return "";
}

}  // namespace moe
