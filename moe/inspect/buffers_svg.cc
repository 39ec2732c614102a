#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"
#include "moe/inspect/buffers.h"
#include "moe/inspect/stage_view.h"
#include "moe/inspect/svg.h"
#include "moe/ir/state.h"

namespace moe::inspect {
namespace {

constexpr double kLeft = 92, kRight = 178, kTop = 84, kPlotWidth = 980, kPlotHeight = 620, kAxis = 40;

struct Hue {
  const char* fill;
  const char* edge;
  const char* name;
};
constexpr Hue kParameters = {"#5b8fbd", "#3d6c96", "parameters"};
constexpr Hue kCopies = {"#8fb8d4", "#5b87a6", "working copies"};
constexpr Hue kGradients = {"#d9a05b", "#a87432", "gradients"};
constexpr Hue kOptimizer = {"#9b8bb4", "#6f5f8a", "optimizer"};
constexpr Hue kCounters = {"#b9bec6", "#8d939c", "counters"};
constexpr Hue kInputs = {"#d8d2a8", "#a79f68", "inputs"};
constexpr Hue kResiduals = {"#7fb58a", "#4f8a5b", "residual slots"};
constexpr Hue kBoundaries = {"#d98c8c", "#a85656", "boundary slots"};
constexpr Hue kFutures = {"#79bdbb", "#3f8583", "exchanges in flight"};
constexpr Hue kFrameValue = {"#f0cda9", "#c08a52", "frame values"};
constexpr Hue kScratch = {"#8f8577", "#6a6154", "scratch"};

const Hue& HueOfState(const Module& module, const std::string& name) {
  const State* state = module.FindState(name);
  const std::string kind = state == nullptr ? "" : AttrString(state->attributes, "kind");
  return kind == "parameter"      ? kParameters
         : kind == "working_copy" ? kCopies
         : kind == "gradient"     ? kGradients
         : kind == "moment"       ? kOptimizer
                                  : kCounters;
}

class BufferPicture {
 public:
  BufferPicture(const Program& program, int stage)
      : program_(program),
        stage_(stage),
        memory_(program.memory.stages[stage]),
        actions_(program.schedule.actions.at("train_step")[stage]),
        svg_(kLeft + kPlotWidth + kRight, kTop + kPlotHeight + kAxis + 58,
             absl::StrCat("Memory plan of stage ", stage)) {}

  std::string Draw() {
    LayOutTime();
    const double peak = static_cast<double>(memory_.peak_bytes());
    scale_ = kPlotHeight / std::max(1.0, peak);
    svg_.Text(20, 28, absl::StrCat("memory of stage ", stage_, ", one rank: ", BytesText(peak)),
              {.size = 16, .bold = true});
    svg_.Text(20, 48,
              "addresses down, one training step to the right; a slot carries the microbatch it holds",
              {.size = 12, .fill = "#6b7280"});
    Axes();
    States();
    Inputs();
    Residuals();
    Boundaries();
    Futures();
    Frames();
    SpaceLabels();
    Legend();
    return std::move(svg_).Finish();
  }

 private:
  // A column per action that runs a function, as wide as it has nodes; transfers happen between columns.
  void LayOutTime() {
    double total = 0;
    std::vector<double> width(actions_.size(), 0);
    for (size_t i = 0; i < actions_.size(); ++i) {
      const Function* f = FunctionOf(*program_.module, actions_[i], stage_);
      if (f != nullptr && f->num_nodes() > 0)
        width[i] = std::max<double>(12, static_cast<double>(f->num_nodes()));
      total += width[i];
    }
    double x = kLeft;
    for (size_t i = 0; i < actions_.size(); ++i) {
      begin_.push_back(x);
      x += width[i] / std::max(1.0, total) * kPlotWidth;
      end_.push_back(x);
    }
  }

  double Y(int64_t address) const { return kTop + static_cast<double>(address) * scale_; }

  void Axes() {
    const double peak = static_cast<double>(memory_.peak_bytes());
    double step = 1024;
    while (peak / step > 12) step *= 2;
    for (double b = 0; b <= peak; b += step) {
      svg_.Line(kLeft - 5, Y(static_cast<int64_t>(b)), kLeft, Y(static_cast<int64_t>(b)), "#9ca3af");
      svg_.Text(kLeft - 9, Y(static_cast<int64_t>(b)) + 4, b == 0 ? "0" : BytesText(b),
                {.size = 10, .anchor = "end", .fill = "#6b7280"});
    }
    svg_.Rect(kLeft, kTop, kPlotWidth, kPlotHeight, {.fill = "#fafafa", .stroke = "#9ca3af"});
    for (size_t i = 0; i < actions_.size(); ++i) {
      if (end_[i] <= begin_[i]) continue;
      const std::string label = ActionToString(actions_[i]);
      const double middle = (begin_[i] + end_[i]) / 2;
      if (end_[i] - begin_[i] > 6.5 * static_cast<double>(label.size())) {
        svg_.Text(middle, kTop - 8, label, {.size = 10, .anchor = "middle"});
      } else if (end_[i] - begin_[i] > 10) {
        svg_.Text(middle + 3, kTop - 4, label, {.size = 9, .rotate = -60});
      }
    }
  }

