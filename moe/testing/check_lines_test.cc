#include "moe/testing/check_lines.h"

#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"

namespace moe::testing {
namespace {

constexpr char kOutput[] = R"(func @f(%x: f32[8]) {
  %a_1 = math.add(%x, %x) : f32[8]
  %b = math.scale(%a_1) {by = 2.0} : f32[8]
  %c = math.scale(%b) {by = 2.0} : f32[8]
  return %c
}
)";

constexpr absl::StatusCode kFailed = absl::StatusCode::kFailedPrecondition;
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST(CheckLines, FindsInOrder) {
  EXPECT_OK(
      CheckLines("// CHECK: math.add(%x, %x)\n// CHECK: math.scale\n// CHECK-NEXT: math.scale", kOutput));
  ExpectError(CheckLines("// CHECK: math.scale\n// CHECK: math.add", kOutput), kFailed,
              "line 2: CHECK: math.add", "was not found from line 4");
  ExpectError(CheckLines("// CHECK: math.add\n// CHECK-NEXT: return", kOutput), kFailed, "CHECK-NEXT: return",
              "is not in line 3");
}

TEST(CheckLines, CapturesAndUsesNames) {
  EXPECT_OK(CheckLines(R"(
    // CHECK: %[[A:.*]] = math.add(%[[X:[a-z]+]], %[[X]])
    // CHECK-NEXT: %[[B:.*]] =   math.scale(%[[A]]) {by = {{[0-9.]+}}}
    // CHECK-NOT: %[[B]] = math
    // CHECK: return {{%[abc]}})",
                       kOutput));
  ExpectError(CheckLines("// CHECK: %[[B:.*]] = math.scale\n// CHECK: return %[[B]]", kOutput), kFailed,
              "return");
  // A name that another one begins with is not that name.
  ExpectError(CheckLines("// CHECK: %[[A:[a-z]]]_1 = math.add\n// CHECK: math.scale(%[[A]]", kOutput),
              kFailed, "scale");
}

TEST(CheckLines, NotIsBetweenMatches) {
  EXPECT_OK(CheckLines("// CHECK: %b\n// CHECK-NOT: math.add", kOutput));
  ExpectError(CheckLines("// CHECK-NOT: math.add\n// CHECK: %b", kOutput), kFailed, "CHECK-NOT: math.add",
              "was found in line 2");
  ExpectError(CheckLines("// CHECK: %b\n// CHECK-NOT: return", kOutput), kFailed, "was found in line 5");
}

TEST(CheckLines, RefusesMalformedExpectations) {
  ExpectError(CheckLines("// nothing", kOutput), kInvalid, "no CHECK line");
  ExpectError(CheckLines("// CHECK-NEXT: x", kOutput), kInvalid, "before any CHECK");
  ExpectError(CheckLines("// CHECK-MAYBE: x", kOutput), kInvalid, "CHECK-NOT: text");
  ExpectError(CheckLines("// CHECK: [[X", kOutput), kInvalid, "[[ without ]]");
  ExpectError(CheckLines("// CHECK: [[X]]", kOutput), kInvalid, "has not been matched");
  ExpectError(CheckLines("// CHECK: {{(}}", kOutput), kInvalid, "malformed regular expression");
}

}  // namespace
}  // namespace moe::testing
