#include "moe/cost/node_cost.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "moe/base/status.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/wire_format.h"

namespace moe {
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

}  // namespace

std::vector<ConversionStep> StepsOf(const Node& n, const Mesh& mesh) {
  if (n.Has("steps")) {
    absl::StatusOr<std::vector<ConversionStep>> steps = ParseSteps(n.String("steps"), mesh);
    if (steps.ok()) return *std::move(steps);
  }
  ConversionStep step;
  for (const StepKind kind :
       {StepKind::kZero, StepKind::kSlice, StepKind::kReduceScatter, StepKind::kAllReduce,
        StepKind::kAllToAll, StepKind::kAllGather, StepKind::kPermute, StepKind::kRotate}) {
    if (n.op_name() == std::string("comm.") + std::string(StepKindName(kind))) {
      step.kind = kind;
      for (const AxisId a : n.axes()) step.moves.push_back({a});
      return {step};
    }
  }
  return {};
}

namespace {

// What a collective moves, per part; a plain one is one part.
std::vector<ConversionPart> PartsOf(const Node& n, const Mesh& mesh) {
  if (HasConversionParts(n)) {
    absl::StatusOr<std::vector<ConversionPart>> parts = ConversionParts(n, mesh);
    if (parts.ok()) return *std::move(parts);
  }
  return {{n.operand(0), n.type(), StepsOf(n, mesh)}};
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

StepCost CostOfStep(const ConversionStep& step, double bytes, const Mesh& mesh, const Target& target) {
  StepCost out;
  out.bytes_after = bytes;
  const AxisLevels levels = LevelsOf(step.axes(), mesh);
  const double inside = static_cast<double>(mesh.Size(levels.inside)),
               size = inside * mesh.Size(levels.across);
  const double part = (size - 1) / size;
  double hops = size - 1;
  switch (step.kind) {
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
  const bool crosses = !levels.across.empty();
  if (step.kind == StepKind::kAllToAll) {
    out.sent.across = bytes * (size - inside) / size;
    out.seconds = (inside - 1) * target.link_latency_seconds + (size - inside) * target.node_latency_seconds +
                  (out.sent.bytes - out.sent.across) / target.link_bytes_per_second +
                  out.sent.across / target.node_bytes_per_second;
    return out;
  }
  out.sent.across = crosses ? out.sent.bytes / inside : 0;
  out.seconds = crosses ? hops * target.node_latency_seconds + out.sent.bytes / target.node_bytes_per_second
                        : hops * target.link_latency_seconds + out.sent.bytes / target.link_bytes_per_second;
  return out;
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
    const double size = static_cast<double>(n.Ints("stages").size());
    const double bytes = LocalBytes(n.operand(0).type(), mesh);
    if (size > 1) cost = {.bytes = 2 * (size - 1) / size * bytes, .launches = 1};
    return cost;
  }
  for (const ConversionPart& part : PartsOf(n, mesh)) {
    double bytes = WireScale(n) * LocalBytes(part.from.type(), mesh);
    int launches = 0;  // of this part; parts travel together
    for (const ConversionStep& step : part.steps) {
      const StepCost c = CostOfStep(step, bytes, mesh, Target());
      cost.bytes += c.sent.bytes;
      cost.across += c.sent.across;
      launches += c.sent.launches;
      bytes = c.bytes_after;
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
    if (n.Is("comm.stage_reduce"))
      return target.link_latency_seconds + cost.bytes / target.link_bytes_per_second;
    // Parts travel together: the messages of the first carry the others.
    Target rest = target;
    rest.link_latency_seconds = rest.node_latency_seconds = 0;
    double seconds = 0;
    bool first = true;
    for (const ConversionPart& part : PartsOf(n, mesh)) {
      double bytes = WireScale(n) * LocalBytes(part.from.type(), mesh);
      for (const ConversionStep& step : part.steps) {
        const StepCost c = CostOfStep(step, bytes, mesh, first ? target : rest);
        seconds += c.seconds;
        bytes = c.bytes_after;
      }
      first = false;
    }
    return seconds;
  }
  const bool f8 = n.StringOr("multiply", "") == "f8e4m3" && target.f8_flops > 0;
  return std::max(NodeFlops(n, mesh) / (f8 ? target.f8_flops : target.flops),
                  NodeBytes(n, mesh) / target.bytes_per_second);
}

}  // namespace moe
