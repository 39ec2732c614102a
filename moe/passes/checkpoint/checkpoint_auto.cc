#include "moe/passes/checkpoint/checkpoint_auto.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/state.h"
#include "moe/passes/checkpoint/recompute.h"
#include "moe/passes/checkpoint/recompute_search.h"
#include "moe/passes/memory/plan_memory.h"
#include "moe/passes/schedule/schedule_table.h"
#include "moe/passes/schedule/split_phases.h"

namespace moe::passes {
namespace {

constexpr int64_t kAlignment = 64;       // of values in a residual set
constexpr double kLaunchSeconds = 1e-7;  // a node more is never free
constexpr int kRounds = 24;              // of fitting a memory limit

struct Stage {
  RecomputeProblem problem;
  std::vector<std::pair<std::string, std::string>> names;  // by node of the problem: function, first result
  RecomputeChoice choice;
  int64_t budget = std::numeric_limits<int64_t>::max();
};

class Chooser {
 public:
  Chooser(const Program& program, const PassContext& context) : program_(program), context_(context) {}

  absl::StatusOr<AutoChoice> Run() {
    const int64_t budget = context_.strategy.checkpoint_budget;
    if (budget == 0 && context_.memory_limit == 0) {
      return absl::InvalidArgumentError(
          "checkpoint auto needs a limit to fit: checkpoint_budget= (bytes of a rank for what the "
          "backward keeps) or memory_limit= (bytes of a rank in all)");
    }
    const std::vector<Function*> chunks = ChunkFunctions(*program_.module);
    in_flight_ = MicrobatchesInFlight(program_.schedule);
    stages_.resize(program_.schedule.table.size());
    for (size_t c = 0; c < chunks.size(); ++c) {
      AddChunk(*chunks[c], in_flight_[c], &stages_[program_.schedule.chunk_stage[c]]);
    }
    for (size_t s = 0; s < stages_.size(); ++s) {
      if (budget > 0) stages_[s].budget = budget;
      Choose(&stages_[s]);
      if (stages_[s].choice.fits) continue;
      return absl::InvalidArgumentError(absl::StrFormat(
          "checkpoint auto: stage %d keeps at least %s for its backwards, whatever is computed again; "
          "checkpoint_budget is %s",
          s, BytesText(stages_[s].choice.bytes), BytesText(budget)));
    }
    if (context_.memory_limit > 0) RETURN_IF_ERROR(FitMemory());
    return Result();
  }

 private:
  static void Choose(Stage* stage) { stage->choice = LeastRecomputation(stage->problem, stage->budget); }

  void AddChunk(const Function& f, int in_flight, Stage* stage) const {
    const Mesh& mesh = program_.module->mesh();
    const std::set<const Node*> bound = BoundToTheForward(f);
    std::map<Value, int> index;
    for (const auto& node : f.body()) {
      Node* n = node.get();
      if (n->phase != Phase::kForward) continue;
      std::vector<int> reads;
      for (const Value& v : n->operands()) {
        if (!v.node->Is("arg")) reads.push_back(index.at(v));
      }
      const double seconds = cost::NodeSeconds(*n, mesh, context_.target) + kLaunchSeconds;
      const int id = stage->problem.AddNode(seconds, bound.count(n) == 0, std::move(reads));
      stage->names.emplace_back(f.name(), n->result_name());
      for (int r = 0; r < n->num_results(); ++r) {
        bool needed = false, sent = false;
        for (const Use& u : n->uses(r)) {
          if (u.user->Is("return")) {
            sent = sent || f.result_binding(u.operand).kind == Binding::kBoundary;
          } else {
            needed = needed || u.user->phase == Phase::kBackward;
          }
        }
        // What goes to the next stage has a place of its own.
        const int64_t bytes = StorageOf(n->type(r), mesh, context_.strategy.overload).bytes;
        const int64_t kept = (bytes + kAlignment - 1) / kAlignment * kAlignment * in_flight;
        index[n->result(r)] = stage->problem.AddValue(id, sent ? 0 : kept, needed);
      }
    }
  }

