#include "moe/testing/equivalence.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/model/config.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/interpreter.h"
#include "moe/strategy/word.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/random_inputs.h"
#include "moe/testing/trace_check.h"

namespace moe::testing {
namespace {

constexpr uint64_t kSeed = 11;

double Norm(const std::vector<double>& x) {
  double s = 0;
  for (double v : x) s += v * v;
  return std::sqrt(s);
}

double Distance(const std::vector<double>& x, const std::vector<double>& y) {
  if (x.size() != y.size()) return INFINITY;
  double s = 0;
  for (size_t i = 0; i < x.size(); ++i) s += (x[i] - y[i]) * (x[i] - y[i]);
  return std::sqrt(s);
}

// Low enough to clip, so that the global norm matters.
constexpr double kClip = 0.05;

struct Reference {
  std::vector<runtime::StepInputs> inputs;
  std::vector<double> losses;
  std::map<std::string, std::vector<double>> gradients, parameters, initial;
  std::vector<runtime::Decisions> decisions;
  double gradient_norm = 0;
};

absl::StatusOr<std::map<std::string, std::vector<double>>> ReadKind(runtime::Session& s, const Module& m,
                                                                    absl::string_view kind) {
  std::map<std::string, std::vector<double>> out;
  for (const auto& state : m.states()) {
    if (AttrString(state->attributes, "kind") != kind) continue;
    ASSIGN_OR_RETURN(out[state->name], s.ReadState(state->name));
  }
  return out;
}

absl::Status ZeroRouters(runtime::Session& s, const Module& m) {
  for (const auto& state : m.states()) {
    if (AttrString(state->attributes, "role") != "router") continue;
    RETURN_IF_ERROR(s.WriteState(state->name, std::vector<double>(state->type.num_elements(), 0.0)));
  }
  return absl::OkStatus();
}

absl::StatusOr<const Reference*> ReferenceFor(model::ModelConfig model, const strategy::Strategy& strategy,
                                              const EquivalenceCase& c) {
  static auto& cache = *new std::map<std::string, Reference>;
  model.set_dtype("f64");
  const std::string key =
      absl::StrCat(model::ModelConfigToText(model), "|", c.global_batch, "|", strategy.microbatches, "|",
                   c.steps, "|", c.empty_sample, c.one_expert);
  auto it = cache.find(key);
  if (it != cache.end()) return &it->second;
  Reference r;
  strategy::Strategy one;
  one.microbatches = strategy.microbatches;
  ASSIGN_OR_RETURN(
      const Program program,
      CompileProgram(model, one,
                     {.global_batch = c.global_batch, .clip_grad = kClip, .pipeline = "autodiff"}));
  runtime::InterpreterOptions oracle_options;
  oracle_options.backend = kernels::Backend::kBlas;
  oracle_options.poison = c.poison;
  ASSIGN_OR_RETURN(std::unique_ptr<runtime::Interpreter> oracle,
                   runtime::Interpreter::Create(*program.module, oracle_options));
  RETURN_IF_ERROR(oracle->InitializeState(kSeed));
  if (c.one_expert) RETURN_IF_ERROR(ZeroRouters(*oracle, *program.module));
  ASSIGN_OR_RETURN(r.initial, ReadKind(*oracle, *program.module, "parameter"));
  for (int step = 1; step <= c.steps; ++step) {
    RandomInputOptions random;
    random.seed = 100 + step;
    random.learning_rate = 3e-3;
    random.empty_sample = c.empty_sample;
    ASSIGN_OR_RETURN(runtime::StepInputs in, RandomInputs(*program.module, random, step));
    r.decisions.emplace_back();
    oracle->RecordDecisions(&r.decisions.back());
    ASSIGN_OR_RETURN(runtime::Reports reports, oracle->TrainStep(in));
    r.losses.push_back(reports.at("lm loss").at(0));
    if (step == 1) {
      ASSIGN_OR_RETURN(r.gradients, ReadKind(*oracle, *program.module, "gradient"));
    }
    r.inputs.push_back(std::move(in));
  }
  ASSIGN_OR_RETURN(r.parameters, ReadKind(*oracle, *program.module, "parameter"));
  double squares = 0;
  for (const auto& [_, g] : r.gradients) squares += Norm(g) * Norm(g);
  r.gradient_norm = std::sqrt(squares);
  return &(cache[key] = std::move(r));
}

}  // namespace

absl::StatusOr<EquivalenceResult> CheckEquivalence(const model::ModelConfig& config,
                                                   const strategy::Strategy& strategy,
                                                   const EquivalenceCase& c) {
  ASSIGN_OR_RETURN(const Reference* ref, ReferenceFor(config, strategy, c));
  model::ModelConfig model = config;
  const bool f32 = c.f32 || strategy::Rounds(strategy) || c.backend == kernels::Backend::kCuda;
  const double scale =
      strategy.precision == strategy::Precision::kF16 ? ref->inputs[0].scalars.at("loss_scale") : 1;
  model.set_dtype(f32 ? "f32" : "f64");
  ASSIGN_OR_RETURN(const Program program, CompileProgram(model, strategy,
                                                         {.global_batch = c.global_batch,
                                                          .clip_grad = kClip,
                                                          .pipeline = c.passes,
                                                          .backend = c.backend,
                                                          .libraries = c.libraries}));
  EquivalenceResult result;
  for (const StageMemory& s : program.memory.stages) result.planned_peak.push_back(s.peak_bytes());
  result.may_spill = strategy.overload > 0;
  runtime::ExecutorOptions options;
  options.poison = c.poison;
  options.backend = c.backend;
  for (int run = 0; run < (c.twice ? 2 : 1); ++run) {
    ASSIGN_OR_RETURN(std::unique_ptr<runtime::Executor> plan, runtime::Executor::Create(program, options));
    RETURN_IF_ERROR(plan->InitializeState(kSeed));
    if (c.one_expert) RETURN_IF_ERROR(ZeroRouters(*plan, *program.module));
    result.ranks = plan->num_ranks();
    // Five steps show whether the bits repeat: a step uses every buffer and exchange that there is.
    const int steps = run == 0 ? c.steps : std::min(c.steps, 5);
    for (int step = 0; step < steps; ++step) {
      // Routers that started at zero are moved alike, so their ties are broken by rounding from then on.
      const bool replay = f32 || (c.one_expert && step > 0);
      plan->ReplayDecisions(replay ? &ref->decisions[step] : nullptr);
      const bool traced = run == 0 && step == 0;
      if (traced) RETURN_IF_ERROR(plan->StartTrace(/*steps=*/1));
      ASSIGN_OR_RETURN(runtime::Reports reports, plan->TrainStep(ref->inputs[step]));
      if (traced) {
        plan->StopTrace();
        ASSIGN_OR_RETURN(const runtime::Trace trace, plan->GatherTrace());
        result.unlike_counted = UnlikeCounted(program, trace);
      }
      const double loss = reports.at("lm loss").at(0);
      if (run == 1) {
        if (loss != result.losses[step]) result.repeated_bitwise = false;
        continue;
      }
      result.losses.push_back(loss);
      result.worst_loss =
          std::max(result.worst_loss, std::abs(loss - ref->losses[step]) / std::abs(ref->losses[step]));
      if (!std::isfinite(loss)) result.worst_loss = INFINITY;
      if (step == 0) {
        for (const auto& [name, want] : ref->gradients) {
          absl::StatusOr<std::vector<double>> got = plan->ReadState(name);
          if (!got.ok()) return got.status();
          for (double& x : *got) x /= scale;
          const double distance = Distance(*got, want);
          double e = distance / std::max(Norm(want), 1e-6 * ref->gradient_norm);
          if (!std::isfinite(e)) e = INFINITY;
          if (!(distance < 1e-7 * ref->gradient_norm)) {
            result.worst_gradient_beyond_f32 = std::max(result.worst_gradient_beyond_f32, e);
          }
          if (e > result.worst_gradient || result.worst_gradient_name.empty()) {
            result.worst_gradient = e;
            result.worst_gradient_name = name;
          }
        }
      }
    }
    if (run == 0) {
      for (const auto& [name, want] : ref->parameters) {
        ASSIGN_OR_RETURN(std::vector<double> got, plan->ReadState(name));
        result.worst_parameter = std::max(result.worst_parameter, Distance(got, want) / (Norm(want) + 1e-30));
      }
      result.measured_peak = plan->MeasuredPeakPerStage();
    }
  }
  result.reference_losses = ref->losses;
  return result;
}

absl::StatusOr<EquivalenceResult> CheckEquivalence(const EquivalenceCase& c) {
  ASSIGN_OR_RETURN(model::ModelConfig model, model::ParseModelConfig(c.model, c.name));
  ASSIGN_OR_RETURN(strategy::Strategy strategy, strategy::ParseStrategy(c.strategy));
  return CheckEquivalence(model, strategy, c);
}

bool EquivalenceResult::MemoryIsAsPlanned() const {
  return planned_peak.size() == measured_peak.size() &&
         std::equal(planned_peak.begin(), planned_peak.end(), measured_peak.begin(),
                    [&](int64_t planned, int64_t measured) {
                      return may_spill ? measured <= planned : measured == planned;
                    });
}

std::string EquivalenceResult::ToString() const {
  std::string s = absl::StrFormat("%d ranks  gradients %.1e (%s)  losses %.1e  parameters %.1e", ranks,
                                  worst_gradient, worst_gradient_name, worst_loss, worst_parameter);
  for (size_t i = 0; i < planned_peak.size(); ++i) {
    absl::StrAppend(&s, i ? ", " : "  peak ", planned_peak[i],
                    i < measured_peak.size() && measured_peak[i] == planned_peak[i]
                        ? " as planned"
                        : absl::StrCat(" planned, ", measured_peak[i], " measured"));
  }
  return s;
}

}  // namespace moe::testing
