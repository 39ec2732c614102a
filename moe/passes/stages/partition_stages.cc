#include "moe/passes/stages/partition_stages.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/builder.h"
#include "moe/ir/registry.h"
#include "moe/ir/scope.h"
#include "moe/ir/state.h"
#include "moe/ir/state_layout.h"
#include "moe/passes/copy_nodes.h"
#include "moe/passes/schedule/schedule_table.h"
#include "moe/passes/stages/layer_cuts.h"

namespace moe::passes {
namespace {

constexpr char kPass[] = "partition-stages";
constexpr char kResidualStream[] = "residual_stream";

absl::Status Broken(absl::string_view what) { return absl::InternalError(absl::StrCat(kPass, ": ", what)); }

// Leaves of a tree of backward additions that nobody else reads; `inner` gets the additions, users before
// operands.
void AddLeaves(Value root, std::vector<Value>* leaves, std::vector<Node*>* inner) {
  Node* n = root.node;
  if (!n->Is("math.add") || n->phase != Phase::kBackward || !root.HasOneUse()) {
    leaves->push_back(root);
    return;
  }
  inner->push_back(n);
  for (const Value& v : n->operands()) AddLeaves(v, leaves, inner);
}

class Cutter {
 public:
  Cutter(Program& program, const PassContext& context)
      : program_(program),
        module_(*program.module),
        step_(module_.Find(FunctionKind::kStep)),
        context_(context) {}

  absl::Status Run() {
    RETURN_IF_ERROR(CheckPrefixes());
    RETURN_IF_ERROR(ChooseCuts());
    AssignChunks();
    SplitSharedGradients();
    FindInputOnlyNodes();
    RETURN_IF_ERROR(FindBoundaries());
    RETURN_IF_ERROR(BuildChunks());
    SetStateStages();
    module_.RemoveFunction(FunctionRole(FunctionKind::kStep).Name());
    return absl::OkStatus();
  }

 private:
  // Of one copy of the model.
  int chunks() const { return program_.schedule.chunks_per_copy(); }

  // What a forward reads of an accumulator is a sum over the microbatches before its own: they must run in
  // order, and all in one place.
  absl::Status CheckPrefixes() {
    const Node* reads = nullptr;
    for (const Node* n : step_->NodesOf("optim.accumulate")) {
      for (const Use& u : n->uses(0)) {
        if (n->phase == Phase::kForward && !u.user->Is("return")) reads = n;
      }
    }
    if (reads == nullptr) return absl::OkStatus();
    const Schedule& s = program_.schedule;
    bool in_order = s.copies == 1;
    for (const auto& row : s.table) {
      std::map<int, int> last;
      for (const Schedule::Cell& c : row) {
        if (c.kind != 'F') continue;
        const auto [it, fresh] = last.emplace(c.chunk, c.microbatch);
        in_order = in_order && (fresh || it->second < c.microbatch);
        it->second = c.microbatch;
      }
    }
    if (in_order) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        kPass, ": %", reads->result_name(), " (scope '", reads->scope,
        "') is a sum over the microbatches so far, which schedule ", s.name,
        s.copies > 1 ? " sends through two copies of the model" : " does not run in order",
        "; legal: a schedule that runs forwards in order, as 1f1b, or moe_aux_loss_scope = sequence"));
  }

