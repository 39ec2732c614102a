#include "moe/base/proto.h"

#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/struct.pb.h>
#include <gtest/gtest.h>

#include <string>

#include "moe/base/status_matchers.h"

namespace moe {
namespace {

using ::google::protobuf::FileDescriptorProto;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST(ParseProto, ReadsWhatFits) {
  FileDescriptorProto file, same;
  file.set_name("a.proto");
  for (int i = 0; i < 10; ++i) file.add_message_type()->set_name("M");
  const std::string bytes = file.SerializeAsString();
  ASSERT_OK(ParseProto(bytes, {.fields = 21}, same));  // the name, ten messages, their names
  EXPECT_EQ(same.SerializeAsString(), bytes);
  ExpectError(ParseProto(bytes, {.fields = 20}, same), kInvalid, "byte ", "more than 20 fields");
  ExpectError(ParseProto(bytes, {.bytes = 10}, same), kInvalid, "at most 10 are allowed");
  for (size_t n = 1; n < bytes.size(); ++n) {
    const absl::Status status =
        ParseProto(bytes.substr(0, n), {}, same);  // some cuts fall between two fields
    if (!status.ok()) ExpectError(status, kInvalid, "byte ");
  }
}

TEST(ParseProto, ManySmallMessagesCostNothing) {
  FileDescriptorProto file;
  std::string bytes;
  for (int i = 0; i < 100'000; ++i)
    bytes += std::string("\x22\x00", 2);  // message_type, empty: 200 bytes in memory
  ExpectError(ParseProto(bytes, {.fields = 1000}, file), kInvalid, "byte 2000: more than 1000 fields");
  EXPECT_EQ(file.message_type_size(), 0);
}

TEST(ParseProto, DepthHasALimit) {
  google::protobuf::Value deep, out;
  google::protobuf::Value* at = &deep;
  for (int i = 0; i < 20; ++i) at = at->mutable_list_value()->add_values();
  at->set_bool_value(true);
  EXPECT_OK(ParseProto(deep.SerializeAsString(), {.depth = 41}, out));
  ExpectError(ParseProto(deep.SerializeAsString(), {.depth = 40}, out), kInvalid, "nest more than 40 deep");
}

TEST(ParseProto, RefusesWhatIsNoMessage) {
  FileDescriptorProto file;
  for (const std::string& bad :
       {std::string("\xff"), std::string("\x0a\x05"), std::string("\x0b"), std::string("\x0f"),
        std::string("\x0d\x01"), std::string(11, '\xff'), std::string("\x08")}) {
    ExpectError(ParseProto(bad, {}, file), kInvalid, "byte 0");
  }
  ExpectError(ParseProto("\x0a\x01\xff\x22\x02\x0a", {}, file), kInvalid, "byte 3");
}

TEST(CheckNumbers, NamesTheField) {
  google::protobuf::FileDescriptorSet set;
  FileDescriptorProto* file = set.add_file();
  file->add_public_dependency(7);
  file->add_public_dependency(-2);
  ExpectError(CheckNumbers(set, {}), kInvalid, "file[0].public_dependency[1] = -2 is not from -1 to");
  EXPECT_OK(CheckNumbers(set, {}, {"file"}));
  file->set_public_dependency(1, 1000);
  EXPECT_OK(CheckNumbers(set, {.most_int32 = 1000}));
  ExpectError(CheckNumbers(set, {.most_int32 = 999}), kInvalid, "= 1000 is not from -1 to 999");
  google::protobuf::Value value;
  value.set_number_value(-0.5);
  ExpectError(CheckNumbers(value, {}), kInvalid, "number_value = -0.5 is not from 0 to 1e+30");
}

}  // namespace
}  // namespace moe
