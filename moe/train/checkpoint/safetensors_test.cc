#include "moe/train/checkpoint/safetensors.h"

#include <cstring>
#include <random>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/status_matchers.h"

namespace moe::train {
namespace {

using ::testing::ElementsAre;

std::string TestPath(absl::string_view name) { return JoinPath(::testing::TempDir(), name); }

SafetensorsWriter::Fill Bytes(std::string bytes) {
  return [bytes](absl::Span<char> out) -> absl::Status {
    if (out.size() != bytes.size()) return absl::InternalError("size");
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return absl::OkStatus();
  };
}

std::string LittleEndian(uint64_t n) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(n >> (8 * i));
  return bytes;
}

// Opens a file made of a header text and a buffer.
absl::Status OpenFile(absl::string_view header, absl::string_view buffer = "") {
  const std::string path = TestPath("raw.safetensors");
  EXPECT_OK(WriteFile(path, absl::StrCat(LittleEndian(header.size()), header, buffer)));
  return SafetensorsFile::Open(path).status();
}

TEST(SafetensorsTest, GoldenEmptyFile) {
  const std::string path = TestPath("empty.safetensors");
  ASSERT_OK(SafetensorsWriter().Write(path));
  ASSERT_OK_AND_ASSIGN(std::string bytes, ReadFile(path));
  EXPECT_EQ(absl::BytesToHexString(bytes), "08000000000000007b7d202020202020");
  ASSERT_OK_AND_ASSIGN(auto file, SafetensorsFile::Open(path));
  EXPECT_TRUE(file->entries().empty());
}

TEST(SafetensorsTest, GoldenFileInTheFormatsOwnOrder) {
  SafetensorsWriter writer;
  writer.Add({"b", "F32", {2}}, Bytes("01234567"));
  writer.Add({"a", "U8", {3}}, Bytes("xyz"));
  writer.Add({"a.w", "F32", {}}, Bytes("abcd"));
  writer.Add({"z", "I64", {1, 1}}, Bytes("ABCDEFGH"));
  const std::string path = TestPath("golden.safetensors");
  ASSERT_OK(writer.Write(path, {{"format", "pt"}}));
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"z":{"dtype":"I64","shape":[1,1],"data_offsets":[0,8]},)"
      R"("a.w":{"dtype":"F32","shape":[],"data_offsets":[8,12]},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},)"
      R"("a":{"dtype":"U8","shape":[3],"data_offsets":[20,23]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  ASSERT_OK_AND_ASSIGN(std::string bytes, ReadFile(path));
  EXPECT_EQ(bytes, LittleEndian(padded.size()) + padded + "ABCDEFGHabcd01234567xyz");

  ASSERT_OK_AND_ASSIGN(auto file, SafetensorsFile::Open(path));
  EXPECT_EQ(file->metadata().at("format"), "pt");
  ASSERT_NE(file->Find("b"), nullptr);
  EXPECT_EQ(file->Find("none"), nullptr);
  EXPECT_THAT(file->Find("z")->shape, ElementsAre(1, 1));
  std::string out(4, '?');
  ASSERT_OK(file->ReadSlice(*file->Find("a.w"), {}, {}, absl::MakeSpan(out.data(), 4)));
  EXPECT_EQ(out, "abcd");
}

