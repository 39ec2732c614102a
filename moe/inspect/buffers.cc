#include "moe/inspect/buffers.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/quantities.h"
#include "moe/inspect/stage_view.h"
#include "moe/ir/state.h"

namespace moe::inspect {
namespace {

const StageMemory* MemoryOf(const Program& program, int stage) {
  return stage >= 0 && stage < static_cast<int>(program.memory.stages.size()) ? &program.memory.stages[stage]
                                                                              : nullptr;
}

std::string CategoryOfState(const Program& program, const std::string& name) {
  const State* state = program.module->FindState(name);
  const std::string kind = state == nullptr ? "" : AttrString(state->attributes, "kind");
  if (kind == "parameter") return "parameters";
  if (kind == "working_copy") return "working copies";
  if (kind == "gradient") return "gradients";
  if (kind == "moment") return "optimizer";
  return "counters";
}

}  // namespace

int64_t SpaceBase(const StageMemory& m, Space space) {
  int64_t base = 0;
  if (space == Space::kState) return base;
  base += m.state_bytes;
  if (space == Space::kInput) return base;
  base += m.input_bytes;
  if (space == Space::kResidual || space == Space::kWeightResidual) return base;
  base += m.residual_bytes;
  if (space == Space::kBoundary) return base;
  base += m.boundary_bytes;
  if (space == Space::kFuture) return base;
  base += m.future_bytes;
  return space == Space::kFrame ? base : base + m.frame_bytes;
}

LiveRange LiveRangeOf(const Function& function, const Value& value) {
  std::map<const Node*, int> position;
  int i = 0;
  for (const auto& n : function.body()) position[n.get()] = i++;
  const auto place = [&](const Node* n) {
    auto it = position.find(n);
    return it == position.end() ? (n->Is("arg") ? 0 : i) : it->second;
  };
  LiveRange range{place(value.node), place(value.node)};
  for (const Use& u : value.node->uses(value.index)) range.last = std::max(range.last, place(u.user));
  return range;
}

std::vector<MemoryShare> MemoryShares(const Program& program, int stage) {
  const StageMemory* m = MemoryOf(program, stage);
  if (m == nullptr) return {};
  std::map<std::string, int64_t> states;
  int64_t known = 0;
  for (const auto& [name, ref] : m->states) {
    states[CategoryOfState(program, name)] += ref.bytes;
    known += ref.bytes;
  }
  std::vector<MemoryShare> shares;
  for (const char* category : {"parameters", "working copies", "gradients", "optimizer", "counters"}) {
    if (states[category] > 0) shares.push_back({category, states[category]});
  }
  // Alignment between states belongs to somebody, so that the shares add up to the peak.
  if (m->state_bytes > known) shares.push_back({"alignment", m->state_bytes - known});
  const std::pair<const char*, int64_t> spaces[] = {{"inputs", m->input_bytes},
                                                    {"residuals", m->residual_bytes},
                                                    {"boundaries", m->boundary_bytes},
                                                    {"futures", m->future_bytes},
                                                    {"frame", m->frame_bytes}};
  for (const auto& [category, bytes] : spaces) {
    if (bytes > 0) shares.push_back({category, bytes});
  }
  return shares;
}

std::string MemoryText(const Program& program, int stage) {
  const StageMemory* m = MemoryOf(program, stage);
  if (m == nullptr) return "";
  const double peak = std::max<double>(1, m->peak_bytes());
  Columns table("lrrl");
  for (const MemoryShare& s : MemoryShares(program, stage)) {
    std::string note;
    if (s.category == "residuals") {
      for (const auto& [chunk, slots] : m->residuals) {
        absl::StrAppend(&note, note.empty() ? "" : ", ", "chunk ", chunk, ": ", slots.count, " x ",
                        BytesText(static_cast<double>(slots.bytes)));
      }
      for (const auto& [chunk, slots] : m->weight_residuals) {
        absl::StrAppend(&note, ", weights of chunk ", chunk, ": ", slots.count, " x ",
                        BytesText(static_cast<double>(slots.bytes)));
      }
    } else if (s.category == "boundaries") {
      for (const auto& [name, slots] : m->boundaries) {
        absl::StrAppend(&note, note.empty() ? "" : ", ", name, ": ", slots.count, " x ",
                        BytesText(static_cast<double>(slots.bytes)));
      }
    } else if (s.category == "frame") {
      std::string largest;
      int64_t bytes = -1;
      for (const auto& [name, f] : program.memory.functions) {
        if (PlaceOf(program, FunctionRole::FromName(name)).stage == stage && f.frame_bytes > bytes)
          largest = name, bytes = f.frame_bytes;
      }
      if (bytes >= 0) note = absl::StrCat("largest: @", largest);
    }
    table.Row(
        {s.category, BytesText(static_cast<double>(s.bytes)), ShareText(s.bytes / peak), Shorten(note, 66)});
  }
  std::string out = absl::StrCat("memory   peak ", BytesText(static_cast<double>(m->peak_bytes())),
                                 " per rank (", CountText(m->peak_bytes()), " bytes)\n", table.Text());
  if (m->spill_bytes > 0) {
    absl::StrAppend(&out, "  and ", BytesText(static_cast<double>(m->spill_bytes)),
                    " of address space for ragged values that overflow, touched only then\n");
  }
  return out;
}

std::vector<BufferUse> LargestBuffers(const Program& program, int stage, size_t count) {
  const StageMemory* m = MemoryOf(program, stage);
  if (m == nullptr) return {};
  std::vector<BufferUse> uses;
  for (const auto& [name, ref] : m->states) {
    uses.push_back({name, CategoryOfState(program, name), Space::kState, ref.offset, ref.bytes});
  }
  for (const auto& [name, ref] : m->inputs) {
    uses.push_back({name, "input", Space::kInput, SpaceBase(*m, Space::kInput) + ref.offset, ref.bytes});
  }
  for (const auto& [name, slots] : m->boundaries) {
    uses.push_back(
        {name, absl::StrCat(slots.count, " slots of ", BytesText(static_cast<double>(slots.bytes))),
         Space::kBoundary, SpaceBase(*m, Space::kBoundary) + slots.offset, slots.count * slots.bytes});
  }
  for (const StageFunction& f : ViewStage(program, stage).functions) {
    auto memory = program.memory.functions.find(f.function->name());
    if (memory == program.memory.functions.end()) continue;
    std::map<std::string, const Node*> by_name;
    for (const auto& n : f.function->body()) {
      for (int i = 0; i < n->num_results(); ++i) {
        const std::string& name = n->result_name(i);
        if (i == 0) by_name[name] = n.get();
        auto ref = memory->second.values.find(name);
        if (ref == memory->second.values.end()) continue;
        const int64_t base = SpaceBase(*m, ref->second.space) + ref->second.offset;
        if (ref->second.space == Space::kFrame) {
          const LiveRange live = LiveRangeOf(*f.function, Value{n.get(), i});
          uses.push_back({name, absl::StrCat("@", f.function->name(), " nodes ", live.first, "-", live.last),
                          Space::kFrame, base, ref->second.bytes});
        } else if (ref->second.space == Space::kResidual || ref->second.space == Space::kWeightResidual) {
          const auto& sets = ref->second.space == Space::kResidual ? m->residuals : m->weight_residuals;
          auto slots = sets.find(f.chunk);
          const int64_t slot_base = slots == sets.end() ? 0 : slots->second.offset;
          uses.push_back({name,
                          absl::StrCat("chunk ", f.chunk, ", each of ",
                                       slots == sets.end() ? 1 : slots->second.count, " slots"),
                          Space::kResidual, base + slot_base, ref->second.bytes});
        }
      }
    }
    for (const auto& [name, ref] : memory->second.workspace) {
      uses.push_back({name, absl::StrCat("@", f.function->name(), " scratch"), Space::kFrame,
                      SpaceBase(*m, ref.space) + ref.offset, ref.bytes});
    }
  }
  std::sort(uses.begin(), uses.end(), [](const BufferUse& a, const BufferUse& b) {
    return std::tuple(-a.bytes, a.address, a.name, a.where) <
           std::tuple(-b.bytes, b.address, b.name, b.where);
  });
  if (uses.size() > count) uses.resize(count);
  return uses;
}

std::string LargestBuffersText(const Program& program, int stage, size_t count) {
  const std::vector<BufferUse> uses = LargestBuffers(program, stage, count);
  if (uses.empty()) return "";
  Columns table("rllrl");
  table.Row({"bytes", "space", "value", "address", "where"});
  for (const BufferUse& u : uses) {
    table.Row({BytesText(static_cast<double>(u.bytes)), std::string(SpaceName(u.space)), Shorten(u.name, 36),
               absl::StrCat("0x", absl::Hex(u.address)), Shorten(u.where, 26)});
  }
  return absl::StrCat("largest buffers of stage ", stage, "\n", table.Text());
}

}  // namespace moe::inspect