  absl::Status ChooseCuts() {
    double embedding = 0, head = 0;
    std::vector<double> layers;
    for (const auto& n : step_->body()) {
      const Scope part = ParseScope(n->scope);
      const double seconds = cost::NodeSeconds(*n, Mesh(), context_.target);
      if (part.kind == Scope::kEmbedding) embedding += seconds;
      if (part.kind == Scope::kHead) head += seconds;
      if (part.kind != Scope::kLayer) continue;
      if (part.layer >= static_cast<int>(layers.size())) layers.resize(part.layer + 1, 0.0);
      layers[part.layer] += seconds;
    }
    num_layers_ = static_cast<int>(layers.size());
    if (context_.layout != nullptr) {
      cuts_ = context_.layout->layer_cuts;
      if (static_cast<int>(cuts_.size()) != chunks() + 1 || cuts_.back() != num_layers_) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the state to be shared is cut into ", cuts_.size() - 1, " chunks of ", cuts_.back(),
            " layers in all; this program has ", chunks(), " chunks and ", num_layers_, " layers"));
      }
    } else if (chunks() == 1) {
      cuts_ = {0, num_layers_};
    } else {
      std::vector<double> cost = layers;
      if (!cost.empty()) {
        cost.front() += embedding;
        cost.back() += head;
      }
      ASSIGN_OR_RETURN(cuts_, CutLayers(cost, chunks()));
    }
    module_.attributes()["layer_cuts"] = std::vector<int64_t>(cuts_.begin(), cuts_.end());
    Note(layers, embedding, head);
    return absl::OkStatus();
  }

  void Note(const std::vector<double>& layers, double embedding, double head) {
    double total = embedding + head;
    for (const double c : layers) total += c;
    std::vector<std::string> parts;
    for (int c = 0; c < chunks(); ++c) {
      double cost = (c == 0 ? embedding : 0) + (c == chunks() - 1 ? head : 0);
      for (int l = cuts_[c]; l < cuts_[c + 1]; ++l) cost += layers[l];
      const int last = cuts_[c + 1] - 1;
      std::vector<std::string> what;
      if (c == 0 && embedding > 0) what.push_back("embed");
      if (last == cuts_[c]) what.push_back(absl::StrCat("layer ", last));
      if (last > cuts_[c]) what.push_back(absl::StrCat("layers ", cuts_[c], "-", last));
      if (c == chunks() - 1 && head > 0) what.push_back("head");
      const int stage = program_.schedule.chunk_stage[c];
      const bool several = static_cast<int64_t>(chunks()) > context_.strategy.pp;
      parts.push_back(absl::StrFormat("stage %d%s: %s (%.1f%%)", stage,
                                      several ? absl::StrCat(" chunk ", c) : "", absl::StrJoin(what, " + "),
                                      total > 0 ? 100 * cost / total : 100.0));
    }
    context_.Note(absl::StrJoin(parts, "   "));
  }

  // -1 where the scope says nothing.
  int ChunkOfScope(absl::string_view scope) const {
    if (chunks() == 1) return 0;
    const Scope part = ParseScope(scope);
    if (part.kind == Scope::kEmbedding) return 0;
    if (part.kind == Scope::kHead) return chunks() - 1;
    if (part.kind != Scope::kLayer) return -1;
    return static_cast<int>(std::upper_bound(cuts_.begin(), cuts_.end(), part.layer) - cuts_.begin()) - 1;
  }

  void AssignChunks() {
    for (const auto& n : step_->body()) {
      int chunk = ChunkOfScope(n->scope);
      int lowest = chunks(), highest = -1;
      for (const Value& v : n->operands()) {
        if (v.node->Is("arg") || (n->phase == Phase::kBackward && v.node->phase != Phase::kBackward))
          continue;
        lowest = std::min(lowest, home_.at(v.node));
        highest = std::max(highest, home_.at(v.node));
      }
      if (chunk < 0) chunk = highest < 0 ? 0 : n->phase == Phase::kForward ? highest : lowest;
      // The sum of what flows back into the residual stream belongs to the chunk whose nodes it adds up,
      // whatever the scope of the value that it is the gradient of.
      if (n->phase == Phase::kBackward && n->Is("math.add") && lowest == highest && lowest > chunk)
        chunk = lowest;
      home_[n.get()] = chunk;
    }
  }

  // A parameter read by several chunks has a gradient that is a sum over them. Each chunk accumulates its
  // part.
  void SplitSharedGradients() {
    for (Node* acc : step_->NodesOf("optim.accumulate")) {
      if (acc->phase != Phase::kBackward) continue;
      std::vector<Value> leaves;
      std::vector<Node*> sums;
      AddLeaves(acc->operand(1), &leaves, &sums);
      std::map<int, std::vector<Value>> parts;
      for (const Value& v : leaves) parts[v.node->Is("arg") ? 0 : home_.at(v.node)].push_back(v);
      if (parts.size() == 1) {
        home_[acc] = parts.begin()->first;
        for (Node* sum : sums) home_[sum] = parts.begin()->first;
        continue;
      }
      int result = 0;
      while (step_->result(result) != acc->result()) ++result;
      const Binding binding = step_->result_binding(result);
      bool first = true;
      for (const auto& [chunk, values] : parts) {
        Builder b = Builder::Before(acc);
        b.provenance = {kPass, absl::StrCat("gradient of a parameter that ", parts.size(), " chunks share")};
        Value sum = values[0];
        for (size_t i = 1; i < values.size(); ++i) {
          Node* add = *b.CreateNode("math.add", {sum, values[i]});
          home_[add] = chunk;
          sum = add->result();
        }
        ValueMap map = {{acc->operand(0), acc->operand(0)}, {acc->operand(1), sum}};
        Node* part = CopyNode(*acc, step_, &map, acc);
        part->scope = sum.node->scope;
        home_[part] = chunk;
        if (first) {
          step_->SetResult(result, part->result());
        } else {
          step_->AddResult(part->result(), binding);
        }
        first = false;
      }
      step_->Erase(acc);
      for (Node* sum : sums) step_->Erase(sum);
    }
  }

  // Nodes that depend on batch and scalars alone are computed anew in every chunk that uses them.
  void FindInputOnlyNodes() {
    for (const auto& n : step_->body()) order_.push_back(n.get());
    std::set<const Node*> input_only;
    for (const Node* n : order_) {
      bool only = !n->op().Has(kStateful) && !n->op().Has(kDecision);
      for (const Value& v : n->operands()) {
        const Binding::Kind kind = v.node->binding.kind;
        only = only && (v.node->Is("arg") ? kind == Binding::kBatch || kind == Binding::kScalar
                                          : input_only.count(v.node) > 0);
      }
      if (only) input_only.insert(n);
    }
    for (auto it = order_.rbegin(); it != order_.rend(); ++it) {
      const Node* n = *it;
      std::set<int>& where = where_[n];
      if (!input_only.count(n)) {
        where = {home_.at(n)};
        continue;
      }
      for (int i = 0; i < n->num_results(); ++i) {
        for (const Use& u : n->uses(i)) {
          if (!u.user->Is("return")) where.insert(where_[u.user].begin(), where_[u.user].end());
        }
      }
      if (where.empty()) where = {home_.at(n)};
    }
  }

  absl::Status FindBoundaries() {
    forward_.assign(chunks(), Value{});
    backward_.assign(chunks(), Value{});
    for (const Node* n : order_) {
      for (const Value& v : n->operands()) {
        if (v.node->Is("arg")) continue;
        for (const int to : where_.at(n)) {
          if (where_.at(v.node).count(to)) continue;
          const int from = home_.at(v.node);
          const bool gradient = v.node->phase == Phase::kBackward;
          const std::string what =
              absl::StrCat("%", v.name(), " (", v.node->op_name(), ", scope '", v.node->scope, "', ",
                           PhaseName(v.node->phase), ") crosses from chunk ", from, " to chunk ", to,
                           " for %", n->result_name(), " (", n->op_name(), ", scope '", n->scope, "')");
          if (to != (gradient ? from - 1 : from + 1) || (gradient && n->phase != Phase::kBackward)) {
            return Broken(
                absl::StrCat(what, "; only neighbours exchange the residual stream and its gradient"));
          }
          if (!gradient && v.node->StringOr("tag", "") != kResidualStream) {
            return Broken(absl::StrCat(what, "; only a value tagged residual_stream may go forward"));
          }
          Value& slot = gradient ? backward_[to] : forward_[from];
          if (slot && slot != v) {
            return Broken(absl::StrCat(what, ", but %", slot.name(), " does already; only one value may"));
          }
          slot = v;
        }
      }
    }
    return absl::OkStatus();
  }

  // The value of `v` in chunk c: an argument made on first use, in the order of the nodes.
  Value ArgFor(Value v, int c, Function* f, ValueMap* map) {
    auto it = map->find(v);
    if (it != map->end()) return it->second;
    Binding binding = v.node->binding;
    Attributes attributes;
    if (v.node->Is("arg")) {
      attributes = v.node->attributes();
    } else if (v.node->phase == Phase::kForward) {
      binding = {Binding::kBoundary, absl::StrCat("act.", c - 1), c - 1};
      attributes["tag"] = std::string(kResidualStream);
    } else {
      binding = {Binding::kBoundary, absl::StrCat("grad.", c), c + 1};
      attributes["tag"] = std::string(kResidualStream);
      if (v.node->Has("dual")) attributes["dual"] = v.node->String("dual");
    }
    Value arg = f->AddArg(v.name(), v.type(), std::move(binding), std::move(attributes));
    arg.node->scope = v.node->scope;
    return (*map)[v] = arg;
  }

  absl::Status BuildChunks() {
    program_.inventory.clear();
    for (const Node* n : order_) {
      const std::set<int>& where = where_.at(n);
      LogicalNode node{n->op_name(), n->result_name(), {}, ""};
      for (int copy = 0; copy < program_.schedule.copies; ++copy) {
        for (const int c : where) node.chunks.push_back(copy * chunks() + c);
      }
      program_.inventory.push_back(std::move(node));
    }
    for (int copy = 0; copy < program_.schedule.copies; ++copy) RETURN_IF_ERROR(BuildCopy(copy * chunks()));
    return absl::OkStatus();
  }

  // The chunks of one copy of the model, numbered from `base`.
  absl::Status BuildCopy(int base) {
    int built = 0;
    for (int c = 0; c < chunks(); ++c) {
      Function* f = module_.AddFunction({FunctionKind::kChunk, base + c});
      ValueMap map;
      if (c > 0 && forward_[c - 1]) ArgFor(forward_[c - 1], base + c, f, &map);
      for (Node* a : step_->args()) {  // arguments in the order of @step
        bool used = false;
        for (const Use& u : a->uses())
          used = used || (!u.user->Is("return") && where_.at(u.user).count(c) > 0);
        if (used) ArgFor(a->result(), base + c, f, &map);
      }
      if (backward_[c]) ArgFor(backward_[c], base + c, f, &map);
      int here = 0;
      for (const Node* n : order_) {
        if (!where_.at(n).count(c)) continue;
        CopyNode(*n, f, &map);
        here += *where_.at(n).begin() == c;
      }
      if (here == 0) return Broken(absl::StrCat("chunk ", c, " is empty"));
      built += here;
      if (forward_[c]) {
        f->AddResult(map.at(forward_[c]), {Binding::kBoundary, absl::StrCat("act.", base + c), base + c + 1});
      }
      for (int i = 0; i < step_->num_results(); ++i) {
        const Value v = step_->result(i);
        const bool mine = v.node->Is("arg") ? c == 0 && map.count(v) : *where_.at(v.node).begin() == c;
        if (mine) f->AddResult(map.at(v), step_->result_binding(i));
      }
      if (c > 0 && backward_[c - 1]) {
        f->AddResult(map.at(backward_[c - 1]),
                     {Binding::kBoundary, absl::StrCat("grad.", base + c - 1), base + c - 1});
      }
    }
    if (built != static_cast<int>(order_.size())) {
      return Broken(absl::StrCat(built, " of ", order_.size(), " nodes are in a chunk"));
    }
    return absl::OkStatus();
  }

  void SetStateStages() {
    std::map<std::string, std::set<int>> used;  // state -> chunks
    for (int c = 0; c < static_cast<int>(program_.schedule.chunk_stage.size()); ++c) {
      for (const Node* a : module_.Find({FunctionKind::kChunk, c})->args()) {
        if (a->binding.kind == Binding::kState) used[a->binding.name].insert(c);
      }
    }
    for (const auto& s :
         module_.states()) {  // gradients and moments live where their parameter does, and conversely
      const std::string of = AttrString(s->attributes, "of");
      if (!of.empty()) used[of].insert(used[s->name].begin(), used[s->name].end());
    }
    for (const auto& s : module_.states()) {
      const std::string of = AttrString(s->attributes, "of");
      const std::set<int>& in = used[of.empty() ? s->name : of];
      std::set<int64_t> stages;
      for (const int c : in) stages.insert(program_.schedule.chunk_stage[c]);
      if (stages.empty()) stages.insert(0);
      s->attributes["stages"] = std::vector<int64_t>(stages.begin(), stages.end());
      const std::string kind = AttrString(s->attributes, "kind");
      if (kind == "gradient" || kind == "accumulator") {
        s->attributes["chunk"] = int64_t{used[s->name].empty() ? 0 : *used[s->name].begin()};
      }
    }
  }

  Program& program_;
  Module& module_;
  Function* step_;
  const PassContext& context_;
  int num_layers_ = 0;
  std::vector<int> cuts_;
  std::map<const Node*, int> home_;
  std::map<const Node*, std::set<int>> where_;  // chunks that compute the node; one but for input-only nodes
  std::vector<const Node*> order_;
  std::vector<Value> forward_, backward_;  // act.c and grad.c, by c
};

}  // namespace

std::vector<int64_t> StagesOf(const State& state) {
  auto it = state.attributes.find("stages");
  const auto* stages =
      it == state.attributes.end() ? nullptr : std::get_if<std::vector<int64_t>>(&it->second);
  return stages == nullptr || stages->empty() ? std::vector<int64_t>{0} : *stages;
}

absl::StatusOr<bool> PartitionStages(Program& program, const PassContext& context) {
  Module& module = *program.module;
  if (context.strategy.pp != module.mesh().num_stages()) {
    return absl::InvalidArgumentError(absl::StrCat(kPass, ": pp = ", context.strategy.pp,
                                                   ", but the mesh has ", module.mesh().num_stages(),
                                                   " stages: ", module.mesh().ToString()));
  }
  ASSIGN_OR_RETURN(program.schedule, MakeSchedule(context.strategy));
  RETURN_IF_ERROR(Cutter(program, context).Run());
  RETURN_IF_ERROR(PartitionUpdate(module, static_cast<int>(context.strategy.pp)));
  return true;
}

}  // namespace moe::passes
