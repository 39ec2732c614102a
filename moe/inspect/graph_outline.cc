#include "moe/inspect/graph_outline.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/inspect/stage_view.h"
#include "moe/ir/scope.h"
#include "moe/ir/state.h"

namespace moe::inspect {
namespace {

GraphBox::Kind KindOf(const Node& n) {
  const std::string& op = n.op_name();
  if (IsPlacementChange(n)) return IsCollective(n) ? GraphBox::kCollective : GraphBox::kLocalMove;
  if ((op == "math.einsum" && n.num_operands() > 1) || absl::StartsWith(op, "nn.head_stats"))
    return GraphBox::kGemm;
  if (absl::StartsWith(op, "nn.attention")) return GraphBox::kAttention;
  if (absl::StartsWith(op, "moe.") || absl::StrContains(op, "route")) return GraphBox::kRouting;
  return GraphBox::kOther;
}

std::string OpName(const Node& n) { return n.op_name().substr(n.op_name().find('.') + 1); }

bool IsResidualStream(const Node& n) { return n.StringOr("tag", "") == "residual_stream"; }

// Only reshapes and casts: the eye does not miss them.
bool IsTransparent(const Node& n) {
  return n.Is("math.reshape") || n.Is("math.cast") || n.Is("optim.accumulate");
}

bool IsElementwise(const Node& n) {
  return absl::StartsWith(n.op_name(), "math.") && !n.Is("math.einsum") && !IsResidualStream(n);
}

class Outliner {
 public:
  Outliner(const Program& program, const GraphOptions& options)
      : program_(program), options_(options), mesh_(program.module->mesh()) {}

  absl::StatusOr<GraphOutline> Run() {
    if (options_.stage >= 0) RETURN_IF_ERROR(CheckStage(program_, options_.stage));
    out_.stages = NumStages(program_);
    for (int s = 0; s < out_.stages; ++s) {
      if (options_.stage >= 0 && s != options_.stage) continue;
      const StageView view = ViewStage(program_, s);
      for (const StageFunction& f : view.functions) OutlineFunction(*f.function, s);
    }
    if (out_.boxes.empty()) {
      return absl::NotFoundError(
          options_.layer >= 0 ? absl::StrCat("there is no layer ", options_.layer, " in the ",
                                             PhaseName(options_.phase), " to draw")
                              : absl::StrCat("the ", PhaseName(options_.phase), " has no nodes to draw"));
    }
    const Mesh& mesh = mesh_;
    out_.title = absl::StrCat(
        program_.module->name(), ", ", PhaseName(options_.phase), " of one microbatch",
        options_.stage >= 0 ? absl::StrCat(", stage ", options_.stage, " of ", out_.stages) : "");
    std::vector<std::string> sizes;
    if (mesh.num_stages() > 1) sizes.push_back(absl::StrCat("pp ", mesh.num_stages()));
    for (const char* alias : {"dp", "cp", "tp", "ep", "etp", "edp"}) {
      const AxisList axes = mesh.Alias(alias);
      if (mesh.Size(axes) > 1) sizes.push_back(absl::StrCat(alias, " ", mesh.Size(axes)));
    }
    out_.subtitle = absl::StrCat(mesh.num_ranks(), mesh.num_ranks() == 1 ? " rank" : " ranks",
                                 sizes.empty() ? "" : "  \u00b7  ", absl::StrJoin(sizes, ", "));
    const AxisList axes = mesh.SpmdAxes();
    if (std::any_of(axes.begin(), axes.end(),
                    [&](AxisId axis) { return AxesText({axis}, mesh, "") == mesh.name(axis); })) {
      absl::StrAppend(&out_.subtitle, "  \u00b7  ", AxesMeaning(mesh));
    }
    return std::move(out_);
  }

