#include "moe/passes/schedule/schedule_table.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/lines.h"
#include "moe/base/status.h"
#include "moe/passes/schedule/schedules.h"

namespace moe::passes {
namespace {

constexpr int64_t kMaxTableBytes = 64 << 20;
constexpr int kMaxIndex = 1 << 20;  // chunks, microbatches

bool IsKind(char kind) { return kind == 'F' || kind == 'B' || kind == 'I' || kind == 'W'; }

using Key = std::tuple<char, int, int>;
Key KeyOf(const Schedule::Cell& c) { return {c.kind, c.chunk, c.microbatch}; }
std::string Show(const Key& k) {
  return absl::StrCat(std::string(1, std::get<0>(k)), std::get<1>(k), ".", std::get<2>(k));
}

constexpr char kManyChunks[] = "gpipe, interleaved, zb-v (2), dualpipe (2), file:PATH";

absl::Status CheckDualPipe(const strategy::Strategy& s) {
  std::vector<std::string> wrong;
  if (s.virtual_chunks != 2) {
    wrong.push_back(absl::StrCat(
        "two chunks per stage, one of each copy of the model: virtual_chunks=2, not ", s.virtual_chunks));
  }
  if (s.pp % 2 != 0) wrong.push_back(absl::StrCat("an even number of stages, not pp = ", s.pp));
  if (s.microbatches % 2 != 0 || s.microbatches < 2 * s.pp) {
    wrong.push_back(
        absl::StrCat("an even number of microbatches, at least 2 pp = ", 2 * s.pp, ", not ", s.microbatches));
  }
  if (wrong.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("schedule dualpipe wants ", absl::StrJoin(wrong, "; ")));
}

absl::Status CheckOneChunk(const strategy::Strategy& s) {
  if (s.virtual_chunks == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "schedule ", s.schedule.ToString(), " has one chunk per stage, virtual_chunks = ", s.virtual_chunks,
      " asks for more; legal with it: ", kManyChunks));
}

absl::Status CheckInterleaved(const strategy::Strategy& s) {
  if (s.virtual_chunks < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "schedule interleaved wants several chunks per stage, virtual_chunks = ", s.virtual_chunks,
        "; the smallest legal is virtual_chunks=2, and with one chunk it is schedule=1f1b"));
  }
  const int64_t below = s.microbatches / s.pp * s.pp;
  if (below == s.microbatches) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "schedule interleaved moves microbatches in groups of pp: microbatches = ", s.microbatches,
      " is no multiple of pp = ", s.pp, "; nearest legal: ",
      below > 0 ? absl::StrCat("microbatches=", below, " or ") : "", "microbatches=", below + s.pp));
}

absl::StatusOr<Schedule> TableFromFile(const strategy::Strategy& s, absl::string_view path) {
  const std::string where(path);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(where, kMaxTableBytes));
  Schedule out;
  out.name = where;
  out.microbatches = static_cast<int>(s.microbatches);
  ASSIGN_OR_RETURN(out.table, ParseScheduleTable(text, where));
  if (static_cast<int64_t>(out.table.size()) != s.pp) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", out.table.size(), " rows for pp = ", s.pp,
                                                   "; a table has one row per stage"));
  }
  const int chunks = static_cast<int>(s.pp * s.virtual_chunks);
  out.chunk_stage.assign(chunks, -1);
  for (int stage = 0; stage < s.pp; ++stage) {
    for (const Schedule::Cell& c : out.table[stage]) {
      if (c.chunk >= chunks) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": row ", stage + 1, ": ", CellToString(c), ": legal chunks are 0 to ",
                         chunks - 1, " (pp = ", s.pp, " x virtual_chunks = ", s.virtual_chunks, ")"));
      }
      int& home = out.chunk_stage[c.chunk];
      if (home < 0 && c.kind == 'F') home = stage;
    }
  }
  for (int c = 0; c < chunks; ++c) {
    if (out.chunk_stage[c] < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": chunk ", c, " is nowhere in the table; pp = ", s.pp,
                       " x virtual_chunks = ", s.virtual_chunks, " makes ", chunks, " chunks"));
    }
  }
  return out;
}

}  // namespace

