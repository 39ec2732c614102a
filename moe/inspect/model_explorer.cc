#include "moe/inspect/model_explorer.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "moe/base/quantities.h"
#include "moe/cost/node_cost.h"
#include "moe/inspect/stage_view.h"
#include "moe/ir/registry.h"
#include "moe/ir/scope.h"
#include "moe/ir/state.h"

namespace moe::inspect {
namespace {

using Json = nlohmann::ordered_json;

Json Pair(absl::string_view key, absl::string_view value) {
  return {{"key", std::string(key)}, {"value", std::string(value)}};
}

Json OutputMetadata(const Program& program, const Function& f, const Node& n) {
  const Mesh& mesh = program.module->mesh();
  Json out = Json::array();
  for (int i = 0; i < n.num_results(); ++i) {
    const Value v{const_cast<Node*>(&n), i};
    out.push_back(
        {{"id", absl::StrCat(i)},
         {"attrs", Json::array({Pair("name", n.result_name(i)), Pair("shape", TypeToString(n.type(i), mesh)),
                                Pair("local", DimsText(n.type(i).LocalDims(mesh))),
                                Pair("bytes", absl::StrCat(ValueBytes(program, f, v)))})}});
  }
  return out;
}

Json GraphOf(const Program& program, const Function& f, int stage) {
  const Mesh& mesh = program.module->mesh();
  const auto id = [](const Node& n) {
    return absl::StrCat(n.Is("arg") ? "a" : n.Is("return") ? "r" : "n", n.id());
  };
  Json nodes = Json::array();
  const std::string stage_name = absl::StrCat("stage ", stage);
  const auto edges = [&](const Node& n) {
    Json list = Json::array();
    for (int i = 0; i < n.num_operands(); ++i) {
      list.push_back({{"sourceNodeId", id(*n.operand(i).node)},
                      {"sourceNodeOutputId", absl::StrCat(n.operand(i).index)},
                      {"targetNodeInputId", absl::StrCat(i)}});
    }
    return list;
  };
  for (const Node* a : f.args()) {
    nodes.push_back({{"id", id(*a)},
                     {"label", a->result_name()},
                     {"namespace", absl::StrCat(stage_name, "/arguments/", BindingKindName(a->binding.kind))},
                     {"attrs", Json::array({Pair("kind", BindingKindName(a->binding.kind))})},
                     {"incomingEdges", Json::array()},
                     {"outputsMetadata", OutputMetadata(program, f, *a)}});
  }
  for (const auto& n : f.body()) {
    Json attrs = Json::array({Pair("scope", n->scope), Pair("phase", PhaseName(n->phase))});
    if (!n->provenance.pass.empty()) attrs.push_back(Pair("inserted by", n->provenance.pass));
    if (!n->provenance.reason.empty()) attrs.push_back(Pair("because", n->provenance.reason));
    if (IsCollective(*n)) {
      attrs.push_back(Pair("axes", CollectiveAxes(*n, mesh)));
      attrs.push_back(Pair("bytes sent by a rank", BytesText(cost::CommunicationCost(*n, mesh).bytes)));
    } else {
      attrs.push_back(Pair("flops on a rank", absl::StrCat(cost::NodeFlops(*n, mesh))));
    }
    for (const auto& [name, value] : n->attributes()) {
      if (const auto* text = std::get_if<std::string>(&value)) attrs.push_back(Pair(name, *text));
      if (const auto* number = std::get_if<int64_t>(&value))
        attrs.push_back(Pair(name, absl::StrCat(*number)));
    }
    std::string path = absl::StrCat(stage_name, "/", PhaseName(n->phase));
    const Scope scope = ParseScope(n->scope);
    if (scope.kind == Scope::kLayer) absl::StrAppend(&path, "/layer ", scope.layer);
    if (!scope.part.empty()) absl::StrAppend(&path, "/", absl::StrReplaceAll(scope.part, {{".", "/"}}));
    nodes.push_back({{"id", id(*n)},
                     {"label", n->op_name()},
                     {"namespace", path},
                     {"attrs", attrs},
                     {"incomingEdges", edges(*n)},
                     {"outputsMetadata", OutputMetadata(program, f, *n)}});
  }
  nodes.push_back({{"id", id(*f.return_node())},
                   {"label", "return"},
                   {"namespace", stage_name},
                   {"attrs", Json::array()},
                   {"incomingEdges", edges(*f.return_node())},
                   {"outputsMetadata", Json::array()}});
  return {{"id", absl::StrCat(stage_name, " ", f.name())}, {"nodes", nodes}};
}

}  // namespace

std::string ModelExplorerJson(const Program& program) {
  Json graphs = Json::array();
  for (int s = 0; s < NumStages(program); ++s) {
    for (const StageFunction& f : ViewStage(program, s).functions)
      graphs.push_back(GraphOf(program, *f.function, s));
  }
  return Json{{"label", program.module->name()}, {"graphs", graphs}}.dump(1) + "\n";
}

}  // namespace moe::inspect