 private:
  void OutlineFunction(const Function& f, int stage) {
    nodes_.clear();
    for (const auto& n : f.body()) {
      if (n->phase != options_.phase) continue;
      if (options_.layer >= 0 && ParseScope(n->scope).layer != options_.layer) continue;
      nodes_.push_back(n.get());
    }
    if (nodes_.empty()) return;
    box_of_.clear();
    stage_ = stage;
    FindSideNodes(f);
    FindRuns();
    for (const Node* n : nodes_) AddNode(*n);
    for (const Node* n : nodes_) AddEdges(*n);
    AddResults(f);
  }

  // What neither the residual stream nor the head nor another stage needs: reports and router losses.
  void FindSideNodes(const Function& f) {
    side_.clear();
    if (options_.phase != Phase::kForward) return;
    std::set<const Node*> needed;
    std::vector<const Node*> stack;
    for (const Node* n : nodes_) {
      if (IsResidualStream(*n) || ParseScope(n->scope).kind != Scope::kLayer) stack.push_back(n);
    }
    for (int i = 0; i < f.num_results(); ++i) {
      if (f.result_binding(i).kind == Binding::kBoundary) stack.push_back(f.result(i).node);
    }
    if (std::none_of(nodes_.begin(), nodes_.end(), [](const Node* n) { return IsResidualStream(*n); }))
      return;
    while (!stack.empty()) {
      const Node* n = stack.back();
      stack.pop_back();
      if (!needed.insert(n).second) continue;
      for (const Value& v : n->operands()) stack.push_back(v.node);
    }
    for (const Node* n : nodes_) {
      if (!needed.count(n) && !IsCollective(*n)) side_.insert(n);
    }
  }

  // Equal neighbouring layers: the k-th node of a later one is drawn as the k-th node of the first.
  void FindRuns() {
    first_of_run_.clear(), twin_.clear();
    std::map<int64_t, std::vector<const Node*>> layers;
    for (const Node* n : nodes_) {
      if (const int64_t l = ParseScope(n->scope).layer; l >= 0) layers[l].push_back(n);
    }
    int64_t first = -1, previous = -2;
    std::string signature;
    for (const auto& [l, nodes] : layers) {
      std::string mine = Signature(nodes);
      if (options_.collapse_layers && l == previous + 1 && mine == signature) {
        ++out_.runs.back().count;
        for (size_t i = 0; i < nodes.size(); ++i) twin_[nodes[i]] = layers.at(first)[i];
      } else {
        first = l;
        signature = std::move(mine);
        out_.runs.push_back({stage_, l, 1});
      }
      first_of_run_[l] = first;
      previous = l;
    }
  }

  std::string Signature(const std::vector<const Node*>& nodes) const {
    std::map<const Node*, size_t> index;
    std::string out;
    for (size_t i = 0; i < nodes.size(); ++i) {
      const Node& n = *nodes[i];
      index[&n] = i;
      absl::StrAppend(&out, n.op_name(), " ", ParseScope(n.scope).part, " ", side_.count(&n));
      for (const Value& v : n.operands()) {
        auto it = index.find(v.node);
        absl::StrAppend(&out, " ",
                        it == index.end() ? std::string(v.node->Is("arg") ? "arg" : "-")
                                          : absl::StrCat(it->second, ".", v.index));
      }
      for (int i = 0; i < n.num_results(); ++i)
        absl::StrAppend(&out, ":", TypeText(n.type(i), mesh_, n.scope));
      if (n.Has("axes")) absl::StrAppend(&out, "/", mesh_.Show(n.axes()));
      out += "\n";
    }
    return out;
  }

  const Node& Drawn(const Node& n) const {
    auto it = twin_.find(&n);
    return it == twin_.end() ? n : *it->second;
  }

  int NewBox(const Node& n, GraphBox::Kind kind) {
    GraphBox box;
    box.kind = kind;
    box.stage = stage_;
    const Scope scope = ParseScope(n.scope);
    box.layer = scope.kind == Scope::kLayer ? first_of_run_.at(scope.layer) : -1;
    box.part = std::string(scope.part);
    out_.boxes.push_back(std::move(box));
    return static_cast<int>(out_.boxes.size()) - 1;
  }

