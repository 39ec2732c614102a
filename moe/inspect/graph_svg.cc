#include "moe/inspect/graph_svg.h"

#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "moe/base/file.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"

extern char** environ;

namespace moe::inspect {
namespace {

// Collectives are told apart by hue; each hue is dark enough for white text.
struct CollectiveLook {
  const char* kind;
  const char* colour;
};
constexpr CollectiveLook kCollectives[] = {
    {"all_to_all", "#c2562d"},     {"all_reduce", "#2f6fb0"}, {"all_gather", "#2a8a7f"},
    {"reduce_scatter", "#7a55a8"}, {"permute", "#8a6d1f"},    {"stage_reduce", "#4b5563"},
};
constexpr char kSeveral[] = "#8f3b67";  // several steps in one
constexpr char kTransfer[] = "#3a4150";

const char* ColourOf(const GraphBox& b) {
  if (b.kind == GraphBox::kBoundary) return kTransfer;
  for (const CollectiveLook& look : kCollectives) {
    if (b.op == look.kind) return look.colour;
  }
  return kSeveral;
}

struct BoxLook {
  const char* fill;
  const char* edge;
};
BoxLook LookOf(GraphBox::Kind kind) {
  switch (kind) {
    case GraphBox::kGemm:
      return {"#dbe8f4", "#7d9dbb"};
    case GraphBox::kAttention:
      return {"#e4dff0", "#9486b3"};
    case GraphBox::kRouting:
      return {"#fbecd0", "#c9a35b"};
    case GraphBox::kReports:
      return {"#f4f5f6", "#c5cad1"};
    default:
      return {"#ffffff", "#a5adb8"};
  }
}

std::string PartTitle(absl::string_view part) {
  if (part == "attn") return "attention";
  if (part == "mlp") return "feed-forward";
  if (part == "moe") return "mixture of experts";
  return std::string(part);
}

std::string Small(absl::string_view text, absl::string_view colour = "#6b7280", int size = 9) {
  return absl::StrCat("<font point-size=\"", size, "\" color=\"", colour, "\">", EscapeXml(text), "</font>");
}

std::string BoxLabel(const GraphBox& b) {
  std::string out = "<table border=\"0\" cellborder=\"0\" cellspacing=\"0\" cellpadding=\"1\"><tr><td>";
  absl::StrAppend(&out, "<b>", EscapeXml(Shorten(b.title, 30)), "</b>");
  if (!b.op.empty()) absl::StrAppend(&out, " &#160;", Small(Shorten(b.op, 34)));
  out += "</td></tr>";
  if (!b.type.empty()) absl::StrAppend(&out, "<tr><td>", Small(Shorten(b.type, 48)), "</td></tr>");
  const size_t shown = b.notes.size() > 4 ? 3 : b.notes.size();
  for (size_t i = 0; i < shown; ++i) {
    absl::StrAppend(&out, "<tr><td>", Small(Shorten(b.notes[i], 40), "#3f7d4f"), "</td></tr>");
  }
  if (shown < b.notes.size()) {
    absl::StrAppend(&out, "<tr><td>", Small(absl::StrCat("and ", b.notes.size() - shown, " more"), "#3f7d4f"),
                    "</td></tr>");
  }
  return out + "</table>";
}

void AppendBox(size_t i, const GraphBox& b, const std::string& indent, std::string* out) {
  std::string label, style;
  switch (b.kind) {
    case GraphBox::kCollective:
    case GraphBox::kBoundary: {
      const std::string what = absl::StrCat(b.op, b.kind == GraphBox::kBoundary ? " " + b.title : "",
                                            b.axes.empty() ? "" : " ", b.axes);
      label = absl::StrCat("<b>", EscapeXml(absl::StrCat(what, " \u00b7 ", BytesText(b.bytes))), "</b>");
      style = absl::StrCat("style=\"rounded,filled\", fillcolor=\"", ColourOf(b), "\", color=\"", ColourOf(b),
                           "\", fontcolor=\"#ffffff\", margin=\"0.1,0.035\"");
      break;
    }
    case GraphBox::kLocalMove:
      label = EscapeXml(absl::StrCat(b.op, b.axes.empty() ? "" : " ", b.axes));
      style =
          "style=\"rounded,dashed\", color=\"#a5adb8\", fontcolor=\"#6b7280\", fontsize=9, "
          "margin=\"0.06,0.02\"";
      break;
    case GraphBox::kInput:
      label = absl::StrCat(EscapeXml(b.title), "  ", Small(b.type));
      style = "shape=plaintext, fontcolor=\"#3a4150\", margin=\"0.03,0.02\"";
      break;
    default: {
      const BoxLook look = LookOf(b.kind);
      label = BoxLabel(b);
      style = absl::StrCat("fillcolor=\"", look.fill, "\", color=\"", look.edge, "\"",
                           b.kind == GraphBox::kReports ? ", style=\"rounded,filled,dashed\"" : "");
    }
  }
  std::string tooltip =
      b.reason.empty() ? absl::StrCat(b.title, " ", b.type, " ", BytesText(b.bytes)) : b.reason;
  absl::StrAppend(out, indent, "n", i, " [label=<", label, ">, ", style, ", tooltip=\"", EscapeXml(tooltip),
                  "\"];\n");
}

std::string LegendRow(const GraphOutline& outline) {
  std::set<std::string> kinds;
  bool boundary = false;
  std::set<int> boxes;
  for (const GraphBox& b : outline.boxes) {
    if (b.kind == GraphBox::kCollective) kinds.insert(ColourOf(b) == kSeveral ? "several steps" : b.op);
    boundary |= b.kind == GraphBox::kBoundary;
    boxes.insert(b.kind);
  }
  std::vector<std::string> cells;
  const auto swatch = [&](absl::string_view colour, absl::string_view edge, absl::string_view name) {
    cells.push_back(absl::StrCat("<td border=\"1\" color=\"", edge, "\" bgcolor=\"", colour,
                                 "\" width=\"14\" height=\"9\"></td><td align=\"left\">",
                                 Small(name, "#3a4150", 10), "</td><td width=\"8\"></td>"));
  };
  for (const auto& [kind, name] : {std::pair(GraphBox::kGemm, "matrix product"),
                                   {GraphBox::kAttention, "attention"},
                                   {GraphBox::kRouting, "routing"},
                                   {GraphBox::kOther, "other"}}) {
    if (boxes.count(kind)) swatch(LookOf(kind).fill, LookOf(kind).edge, name);
  }
  for (const CollectiveLook& look : kCollectives) {
    if (kinds.count(look.kind)) swatch(look.colour, look.colour, look.kind);
  }
  if (kinds.count("several steps")) swatch(kSeveral, kSeveral, "several steps");
  if (boundary) swatch(kTransfer, kTransfer, "between stages");
  if (cells.empty()) return "";
  // A grid of five columns: a narrow picture stays narrow.
  std::string out =
      "<tr><td align=\"left\"><table border=\"0\" cellspacing=\"2\" cellpadding=\"3\" align=\"left\">";
  for (size_t i = 0; i < cells.size(); i += 5) {
    out += "<tr>";
    for (size_t j = i; j < std::min(i + 5, cells.size()); ++j) out += cells[j];
    out += "</tr>";
  }
  out += "</table></td></tr>";
  return out;
}

}  // namespace

std::string GraphDot(const GraphOutline& outline) {
  std::string out = absl::StrCat(
      "digraph program {\n"
      "  graph [rankdir=TB, ranksep=0.22, nodesep=0.16, fontname=\"Helvetica\", fontsize=11, "
      "fontcolor=\"#2b2f36\", "
      "bgcolor=\"#ffffff\", pad=0.2, labelloc=t, labeljust=l, newrank=true];\n"
      "  node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\", fontsize=11, "
      "fontcolor=\"#2b2f36\", "
      "penwidth=0.9, margin=\"0.05,0.015\", height=0.1, width=0.1, fillcolor=\"#ffffff\"];\n"
      "  edge [color=\"#9aa2ad\", penwidth=0.9, arrowsize=0.55, fontname=\"Helvetica\", fontsize=9];\n"
      "  label=<<table border=\"0\" cellspacing=\"0\" cellpadding=\"2\"><tr><td align=\"left\"><font "
      "point-size=\"15\"><b>",
      EscapeXml(outline.title), "</b></font></td></tr><tr><td align=\"left\">",
      Small(outline.subtitle, "#6b7280", 11), "</td></tr>", LegendRow(outline), "</table>>;\n");
  // Stage -> layer run (or -1) -> part -> boxes, in order of appearance.
  std::map<int, std::vector<size_t>> stages;
  for (size_t i = 0; i < outline.boxes.size(); ++i) stages[outline.boxes[i].stage].push_back(i);
  int cluster = 0;
  for (const auto& [stage, boxes] : stages) {
    absl::StrAppend(&out, "  subgraph cluster_", cluster++, " {\n    label=<<b>stage ", stage,
                    "</b>>; fontsize=13; style=\"rounded,filled\"; fillcolor=\"#f3f4f6\"; color=\"#c5cad1\"; "
                    "margin=10;\n");
    std::vector<std::pair<int64_t, std::string>> parts;
    std::vector<int64_t> layers;
    for (const size_t i : boxes) {
      const GraphBox& b = outline.boxes[i];
      const std::pair part(b.layer, b.part);
      if (std::find(parts.begin(), parts.end(), part) == parts.end()) parts.push_back(part);
      if (std::find(layers.begin(), layers.end(), b.layer) == layers.end()) layers.push_back(b.layer);
    }
    for (const int64_t layer : layers) {
      if (layer >= 0) {
        int64_t count = 1;
        for (const GraphLayerRun& r : outline.runs) {
          if (r.stage == stage && r.first == layer) count = r.count;
        }
        const std::string name =
            count == 1 ? absl::StrCat("layer ", layer)
                       : absl::StrCat("layers ", layer, "-", layer + count - 1, " &#160;\u00d7 ", count);
        absl::StrAppend(
            &out, "    subgraph cluster_", cluster++, " {\n      label=<<b>", name,
            "</b>>; fontsize=12; style=\"rounded,filled\"; fillcolor=\"#ffffff\"; color=\"#9aa2ad\"; ",
            count > 1 ? "peripheries=1; penwidth=1.6; " : "", "margin=8;\n");
      }
      for (const auto& [part_layer, part] : parts) {
        if (part_layer != layer) continue;
        const bool framed = !part.empty();
        if (framed) {
          absl::StrAppend(&out, "      subgraph cluster_", cluster++, " {\n        label=<",
                          Small(PartTitle(part), "#6b7280", 10), ">; style=\"rounded,filled\"; fillcolor=\"",
                          part == "moe" ? "#fdf8ee" : "#f8fafc", "\"; color=\"#e2e5e9\"; margin=7;\n");
        }
        for (const size_t i : boxes) {
          const GraphBox& b = outline.boxes[i];
          if (b.layer == layer && b.part == part) AppendBox(i, b, "        ", &out);
        }
        if (framed) out += "      }\n";
      }
      if (layer >= 0) out += "    }\n";
    }
    out += "  }\n";
  }
  // From left to right in order: their first boxes stand on one line.
  std::vector<std::string> firsts;
  for (const auto& [stage, boxes] : stages) {
    firsts.push_back(absl::StrCat("n", boxes[0]));
  }
  if (firsts.size() > 1) {
    absl::StrAppend(&out, "  { rank=same; ", absl::StrJoin(firsts, " -> "), " [style=invis]; }\n");
  }
  for (const GraphEdge& e : outline.edges) {
    const GraphBox &from = outline.boxes[e.from], &to = outline.boxes[e.to];
    std::vector<std::string> style;
    // Edges at a collective carry its colour, so that the path of the data stands out.
    for (const GraphBox* b : {&to, &from}) {
      if (b->kind == GraphBox::kCollective || b->kind == GraphBox::kBoundary) {
        style = {absl::StrCat("color=\"", ColourOf(*b), "\""), "penwidth=1.8"};
      }
    }
    if (from.kind == GraphBox::kReports || to.kind == GraphBox::kReports)
      style = {"style=dashed", "color=\"#c5cad1\""};
    absl::StrAppend(&out, "  n", e.from, " -> n", e.to,
                    style.empty() ? "" : absl::StrCat(" [", absl::StrJoin(style, ", "), "]"), ";\n");
  }
  return out + "}\n";
}

absl::Status RenderDot(absl::string_view dot, const std::string& svg_path) {
  const std::string dot_path = absl::StrCat(absl::StripSuffix(svg_path, ".svg"), ".dot");
  RETURN_IF_ERROR(WriteFile(dot_path, dot));
  const char* argv[] = {"dot", "-Tsvg", "-o", svg_path.c_str(), dot_path.c_str(), nullptr};
  pid_t pid;
  if (const int error = posix_spawnp(&pid, "dot", nullptr, nullptr, const_cast<char**>(argv), environ);
      error != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot run Graphviz' dot (", std::strerror(error),
                     "): install the package graphviz and run  dot -Tsvg -o ", svg_path, " ", dot_path,
                     "  on the graph kept there"));
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::FailedPreconditionError(
        WIFEXITED(status) && WEXITSTATUS(status) == 127
            ? absl::StrCat(
                  "Graphviz' dot is not installed: install the package graphviz and run  dot -Tsvg -o ",
                  svg_path, " ", dot_path, "  on the graph kept there")
            : absl::StrCat("dot could not draw ", dot_path, "; the file is kept"));
  }
  std::remove(dot_path.c_str());
  return absl::OkStatus();
}

absl::Status WriteGraphSvg(const Program& program, const GraphOptions& options, const std::string& svg_path) {
  ASSIGN_OR_RETURN(const GraphOutline outline, OutlineGraph(program, options));
  return RenderDot(GraphDot(outline), svg_path);
}

}  // namespace moe::inspect