std::string CellToString(const Schedule::Cell& c) {
  return absl::StrCat(std::string(1, c.kind), c.chunk, ".", c.microbatch);
}

absl::StatusOr<Schedule::Cell> ParseCell(absl::string_view text) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' ", why, "; a cell is F, B, I or W, chunk, '.', microbatch: F0.3"));
  };
  if (text.size() < 4 || text.size() > 16) return bad("is not a cell");
  Schedule::Cell cell;
  cell.kind = text[0];
  if (!IsKind(cell.kind)) return bad("is not a cell");
  const std::vector<absl::string_view> parts = absl::StrSplit(text.substr(1), '.');
  const auto number = [](absl::string_view t, int* out) {
    return !t.empty() && std::all_of(t.begin(), t.end(), absl::ascii_isdigit) && absl::SimpleAtoi(t, out) &&
           *out < kMaxIndex;
  };
  if (parts.size() != 2 || !number(parts[0], &cell.chunk) || !number(parts[1], &cell.microbatch)) {
    return bad("is not a cell");
  }
  return cell;
}

absl::StatusOr<ScheduleTable> ParseScheduleTable(absl::string_view csv, absl::string_view where) {
  ScheduleTable table;
  int line_number = 0;
  const std::string text = UnixLines(csv);
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    table.emplace_back();
    int column = 0;
    for (absl::string_view part : absl::StrSplit(line, ',')) {
      ++column;
      part = absl::StripAsciiWhitespace(part);
      if (part.empty()) continue;
      absl::StatusOr<Schedule::Cell> cell = ParseCell(part);
      if (!cell.ok()) {
        return Annotate(cell.status(), absl::StrCat(where, ": line ", line_number, ", column ", column));
      }
      table.back().push_back(*cell);
    }
  }
  if (table.empty()) return absl::InvalidArgumentError(absl::StrCat(where, ": the table has no rows"));
  return table;
}

std::string PrintScheduleTable(const ScheduleTable& table) {
  std::string out;
  for (const std::vector<Schedule::Cell>& row : table) {
    absl::StrAppend(
        &out,
        absl::StrJoin(row, ", ", [](std::string* s, const Schedule::Cell& c) { s->append(CellToString(c)); }),
        "\n");
  }
  return out;
}

ScheduleTable GPipeTable(int stages, int chunks_per_stage, int microbatches) {
  ScheduleTable table(stages);
  for (int s = 0; s < stages; ++s) {
    for (int v = 0; v < chunks_per_stage; ++v) {
      for (int m = 0; m < microbatches; ++m) table[s].push_back({'F', v * stages + s, m});
    }
    for (int v = chunks_per_stage - 1; v >= 0; --v) {
      for (int m = 0; m < microbatches; ++m) table[s].push_back({'B', v * stages + s, m});
    }
  }
  return table;
}

ScheduleTable OneForwardOneBackwardTable(int stages, int microbatches) {
  ScheduleTable table(stages);
  for (int s = 0; s < stages; ++s) {
    const int warmup = std::min(stages - 1 - s, microbatches);
    int forward = 0, backward = 0;
    while (forward < warmup) table[s].push_back({'F', s, forward++});
    while (forward < microbatches) {
      table[s].push_back({'F', s, forward++});
      table[s].push_back({'B', s, backward++});
    }
    while (backward < microbatches) table[s].push_back({'B', s, backward++});
  }
  return table;
}