  void Describe(const Node& n, GraphBox* box) const {
    box->title = LocalName(n.result_name(), n.scope);
    box->op = OpName(n);
    box->type = TypeText(n.type(), mesh_, n.scope);
    box->bytes = static_cast<double>(StorageOf(n.type(), mesh_).bytes);
    if (!IsPlacementChange(n)) return;
    box->op = CollectiveKind(n, mesh_);
    box->axes = CollectiveAxes(n, mesh_);
    box->bytes = cost::CommunicationCost(n, mesh_).bytes;
    box->reason =
        absl::StrCat(n.provenance.pass, n.provenance.reason.empty() ? "" : ": ", n.provenance.reason);
  }

  // The box that draws `v`, or -1: nothing does (arguments; nodes of another phase).
  int BoxOf(const Value& v) const {
    auto it = box_of_.find(&Drawn(*v.node));
    return it == box_of_.end() ? -1 : it->second;
  }

  static bool ReadsBoundary(const Node& n) {
    for (const Value& v : n.operands()) {
      if (v.node->Is("arg") && v.node->binding.kind == Binding::kBoundary) return true;
    }
    return false;
  }

  void AddNode(const Node& n) {
    if (&Drawn(n) != &n) return;
    if (side_.count(&n)) {
      int& box = reports_[{stage_, n.scope}];
      if (box == 0 || box >= static_cast<int>(out_.boxes.size()) ||
          out_.boxes[box].kind != GraphBox::kReports) {
        box = NewBox(n, GraphBox::kReports);
        out_.boxes[box].title = "router losses and load";
        out_.boxes[box].op = "0 nodes";
      }
      int count = std::stoi(out_.boxes[box].op);
      out_.boxes[box].op = absl::StrCat(++count, " nodes");
      box_of_[&n] = box;
      return;
    }
    if (IsTransparent(n)) {
      const int data = n.Is("optim.accumulate") && n.num_operands() > 1 ? 1 : 0;
      const int from = n.num_operands() ? BoxOf(n.operand(data)) : -1;
      if (from < 0 && !ReadsBoundary(n)) return;  // of an argument that has no box either
      if (from >= 0) {
        if (data == 1 && n.operand(0).node->Is("arg")) {
          out_.boxes[from].notes.push_back(absl::StrCat("+= ", LocalName(n.operand(0).name(), n.scope)));
        }
        box_of_[&n] = from;
        return;
      }
    }
    if (IsElementwise(n)) {
      // Joins the box of its only drawn producer if that is elementwise too and feeds nothing else.
      int producer = -1, producers = 0;
      for (const Value& v : n.operands()) {
        if (const int box = BoxOf(v); box >= 0 && box != producer) producer = box, ++producers;
      }
      const auto chain = chains_.find(producer);
      if (producers == 1 && chain != chains_.end() && chain->second->scope == n.scope) {
        GraphBox& box = out_.boxes[producer];
        const std::string joined = absl::StrCat(box.op, ", ", OpName(n));
        Describe(n, &box);
        box.op = joined;
        box_of_[&n] = producer;
        return;
      }
    }
    const int box = NewBox(n, KindOf(n));
    Describe(n, &out_.boxes[box]);
    if (IsElementwise(n)) chains_[box] = &n;
    box_of_[&n] = box;
    for (const Value& v : n.operands()) {
      if (!v.node->Is("arg") || v.node->binding.kind != Binding::kState) continue;
      std::string name = LocalName(v.name(), n.scope);
      // "layers.0.mlp_norm" in scope layers.0.moe
      if (const Scope scope = ParseScope(n.scope); scope.kind == Scope::kLayer) {
        name = LocalName(name, scope.layer_text);
      }
      out_.boxes[box].notes.push_back(absl::StrCat(name, " ", DimsText(v.type().LocalDims(mesh_))));
    }
  }

  void AddEdge(int from, int to) {
    if (from < 0 || to < 0 || from == to || !edges_.insert({from, to}).second) return;
    out_.edges.push_back({from, to, ""});
  }

