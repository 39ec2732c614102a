#include "moe/cost/node_cost.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/wire_format.h"

namespace moe::cost {
namespace {

bool IsComm(const Node& n) { return absl::StartsWith(n.op_name(), "comm."); }

double LocalBytes(const Type& t, const Mesh& mesh) {
  return static_cast<double>(t.LocalElements(mesh)) * ByteSize(t.dtype);
}

// Bytes on the wire for each byte of a value.
double WireScale(const Node& n) {
  const auto wire = ParseWireFormat(n.StringOr("wire", ""));
  if (!wire || *wire == WireFormat::kNone) return 1;
  const DType dtype = n.operand(0).type().dtype;
  return static_cast<double>(WireBytes(*wire, dtype, kWireBlock)) / (kWireBlock * ByteSize(dtype));
}

Link LinkOf(bool inside, const Target& target) {
  return inside ? Link{target.link_bytes_per_second, target.link_latency_seconds}
                : Link{target.node_bytes_per_second, target.node_latency_seconds};
}

// What a collective moves, per part; nothing where it is not lowered to steps, or the verifier refuses it.
std::vector<ConversionPart> PartsOf(const Node& n, const Mesh& mesh) {
  if (!HasConversionParts(n)) return {};
  absl::StatusOr<std::vector<ConversionPart>> parts = ConversionParts(n, mesh);
  return parts.ok() ? *std::move(parts) : std::vector<ConversionPart>();
}

}  // namespace

AxisLevels LevelsOf(absl::Span<const AxisId> axes, const Mesh& mesh) {
  const auto node = mesh.aliases().find("node");
  AxisLevels out;
  for (const AxisId a : axes) {
    const bool inside = node == mesh.aliases().end() ||
                        std::find(node->second.begin(), node->second.end(), a) != node->second.end();
    (inside ? out.inside : out.across).push_back(a);
  }
  return out;
}

Link LinkOf(absl::Span<const AxisId> axes, const Mesh& mesh, const Target& target) {
  return LinkOf(LevelsOf(axes, mesh).across.empty(), target);
}

namespace {

// Ranks that communicate: so many share a node, on so many nodes.
struct Group {
  double inside = 1, nodes = 1;
};

// Ranks at the same place in `stages` pipeline stages.
Group GroupOfStages(double stages, const Mesh& mesh) {
  const bool inside = LevelsOf(mesh.Alias("pp"), mesh).across.empty();
  return inside ? Group{.inside = stages} : Group{.nodes = stages};
}

StepCost CostOf(StepKind kind, double bytes, const Group& group, const Target& target) {
  StepCost out;
  out.bytes_after = bytes;
  const double inside = group.inside, size = inside * group.nodes;
  const double part = (size - 1) / size;
  double hops = size - 1;
  switch (kind) {
    case StepKind::kZero:
      return out;
    case StepKind::kSlice:
      out.bytes_after = bytes / size;
      return out;
    case StepKind::kReduceScatter:
      out.sent.bytes = part * bytes;
      out.bytes_after = bytes / size;
      break;
    case StepKind::kAllReduce:
      out.sent.bytes = 2 * part * bytes;
      hops *= 2;
      break;
    case StepKind::kAllToAll:
      out.sent.bytes = part * bytes;
      break;
    case StepKind::kAllGather:
      out.bytes_after = bytes * size;
      out.sent.bytes = part * out.bytes_after;
      break;
    case StepKind::kPermute:
    case StepKind::kRotate:
      out.sent.bytes = bytes;
      hops = 1;
      break;
  }
  if (size == 1) {
    out.sent = CommCost();
    return out;
  }
  out.sent.launches = 1;
  if (kind == StepKind::kAllToAll) {
    out.sent.across = bytes * (size - inside) / size;
    out.seconds = (inside - 1) * target.link_latency_seconds + (size - inside) * target.node_latency_seconds +
                  (out.sent.bytes - out.sent.across) / target.link_bytes_per_second +
                  out.sent.across / target.node_bytes_per_second;
    return out;
  }
  out.sent.across = group.nodes > 1 ? out.sent.bytes / inside : 0;
  out.seconds = LinkOf(group.nodes == 1, target).Seconds(hops, out.sent.bytes);
  return out;
}

StepCost CostOfStageReduce(const Node& n, const Mesh& mesh, const Target& target) {
  const Group group = GroupOfStages(static_cast<double>(n.Ints("stages").size()), mesh);
  return CostOf(StepKind::kAllReduce, LocalBytes(n.operand(0).type(), mesh), group, target);
}

}  // namespace

StepCost CostOfStep(const ConversionStep& step, double bytes, const Mesh& mesh, const Target& target) {
  const AxisLevels levels = LevelsOf(step.axes(), mesh);
  const Group group = {.inside = static_cast<double>(mesh.Size(levels.inside)),
                       .nodes = static_cast<double>(mesh.Size(levels.across))};
  return CostOf(step.kind, bytes, group, target);
}

StepCost CostOfSteps(absl::Span<const ConversionStep> steps, double bytes, const Mesh& mesh,
                     const Target& target) {
  StepCost out;
  out.bytes_after = bytes;
  for (const ConversionStep& step : steps) {
    const StepCost c = CostOfStep(step, out.bytes_after, mesh, target);
    out.sent.bytes += c.sent.bytes;
    out.sent.across += c.sent.across;
    out.sent.launches += c.sent.launches;
    out.seconds += c.seconds;
    out.bytes_after = c.bytes_after;
  }
  return out;
}

std::vector<ConversionStep> InTwoLevels(const ConversionStep& step, int dim, const Mesh& mesh) {
  const AxisLevels axes = LevelsOf(step.axes(), mesh);
  if (axes.inside.empty() || axes.across.empty()) return {};
  ConversionStep inside{step.kind, {}}, across{step.kind, {}};
  for (const Move& m : step.moves) {
    const bool in = std::find(axes.inside.begin(), axes.inside.end(), m.axis) != axes.inside.end();
    (in ? inside : across).moves.push_back(m);
  }
  switch (step.kind) {
    case StepKind::kReduceScatter:
    case StepKind::kAllToAll:
      return {inside, across};
    case StepKind::kAllGather:
      return {across, inside};
    case StepKind::kAllReduce: {
      ConversionStep scatter{StepKind::kReduceScatter, {}}, gather{StepKind::kAllGather, {}};
      for (const Move& m : inside.moves) {
        scatter.moves.push_back({m.axis, m.from, dim});
        gather.moves.push_back({m.axis, dim, Placement::kNone});
      }
      return {scatter, across, gather};
    }
    default:
      return {};
  }
}

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
  const OpDef& op = n.op();
  if (op.flops) return op.flops(n, **rule, *extents);
  double largest = 0;
  const auto look = [&](const FactorTerm& term) {
    double elements = 1;
    for (const FactorDim& dim : term) {
      for (const FactorId f : dim) elements *= (*extents)[f];
    }
    largest = std::max(largest, elements);
  };
  for (int i = 0; i < n.num_operands(); ++i) {
    if (i != op.gathered_operand) look((*rule)->operands[i]);
  }
  for (const FactorTerm& result : (*rule)->results) look(result);
  return op.flops_per_element * largest;
}