absl::StatusOr<Schedule> MakeSchedule(const strategy::Strategy& s) {
  if (s.pp < 1 || s.virtual_chunks < 1 || s.microbatches < 1 || s.pp * s.virtual_chunks > kMaxIndex ||
      s.microbatches > kMaxIndex) {
    return absl::InvalidArgumentError(absl::StrCat("pp = ", s.pp, ", virtual_chunks = ", s.virtual_chunks,
                                                   ", microbatches = ", s.microbatches,
                                                   ": each is at least 1"));
  }
  const int stages = static_cast<int>(s.pp), chunks = static_cast<int>(s.virtual_chunks);
  Schedule out;
  out.name = s.schedule.ToString();
  out.microbatches = static_cast<int>(s.microbatches);
  for (int c = 0; c < stages * chunks; ++c) out.chunk_stage.push_back(c % stages);
  switch (s.schedule.kind) {
    case strategy::ScheduleKind::kFile: {
      ASSIGN_OR_RETURN(out, TableFromFile(s, s.schedule.path));
      break;
    }
    case strategy::ScheduleKind::kGPipe:
      out.table = GPipeTable(stages, chunks, out.microbatches);
      break;
    case strategy::ScheduleKind::k1F1B:
      RETURN_IF_ERROR(CheckOneChunk(s));
      out.table = OneForwardOneBackwardTable(stages, out.microbatches);
      break;
    case strategy::ScheduleKind::kInterleaved:
      RETURN_IF_ERROR(CheckInterleaved(s));
      out.table = InterleavedTable(stages, chunks, out.microbatches);
      break;
    case strategy::ScheduleKind::kZbH1:
      RETURN_IF_ERROR(CheckOneChunk(s));
      out.table = ZeroBubbleH1Table(stages, out.microbatches);
      break;
    case strategy::ScheduleKind::kZbV:
      if (chunks != 2) {
        return absl::InvalidArgumentError(
            absl::StrCat("schedule zb-v has two chunks per stage, virtual_chunks = ", chunks,
                         "; legal is virtual_chunks=2"));
      }
      out.chunk_stage = VPlacement(stages);
      out.table = ZeroBubbleVTable(stages, out.microbatches);
      break;
    case strategy::ScheduleKind::kDualPipe:
      RETURN_IF_ERROR(CheckDualPipe(s));
      out.copies = 2;
      for (int c = 0; c < stages; ++c) out.chunk_stage[stages + c] = stages - 1 - c;
      out.table = DualPipeTable(stages, out.microbatches);
      break;
  }
  RETURN_IF_ERROR(Annotate(ValidateTable(out), absl::StrCat("schedule ", out.name)));
  return out;
}