  void AddEdges(const Node& n) {
    const int to = BoxOf(Value{const_cast<Node*>(&n), 0});
    const int64_t layer = ParseScope(n.scope).layer;
    const bool copy = &Drawn(n) != &n;
    for (const Value& v : n.operands()) {
      if (v.node->Is("arg")) {
        if (!copy) AddEdge(ArgBox(*v.node, n), to);
        continue;
      }
      const int64_t from_layer = ParseScope(v.node->scope).layer;
      // Between the layers of a run that is drawn once there is no edge; into it, only that of its first
      // layer.
      if (copy && from_layer != layer) continue;
      AddEdge(BoxOf(v), to);
    }
  }

  // Boxes for what comes from other stages and from the data; -1 for all else.
  int ArgBox(const Node& arg, const Node& user) {
    const Binding& binding = arg.binding;
    if (binding.kind == Binding::kBoundary) return BoundaryBox("receive", "from", binding, arg.type());
    if (binding.kind != Binding::kBatch || (user.scope != "embedding" && binding.name != "labels")) return -1;
    return EdgeBox(GraphBox::kInput, binding.name, arg.type());
  }

  void AddResults(const Function& f) {
    for (int i = 0; i < f.num_results(); ++i) {
      const Binding& binding = f.result_binding(i);
      if (binding.kind != Binding::kBoundary || f.result(i).node->Is("arg")) continue;
      if (f.result(i).node->phase != options_.phase) continue;
      const int from = BoxOf(f.result(i));
      if (from >= 0) AddEdge(from, BoundaryBox("send", "to", binding, f.result(i).type()));
    }
  }

  // Each stage has a box of its own for what it sends or receives: lines between stages that stand side by side
  // would run back to the top. A value that one chunk of a stage gives to another has one box for both.
  int BoundaryBox(absl::string_view verb, absl::string_view preposition, const Binding& binding,
                  const Type& type) {
    const int index = EdgeBox(GraphBox::kBoundary, binding.name, type);
    GraphBox& box = out_.boxes[index];
    const int chunk = binding.peer;
    const std::vector<int>& stages = program_.schedule.chunk_stage;
    const int peer = chunk >= 0 && chunk < static_cast<int>(stages.size()) ? stages[chunk] : stage_;
    box.op = peer == stage_ ? "pass on" : std::string(verb);
    if (peer != stage_) box.axes = absl::StrCat(preposition, " stage ", peer);
    return index;
  }

  // A box at the edge of the stage, once for each name.
  int EdgeBox(GraphBox::Kind kind, const std::string& name, const Type& type) {
    const auto [it, fresh] = edge_box_.insert({{stage_, name}, static_cast<int>(out_.boxes.size())});
    if (fresh) {
      GraphBox box;
      box.kind = kind;
      box.stage = stage_;
      box.title = name;
      box.type = TypeText(type, mesh_, "");
      box.bytes = static_cast<double>(StorageOf(type, mesh_).bytes);
      out_.boxes.push_back(std::move(box));
    }
    return it->second;
  }

  const Program& program_;
  const GraphOptions& options_;
  const Mesh& mesh_;
  GraphOutline out_;
  int stage_ = 0;
  std::vector<const Node*> nodes_;  // of the function, phase and layer at hand
  std::set<const Node*> side_;
  std::map<int64_t, int64_t> first_of_run_;
  std::map<const Node*, const Node*> twin_;  // node of a later layer of a run -> its like in the first
  std::map<const Node*, int> box_of_;
  std::map<int, const Node*> chains_;  // boxes of elementwise nodes
  std::map<std::pair<int, std::string>, int> reports_;
  std::map<std::pair<int, std::string>, int> edge_box_;  // by stage and name
  std::set<std::pair<int, int>> edges_;
};

}  // namespace

absl::StatusOr<GraphOutline> OutlineGraph(const Program& program, const GraphOptions& options) {
  return Outliner(program, options).Run();
}

}  // namespace moe::inspect
