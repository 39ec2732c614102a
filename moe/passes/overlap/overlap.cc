#include "moe/passes/overlap/overlap.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/builder.h"
#include "moe/ir/conversion_parts.h"
#include "moe/passes/overlap/node_order.h"
#include "moe/passes/overlap/reduce_early.h"
#include "moe/passes/overlap/two_queues.h"

namespace moe::passes {
namespace {

// The first node, by place, that reads result `r`; the return if no other does.
Node* FirstReader(Function& f, Node* n, int r, const std::map<const Node*, int>& place) {
  Node* first = f.return_node();
  for (const Use& u : n->uses(r)) {
    if (u.user->Is("return")) continue;
    if (first == f.return_node() || place.at(u.user) < place.at(first)) first = u.user;
  }
  return first;
}

absl::Status SplitInTwo(Function& f, Node* n, const std::vector<Node*>& readers) {
  std::vector<Type> types;
  for (int r = 0; r < n->num_results(); ++r) {
    types.push_back(n->type(r));
    types.back().future = true;
  }
  Builder b = Builder::Before(n);
  b.provenance = n->provenance;
  ASSIGN_OR_RETURN(Node * start, b.CreateTyped("comm.start", n->operands(), StartAttributes(*n),
                                               std::move(types), absl::StrCat(n->result_name(), ".start")));
  start->queue = Queue::kComm;
  std::vector<Node*> dones;
  for (int r = 0; r < n->num_results(); ++r) {
    Node* reader = readers[r];
    Builder at = reader->Is("return") ? Builder(&f) : Builder::Before(reader);
    at.phase = n->phase;
    at.scope = n->scope;
    at.provenance = {"overlap", absl::StrCat("first read by ", reader->op_name())};
    Type type = n->type(r);
    ASSIGN_OR_RETURN(Node * done,
                     at.CreateTyped("comm.done", {start->result(r), n->operand(r)}, {}, {std::move(type)}));
    f.ReplaceAllUses(n->result(r), done->result());
    dones.push_back(done);
  }
  std::vector<std::string> names;
  for (int r = 0; r < n->num_results(); ++r) names.push_back(n->result_name(r));
  f.Erase(n);
  for (size_t r = 0; r < dones.size(); ++r) dones[r]->SetResultName(0, names[r]);
  return absl::OkStatus();
}

// Cuts the exchanges in two that have work between them and their first readers; how many.
absl::StatusOr<int> SplitExchanges(Function& f, const cost::Target& target) {
  const Mesh& mesh = f.module()->mesh();
  std::map<const Node*, int> place;
  std::vector<double> work = {0};  // of the compute queue, before each node
  const std::vector<Node*> nodes = f.Nodes();
  for (Node* n : nodes) {
    place[n] = static_cast<int>(work.size()) - 1;
    work.push_back(work.back() + (n->queue == Queue::kComm ? 0 : cost::NodeSeconds(*n, mesh, target)));
  }
  place[f.return_node()] = static_cast<int>(nodes.size());
  int count = 0;
  for (Node* n : nodes) {
    if (n->queue != Queue::kComm || !HasConversionParts(*n) || n->Is("comm.start")) continue;
    std::vector<Node*> readers;
    bool hides = true;
    for (int r = 0; r < n->num_results(); ++r) {
      readers.push_back(FirstReader(f, n, r, place));
      hides = hides && work[place.at(readers.back())] > work[place.at(n) + 1];
    }
    if (!hides) continue;
    RETURN_IF_ERROR(SplitInTwo(f, n, readers));
    ++count;
  }
  return count;
}

}  // namespace

bool AsksForOverlap(const PassContext& context) {
  const strategy::Toggle word = context.strategy.overlap;
  return word == strategy::Toggle::kOn || (word == strategy::Toggle::kAuto && context.target.overlaps);
}

absl::StatusOr<bool> Overlap(Program& program, const PassContext& context) {
  if (!AsksForOverlap(context)) return false;
  const Mesh& mesh = program.module->mesh();
  ASSIGN_OR_RETURN(const int early, ReduceGradientsEarly(program));
  bool changed = early > 0;
  int in_flight = early, exchanges = 0;
  double communication = 0, stalled = 0;
  for (const auto& f : program.module->functions()) {
    if (!f->role().IsOfMicrobatch()) continue;
    const NodeOrder order(*f);
    std::vector<double> seconds;
    for (int i = 0; i < order.size(); ++i)
      seconds.push_back(cost::NodeSeconds(*order.node(i), mesh, context.target));
    const TwoQueueOrder result = OrderForTwoQueues(order, seconds);
    if (static_cast<int>(result.nodes.size()) != order.size()) {
      return absl::InternalError(absl::StrCat("overlap: the order of @", f->name(), " has ",
                                              result.nodes.size(), " of its ", order.size(), " nodes"));
    }
    for (int i = 0; i < order.size(); ++i) {
      changed = changed || result.nodes[i] != order.node(i);
      exchanges += order.node(i)->queue == Queue::kComm;
    }
    Rearrange(*f, result.nodes);
    ASSIGN_OR_RETURN(const int split, SplitExchanges(*f, context.target));
    in_flight += split;
    communication += result.communication;
    stalled += std::min(result.stalled, result.communication);
  }
  if (exchanges > 0) {
    context.Note(
        absl::StrFormat("%d of %d exchanges in flight beside compute; by cost %.0f%% of the communication "
                        "is hidden",
                        in_flight, exchanges, communication > 0 ? 100 * (1 - stalled / communication) : 0));
  }
  return changed || in_flight > 0;
}

}  // namespace moe::passes
