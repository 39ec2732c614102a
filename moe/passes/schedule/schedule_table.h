// The schedule as data: one row per pipeline stage, cells in order ("F0.3": forward of chunk 0, microbatch
// 3). F is a forward, B a whole backward, I and W its two halves: gradients of inputs, gradients of weights.
// The order of a row is all that a table says; transfers between stages follow from it.
//
//   ASSIGN_OR_RETURN(Schedule s, MakeSchedule(strategy));  // name, chunk_stage and table; actions stay empty
//
// A user's table is a CSV file, named by `schedule = file:PATH`:
//
//   # two stages, two microbatches; an empty cell is idle
//   F0.0, F0.1,     , B0.0,     , B0.1
//       , F1.0, B1.0, F1.1, B1.1
//
// A chunk with an I or a W anywhere has its backward split: a B of it means its I and then its W.
// With more chunks than stages, the rows say on which stage a chunk runs: where its forwards stand.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/ir/program.h"
#include "moe/strategy/strategy.h"

namespace moe::passes {

using ScheduleTable = std::vector<std::vector<Schedule::Cell>>;

std::string CellToString(const Schedule::Cell& cell);
// Inverse of CellToString. Error: what is wrong with the cell.
absl::StatusOr<Schedule::Cell> ParseCell(absl::string_view text);

// Errors carry `where` and row and column, both counted from 1.
absl::StatusOr<ScheduleTable> ParseScheduleTable(absl::string_view csv, absl::string_view where);
std::string PrintScheduleTable(const ScheduleTable& table);

// All forwards of a stage, then all its backwards in reverse order of chunks.
ScheduleTable GPipeTable(int stages, int chunks_per_stage, int microbatches);
// One forward, one backward, after a warm-up of stages - 1 - s forwards (Narayanan et al. 2019). One chunk
// per stage.
ScheduleTable OneForwardOneBackwardTable(int stages, int microbatches);

// The table that the strategy names: gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe (schedules.h) or
// file:PATH; validated. Chunk c is on stage c mod pp, with zb-v in a V, with dualpipe the second copy in
// reverse; a file says it itself. Errors say what is legal.
absl::StatusOr<Schedule> MakeSchedule(const strategy::Strategy& strategy);

// Each F and each B (or I and W) of every chunk of a microbatch's copy exactly once, on the chunk's own
// stage, in an order that can run: F(c) after F(c-1), B(c) and I(c) after F(c) and B(c+1) or I(c+1), W(c)
// after I(c). The error names stage, cell and what it waits for.
absl::Status ValidateTable(const Schedule& schedule);

// By chunk: its backward is split.
std::vector<bool> SplitChunks(const Schedule& schedule);

// By chunk: the most microbatches whose residuals are held at one time, from F to B or W.
std::vector<int> MicrobatchesInFlight(const Schedule& schedule);

}  // namespace moe::passes