  std::map<std::string, std::set<std::string>> Nodes() const {
    std::map<std::string, std::set<std::string>> nodes;
    for (const Stage& stage : stages_) {
      for (size_t n = 0; n < stage.names.size(); ++n) {
        if (stage.choice.recompute[n]) nodes[stage.names[n].first].insert(stage.names[n].second);
      }
    }
    return nodes;
  }

  absl::StatusOr<std::vector<int64_t>> Peaks() const {
    if (!context_.preview) {
      return absl::FailedPreconditionError(
          "checkpoint auto with a memory limit runs in a pipeline, where plan-memory follows it");
    }
    const auto nodes = Nodes();
    const auto apply = [&](Program& copy) {
      for (const auto& [function, names] : nodes) {
        Function* f = copy.module->Find(function);
        Recompute(f, Select(*f, names));
      }
      return absl::OkStatus();
    };
    ASSIGN_OR_RETURN(const Program plan, context_.preview(apply, "plan-memory"));
    std::vector<int64_t> peaks;
    for (const StageMemory& stage : plan.memory.stages) peaks.push_back(stage.peak_bytes());
    return peaks;
  }

  // Frames grow and shrink with what is computed again, so a budget is right only once the plan says so.
  absl::Status FitMemory() {
    for (int round = 0; round < kRounds; ++round) {
      ASSIGN_OR_RETURN(const std::vector<int64_t> peaks, Peaks());
      bool fits = true;
      for (size_t s = 0; s < stages_.size(); ++s) {
        Stage& stage = stages_[s];
        const int64_t excess = peaks[s] - context_.memory_limit;
        if (excess <= 0) continue;
        fits = false;
        stage.budget = stage.choice.bytes - excess;
        const RecomputeChoice before = stage.choice;
        Choose(&stage);
        if (stage.choice.fits) continue;
        if (before.bytes > stage.choice.bytes) continue;  // not tried yet: it may just do
        return absl::InvalidArgumentError(absl::StrFormat(
            "checkpoint auto: stage %d takes %s even with the fewest bytes kept for its "
            "backwards (%s); memory_limit is %s",
            s, BytesText(peaks[s]), BytesText(before.bytes), BytesText(context_.memory_limit)));
      }
      if (fits) return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrFormat(
        "checkpoint auto: after %d attempts the plan still does not fit memory_limit = %s; give "
        "checkpoint_budget=, or another policy",
        kRounds, BytesText(context_.memory_limit)));
  }

  AutoChoice Result() const {
    AutoChoice out;
    out.nodes = Nodes();
    std::vector<std::string> parts;
    for (size_t s = 0; s < stages_.size(); ++s) {
      const Stage& stage = stages_[s];
      std::vector<int> held;
      for (size_t c = 0; c < in_flight_.size(); ++c) {
        if (program_.schedule.chunk_stage[c] == static_cast<int>(s)) held.push_back(in_flight_[c]);
      }
      const bool bounded = stage.choice.fits && stage.budget != std::numeric_limits<int64_t>::max();
      double forward = 0;
      for (const RecomputeProblem::Node& n : stage.problem.nodes) forward += n.cost;
      parts.push_back(absl::StrFormat(
          "stage %d keeps %s%s (%s in flight), %.1f%% of its forward again (at least %.1f%%)", s,
          BytesText(stage.choice.bytes), bounded ? absl::StrCat(" of ", BytesText(stage.budget)) : "",
          absl::StrJoin(held, " + "), forward > 0 ? 100 * stage.choice.cost / forward : 0,
          forward > 0 ? 100 * stage.choice.at_least / forward : 0));
    }
    out.note = absl::StrJoin(parts, "   ");
    return out;
  }

  const Program& program_;
  const PassContext& context_;
  std::vector<int> in_flight_;  // by chunk
  std::vector<Stage> stages_;
};

}  // namespace

absl::StatusOr<AutoChoice> ChooseAutomatically(const Program& program, const PassContext& context) {
  return Chooser(program, context).Run();
}

std::set<Node*> Select(const Function& function, const std::set<std::string>& names) {
  std::set<Node*> nodes;
  for (const auto& n : function.body()) {
    if (n->phase == Phase::kForward && names.count(n->result_name()) > 0) nodes.insert(n.get());
  }
  return nodes;
}

}  // namespace moe::passes
