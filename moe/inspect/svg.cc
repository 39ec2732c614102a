#include "moe/inspect/svg.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/quantities.h"

namespace moe::inspect {

std::string SvgNumber(double x) {
  std::string text = absl::StrFormat("%.2f", x);
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

SvgWriter::SvgWriter(double width, double height, absl::string_view title)
    : width_(width), height_(height), title_(title) {}

void SvgWriter::Rect(double x, double y, double width, double height, const Shape& s) {
  absl::StrAppend(&body_, "<rect x=\"", SvgNumber(x), "\" y=\"", SvgNumber(y), "\" width=\"",
                  SvgNumber(std::max(0.0, width)), "\" height=\"", SvgNumber(std::max(0.0, height)),
                  "\" fill=\"", s.fill, "\"");
  if (s.radius > 0) absl::StrAppend(&body_, " rx=\"", SvgNumber(s.radius), "\"");
  if (!s.stroke.empty()) {
    absl::StrAppend(&body_, " stroke=\"", s.stroke, "\" stroke-width=\"", SvgNumber(s.stroke_width), "\"");
  }
  if (!s.dash.empty()) absl::StrAppend(&body_, " stroke-dasharray=\"", s.dash, "\"");
  if (s.opacity < 1) absl::StrAppend(&body_, " opacity=\"", SvgNumber(s.opacity), "\"");
  if (s.title.empty()) {
    body_ += "/>\n";
  } else {
    absl::StrAppend(&body_, "><title>", EscapeXml(s.title), "</title></rect>\n");
  }
}

void SvgWriter::Line(double x1, double y1, double x2, double y2, absl::string_view stroke, double width,
                     absl::string_view dash) {
  absl::StrAppend(&body_, "<line x1=\"", SvgNumber(x1), "\" y1=\"", SvgNumber(y1), "\" x2=\"", SvgNumber(x2),
                  "\" y2=\"", SvgNumber(y2), "\" stroke=\"", stroke, "\" stroke-width=\"", SvgNumber(width),
                  "\"");
  if (!dash.empty()) absl::StrAppend(&body_, " stroke-dasharray=\"", dash, "\"");
  body_ += "/>\n";
}

void SvgWriter::Text(double x, double y, absl::string_view text, const Font& f) {
  absl::StrAppend(&body_, "<text x=\"", SvgNumber(x), "\" y=\"", SvgNumber(y), "\"");
  if (f.size != 11) absl::StrAppend(&body_, " font-size=\"", SvgNumber(f.size), "\"");
  if (f.anchor != "start") absl::StrAppend(&body_, " text-anchor=\"", f.anchor, "\"");
  if (f.fill != "#2b2f36") absl::StrAppend(&body_, " fill=\"", f.fill, "\"");
  if (f.bold) body_ += " font-weight=\"bold\"";
  if (f.rotate != 0) {
    absl::StrAppend(&body_, " transform=\"rotate(", SvgNumber(f.rotate), " ", SvgNumber(x), " ", SvgNumber(y),
                    ")\"");
  }
  absl::StrAppend(&body_, ">", EscapeXml(text), "</text>\n");
}

void SvgWriter::Pattern(absl::string_view id, absl::string_view fill, absl::string_view stroke, char kind) {
  std::string marks;
  if (kind == '.') {
    marks = absl::StrCat("<circle cx=\"2\" cy=\"2\" r=\"0.9\" fill=\"", stroke, "\"/>",
                         "<circle cx=\"6\" cy=\"6\" r=\"0.9\" fill=\"", stroke, "\"/>");
  } else {
    const std::string rising = "M-2 2 L2 -2 M0 8 L8 0 M6 10 L10 6",
                      falling = "M-2 6 L2 10 M0 0 L8 8 M6 -2 L10 2";
    marks = absl::StrCat("<path d=\"",
                         kind == '/'    ? rising
                         : kind == '\\' ? falling
                                        : rising + " " + falling,
                         "\" stroke=\"", stroke, "\" stroke-width=\"1\" fill=\"none\"/>");
  }
  absl::StrAppend(
      &defs_, "<pattern id=\"", id,
      "\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\"><rect width=\"8\" height=\"8\" fill=\"",
      fill, "\"/>", marks, "</pattern>\n");
}

std::string SvgWriter::Finish() && {
  return absl::StrCat(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"",
      SvgNumber(width_), "\" height=\"", SvgNumber(height_), "\" viewBox=\"0 0 ", SvgNumber(width_), " ",
      SvgNumber(height_),
      "\" font-family=\"'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif\" "
      "font-size=\"11\" fill=\"#2b2f36\">\n<title>",
      EscapeXml(title_), "</title>\n", defs_.empty() ? "" : absl::StrCat("<defs>\n", defs_, "</defs>\n"),
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n", body_, "</svg>\n");
}

}  // namespace moe::inspect
