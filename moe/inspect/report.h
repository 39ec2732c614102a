// A compiled program as text: what each stage does, where each value lives and why each collective is there.
//
//   stage 1 of 2   ranks 4-7   layers 2-3, head        forward 118 nodes   backward 241   update 9
//
//   layers.2.moe                                                                   forward, 21 nodes
//     %d            f32[8,8@dp,1,40,128]  8x4x1x40x128   640 KiB  dispatch(%tokens, %expert, %slot)
//     >> all_to_all over ep, 320 KiB per rank -> %d.ep  f32[8@ep,8,1,40,128]
//        inserted by insert-collectives: batch@dp -> experts@ep, for %d
//
// Lines have at most 100 characters and no colour. A value's line says its global type with its placement,
// the local extents and the bytes on one rank. Nothing is cached; any thread may render a program that nobody
// changes.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "moe/cost/target.h"
#include "moe/inspect/stage_view.h"
#include "moe/ir/program.h"

namespace moe::inspect {

struct ReportOptions {
  int stage = -1;        // -1: all
  int64_t layer = -1;    // only scopes "layers.<layer>.*"; -1: all
  std::string function;  // only this function; empty: all
  // List the nodes. Without a filter that is long, and the overview leaves them out unless asked.
  bool nodes = false;
  cost::Target target;  // that the program was compiled for: the timeline is by its costs
};

// Mesh, then per stage: header, nodes where asked or filtered, collectives, schedule, memory.
// Errors: NotFound for a stage, layer or function that the program does not have.
absl::StatusOr<std::string> ReportText(const Program& program, const ReportOptions& options = {});

// Its parts.
absl::Status CheckReportOptions(const Program& program, const ReportOptions& options);
std::string StageHeader(const StageView& view);
std::string NodesText(const Program& program, const StageView& view, const ReportOptions& options);
std::string CollectivesText(const Program& program, const StageView& view);

// The same facts for other programs: {"mesh": ..., "stages": [{"functions": [{"nodes": [...]}], ...}]},
// indented.
absl::StatusOr<std::string> ReportJson(const Program& program, const ReportOptions& options = {});

}  // namespace moe::inspect
