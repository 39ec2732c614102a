#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/quantities.h"
#include "moe/inspect/svg.h"
#include "moe/inspect/timeline.h"

namespace moe::inspect {
namespace {

// Hues for the screen; lightness and pattern for a grey print: forward is light, backward dark, the two
// halves of a split backward are hatched and dotted, the update is nearly black.
struct Look {
  const char* fill;
  const char* edge;
  const char* text;
  char pattern;  // ' ': plain
  const char* name;
};
constexpr Look kLooks[] = {
    {"#a9cbe8", "#5b8fbd", "#1d3a57", ' ', "forward"},          // kForward
    {"#c8693c", "#8f4521", "#ffffff", ' ', "backward"},         // kBackward
    {"#e3a37c", "#b06a3e", "#4a2710", '/', "input gradient"},   // kInputGrad
    {"#6d9a6a", "#44703f", "#ffffff", '.', "weight gradient"},  // kWeightGrad
    {"#4b4560", "#2f2b3f", "#ffffff", ' ', "update"},           // kUpdate
    {"#c9c6d3", "#9793a6", "#2b2f36", ' ', "reset, report"},    // kOther
    {"#e8c95a", "#b3952b", "#2b2f36", 'x', "transfer"},         // kTransfer
    {"#3f9c99", "#2b6f6d", "#ffffff", ' ', "collective"},       // kCollective
};
constexpr double kLeft = 118, kRight = 24, kTop = 66, kCell = 30, kLane = 7, kGap = 12, kPlot = 1000;

// A step of the axis: 1, 2 or 5 times a power of ten, at most 12 in all.
double TickStep(double span) {
  double step = std::pow(10, std::floor(std::log10(span / 12)));
  for (const double factor : {2.0, 2.5, 2.0, 2.0, 2.5, 2.0}) {
    if (span / step <= 12) break;
    step *= factor;
  }
  return step;
}

std::string CellLabel(const Timeline& t, const TimelineSpan& s) {
  if (s.kind == TimelineSpan::kUpdate) return "update";
  if (s.kind > TimelineSpan::kWeightGrad) return "";
  return t.many_chunks ? absl::StrCat(s.chunk, ".", s.microbatch) : absl::StrCat(s.microbatch);
}

}  // namespace

std::string TimelineSvg(const Timeline& t) {
  bool used[std::size(kLooks)] = {};
  bool lane = false;
  for (const auto& row : t.spans) {
    for (const TimelineSpan& s : row) {
      used[s.kind] = true;
      lane |= s.kind >= TimelineSpan::kTransfer;
    }
  }
  const double row_height = kCell + (lane ? kLane + 2 : 0) + kGap;
  const double bottom = kTop + row_height * static_cast<double>(t.spans.size());
  SvgWriter svg(kLeft + kPlot + kRight, bottom + 78, absl::StrCat("Schedule: ", t.title));
  svg.Pattern("bubble", "#fafafa", "#cfd2d6", '\\');
  for (size_t k = 0; k < std::size(kLooks); ++k) {
    if (kLooks[k].pattern != ' ') {
      svg.Pattern(absl::StrCat("look", k), kLooks[k].fill, kLooks[k].edge, kLooks[k].pattern);
    }
  }
  const auto fill = [](int kind) {
    return kLooks[kind].pattern == ' ' ? std::string(kLooks[kind].fill)
                                       : absl::StrCat("url(#look", kind, ")");
  };
  const double span = std::max(t.end - t.begin, 1e-12);
  const auto x = [&](double time) { return kLeft + (time - t.begin) / span * kPlot; };

  svg.Text(20, 28, t.title, {.size = 16, .bold = true});
  svg.Text(20, 48, absl::StrCat("bubble ", ShareText(t.bubble), "  \u00b7  ", t.source),
           {.size = 12, .fill = "#6b7280"});

  // The axis below, its grid behind the rows.
  const double step = TickStep(span);
  for (double tick = t.begin; tick <= t.end + step * 1e-6; tick += step) {
    svg.Line(x(tick), kTop - 6, x(tick), bottom, "#e5e7eb");
    std::string label = t.seconds ? SecondsText(tick - t.begin) : SvgNumber(tick - t.begin);
    if (tick == t.begin) label = "0";
    svg.Text(x(tick), bottom + 14, label, {.size = 10, .anchor = "middle", .fill = "#6b7280"});
  }
  svg.Line(kLeft, bottom, kLeft + kPlot, bottom, "#9ca3af");
  svg.Text(kLeft + kPlot, bottom + 30, t.seconds ? "time" : "time, in forwards of one microbatch",
           {.size = 10, .anchor = "end", .fill = "#6b7280"});

  for (size_t r = 0; r < t.spans.size(); ++r) {
    const double y = kTop + row_height * static_cast<double>(r);
    svg.Text(kLeft - 12, y + kCell / 2 + 4, t.rows[r], {.size = 12, .anchor = "end"});
    svg.Rect(x(t.pipeline_begin), y, x(t.pipeline_end) - x(t.pipeline_begin), kCell,
             {.fill = "url(#bubble)", .stroke = "#e5e7eb"});
    for (const TimelineSpan& s : t.spans[r]) {
      const double left = x(s.begin), width = x(s.end) - left;
      const std::string title =
          absl::StrCat(s.what, ": ", t.seconds ? SecondsText(s.end - s.begin) : SvgNumber(s.end - s.begin));
      if (s.kind >= TimelineSpan::kTransfer) {
        svg.Rect(left, y + kCell + 2, std::max(width, 0.6), kLane, {.fill = fill(s.kind), .title = title});
        continue;
      }
      svg.Rect(left + 0.5, y, std::max(width - 1, 0.6), kCell,
               {.fill = fill(s.kind),
                .stroke = kLooks[s.kind].edge,
                .radius = std::min(2.5, width / 4),
                .title = title});
      const std::string label = CellLabel(t, s);
      const double size = s.kind == TimelineSpan::kUpdate ? 10 : 12;
      if (label.empty() || width < 0.62 * size * static_cast<double>(label.size()) + 3) continue;
      if (kLooks[s.kind].pattern != ' ') {  // a calm ground under the number
        svg.Rect(left + width / 2 - 0.36 * size * static_cast<double>(label.size()) - 2, y + kCell / 2 - 8,
                 0.72 * size * static_cast<double>(label.size()) + 4, 16,
                 {.fill = kLooks[s.kind].fill, .radius = 3});
      }
      svg.Text(left + width / 2, y + kCell / 2 + 4, label,
               {.size = size,
                .anchor = "middle",
                .fill = kLooks[s.kind].text,
                .bold = s.kind != TimelineSpan::kUpdate});
    }
  }

  double at = kLeft;
  const auto legend = [&](const std::string& look, const std::string& edge, absl::string_view name) {
    svg.Rect(at, bottom + 46, 20, 14, {.fill = look, .stroke = edge, .radius = 2});
    svg.Text(at + 26, bottom + 57, name, {.size = 11});
    at += 26 + 6.4 * static_cast<double>(name.size()) + 22;
  };
  for (size_t k = 0; k < std::size(kLooks); ++k) {
    if (!used[k]) continue;
    // What a run records of a transfer begins when the rank starts to wait for it.
    const bool waits = k == TimelineSpan::kTransfer && absl::StartsWith(t.source, "measured");
    legend(fill(static_cast<int>(k)), kLooks[k].edge, waits ? "transfer, with waiting" : kLooks[k].name);
  }
  legend("url(#bubble)", "#d5d8dc", "idle (bubble)");
  svg.Text(at, bottom + 57, t.many_chunks ? "numbers: chunk.microbatch" : "numbers: microbatch",
           {.fill = "#6b7280"});
  return std::move(svg).Finish();
}

}  // namespace moe::inspect