absl::Status ValidateTable(const Schedule& s) {
  const int chunks = static_cast<int>(s.chunk_stage.size());
  std::map<Key, int> stage_of;
  for (int stage = 0; stage < static_cast<int>(s.table.size()); ++stage) {
    for (const Schedule::Cell& c : s.table[stage]) {
      const std::string at = absl::StrCat("stage ", stage, ": ", CellToString(c));
      if (!IsKind(c.kind)) return absl::InvalidArgumentError(absl::StrCat(at, ": cells are F, B, I or W"));
      if (c.chunk < 0 || c.chunk >= chunks) {
        return absl::InvalidArgumentError(absl::StrCat(at, ": legal chunks are 0 to ", chunks - 1));
      }
      if (c.microbatch < 0 || c.microbatch >= s.microbatches) {
        return absl::InvalidArgumentError(
            absl::StrCat(at, ": legal microbatches are 0 to ", s.microbatches - 1));
      }
      if (s.chunk_stage[c.chunk] != stage) {
        return absl::InvalidArgumentError(
            absl::StrCat(at, ": chunk ", c.chunk, " belongs to stage ", s.chunk_stage[c.chunk]));
      }
      if (!stage_of.emplace(KeyOf(c), stage).second) {
        return absl::InvalidArgumentError(absl::StrCat(at, " appears twice; each cell runs exactly once"));
      }
    }
  }
  if (s.copies < 1 || chunks % s.copies != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(chunks, " chunks do not divide into ", s.copies, " copies of a model"));
  }
  std::vector<int> copy_of(s.microbatches);
  for (int m = 0; m < s.microbatches; ++m) copy_of[m] = s.CopyOfMicrobatch(m);
  for (const auto& [key, stage] : stage_of) {
    const auto [kind, c, m] = key;
    if (s.CopyOfChunk(c) != copy_of[m]) {
      return absl::InvalidArgumentError(absl::StrCat("stage ", stage, ": ", Show(key), ": microbatch ", m,
                                                     " goes through the other copy of the model"));
    }
  }
  for (int c = 0; c < chunks; ++c) {
    for (int m = 0; m < s.microbatches; ++m) {
      if (s.CopyOfChunk(c) != copy_of[m]) continue;
      const bool whole = stage_of.count({'B', c, m}) > 0;
      const int halves = static_cast<int>(stage_of.count({'I', c, m}) + stage_of.count({'W', c, m}));
      if (whole && halves > 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "stage ", s.chunk_stage[c], ": ", Show({'B', c, m}), " is the whole backward; ",
            Show({'I', c, m}), " and ", Show({'W', c, m}), " are its halves: write one or the other"));
      }
      for (const char kind : {'F', 'B', 'I', 'W'}) {
        if (stage_of.count({kind, c, m})) continue;
        if (kind == 'B' ? halves > 0 : kind != 'F' && whole) continue;
        return absl::InvalidArgumentError(absl::StrCat("stage ", s.chunk_stage[c], ": ", Show({kind, c, m}),
                                                       " is missing; each cell runs exactly once"));
      }
    }
  }
  // Runs the rows against each other; what stands still at the end waits in a circle.
  std::set<Key> done;
  const auto input_grad = [&](int chunk, int microbatch) -> Key {  // the cell that gives the input's gradient
    return {stage_of.count({'B', chunk, microbatch}) ? 'B' : 'I', chunk, microbatch};
  };
  const auto waits_for = [&](const Schedule::Cell& c) -> std::optional<Key> {
    if (c.kind == 'W') {
      const Key half{'I', c.chunk, c.microbatch};
      return done.count(half) ? std::nullopt : std::optional<Key>(half);
    }
    if (c.kind == 'F') {
      if (!s.IsFirst(c.chunk) && !done.count({'F', c.chunk - 1, c.microbatch}))
        return Key{'F', c.chunk - 1, c.microbatch};
      return std::nullopt;
    }
    if (!done.count({'F', c.chunk, c.microbatch})) return Key{'F', c.chunk, c.microbatch};
    if (!s.IsLast(c.chunk) && !done.count(input_grad(c.chunk + 1, c.microbatch))) {
      return input_grad(c.chunk + 1, c.microbatch);
    }
    return std::nullopt;
  };
  std::vector<size_t> next(s.table.size(), 0);
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t stage = 0; stage < s.table.size(); ++stage) {
      while (next[stage] < s.table[stage].size() && !waits_for(s.table[stage][next[stage]])) {
        done.insert(KeyOf(s.table[stage][next[stage]++]));
        progress = true;
      }
    }
  }
  std::vector<std::string> stuck;
  for (size_t stage = 0; stage < s.table.size(); ++stage) {
    if (next[stage] == s.table[stage].size()) continue;
    const Schedule::Cell& c = s.table[stage][next[stage]];
    stuck.push_back(absl::StrCat("stage ", stage, " at ", CellToString(c), " waits for ", Show(*waits_for(c)),
                                 " of stage ", stage_of.at(*waits_for(c))));
  }
  if (stuck.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the order cannot run: ", absl::StrJoin(stuck, "; ")));
}

std::vector<int> MicrobatchesInFlight(const Schedule& schedule) {
  std::vector<int> held(schedule.chunk_stage.size()), most(held.size());
  for (const std::vector<Schedule::Cell>& row : schedule.table) {
    for (const Schedule::Cell& cell : row) {
      if (cell.kind == 'F') most[cell.chunk] = std::max(most[cell.chunk], ++held[cell.chunk]);
      if (cell.kind == 'B' || cell.kind == 'W') --held[cell.chunk];
    }
  }
  return most;
}

std::vector<bool> SplitChunks(const Schedule& s) {
  std::vector<bool> split(s.chunk_stage.size(), false);
  for (const auto& row : s.table) {
    for (const Schedule::Cell& c : row) {
      if (c.kind == 'I' || c.kind == 'W') split[c.chunk] = true;
    }
  }
  return split;
}

}  // namespace moe::passes
