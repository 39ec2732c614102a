#include "moe/testing/validate_passes.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/diff.h"
#include "moe/ir/state.h"
#include "moe/runtime/executor.h"
#include "moe/testing/cluster_step.h"
#include "moe/testing/random_inputs.h"

namespace moe::testing {
namespace {

constexpr char kBefore[] = "before the pass";

double Largest(const std::vector<double>& x) {
  double most = 0;
  for (const double v : x) most = std::max(most, std::abs(v));
  return most;
}

std::vector<double> Sum(const ClusterExport& e, const Mesh& mesh) {
  std::vector<double> sum;
  for (const Snapshot& s : e.copies) {
    const std::vector<double> part = s.Global(mesh);
    sum.resize(std::max(sum.size(), part.size()), 0.0);
    for (size_t i = 0; i < part.size(); ++i) sum[i] += part[i];
  }
  return sum;
}

std::string Difference(const ClusterExport& got, const Mesh& got_mesh, const ClusterExport& want,
                       const Mesh& want_mesh, double tolerance) {
  if (got.copies.empty() || want.copies.empty()) {
    return got.copies.empty() == want.copies.empty() ? "" : "only one of the programs has it";
  }
  if (got.summed && got.copies.size() > 1) {
    Snapshot s;
    s.type = got.copies[0].type;
    s.type.placement = Placement::Replicated(s.type.rank());
    s.stage = got.copies[0].stage;
    const std::vector<double> sum = Sum(got, got_mesh);
    s.local.assign(got.copies[0].local.size(), sum);
    return Difference(s, Sum(want, want_mesh), got_mesh, tolerance, kBefore);
  }
  const std::vector<double> global = want.summed ? Sum(want, want_mesh) : want.copies[0].Global(want_mesh);
  for (const Snapshot& s : got.copies) {
    std::string what = Difference(s, global, got_mesh, tolerance, kBefore);
    if (!what.empty()) return what;
  }
  return "";
}

// The part of the step that a function belongs to: of the phases of a chunk, the chunk.
std::string Part(const Function& f) {
  return f.role().IsOfMicrobatch() ? FunctionRole(FunctionKind::kChunk, f.role().index).Name() : f.name();
}

// All values of the run before the pass, by name.
class Trace {
 public:
  void Add(const Value& v, int microbatch, const Snapshot& s, const Mesh& mesh) {
    values_[{v.name(), microbatch}].push_back({Part(*v.node->function()), s.type, s.Global(mesh)});
  }
  // What the value of this name was in the same part of the step, or in all of it where the name stands once.
  const std::vector<double>* Find(const std::string& name, const std::string& part, int microbatch,
                                  const Type& type) const {
    const auto it = values_.find({name, microbatch});
    if (it == values_.end()) return nullptr;
    const Entry* found = nullptr;
    for (const Entry& e : it->second) {
      if (e.part == part) found = &e;
    }
    if (found == nullptr && it->second.size() == 1) found = &it->second[0];
    if (found == nullptr || found->type.dims != type.dims) return nullptr;
    return &found->global;
  }

