// Writes SVG: shapes in user units, text, patterns. Fonts are those every machine has; colours are given by
// the caller.
//
//   SvgWriter svg(640, 200, "a step");
//   svg.Rect(10, 10, 80, 24, {.fill = "#4e79a7"});
//   svg.Text(50, 26, "F0", {.size = 11, .anchor = "middle", .fill = "#ffffff"});
//   std::string text = std::move(svg).Finish();
//
// Text is escaped. One thread.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace moe::inspect {

// Number as SVG wants it: at most two decimals, none where they are zero.
std::string SvgNumber(double x);

class SvgWriter {
 public:
  SvgWriter(double width, double height, absl::string_view title);

  struct Shape {
    std::string fill = "none", stroke = "";
    double stroke_width = 1, radius = 0, opacity = 1;
    std::string dash;   // "4 3"
    std::string title;  // what a browser shows on hovering
  };
  struct Font {
    double size = 11;
    std::string anchor = "start", fill = "#2b2f36";
    bool bold = false;
    double rotate = 0;  // degrees, about the position
  };
  void Rect(double x, double y, double width, double height, const Shape& shape);
  void Line(double x1, double y1, double x2, double y2, absl::string_view stroke, double width = 1,
            absl::string_view dash = "");
  void Text(double x, double y, absl::string_view text, const Font& font);
  // Lines at 45 degrees ("/" or "\\"), a cross of both ("x") or dots (".") in `stroke` over `fill`;
  // afterwards fill = "url(#id)".
  void Pattern(absl::string_view id, absl::string_view fill, absl::string_view stroke, char kind);
  // Anything else: elements written by the caller.
  void Raw(absl::string_view elements) { body_.append(elements.data(), elements.size()); }

  std::string Finish() &&;

 private:
  double width_, height_;
  std::string title_, defs_, body_;
};

}  // namespace moe::inspect
