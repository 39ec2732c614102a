#include "moe/cost/step_runs.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"

namespace moe::cost {
namespace {

Action::Kind KindOf(const Schedule::Cell& cell) {
  switch (cell.kind) {
    case 'F':
      return Action::kForward;
    case 'B':
      return Action::kBackward;
    case 'I':
      return Action::kInputGrad;
    default:
      return Action::kWeightGrad;
  }
}

}  // namespace

std::vector<std::vector<Action>> ActionsOf(const Program& program, const std::string& name) {
  const auto resolved = program.schedule.actions.find(name);
  if (resolved != program.schedule.actions.end()) return resolved->second;
  std::vector<std::vector<Action>> stages;
  for (const std::vector<Schedule::Cell>& row : program.schedule.table) {
    std::vector<Action>& actions = stages.emplace_back();
    for (const Schedule::Cell& cell : row) {
      Action& a = actions.emplace_back();
      a.kind = KindOf(cell);
      a.chunk = cell.chunk;
      a.microbatch = cell.microbatch;
    }
  }
  return stages;
}

std::vector<bool> LastRuns(absl::Span<const Action> actions) {
  // A stage has one function of a kind for each of its chunks, and one update and one report.
  std::set<std::pair<Action::Kind, int>> seen;
  std::vector<bool> last(actions.size(), false);
  for (size_t i = actions.size(); i-- > 0;) last[i] = seen.insert({actions[i].kind, actions[i].chunk}).second;
  return last;
}

StepRuns::StepRuns(const Program& program) : microbatches_(std::max(1, program.schedule.microbatches)) {
  const std::vector<std::vector<Action>> stages = ActionsOf(program);
  for (size_t stage = 0; stage < stages.size(); ++stage) {
    for (const Action& a : stages[stage]) {
      const Function* f = FunctionOf(*program.module, a, static_cast<int>(stage));
      if (f != nullptr) ++runs_[f];
    }
  }
  scheduled_ = program.schedule.actions.count("train_step") > 0;
}

int64_t StepRuns::Of(const Node& node) const {
  const auto it = runs_.find(node.function());
  int64_t runs = it != runs_.end()              ? it->second
                 : scheduled_                   ? 0
                 : node.phase == Phase::kUpdate ? 1
                                                : microbatches_;
  return RunsIn(node, false) ? runs : std::min<int64_t>(runs, 1);
}

namespace {

int StageOfChunk(const Program& program, int chunk) {
  const std::vector<int>& stages = program.schedule.chunk_stage;
  return chunk >= 0 && chunk < static_cast<int>(stages.size()) ? stages[chunk] : 0;
}

// Of functions that no stage runs yet, the first.
int StageOf(const Program& program, const Function& f) {
  if (f.role().kind == FunctionKind::kChunk) return StageOfChunk(program, f.role().index);
  return std::max(0, program.schedule.StageOf(f.role()));
}

}  // namespace

std::vector<BoundarySend> BoundariesSentBy(const Program& program, int stage) {
  const StepRuns runs(program);
  std::vector<BoundarySend> out;
  for (const auto& f : program.module->functions()) {
    if (StageOf(program, *f) != stage) continue;
    for (int i = 0; i < f->num_results(); ++i) {
      const Binding& binding = f->result_binding(i);
      if (binding.kind != Binding::kBoundary) continue;
      const Value v = f->result(i);
      BoundarySend send;
      send.name = binding.name;
      send.from_chunk = f->role().index;
      send.to_chunk = binding.peer;
      send.to_stage = StageOfChunk(program, send.to_chunk);
      send.phase = absl::StartsWith(send.name, "grad.") ? Phase::kBackward : Phase::kForward;
      send.type = v.type();
      send.bytes = static_cast<double>(StorageOf(v.type(), program.module->mesh()).bytes);
      send.runs = runs.Of(*v.node);
      if (send.to_stage != stage) out.push_back(std::move(send));
    }
  }
  return out;
}

CommCost SentPerStep(const Program& program, int stage) {
  const Mesh& mesh = program.module->mesh();
  const StepRuns runs(program);
  CommCost out;
  const auto add = [&](const CommCost& each, int64_t times) {
    out.bytes += each.bytes * static_cast<double>(times);
    out.across += each.across * static_cast<double>(times);
    out.launches += each.launches * static_cast<int>(times);
  };
  for (const auto& f : program.module->functions()) {
    if (StageOf(program, *f) != stage) continue;
    for (const auto& n : f->body()) add(CommunicationCost(*n, mesh), runs.Of(*n));
  }
  const bool inside = LevelsOf(mesh.Alias("pp"), mesh).across.empty();
  for (const BoundarySend& send : BoundariesSentBy(program, stage)) {
    add({send.bytes, inside ? 0 : send.bytes, 1}, send.runs);
  }
  return out;
}

}  // namespace moe::cost