double NodeBytes(const Node& n, const Mesh& mesh) {
  double read = 0, written = 0;
  for (int i = 0; i < n.num_results(); ++i) written += LocalBytes(n.type(i), mesh);
  for (int i = 0; i < n.num_operands(); ++i) {
    const double whole = LocalBytes(n.operand(i).type(), mesh);
    read += i == n.op().gathered_operand ? std::min(whole, written) : whole;
  }
  return read + written;
}

CommCost CommunicationCost(const Node& n, const Mesh& mesh) {
  CommCost cost;
  if (!IsComm(n) || n.Is("comm.done")) return cost;
  if (n.Is("comm.stage_reduce")) {
    return CostOfStageReduce(n, mesh, Target()).sent;
  }
  for (const ConversionPart& part : PartsOf(n, mesh)) {
    const double bytes = WireScale(n) * LocalBytes(part.from.type(), mesh);
    const CommCost sent = CostOfSteps(part.steps, bytes, mesh, Target()).sent;
    cost.bytes += sent.bytes;
    cost.across += sent.across;
    cost.launches = std::max(cost.launches, sent.launches);  // parts travel together
  }
  return cost;
}

double NodeSeconds(const Node& n, const Mesh& mesh, const Target& target) {
  if (n.Is("comm.done")) return 0;
  if (IsComm(n)) {
    const CommCost cost = CommunicationCost(n, mesh);
    if (cost.launches == 0) return NodeBytes(n, mesh) / target.bytes_per_second;
    if (n.Is("comm.stage_reduce")) return CostOfStageReduce(n, mesh, target).seconds;
    // Parts travel together: the messages of the first carry the others.
    Target rest = target;
    rest.link_latency_seconds = rest.node_latency_seconds = 0;
    double seconds = 0;
    bool first = true;
    for (const ConversionPart& part : PartsOf(n, mesh)) {
      const double bytes = WireScale(n) * LocalBytes(part.from.type(), mesh);
      seconds += CostOfSteps(part.steps, bytes, mesh, first ? target : rest).seconds;
      first = false;
    }
    return seconds;
  }
  const bool f8 = n.StringOr("multiply", "") == "f8e4m3" && target.f8_flops > 0;
  return std::max(NodeFlops(n, mesh) / (f8 ? target.f8_flops : target.flops),
                  NodeBytes(n, mesh) / target.bytes_per_second);
}

}  // namespace moe::cost