TEST(SafetensorsTest, SlicesAgreeWithIndexArithmetic) {
  const unsigned seed = 20261;
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  const std::vector<int64_t> shape = {3, 4, 5, 2};
  std::string all(3 * 4 * 5 * 2 * 2, '\0');
  for (char& c : all) c = static_cast<char>(random());
  SafetensorsWriter writer;
  writer.Add({"before", "F32", {1}}, Bytes("...."));
  writer.Add({"t", "BF16", shape}, Bytes(all));
  const std::string path = TestPath("slices.safetensors");
  ASSERT_OK(writer.Write(path));
  ASSERT_OK_AND_ASSIGN(auto file, SafetensorsFile::Open(path));
  const SafetensorsEntry& entry = *file->Find("t");
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<int64_t> offsets, extents;
    for (int64_t n : shape) {
      offsets.push_back(random() % n);
      extents.push_back(random() % (n - offsets.back() + 1));
      if (random() % 3 == 0) offsets.back() = 0, extents.back() = n;
    }
    std::string want;
    for (int64_t a = 0; a < extents[0]; ++a)
      for (int64_t b = 0; b < extents[1]; ++b)
        for (int64_t c = 0; c < extents[2]; ++c)
          for (int64_t d = 0; d < extents[3]; ++d) {
            const int64_t at =
                (((offsets[0] + a) * 4 + offsets[1] + b) * 5 + offsets[2] + c) * 2 + offsets[3] + d;
            want += all.substr(at * 2, 2);
          }
    std::string out(want.size(), '?');
    ASSERT_OK(file->ReadSlice(entry, offsets, extents, absl::MakeSpan(out.data(), out.size())));
    ASSERT_EQ(out, want);
  }
  std::string out(4, '?');
  ExpectError(file->ReadSlice(entry, {0, 0, 0, 1}, {1, 1, 1, 2}, absl::MakeSpan(out.data(), 4)),
              absl::StatusCode::kInvalidArgument, "outside in dim 3");
  ExpectError(file->ReadSlice(entry, {0, 0, 0}, {1, 1, 2}, absl::MakeSpan(out.data(), 4)),
              absl::StatusCode::kInvalidArgument, "wrong number of dims");
  ExpectError(file->ReadSlice(entry, {0, 0, 0, 0}, {1, 1, 1, 1}, absl::MakeSpan(out.data(), 4)),
              absl::StatusCode::kInvalidArgument, "needs 2 bytes");
}

TEST(SafetensorsTest, AcceptsWhatIsLegal) {
  EXPECT_OK(OpenFile(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", "0123"));
  EXPECT_OK(OpenFile(R"({"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}}   )"));
  EXPECT_OK(OpenFile(R"({"a":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}})", "012"));
  // Two empty tensors share an offset; order of keys is free.
  EXPECT_OK(OpenFile(R"({"b":{"shape":[1],"data_offsets":[0,1],"dtype":"BOOL"},)"
                     R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                     "1"));
}

TEST(SafetensorsTest, RefusesMalformedFiles) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::string path = TestPath("bad.safetensors");
  ASSERT_OK(WriteFile(path, "1234567"));
  ExpectError(SafetensorsFile::Open(path), kInvalid, "too short");
  ASSERT_OK(WriteFile(path, LittleEndian(100'000'001) + "{}"));
  ExpectError(SafetensorsFile::Open(path), kInvalid, "100000001", "exceeds");
  ASSERT_OK(WriteFile(path, LittleEndian(~uint64_t{0}) + "{}"));
  ExpectError(SafetensorsFile::Open(path), kInvalid, "exceeds");
  ASSERT_OK(WriteFile(path, LittleEndian(50) + "{}"));
  ExpectError(SafetensorsFile::Open(path), kInvalid, "truncated");
  ExpectError(SafetensorsFile::Open(TestPath("none")), absl::StatusCode::kNotFound, "none");

  ExpectError(OpenFile(" {}"), kInvalid, "begin with '{'");
  ExpectError(OpenFile(""), kInvalid, "begin with '{'");
  ExpectError(OpenFile("{"), kInvalid, "byte 1: the text ends");
  ExpectError(OpenFile("{\"\xff\":1}"), kInvalid, "byte 2", "not UTF-8");
  ExpectError(
      OpenFile("{\"__metadata__\":{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}}"),
      kInvalid, "\"a\" is not a string");
  const std::string a = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  ExpectError(OpenFile("{" + a + "," + a + "}", "x"), kInvalid, "occurs twice");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"),
              kInvalid, "occurs twice");
  ExpectError(OpenFile(R"({"a":7})"), kInvalid, "not a JSON object");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", "x"), kInvalid,
              "unknown");
  ExpectError(OpenFile(R"({"a":{"dtype":"Q8","shape":[1],"data_offsets":[0,1]}})", "x"), kInvalid, "Q8");
  ExpectError(OpenFile(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", "x"), kInvalid, "dtype");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", "x"), kInvalid,
              "not an integer from 0");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", "x"), kInvalid,
              "not an integer from 0");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1]}})", "x"),
              kInvalid, "not an integer from 0");
  ExpectError(OpenFile(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"),
              kInvalid, "too large");
  ExpectError(OpenFile(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "xx"), kInvalid,
              "whole bytes");
  ExpectError(OpenFile(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "xxxx"), kInvalid,
              "\"a\"", "8 bytes", "F32[2]");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", "x"), kInvalid, "[1, 0]");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", "x"), kInvalid, "pair");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", "xx"), kInvalid,
              "begins at byte 1");
  ExpectError(OpenFile(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                       "xxx"),
              kInvalid, "\"b\"", "ends at 2");
  ExpectError(OpenFile("{" + a + "}", ""), kInvalid, "truncated");
  ExpectError(OpenFile("{" + a + "}", "xy"), kInvalid, "the file has 2");
  ExpectError(OpenFile(R"({"__metadata__":{"a":1}})"), kInvalid, "not a string");
}

