#include "moe/train/run/summary.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/quantities.h"

namespace moe::train {
namespace {

constexpr size_t kTextWidth = 84;  // of what a pass did

// Lines of at most `width` characters, broken at blanks where there are any.
std::vector<std::string> Wrap(absl::string_view text, size_t width) {
  std::vector<std::string> lines;
  while (text.size() > width) {
    size_t at = text.rfind(' ', width);
    if (at == absl::string_view::npos || at == 0) at = width;
    lines.emplace_back(text.substr(0, at));
    text.remove_prefix(at);
    while (!text.empty() && text[0] == ' ') text.remove_prefix(1);
  }
  if (!text.empty() || lines.empty()) lines.emplace_back(text);
  return lines;
}

}  // namespace

std::string SummaryLine(absl::string_view word, absl::string_view text) {
  std::string out;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    std::string row = absl::StrFormat("%-9s %s", word, line);
    while (!row.empty() && row.back() == ' ') row.pop_back();
    absl::StrAppend(&out, row, "\n");
    word = "";
  }
  return out;
}

std::string PassTable(const std::vector<passes::PassResult>& passes, double total_milliseconds) {
  std::string out =
      absl::StrFormat("%-22s %-8s %-*s %7s", "pass", "changed", kTextWidth, "what it did", "ms");
  auto row = [&](absl::string_view name, absl::string_view changed, absl::string_view text, double ms) {
    absl::StrAppendFormat(&out, "\n%-22s %-8s %-*s %7.1f", name, changed, kTextWidth, text, ms);
  };
  for (const passes::PassResult& pass : passes) {
    std::vector<std::string> lines;
    for (const std::string& note : pass.notes) {
      for (std::string& line : Wrap(note, kTextWidth)) lines.push_back(std::move(line));
    }
    if (lines.empty()) {
      lines.push_back(pass.nodes_before == pass.nodes_after
                          ? ""
                          : absl::StrCat(pass.nodes_before, " -> ", pass.nodes_after, " nodes"));
    }
    row(pass.name, pass.changed ? "yes" : pass.notes.empty() ? "no" : "ok", lines[0], pass.milliseconds);
    for (size_t i = 1; i < lines.size(); ++i)
      absl::StrAppendFormat(&out, "\n%-22s %-8s %s", "", "", lines[i]);
  }
  row("total", "", "with verification and dumps", total_milliseconds);
  return out;
}

StepShares SharesOf(const runtime::Trace& trace, int cores) {
  StepShares s;
  s.communication = runtime::CommunicationOf(trace);
  int64_t begin = INT64_MAX, end = 0;
  double busy = 0;
  for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
    for (const runtime::TraceEvent& e : trace.events(rank)) {
      begin = std::min(begin, e.begin_ns);
      end = std::max(end, e.end_ns);
      if (e.lane != 0 || e.category == runtime::Category::kCollective) continue;
      s.share[static_cast<int>(e.category)] += static_cast<double>(e.end_ns - e.begin_ns) / 1e9;
    }
  }
  if (begin >= end) return s;
  s.seconds = static_cast<double>(end - begin) / 1e9;
  const double available = s.seconds * std::max(1, std::min<int>(cores, static_cast<int>(trace.ranks())));
  for (double& share : s.share) {
    share /= available;
    busy += share;
  }
  s.share[static_cast<int>(runtime::Category::kCollective)] = std::max(0.0, 1 - busy);
  return s;
}

std::string SharesText(const StepShares& shares) {
  std::vector<std::string> parts;
  for (int i = 0; i < runtime::kNumCategories; ++i) {
    const runtime::Category c = static_cast<runtime::Category>(i);
    parts.push_back(absl::StrFormat(
        "%s %.0f%%",
        c == runtime::Category::kCollective ? "collectives and waiting" : runtime::CategoryName(c),
        100 * shares.share[i]));
  }
  if (shares.communication.seconds > 0) {
    parts.push_back(
        absl::StrFormat("(%.0f%% of the exchanges' time hidden)", 100 * shares.communication.hidden()));
  }
  return absl::StrJoin(parts, "  ");
}

std::string PeakMemoryText(const std::vector<int64_t>& planned, const std::vector<int64_t>& measured) {
  const int64_t peak = planned.empty() ? 0 : *std::max_element(planned.begin(), planned.end());
  if (planned == measured)
    return absl::StrCat("peak memory ", BytesText(static_cast<double>(peak)), " per rank, as planned");
  std::vector<std::string> stages;
  for (size_t i = 0; i < planned.size() && i < measured.size(); ++i) {
    stages.push_back(absl::StrCat("stage ", i, " planned ", CountText(planned[i]), " measured ",
                                  CountText(measured[i]), " bytes"));
  }
  return absl::StrCat("peak memory per rank: ", absl::StrJoin(stages, ", "));
}

}  // namespace moe::train
