#include "moe/base/json_reader.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"

namespace moe {
namespace {

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

std::string Repeat(absl::string_view text, int64_t times) {
  std::string out;
  for (int64_t i = 0; i < times; ++i) absl::StrAppend(&out, text);
  return out;
}

absl::Status Skip(const std::string& text, const JsonLimits& limits = {}) {
  JsonReader json(text, limits);
  RETURN_IF_ERROR(json.Skip());
  return json.End();
}

TEST(JsonReader, ReadsFieldsInAnyOrder) {
  const std::string text = R"( {"name": "a\u00e9\ud83d\ude00\n", "other": [1, {"x": null}], "step": -7,
                               "seed": 18446744073709551615, "rate": 2.5e-3, "on": true, "dims": [1, 2]} )";
  int64_t step = 0;
  uint64_t seed = 0;
  double rate = 0, absent = 3;
  bool on = false;
  std::string name;
  std::vector<int64_t> dims;
  JsonReader json(text, {});
  JsonFields fields(&json);
  fields.Int("step", -10, 10, &step);
  fields.Unsigned("seed", &seed);
  fields.Number("rate", 0, 1, &rate);
  fields.Optional().Number("absent", 0, 1, &absent);
  fields.Text("name", 100, &name);
  fields.Bool("on", &on);
  fields.Value("dims", [&] {
    return json.List(8, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const int64_t dim, json.Int(0, 9));
      dims.push_back(dim);
      return absl::OkStatus();
    });
  });
  ASSERT_OK(fields.Read());
  ASSERT_OK(json.End());
  EXPECT_EQ(step, -7);
  EXPECT_EQ(seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(rate, 2.5e-3);
  EXPECT_EQ(absent, 3);
  EXPECT_TRUE(on);
  EXPECT_EQ(name, "a\xc3\xa9\xf0\x9f\x98\x80\n");
  EXPECT_EQ(dims, (std::vector<int64_t>{1, 2}));
}

absl::Status ReadStep(const std::string& text, bool skip_others = true) {
  int64_t step = 0;
  std::string name;
  JsonReader json(text, {});
  JsonFields fields(&json);
  fields.Int("step", 0, 100, &step);
  fields.Optional().Text("name", 4, &name);
  RETURN_IF_ERROR(fields.Read(skip_others));
  return json.End();
}

TEST(JsonReader, SaysWhatIsWrongAndAtWhichByte) {
  EXPECT_OK(ReadStep(R"({"step": 100, "name": "four"})"));
  ExpectError(ReadStep(R"({"step": 101})"), kInvalid, "byte 9: not an integer from 0 to 100, in \"step\"");
  for (const char* step :
       {"-1", "9223372036854775808", "7.0", "7e0", "\"7\"", "[7]", "null", "07", "1.", "-", "+7"}) {
    ExpectError(ReadStep(absl::StrCat("{\"step\": ", step, "}")), kInvalid, "byte 9");
  }
  ExpectError(ReadStep(R"({"step": 1, "name": "five5"})"), kInvalid, "byte 20", "more than 4 bytes",
              "\"name\"");
  ExpectError(ReadStep(R"({"step": 1, "step": 2})"), kInvalid, "byte 12", "\"step\" occurs twice");
  ExpectError(ReadStep(R"({"step": 1, "x": 1, "x": 2})"), kInvalid, "byte 20", "\"x\" occurs twice");
  ExpectError(ReadStep(R"({"step": 1, "x": 2})", false), kInvalid, "byte 12: unknown key \"x\"");
  ExpectError(ReadStep(R"({"name": "a"})"), kInvalid, "byte 0: \"step\" is missing");
  ExpectError(ReadStep("[1]"), kInvalid, "byte 0: not a JSON object");
  ExpectError(ReadStep(R"({"step": 1} x)"), kInvalid, "byte 12", "follows the end");
  ExpectError(ReadStep(""), kInvalid, "byte 0: the text ends");
}

TEST(JsonReader, RefusesWhatIsNotJson) {
  for (const std::string& good :
       {std::string("0"), std::string("-0.5E+3"), std::string("[]"), std::string("{}"),
        std::string("[[], {\"\": []}]"), std::string("\"\\u0000\\\"\\/\""), std::string("\"\xc3\xa9\""),
        std::string("\t\r\n null ")}) {
    SCOPED_TRACE(good);
    EXPECT_OK(Skip(good));
  }
  for (const std::string& bad :
       {std::string("nul"),       std::string("[1,]"),         std::string("[,1]"),
        std::string("[1 2]"),     std::string("{\"a\"}"),      std::string("{\"a\":}"),
        std::string("{a:1}"),     std::string("{\"a\":1,}"),   std::string("[1}"),
        std::string("01"),        std::string(".5"),           std::string("1e"),
        std::string("NaN"),       std::string("\"\n\""),       std::string("\"\\x\""),
        std::string("\"\\u12\""), std::string("\"\\ud800\""),  std::string("\"\\ud800\\u0041\""),
        std::string("\"\xff\""),  std::string("\"\xc0\x80\""), std::string("\"\\"),
        std::string("\""),        std::string("[\0]", 3)}) {
    ExpectError(Skip(bad), kInvalid, "byte ");
  }
}

// A reader that believed the text would need more stack, or more memory, than a machine has.
TEST(JsonReader, LimitsHoldBeforeAnythingIsBuilt) {
  for (const absl::string_view open : {"[", "{\"a\":", "[{\"a\":"}) {
    ExpectError(Skip(Repeat(open, 60'000)), kInvalid, "nested more than 16 deep");
  }
  EXPECT_OK(Skip(Repeat("[", 16) + Repeat("]", 16)));
  ExpectError(Skip(Repeat("[", 17) + Repeat("]", 17)), kInvalid, "byte 16: nested more than 16 deep");
  ExpectError(Skip(absl::StrCat("[0", Repeat(",0", 99), "]"), {.values = 100}), kInvalid,
              "more than 100 values");
  EXPECT_OK(Skip(absl::StrCat("[0", Repeat(",0", 98), "]"), {.values = 100}));
  ExpectError(Skip(absl::StrCat("\"", Repeat("x", 101), "\""), {.string_bytes = 100}), kInvalid,
              "a string of more than 100 bytes");
  ExpectError(Skip(absl::StrCat("{\"", Repeat("x", 101), "\":1}"), {.string_bytes = 100}), kInvalid,
              "100 bytes");
  ExpectError(Skip(absl::StrCat("[", Repeat(" ", 100), "]"), {.bytes = 100}), kInvalid,
              "a text of 102 bytes");
  JsonReader json("[1, 2, 3]", {});
  ExpectError(json.List(2, [&] { return json.Int(0, 9).status(); }), kInvalid, "byte 0",
              "more than 2 elements");
}

TEST(JsonReader, NumbersAtTheirBounds) {
  JsonReader json("[9223372036854775807, -9223372036854775808, 1e308, 1e309]", {});
  int at = 0;
  const absl::Status status = json.List(4, [&]() -> absl::Status {
    if (at++ < 2) return json.Int(std::numeric_limits<int64_t>::min(), kMost).status();
    return json.Number(0, std::numeric_limits<double>::max()).status();
  });
  ExpectError(status, kInvalid, "byte 51: not a number from 0 to");
}

}  // namespace
}  // namespace moe
