#include "moe/inspect/timeline.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/quantities.h"

namespace moe::inspect {
namespace {

std::string Label(const TimelineSpan& s, bool chunks) {
  static constexpr char kLetters[] = "FBIW";
  if (s.kind == TimelineSpan::kUpdate) return "update";
  if (!cost::IsPipelineWork(s)) return "";
  return chunks ? absl::StrFormat("%c%d.%d", kLetters[s.kind], s.chunk, s.microbatch)
                : absl::StrFormat("%c%d", kLetters[s.kind], s.microbatch);
}

}  // namespace

Timeline PlanTimeline(const Program& program, const cost::Durations& durations, const std::string& name) {
  Timeline t;
  const Schedule& schedule = program.schedule;
  static_cast<cost::StepTimeline&>(t) = cost::PlayActions(program, durations, name);
  const size_t stages = t.spans.size();
  t.title = absl::StrCat(schedule.name, ", ", schedule.microbatches,
                         schedule.microbatches == 1 ? " microbatch on " : " microbatches on ", stages,
                         stages == 1 ? " stage" : " stages");
  t.source = durations.source;
  t.seconds = durations.seconds;
  t.many_chunks = schedule.chunk_stage.size() > stages;
  for (size_t s = 0; s < stages; ++s) t.rows.push_back(absl::StrCat("stage ", s));
  return t;
}

Timeline EstimatedTimeline(const Program& program, const cost::Target& target) {
  return PlanTimeline(program, cost::CostDurations(program, target));
}

std::string TimelineText(const Timeline& t) {
  if (t.end <= t.begin) return "";
  size_t head = 0;
  for (const std::string& r : t.rows) head = std::max(head, r.size());
  // Columns per unit of time: enough that the shortest cell shows its label, as long as the whole fits. Where
  // chunk and microbatch do not fit into the cells, the microbatch alone has to do.
  const double room = (100 - 4 - static_cast<double>(head)) / (t.end - t.begin);
  bool chunks = t.many_chunks, split = false;
  const auto needed = [&] {
    double need = 0;
    for (const auto& row : t.spans) {
      for (const TimelineSpan& s : row) {
        if (!cost::IsPipelineWork(s) || s.end <= s.begin) continue;
        need = std::max(need, static_cast<double>(Label(s, chunks).size() + 1) / (s.end - s.begin));
        split |= s.kind == TimelineSpan::kInputGrad || s.kind == TimelineSpan::kWeightGrad;
      }
    }
    return need;
  };
  if (chunks && needed() > room) chunks = false;
  const double scale = std::min(std::max(needed(), 24 / (t.end - t.begin)), room);
  const auto column = [&](double x) { return static_cast<size_t>(std::lround((x - t.begin) * scale)); };

  std::string out =
      absl::StrCat("timeline  ", t.title, "   bubble ", ShareText(t.bubble), "   (", t.source, ")\n");
  for (size_t r = 0; r < t.spans.size(); ++r) {
    std::string line(column(t.end), ' ');
    for (size_t i = column(t.pipeline_begin); i < column(t.pipeline_end); ++i) line[i] = '.';
    for (const TimelineSpan& s : t.spans[r]) {
      const size_t from = column(s.begin), to = std::max(column(s.end), from);
      if (s.kind >= TimelineSpan::kOther || from == to) continue;
      // A cell ends in a bar where there is room, so that equal neighbours stay apart.
      std::string cell = Label(s, chunks);
      static constexpr char kFill[] = "-=~+#";
      if (cell.size() + 1 > to - from) cell = cell.substr(0, to - from > 1 ? to - from - 1 : 1);
      cell.resize(to - from, kFill[std::min<int>(s.kind, 4)]);
      if (to - from > 1) cell.back() = '|';
      line.replace(from, to - from, cell);
    }
    absl::StrAppend(&out, "  ", t.rows[r], std::string(head - t.rows[r].size(), ' '), "  ", line, "\n");
  }
  absl::StrAppend(&out, "  F forward, B backward", split ? ", I input and W weight gradient" : "",
                  chunks ? ", chunk.microbatch" : " of the microbatch", "; . idle; one step takes ",
                  t.seconds ? SecondsText(t.end - t.begin) : absl::StrCat(t.end - t.begin, " units"), "\n");
  return out;
}

}  // namespace moe::inspect
