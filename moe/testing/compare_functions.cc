#include "moe/testing/compare_functions.h"

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/testing/virtual_cluster.h"

namespace moe::testing {
namespace {

// A value on one device.
struct Logical {
  std::vector<double> data, sizes;
};

// The value of an argument, by what it is bound to.
std::vector<double> RandomArgument(const Node& arg, const CompareOptions& options, std::mt19937_64* rng) {
  std::vector<double> values(arg.type().num_elements());
  const std::string& name = arg.binding.name;
  if (arg.binding.IsState()) {
    const Function& f = *arg.function();
    const State* state = f.module()->FindState(name);
    const bool ends_step = f.role().kind == FunctionKind::kUpdate || f.role().kind == FunctionKind::kReport;
    if (state != nullptr && AttrString(state->attributes, "reset") == "step" && !ends_step) return values;
  }
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  int64_t i = 0;
  for (double& x : values) {
    if (name == "positions") {
      x = static_cast<double>(i++);
    } else if (name == "mask") {
      x = uniform(*rng) < options.masked ? 0 : 1;
    } else if (arg.type().dtype == DType::kS32) {
      x = static_cast<double>((*rng)() % static_cast<uint64_t>(options.vocab));
    } else if (arg.binding.kind == Binding::kScalar) {
      x = 0.05 + 0.1 * uniform(*rng);
    } else if (absl::StartsWith(name, "adam.v.")) {
      x = 0.01 + 0.1 * uniform(*rng);
    } else {
      x = 0.4 * normal(*rng);
    }
  }
  return values;
}

// Random summands of a value, one for each rank over the axes of its partial.
std::vector<std::vector<double>> Split(const std::vector<double>& global, const Type& type, const Mesh& mesh,
                                       std::mt19937_64* rng) {
  AxisList partial;
  for (const Partial& p : type.placement.partial) partial.push_back(p.axis);
  std::vector<std::vector<double>> summands(mesh.Size(partial), global);
  std::normal_distribution<double> normal;
  for (size_t k = 1; k < summands.size(); ++k) {
    for (size_t i = 0; i < global.size(); ++i) {
      summands[k][i] = normal(*rng);
      summands[0][i] -= summands[k][i];
    }
  }
  return summands;
}

using Values = std::map<Value, Placed>;

absl::StatusOr<std::vector<Placed>> Run(const Node& n, const Values& values, VirtualCluster* cluster) {
  std::vector<Placed> in;
  for (const Value& v : n.operands()) in.push_back(values.at(v));
  return cluster->Run(n, in, /*stage=*/0);
}

// The name of the logical value that a value of the placed function stands for.
class Counterparts {
 public:
  std::string Find(const Value& v, const std::map<std::string, Logical>& logical) {
    constexpr char kAnew[] = "placed anew instead of converting %";
    const Node& n = *v.node;
    std::string name = v.name();
    if (absl::StartsWith(n.op_name(), "comm.") && !logical.count(name)) {
      const auto it = names_.find(n.operand(0));
      name = it == names_.end() ? n.operand(0).name() : it->second;
    } else if (absl::StartsWith(n.provenance.reason, kAnew)) {
      name = std::string(absl::StripPrefix(n.provenance.reason, kAnew));
    }
    return names_[v] = name;
  }

 private:
  std::map<Value, std::string> names_;
};

}  // namespace

absl::Status CompareWithOneDevice(const Function& logical, const Function& placed,
                                  const CompareOptions& options) {
  const Mesh one, &mesh = placed.module()->mesh();
  VirtualCluster single(one, kernels::Backend::kReference, Conversions::kByMeaning);
  VirtualCluster all(mesh, kernels::Backend::kReference, Conversions::kByMeaning);
  std::mt19937_64 rng(options.seed);

  Values reference, values;
  std::map<std::string, Logical> wanted;
  for (Node* arg : logical.args()) {
    std::vector<double> data = RandomArgument(*arg, options, &rng);
    reference[arg->result()] = single.Distribute(arg->type(), data, /*stage=*/0);
    wanted[arg->result_name()] = {std::move(data), {}};
  }
  for (const auto& n : logical.body()) {
    ASSIGN_OR_RETURN(std::vector<Placed> results, Run(*n, reference, &single));
    for (int i = 0; i < n->num_results(); ++i) {
      const Snapshot s = single.Read(n->type(i), results[i], /*stage=*/0);
      wanted[n->result_name(i)] = {s.Global(one), s.GlobalSizes(one)};
      reference[n->result(i)] = std::move(results[i]);
    }
  }

  for (Node* arg : placed.args()) {
    const auto it = wanted.find(arg->result_name());
    if (it == wanted.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("argument %", arg->result_name(), " has no counterpart"));
    }
    values[arg->result()] =
        all.DistributeSummands(arg->type(), Split(it->second.data, arg->type(), mesh, &rng), /*stage=*/0);
  }
  Counterparts counterparts;
  for (const auto& n : placed.body()) {
    ASSIGN_OR_RETURN(std::vector<Placed> results, Run(*n, values, &all));
    for (int i = 0; i < n->num_results(); ++i) {
      const Value v = n->result(i);
      const auto it = wanted.find(counterparts.Find(v, wanted));
      if (it == wanted.end()) {
        return absl::FailedPreconditionError(
            absl::StrCat("%", v.name(), " (", n->op_name(), ") has no counterpart"));
      }
      const Snapshot got = all.Read(v.type(), results[i], /*stage=*/0);
      std::string what;
      if (v.type().ragged >= 0) {
        Snapshot cells;
        cells.type = got.cells;
        cells.local = got.sizes;
        what = Difference(cells, it->second.sizes, mesh, options.tolerance, "on one device");
        if (!what.empty()) what = absl::StrCat("of the sizes of its cells, ", what);
      }
      if (what.empty()) what = Difference(got, it->second.data, mesh, options.tolerance, "on one device");
      if (!what.empty()) {
        return absl::InternalError(
            absl::StrCat("%", v.name(), " = ", n->op_name(), " as ", TypeToString(v.type(), mesh), ": ", what,
                         n->provenance.reason.empty() ? "" : "; ", n->provenance.reason));
      }
      values[v] = std::move(results[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace moe::testing