TEST(SafetensorsTest, EveryTruncationIsAnError) {
  SafetensorsWriter writer;
  writer.Add({"a", "F32", {3}}, Bytes("0123456789ab"));
  const std::string path = TestPath("whole.safetensors");
  ASSERT_OK(writer.Write(path));
  ASSERT_OK_AND_ASSIGN(std::string bytes, ReadFile(path));
  for (size_t n = 0; n < bytes.size(); ++n) {
    ASSERT_OK(WriteFile(path, bytes.substr(0, n)));
    EXPECT_FALSE(SafetensorsFile::Open(path).ok()) << n;
  }
}

// Time and memory in proportion to the text, however many tensors it says there are.
TEST(SafetensorsTest, ManyEmptyTensors) {
  constexpr int kTensors = 50'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    absl::StrAppend(&header, i > 0 ? "," : "", "\"t", i,
                    "\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}");
  }
  header += "}";
  const std::string path = TestPath("many.safetensors");
  ASSERT_OK(WriteFile(path, absl::StrCat(LittleEndian(header.size()), header)));
  ASSERT_OK_AND_ASSIGN(auto file, SafetensorsFile::Open(path));
  EXPECT_EQ(file->entries().size(), kTensors);
  EXPECT_NE(file->Find("t49999"), nullptr);
}

TEST(SafetensorsTest, HeadersHaveLimits) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(OpenFile(absl::StrCat("{\"a\":", std::string(100'000, '['))), kInvalid, "tensor \"a\": byte 5");
  ExpectError(OpenFile(absl::StrCat("{\"a\":{\"dtype\":\"F32\",\"shape\":", std::string(100'000, '['), "}}")),
              kInvalid, "tensor \"a\": byte ", "in \"shape\"");
  std::string shape = "0";
  for (int i = 0; i < kMaxSafetensorsRank; ++i) shape += ",0";
  ExpectError(OpenFile(absl::StrCat("{\"a\":{\"dtype\":\"F32\",\"shape\":[", shape, "]}}")), kInvalid,
              "more than 64 elements");
  ExpectError(OpenFile(absl::StrCat("{\"a\":{\"dtype\":\"", std::string(100, 'F'), "\"}}")), kInvalid,
              "more than 16 bytes");
  ExpectError(OpenFile("{} x"), kInvalid, "byte 3", "follows the end");
}

TEST(SafetensorsTest, WriterErrors) {
  SafetensorsWriter twice;
  twice.Add({"a", "F32", {0}}, Bytes(""));
  twice.Add({"a", "F32", {0}}, Bytes(""));
  ExpectError(twice.Write(TestPath("x")), absl::StatusCode::kInvalidArgument, "\"a\"", "twice");
  SafetensorsWriter dtype;
  dtype.Add({"a", "f32", {0}}, Bytes(""));
  ExpectError(dtype.Write(TestPath("x")), absl::StatusCode::kInvalidArgument, "f32");
  SafetensorsWriter failing;
  failing.Add({"w", "F32", {1}}, [](absl::Span<char>) { return absl::DataLossError("device lost"); });
  ExpectError(failing.Write(TestPath("x")), absl::StatusCode::kDataLoss, "\"w\"", "device lost");
}

TEST(SafetensorsTest, ShardNames) {
  EXPECT_EQ(ShardFileName("model", 1, 3), "model-00001-of-00003.safetensors");
  EXPECT_OK(CheckPlainFileName("model-00001-of-00003.safetensors"));
  for (const char* bad : {"", "..", "a/b", "/etc/passwd", "a\\b"})
    EXPECT_FALSE(CheckPlainFileName(bad).ok()) << bad;
}

}  // namespace
}  // namespace moe::train
