// The graph of a program as a person would draw it: few boxes, the model's structure around them.
//
// Boxes stand for one node or several: reshapes and casts vanish, chains of elementwise nodes become one box,
// what only feeds reports and router losses becomes one box a scope, parameters are notes in the box that
// reads them, gradient accumulators notes in the box that feeds them. Runs of equal layers are drawn once,
// with a count. Collectives always have a box of their own.
//
//   ASSIGN_OR_RETURN(GraphOutline outline, OutlineGraph(program, {.stage = 0}));
//   std::string dot = GraphDot(outline);     // graph_svg.h
//
// Plain data; any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "moe/ir/program.h"

namespace moe::inspect {

struct GraphOptions {
  int stage = -1;  // -1: all stages side by side
  Phase phase = Phase::kForward;
  int64_t layer = -1;           // only this layer; -1: all
  bool collapse_layers = true;  // draw equal neighbours once
};

struct GraphBox {
  enum Kind { kGemm, kAttention, kRouting, kOther, kReports, kCollective, kLocalMove, kBoundary, kInput };
  Kind kind = kOther;
  int stage = 0;
  int64_t layer = -1;              // first of the run of layers it stands for
  std::string part;                // "attn", "moe", "embedding", ...
  std::string title;               // name of the value: "q"
  std::string op;                  // "einsum"; of a collective its kind, "all_to_all"; "send", "receive"
  std::string axes;                // collectives: "ep"; boundaries: "to stage 1"
  std::string type;                // "f32[8@dp,128,8@tp,16]"
  double bytes = 0;                // collectives and boundaries: sent by one rank; else of the result
  std::vector<std::string> notes;  // parameters read, gradients fed: "wq 128x4x16"
  std::string reason;              // collectives: which pass, and why
};
struct GraphEdge {
  int from = 0, to = 0;  // boxes
  std::string label;     // "" or what tells it from its neighbours
};
struct GraphLayerRun {
  int stage = 0;
  int64_t first = 0, count = 1;
};
struct GraphOutline {
  std::string title, subtitle;
  int stages = 1;
  std::vector<GraphBox> boxes;
  std::vector<GraphEdge> edges;  // no duplicates
  std::vector<GraphLayerRun> runs;
};

// Errors: NotFound for a stage or layer that the program does not have.
absl::StatusOr<GraphOutline> OutlineGraph(const Program& program, const GraphOptions& options);

}  // namespace moe::inspect