 private:
  struct Entry {
    std::string part;
    Type type;
    std::vector<double> global;
  };
  std::map<std::pair<std::string, int>, std::vector<Entry>> values_;
};

Program Promoted(const Program& program) {
  Program p = CloneProgram(program);
  PromoteToF64(p.module.get());
  return p;
}

absl::StatusOr<runtime::StepInputs> InputsFor(const Module& module, const ValidateOptions& options) {
  if (module.FindState("embedding") == nullptr)
    return runtime::StepInputs();  // no training step: functions run by themselves
  RandomInputOptions random;
  random.seed = options.seed;
  random.masked = options.masked;
  return RandomInputs(module, random, 1);
}

// The first value, in order of execution, that is not what it was. Empty if every value that both have
// agrees.
absl::StatusOr<std::string> FirstDifference(const Program& before, const Program& after,
                                            const runtime::StepInputs& inputs, ClusterOptions options,
                                            double tolerance) {
  Trace trace;
  const Mesh &mesh_before = before.module->mesh(), &mesh_after = after.module->mesh();
  options.observer = [&](const Value& v, int microbatch, const Snapshot& s) {
    trace.Add(v, microbatch, s, mesh_before);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(RunStep(before, inputs, options).status());
  std::string first;
  std::map<const Node*, std::string> stands_for;  // conversions: the name of what they convert
  options.observer = [&](const Value& v, int microbatch, const Snapshot& s) -> absl::Status {
    const Node& n = *v.node;
    const std::string part = Part(*n.function());
    std::string name = v.name();
    const std::vector<double>* want = trace.Find(name, part, microbatch, s.type);
    if (want == nullptr && absl::StartsWith(n.op_name(), "comm.")) {
      const auto it = stands_for.find(n.operand(0).node);
      name = it == stands_for.end() ? n.operand(0).name() : it->second;
      want = trace.Find(name, part, microbatch, s.type);
      stands_for[&n] = name;
    }
    if (want == nullptr) return absl::OkStatus();
    const std::string what = Difference(s, *want, mesh_after, tolerance, kBefore);
    if (what.empty()) return absl::OkStatus();
    first = absl::StrCat("%", v.name(), " = ", n.op_name(), " in @", n.function()->name(),
                         n.scope.empty() ? "" : absl::StrCat(" (", n.scope, ")"),
                         microbatch < 0 ? "" : absl::StrCat(", microbatch ", microbatch), ": ", what,
                         n.provenance.reason.empty() ? "" : absl::StrCat("; ", n.provenance.reason));
    return absl::AbortedError(first);
  };
  const absl::Status status = RunStep(after, inputs, options).status();
  if (!status.ok() && first.empty()) return status;
  return first;
}

// Each gradient against the change of the objective along it (or along a fixed direction, where it is zero).
absl::Status CheckGradients(const std::string& pass, const Program& before, const ClusterRun& after,
                            const Program& after_program, const runtime::StepInputs& inputs,
                            const ClusterOptions& options) {
  for (const auto& state : after_program.module->states()) {
    if (AttrString(state->attributes, "kind") != "gradient") continue;
    const std::string of = AttrString(state->attributes, "of");
    const State* parameter = before.module->FindState(of);
    const auto found = after.exports.find(absl::StrCat("state ", state->name));
    if (parameter == nullptr || found == after.exports.end()) continue;
    const std::vector<double> gradient = Sum(found->second, after_program.module->mesh());
    double norm = 0;
    for (const double g : gradient) norm += g * g;
    norm = std::sqrt(norm);
    std::vector<double> direction(gradient.size());
    for (size_t i = 0; i < direction.size(); ++i) {
      direction[i] = norm > 0 ? gradient[i] / norm : 1 / std::sqrt(static_cast<double>(direction.size()));
    }
    constexpr double kStep = 1e-5;
    double objective[2];
    for (int side = 0; side < 2; ++side) {
      ClusterOptions moved = options;
      std::vector<double>& values = moved.states[of] =
          InitialValues(*before.module, *parameter, options.seed);
      for (size_t i = 0; i < values.size(); ++i) values[i] += (side ? kStep : -kStep) * direction[i];
      ASSIGN_OR_RETURN(const ClusterRun run, RunStep(before, inputs, moved));
      objective[side] = run.objective;
    }
    const double slope = (objective[1] - objective[0]) / (2 * kStep);
    if (std::abs(slope - norm) > 1e-4 * std::max(norm, std::abs(slope)) + 1e-7) {
      return absl::InternalError(absl::StrCat("pass ", pass, ": ", found->second.producer,
                                              ": the gradient of '", of, "' has norm ", norm,
                                              " on rank 0, the losses change by ", slope, " along it"));
    }
  }
  return absl::OkStatus();
}

bool IsComplete(const Program& p) {
  return !p.memory.stages.empty() && p.schedule.actions.count("train_step") > 0;
}

}  // namespace

struct PassValidator::Last {
  std::unique_ptr<Module> module;  // as the pass left it
  ClusterRun run;
};

PassValidator::PassValidator(ValidateOptions options) : options_(options) {}
PassValidator::~PassValidator() = default;

std::function<absl::Status(const std::string&, const Program&, const Program&)> PassValidator::Hook() {
  return [this](const std::string& pass, const Program& before, const Program& after) {
    return Compare(pass, before, after);
  };
}

absl::Status PassValidator::Compare(const std::string& pass, const Program& before, const Program& after) {
  const auto in = [&](const absl::Status& s, absl::string_view when) {
    return Annotate(s, absl::StrCat("validating pass ", pass, ", the program ", when));
  };
  const Program was = Promoted(before), is = Promoted(after);
  ASSIGN_OR_RETURN(runtime::StepInputs inputs, InputsFor(*was.module, options_));
  // Gradients are compared before and after the losses are scaled.
  inputs.scalars["loss_scale"] = inputs.scalars["inv_loss_scale"] = 1;
  ClusterOptions cluster;
  cluster.backend = options_.backend;
  cluster.seed = options_.seed;
  cluster.microbatches = options_.microbatches;
  if (last_ == nullptr || !DiffModules(*last_->module, *before.module).empty()) {
    absl::StatusOr<ClusterRun> run = RunStep(was, inputs, cluster);
    if (!run.ok()) return in(run.status(), "before it");
    last_ = std::make_unique<Last>();
    last_->run = *std::move(run);
  }
  absl::StatusOr<ClusterRun> now = RunStep(is, inputs, cluster);
  if (!now.ok()) return in(now.status(), "after it");

  const Mesh &mesh_was = was.module->mesh(), &mesh_is = is.module->mesh();
  for (const auto& [what, got] : now->exports) {
    const auto want = last_->run.exports.find(what);
    if (want == last_->run.exports.end() || want->second.producer.empty()) continue;  // the pass added it
    const std::string difference = Difference(got, mesh_is, want->second, mesh_was, options_.tolerance);
    if (difference.empty()) continue;
    absl::StatusOr<std::string> first = FirstDifference(was, is, inputs, cluster, options_.tolerance);
    if (!first.ok()) return in(first.status(), "run to find the node");
    return absl::InternalError(
        absl::StrCat("pass ", pass, " changed the results: ",
                     !first->empty() ? *first
                     : got.producer.empty()
                         ? absl::StrCat(want->second.producer, " before it, nothing after it: ", difference)
                         : absl::StrCat(got.producer, ": ", difference),
                     "; seen in ", what));
  }
  for (const auto& [what, got] : last_->run.exports) {
    if (now->exports.count(what) > 0 || absl::StartsWith(what, "result ") || got.copies.empty()) continue;
    return absl::InternalError(
        absl::StrCat("pass ", pass, " lost ", what, ", which ", got.producer, " gave"));
  }
  if (last_->run.has_objective && !now->has_objective) {
    RETURN_IF_ERROR(CheckGradients(pass, was, *now, is, inputs, cluster));
  }
  if (options_.execute && IsComplete(after)) {
    RETURN_IF_ERROR(Annotate(CompareWithExecutor(after, options_), absl::StrCat("pass ", pass)));
  }
  last_->run = *std::move(now);
  last_->module = CloneModule(*after.module);
  return absl::OkStatus();
}

namespace {

// One step of the plan on a new executor.
struct Executed {
  runtime::Reports reports;
  std::map<std::string, std::vector<double>> states;  // gradients and parameters
};
absl::StatusOr<Executed> Execute(const Program& plan, const runtime::StepInputs& inputs,
                                 const runtime::Decisions& decisions, const ValidateOptions& options) {
  runtime::ExecutorOptions run;
  run.backend = options.backend;
  run.poison = true;
  ASSIGN_OR_RETURN(std::unique_ptr<runtime::Executor> executor, runtime::Executor::Create(plan, run));
  RETURN_IF_ERROR(executor->InitializeState(options.seed));
  for (const auto& s : plan.module->states()) {
    if (AttrString(s->attributes, "kind") != "moment") continue;
    RETURN_IF_ERROR(executor->WriteState(s->name, InitialValues(*plan.module, *s, options.seed)));
  }
  executor->ReplayDecisions(&decisions);
  Executed out;
  ASSIGN_OR_RETURN(out.reports, executor->TrainStep(inputs));
  for (const auto& s : plan.module->states()) {
    const std::string kind = AttrString(s->attributes, "kind");
    if (kind != "gradient" && kind != "parameter") continue;
    ASSIGN_OR_RETURN(out.states[s->name], executor->ReadState(s->name));
  }
  return out;
}

}  // namespace

absl::Status CompareWithExecutor(const Program& plan, const ValidateOptions& options) {
  ASSIGN_OR_RETURN(runtime::StepInputs inputs, InputsFor(*plan.module, options));
  if (inputs.tokens.empty()) return absl::OkStatus();
  ClusterOptions cluster;
  cluster.backend = options.backend;
  cluster.seed = options.seed;

  // What one rank after the other gives, in the same dtypes and formats: nothing is left to rounding. Against
  // f64 the bounds would have to be as wide as the formats are coarse: parameters gathered as f8 alone move
  // gradients by a tenth of their norm.
  ASSIGN_OR_RETURN(const ClusterRun same, RunStep(plan, inputs, cluster));
  ASSIGN_OR_RETURN(const Executed executed, Execute(plan, inputs, same.decisions, options));
  const Mesh& mesh = plan.module->mesh();
  const auto compare = [&](const std::string& what, const std::vector<double>& got) -> absl::Status {
    const auto it = same.exports.find(what);
    if (it == same.exports.end()) return absl::OkStatus();
    const std::vector<double> want =
        it->second.summed ? Sum(it->second, mesh) : it->second.copies[0].Global(mesh);
    // Parts of a gradient that stages and ranks hold are added up here, in f64 and another order than there.
    const double slack = 1e-14 * Largest(want);
    for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
      if (std::abs(got[i] - want[i]) <= slack || (std::isnan(got[i]) && std::isnan(want[i]))) continue;
      return absl::InternalError(absl::StrCat("the executor disagrees with the lockstep run: ", what,
                                              ", element ", i, " is ", got[i], ", in lockstep ", want[i],
                                              "; ", it->second.producer));
    }
    return absl::OkStatus();
  };
  for (const auto& [name, values] : executed.reports)
    RETURN_IF_ERROR(compare(absl::StrCat("report ", name), values));
  for (const auto& [name, values] : executed.states)
    RETURN_IF_ERROR(compare(absl::StrCat("state ", name), values));