  // Separates the actions, over the bands that last the whole step.
  void States() {
    std::vector<std::pair<std::string, BufferRef>> states(memory_.states.begin(), memory_.states.end());
    std::sort(states.begin(), states.end(),
              [](const auto& a, const auto& b) { return a.second.offset < b.second.offset; });
    // Neighbours of one kind are one band.
    for (size_t i = 0; i < states.size();) {
      const Hue& hue = HueOfState(*program_.module, states[i].first);
      size_t j = i;
      while (j < states.size() && &HueOfState(*program_.module, states[j].first) == &hue) ++j;
      const int64_t from = states[i].second.offset,
                    to = states[j - 1].second.offset + states[j - 1].second.bytes;
      svg_.Rect(kLeft, Y(from), kPlotWidth, Y(to) - Y(from),
                {.fill = hue.fill,
                 .stroke = hue.edge,
                 .stroke_width = 0.6,
                 .title = absl::StrCat(hue.name, ", ", j - i, " states, ",
                                       BytesText(static_cast<double>(to - from)))});
      if (Y(to) - Y(from) > 14) {
        svg_.Text(kLeft + 8, (Y(from) + Y(to)) / 2 + 4,
                  absl::StrCat(hue.name, ": ", BytesText(static_cast<double>(to - from)), " in ", j - i),
                  {.fill = "#1f2328"});
      }
      i = j;
    }
  }

  void Inputs() {
    const int64_t base = SpaceBase(memory_, Space::kInput);
    if (memory_.input_bytes > 0) {
      svg_.Rect(kLeft, Y(base), kPlotWidth, Y(base + memory_.input_bytes) - Y(base),
                {.fill = kInputs.fill, .stroke = kInputs.edge, .stroke_width = 0.5, .title = "inputs"});
    }
  }

  // From which action to which something is in a slot.
  struct Stay {
    size_t first, last;
  };
  template <typename Key>
  static void Extend(std::map<Key, Stay>* stays, const Key& key, size_t i) {
    auto [it, fresh] = stays->insert({key, {i, i}});
    if (!fresh) it->second.last = i;
  }

  void Residuals() {
    ResidualSets(memory_.residuals, &Action::residual_slot, "residuals of ");
    ResidualSets(memory_.weight_residuals, &Action::weight_slot, "for the weight gradients of ");
  }

  void ResidualSets(const std::map<int, StageMemory::Slots>& sets, int Action::*slot_of,
                    absl::string_view what) {
    std::map<std::tuple<int, int, int>, Stay> stays;  // chunk, slot, microbatch
    for (size_t i = 0; i < actions_.size(); ++i) {
      const Action& a = actions_[i];
      if (a.*slot_of >= 0) Extend(&stays, std::tuple(a.chunk, a.*slot_of, a.microbatch), i);
    }
    const int64_t base = SpaceBase(memory_, Space::kResidual);
    for (const auto& [key, stay] : stays) {
      const auto [chunk, slot, microbatch] = key;
      auto slots = sets.find(chunk);
      if (slots == sets.end() || slots->second.bytes == 0) continue;
      const int64_t at = base + slots->second.offset + slot * slots->second.bytes;
      Slot(at, slots->second.bytes, stay, kResiduals,
           absl::StrCat(what, memory_.residuals.size() > 1 ? absl::StrCat("chunk ", chunk, ", ") : "",
                        "microbatch ", microbatch));
    }
  }

  void Boundaries() {
    std::map<std::tuple<std::string, int, int>, Stay> stays;  // value, slot, microbatch
    for (size_t i = 0; i < actions_.size(); ++i) {
      const Action& a = actions_[i];
      for (const auto& [name, slot] : a.boundary_slots)
        Extend(&stays, std::tuple(name, slot, a.microbatch), i);
      if (!a.boundary.empty() && a.slot >= 0) Extend(&stays, std::tuple(a.boundary, a.slot, a.microbatch), i);
    }
    const int64_t base = SpaceBase(memory_, Space::kBoundary);
    for (const auto& [key, stay] : stays) {
      const auto& [name, slot, microbatch] = key;
      auto slots = memory_.boundaries.find(name);
      if (slots == memory_.boundaries.end() || slots->second.bytes == 0) continue;
      Slot(base + slots->second.offset + slot * slots->second.bytes, slots->second.bytes, stay, kBoundaries,
           absl::StrCat(name, ", microbatch ", microbatch));
    }
  }

