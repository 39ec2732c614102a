// Pictures of a partitioned graph, through Graphviz: stages and layers as frames, ops as small boxes,
// collectives in colour with the axes they run over and the bytes that each rank sends.
//
//   RETURN_IF_ERROR(WriteGraphSvg(program, {.stage = 0}, "stage0.svg"));
//
// No state; any thread.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "moe/inspect/graph_outline.h"

namespace moe::inspect {

std::string GraphDot(const GraphOutline& outline);

// Runs `dot -Tsvg`. Errors: FailedPrecondition where there is no `dot` or it fails, with what to install and
// where the DOT text is: it is written beside `svg_path` as `<svg_path without .svg>.dot` first, and removed
// after success.
absl::Status RenderDot(absl::string_view dot, const std::string& svg_path);

absl::Status WriteGraphSvg(const Program& program, const GraphOptions& options, const std::string& svg_path);

}  // namespace moe::inspect