  // And how far its dtypes lead from f64, with the routing of f64.
  const Program promoted = Promoted(plan);
  ASSIGN_OR_RETURN(const ClusterRun exact, RunStep(promoted, inputs, cluster));
  ASSIGN_OR_RETURN(const Executed replayed, Execute(plan, inputs, exact.decisions, options));
  bool narrow = false, single = false;
  for (const auto& f : plan.module->functions()) {
    for (const auto& n : f->body()) {
      const DType dtype = n->num_results() > 0 ? n->type(0).dtype : DType::kS32;
      single |= dtype == DType::kF32;
      narrow |= n->Has("wire") || (IsFloat(dtype) && ByteSize(dtype) < 4);
    }
  }
  const double tolerance = narrow ? 2e-2 : single ? 1e-4 : options.tolerance;
  for (const auto& [name, values] : replayed.reports) {
    const auto it = exact.exports.find(absl::StrCat("report ", name));
    if (it == exact.exports.end() || name != "lm loss") continue;
    const double want = Sum(it->second, promoted.module->mesh())[0];
    if (std::abs(values[0] - want) <= tolerance * std::abs(want)) continue;
    return absl::InternalError(absl::StrCat("the executor is far from the run in f64: report ", name, " is ",
                                            values[0], ", in f64 ", want, "; ", it->second.producer));
  }
  return absl::OkStatus();
}

}  // namespace moe::testing