  // What an exchange writes and works in, from the action that starts it to the one that waits for it.
  void Futures() {
    const int64_t base = SpaceBase(memory_, Space::kFuture);
    std::map<const Function*, size_t> last_run;
    for (size_t i = 0; i < actions_.size(); ++i) {
      if (const Function* f = FunctionOf(*program_.module, actions_[i], stage_); f != nullptr)
        last_run[f] = i;
    }
    for (size_t i = 0; i < actions_.size(); ++i) {
      const Function* f = FunctionOf(*program_.module, actions_[i], stage_);
      if (f == nullptr || program_.memory.functions.count(f->name()) == 0) continue;
      const FunctionMemory& memory = program_.memory.functions.at(f->name());
      for (int r = 0; r < f->num_results(); ++r) {
        const Value future = f->result(r);
        if (f->result_binding(r).kind != Binding::kFuture) continue;
        if (future.node->BoolOr("last", false) && last_run.at(f) != i) continue;
        const std::string& name = f->result_binding(r).name;
        const Stay stay{i, AwaitedAt(name, i)};
        const auto draw = [&](const std::map<std::string, BufferRef>& refs, const std::string& key,
                              absl::string_view what) {
          const auto ref = refs.find(key);
          if (ref == refs.end() || ref->second.space != Space::kFuture) return;
          Slot(base + ref->second.offset, ref->second.bytes, stay, kFutures, absl::StrCat(what, name));
        };
        draw(memory.values, f->result(r).name(), "in flight: ");
        if (future.index == 0) draw(memory.workspace, future.node->result_name(0), "scratch of ");
      }
    }
  }

  // The action after `from` whose function takes that future; the last of the step where none does.
  size_t AwaitedAt(const std::string& future, size_t from) const {
    for (size_t i = from; i < actions_.size(); ++i) {
      const Function* f = FunctionOf(*program_.module, actions_[i], stage_);
      if (f == nullptr) continue;
      for (const Node* arg : f->args()) {
        if (arg->binding == Binding(Binding::kFuture, future)) return i;
      }
    }
    return actions_.size() - 1;
  }

  void Slot(int64_t address, int64_t bytes, const Stay& stay, const Hue& hue, const std::string& what) {
    const double x = begin_[stay.first], width = std::max(end_[stay.last] - x, 1.0);
    const double y = Y(address), height = Y(address + bytes) - y;
    svg_.Rect(x + 0.5, y, width - 1, height,
              {.fill = hue.fill,
               .stroke = hue.edge,
               .stroke_width = 0.7,
               .title = absl::StrCat(what, ", ", BytesText(static_cast<double>(bytes)))});
    // All of it, or its last word: the number of the microbatch.
    for (const std::string& text : {what, what.substr(what.rfind(' ') + 1)}) {
      if (height < 10 || width < 6.2 * static_cast<double>(text.size()) + 6) continue;
      svg_.Text(x + width / 2, y + height / 2 + 4, text, {.anchor = "middle", .fill = "#1f2328"});
      return;
    }
  }

  // The values of a frame are drawn once per function and reused wherever the schedule runs it.
  void Frames() {
    const int64_t base = SpaceBase(memory_, Space::kFrame);
    std::map<const Function*, std::string> drawn;
    for (size_t i = 0; i < actions_.size(); ++i) {
      const Function* f = FunctionOf(*program_.module, actions_[i], stage_);
      auto memory =
          f == nullptr ? program_.memory.functions.end() : program_.memory.functions.find(f->name());
      if (memory == program_.memory.functions.end() || memory->second.frame_bytes == 0) continue;
      const double width = end_[i] - begin_[i];
      if (width <= 0) continue;  // of a function without nodes
      const double height = static_cast<double>(memory->second.frame_bytes) * scale_;
      std::string& id = drawn[f];
      if (id.empty()) {
        id = absl::StrCat("frame-", EscapeXml(f->name()));
        svg_.Raw(
            absl::StrCat("<defs><g id=\"", id, "\">\n", FrameShapes(*f, memory->second), "</g></defs>\n"));
      }
      svg_.Raw(absl::StrCat("<use href=\"#", id, "\" transform=\"translate(", SvgNumber(begin_[i]), " ",
                            SvgNumber(Y(base)), ") scale(", absl::StrFormat("%.4g", width / 100),
                            " 1)\"/>\n"));
      svg_.Rect(begin_[i], Y(base), width, height, {.stroke = kFrameValue.edge, .stroke_width = 0.7});
    }
  }

