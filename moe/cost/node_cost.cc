#include "moe/cost/node_cost.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/registry.h"
#include "moe/ir/wire_format.h"

namespace moe {
namespace {

bool IsComm(const Node& n) { return absl::StartsWith(n.op_name(), "comm."); }

double LocalBytes(const Type& t, const Mesh& mesh) {
  return static_cast<double>(t.LocalElements(mesh)) * ByteSize(t.dtype);
}

// The steps of a conversion; a node without the attribute is one step of its own kind over its axes.
std::vector<ConversionStep> StepsOf(const Node& n, const Mesh& mesh) {
  if (n.Has("steps")) {
    absl::StatusOr<std::vector<ConversionStep>> steps = ParseSteps(n.String("steps"), mesh);
    if (steps.ok()) return *std::move(steps);
  }
  ConversionStep step;
  for (const StepKind kind :
       {StepKind::kZero, StepKind::kSlice, StepKind::kReduceScatter, StepKind::kAllReduce,
        StepKind::kAllToAll, StepKind::kAllGather, StepKind::kPermute}) {
    if (n.op_name() == std::string("comm.") + std::string(StepKindName(kind))) {
      step.kind = kind;
      for (const AxisId a : n.axes()) step.moves.push_back({a});
      return {step};
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
  double bytes = LocalBytes(n.operand(0).type(), mesh);
  if (const auto wire = ParseWireFormat(n.StringOr("wire", "")); wire && *wire != WireFormat::kNone) {
    const DType dtype = n.operand(0).type().dtype;
    bytes *= static_cast<double>(WireBytes(*wire, dtype, kWireBlock)) / (kWireBlock * ByteSize(dtype));
  }
  if (n.Is("comm.stage_reduce")) {
    const double size = static_cast<double>(n.Ints("stages").size());
    if (size > 1) cost = {2 * (size - 1) / size * bytes, 1};
    return cost;
  }
  for (const ConversionStep& step : StepsOf(n, mesh)) {
    const double size = static_cast<double>(mesh.Size(step.axes()));
    const double part = (size - 1) / size;
    switch (step.kind) {
      case StepKind::kZero:
        break;
      case StepKind::kSlice:
        bytes /= size;
        break;
      case StepKind::kReduceScatter:
        cost.bytes += part * bytes;
        bytes /= size;
        break;
      case StepKind::kAllReduce:
        cost.bytes += 2 * part * bytes;
        break;
      case StepKind::kAllToAll:
        cost.bytes += part * bytes;
        break;
      case StepKind::kAllGather:
        bytes *= size;
        cost.bytes += part * bytes;
        break;
      case StepKind::kPermute:
        cost.bytes += bytes;
        break;
    }
    if (!IsLocal(step.kind) && size > 1) ++cost.launches;
  }
  return cost;
}

double NodeSeconds(const Node& n, const Mesh& mesh, const Target& target) {
  if (IsComm(n)) {
    const CommCost cost = CommunicationCost(n, mesh);
    if (cost.launches == 0) return NodeBytes(n, mesh) / target.bytes_per_second;
    return cost.launches * target.link_latency_seconds + cost.bytes / target.link_bytes_per_second;
  }
  return std::max(NodeFlops(n, mesh) / target.flops, NodeBytes(n, mesh) / target.bytes_per_second);
}

}  // namespace moe
