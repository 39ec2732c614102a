#include "moe/cost/node_cost.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"

namespace moe {
namespace {

bool IsComm(const Node& n) { return absl::StartsWith(n.op_name(), "comm."); }

double LocalBytes(const Type& t, const Mesh& mesh) {
  return static_cast<double>(t.LocalElements(mesh)) * ByteSize(t.dtype);
}

// What a conversion moves, per part; a node without steps is one step of its own kind over its axes.
std::vector<ConversionPart> PartsOf(const Node& n, const Mesh& mesh) {
  if (HasConversionParts(n)) {
    absl::StatusOr<std::vector<ConversionPart>> parts = ConversionParts(n, mesh);
    if (parts.ok()) return *std::move(parts);
  }
  ConversionStep step;
  for (const StepKind kind :
       {StepKind::kZero, StepKind::kSlice, StepKind::kReduceScatter, StepKind::kAllReduce,
        StepKind::kAllToAll, StepKind::kAllGather, StepKind::kPermute}) {
    if (n.op_name() == std::string("comm.") + std::string(StepKindName(kind))) {
      step.kind = kind;
      for (const AxisId a : n.axes()) step.moves.push_back({a});
      return {{n.operand(0), n.type(), {step}}};
    }
  }
  return {};
}

}  // namespace

absl::StatusOr<std::vector<double>> LocalFactorExtents(const Node& n, const Mesh& mesh) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> global, FactorExtents(n));
  std::vector<double> local(global.begin(), global.end());
  for (size_t f = 0; f < local.size() && f < n.assignment.size(); ++f) {
    local[f] /= static_cast<double>(mesh.Size(n.assignment[f]));
  }
  return local;
}

double NodeFlops(const Node& n, const Mesh& mesh) {
  if (IsComm(n)) return 0;
  const absl::StatusOr<const ShardingRule*> rule = n.Rule();
  const absl::StatusOr<std::vector<double>> extents = LocalFactorExtents(n, mesh);
  if (!rule.ok() || !extents.ok()) return 0;
  if (n.op().flops) return n.op().flops(n, **rule, *extents);
  double f = 1;
  for (const double e : *extents) f *= e;
  return f;
}

double NodeBytes(const Node& n, const Mesh& mesh) {
  double bytes = 0;
  for (const Value& v : n.operands()) bytes += LocalBytes(v.type(), mesh);
  for (int i = 0; i < n.num_results(); ++i) bytes += LocalBytes(n.type(i), mesh);
  return bytes;
}

CommCost CommunicationCost(const Node& n, const Mesh& mesh) {
  CommCost cost;
  if (!IsComm(n)) return cost;
  if (n.Is("comm.done")) return cost;
  if (n.Is("comm.stage_reduce")) {
    const double size = static_cast<double>(n.Ints("stages").size());
    if (size > 1) cost = {2 * (size - 1) / size * LocalBytes(n.operand(0).type(), mesh), 1};
    return cost;
  }
  for (const ConversionPart& part : PartsOf(n, mesh)) {
    double bytes = LocalBytes(part.from.type(), mesh);
    int launches = 0;  // of this part; parts travel together
    for (const ConversionStep& step : part.steps) {
      const double size = static_cast<double>(mesh.Size(step.axes()));
      const double share = (size - 1) / size;
      switch (step.kind) {
        case StepKind::kZero:
          break;
        case StepKind::kSlice:
          bytes /= size;
          break;
        case StepKind::kReduceScatter:
          cost.bytes += share * bytes;
          bytes /= size;
          break;
        case StepKind::kAllReduce:
          cost.bytes += 2 * share * bytes;
          break;
        case StepKind::kAllToAll:
          cost.bytes += share * bytes;
          break;
        case StepKind::kAllGather:
          bytes *= size;
          cost.bytes += share * bytes;
          break;
        case StepKind::kPermute:
          cost.bytes += bytes;
          break;
      }
      if (!IsLocal(step.kind) && size > 1) ++launches;
    }
    cost.launches = std::max(cost.launches, launches);
  }
  return cost;
}

double NodeSeconds(const Node& n, const Mesh& mesh, const Target& target) {
  if (n.Is("comm.done")) return 0;
  if (IsComm(n)) {
    const CommCost cost = CommunicationCost(n, mesh);
    if (cost.launches == 0) return NodeBytes(n, mesh) / target.bytes_per_second;
    return cost.launches * target.link_latency_seconds + cost.bytes / target.link_bytes_per_second;
  }
  return std::max(NodeFlops(n, mesh) / target.flops, NodeBytes(n, mesh) / target.bytes_per_second);
}

}  // namespace moe