  std::string FrameShapes(const Function& f, const FunctionMemory& memory) const {
    std::string out;
    const double nodes = static_cast<double>(std::max<int64_t>(1, f.num_nodes()));
    const auto rect = [&](const BufferRef& ref, int first, int last, const Hue& hue) {
      const double height = static_cast<double>(ref.bytes) * scale_;
      if (ref.space != Space::kFrame || height < 0.4) return;
      absl::StrAppend(&out, "<rect x=\"", SvgNumber(100 * first / nodes), "\" y=\"",
                      SvgNumber(static_cast<double>(ref.offset) * scale_), "\" width=\"",
                      SvgNumber(100 * (last + 1 - first) / nodes), "\" height=\"", SvgNumber(height),
                      "\" fill=\"", hue.fill, "\" stroke=\"", hue.edge,
                      "\" stroke-width=\"0.4\" vector-effect=\"non-scaling-stroke\"/>\n");
    };
    int position = 0;
    for (const auto& n : f.body()) {
      for (int i = 0; i < n->num_results(); ++i) {
        if (auto ref = memory.values.find(n->result_name(i)); ref != memory.values.end()) {
          const LiveRange live = LiveRangeOf(f, Value{n.get(), i});
          rect(ref->second, live.first, std::min<int>(live.last, static_cast<int>(nodes) - 1), kFrameValue);
        }
      }
      if (n->num_results() > 0) {
        if (auto ref = memory.workspace.find(n->result_name(0)); ref != memory.workspace.end()) {
          rect(ref->second, position, position, kScratch);
        }
      }
      ++position;
    }
    return out;
  }

  void SpaceLabels() {
    const std::pair<Space, int64_t> spaces[] = {
        {Space::kState, memory_.state_bytes},       {Space::kInput, memory_.input_bytes},
        {Space::kResidual, memory_.residual_bytes}, {Space::kBoundary, memory_.boundary_bytes},
        {Space::kFuture, memory_.future_bytes},     {Space::kFrame, memory_.frame_bytes}};
    const double x = kLeft + kPlotWidth + 10;
    double free_from = kTop;  // labels of thin spaces move down, one below the other
    for (const auto& [space, bytes] : spaces) {
      if (bytes == 0) continue;
      const double from = Y(SpaceBase(memory_, space)), to = from + static_cast<double>(bytes) * scale_;
      svg_.Line(x - 6, from, x - 6, to, "#6b7280", 2);
      svg_.Line(kLeft, from, kLeft + kPlotWidth, from, "#4b5563", 0.8);
      const double y = std::max((from + to) / 2 + 4, free_from + 10);
      svg_.Text(x, y, absl::StrCat(SpaceName(space), ": ", BytesText(static_cast<double>(bytes))),
                {.size = 12});
      free_from = y + 6;
    }
  }

  void Legend() {
    double x = kLeft, y = kTop + kPlotHeight + 22;
    for (const Hue* hue : {&kParameters, &kCopies, &kGradients, &kOptimizer, &kCounters, &kInputs,
                           &kResiduals, &kBoundaries, &kFutures, &kFrameValue, &kScratch}) {
      const double width = 24 + 6.2 * static_cast<double>(absl::string_view(hue->name).size()) + 20;
      if (x + width > kLeft + kPlotWidth) x = kLeft, y += 20;
      svg_.Rect(x, y, 18, 12, {.fill = hue->fill, .stroke = hue->edge, .radius = 2});
      svg_.Text(x + 24, y + 10, hue->name, {});
      x += width;
    }
    svg_.Text(kLeft, y + 34,
              "columns: actions of one training step, as wide as their function has nodes; blank: free",
              {.fill = "#6b7280"});
  }

  const Program& program_;
  const int stage_;
  const StageMemory& memory_;
  const std::vector<Action>& actions_;
  SvgWriter svg_;
  std::vector<double> begin_, end_;
  double scale_ = 1;
};

}  // namespace

absl::StatusOr<std::string> BuffersSvg(const Program& program, int stage) {
  RETURN_IF_ERROR(CheckStage(program, stage));
  if (stage >= static_cast<int>(program.memory.stages.size())) {
    return absl::FailedPreconditionError("this program has no memory plan; run plan-memory");
  }
  auto actions = program.schedule.actions.find("train_step");
  if (actions == program.schedule.actions.end() || stage >= static_cast<int>(actions->second.size())) {
    return absl::FailedPreconditionError(
        "this program has no resolved schedule; run schedule and plan-memory");
  }
  return BufferPicture(program, stage).Draw();
}

}  // namespace moe::inspect
