#include "moe/base/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/status_matchers.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "file_test.XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_OK(RemoveTree(dir_)); }
  std::string Path(absl::string_view name) const { return JoinPath(dir_, name); }
  std::string dir_;
};

TEST(JoinPathTest, HandlesSlashes) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  EXPECT_EQ(JoinPath("a", ""), "a");
  EXPECT_EQ(JoinPath("a", "/b"), "/b");
}

TEST_F(FileTest, WritesAndReadsBack) {
  const std::string bytes("x\0y\n\xff", 5);
  ASSERT_OK(WriteFile(Path("f"), bytes));
  ASSERT_OK(WriteFile(Path("f"), bytes + bytes));  // replaces
  ASSERT_OK_AND_ASSIGN(std::string read, ReadFile(Path("f")));
  EXPECT_EQ(read, bytes + bytes);
  ASSERT_OK_AND_ASSIGN(std::vector<std::string> names, ListFolder(dir_));
  EXPECT_THAT(names, ElementsAre("f"));  // no temporary file is left
}

TEST_F(FileTest, ErrorsNameThePath) {
  ExpectError(ReadFile(Path("none")), absl::StatusCode::kNotFound, Path("none"), "No such file");
  ExpectError(WriteFile(Path("no/such/f"), "x"), absl::StatusCode::kNotFound, Path("no/such/f"));
  ExpectError(ReadFile(dir_), absl::StatusCode::kInvalidArgument, dir_);
  ASSERT_OK(WriteFile(Path("f"), "12345"));
  ExpectError(ReadFile(Path("f"), 4), absl::StatusCode::kInvalidArgument, "4 bytes");
  ExpectError(MakeFolders(Path("f/g")), absl::StatusCode::kFailedPrecondition, Path("f"), "exists");
  ExpectError(MakeFolders(Path("f")), absl::StatusCode::kFailedPrecondition, Path("f"), "exists");
}

TEST_F(FileTest, RandomAccessSeesTheEnd) {
  ASSERT_OK(WriteFile(Path("f"), "0123456789"));
  ASSERT_OK_AND_ASSIGN(auto file, RandomAccessFile::Open(Path("f")));
  EXPECT_EQ(file->size(), 10);
  std::string out(4, '?');
  ASSERT_OK(file->ReadAt(3, absl::MakeSpan(out.data(), out.size())));
  EXPECT_EQ(out, "3456");
  ExpectError(file->ReadAt(8, absl::MakeSpan(out.data(), out.size())), absl::StatusCode::kOutOfRange,
              "byte 10");
  ExpectError(RandomAccessFile::Open(dir_), absl::StatusCode::kInvalidArgument, "not a regular file");
}

TEST_F(FileTest, WriterAppends) {
  for (bool append : {false, true}) {
    ASSERT_OK_AND_ASSIGN(FileWriter writer, FileWriter::Create(Path("log"), append));
    ASSERT_OK(writer.Append(absl::string_view("line\n")));
    EXPECT_EQ(writer.bytes_written(), 5);
    ASSERT_OK(writer.Close());
  }
  ASSERT_OK_AND_ASSIGN(std::string read, ReadFile(Path("log")));
  EXPECT_EQ(read, "line\nline\n");
}

TEST_F(FileTest, AtomicFolderAppearsOnlyOnCommit) {
  const std::string target = Path("deep/er/ckpt");
  {
    ASSERT_OK_AND_ASSIGN(AtomicFolder folder, AtomicFolder::Create(target));
    ASSERT_OK(MakeFolders(JoinPath(folder.path(), "sub")));
    ASSERT_OK(WriteFile(JoinPath(folder.path(), "sub/f"), "one"));
    EXPECT_FALSE(IsFolder(target));
    ASSERT_OK(folder.Commit());
  }
  ASSERT_OK_AND_ASSIGN(std::string read, ReadFile(JoinPath(target, "sub/f")));
  EXPECT_EQ(read, "one");

  {  // abandoned: the old one stays, and nothing else
    ASSERT_OK_AND_ASSIGN(AtomicFolder folder, AtomicFolder::Create(target));
    ASSERT_OK(WriteFile(JoinPath(folder.path(), "f"), "half"));
  }
  ASSERT_OK_AND_ASSIGN(std::vector<std::string> names, ListFolder(Path("deep/er")));
  EXPECT_THAT(names, ElementsAre("ckpt"));
  EXPECT_TRUE(FileExists(JoinPath(target, "sub/f")));

  {  // replaced
    ASSERT_OK_AND_ASSIGN(AtomicFolder folder, AtomicFolder::Create(target + "/"));
    ASSERT_OK(WriteFile(JoinPath(folder.path(), "g"), "two"));
    ASSERT_OK(folder.Commit());
  }
  ASSERT_OK_AND_ASSIGN(names, ListFolder(target));
  EXPECT_THAT(names, ElementsAre("g"));
  ASSERT_OK_AND_ASSIGN(names, ListFolder(Path("deep/er")));
  EXPECT_THAT(names, ElementsAre("ckpt"));
}

TEST_F(FileTest, ModesFollowTheUmask) {
  const auto mode = [&](absl::string_view name) {
    struct stat info = {};
    EXPECT_EQ(::stat(Path(name).c_str(), &info), 0) << name;
    return info.st_mode & 0777;
  };
  const mode_t before = ::umask(0);
  for (const mode_t mask : {0002, 0022, 0077}) {
    ::umask(mask);
    ASSERT_OK(RemoveTree(Path("a")));
    ASSERT_OK(MakeFolders(Path("a/b")));
    ASSERT_OK(WriteFile(Path("a/whole"), "x"));
    ASSERT_OK_AND_ASSIGN(FileWriter writer, FileWriter::Create(Path("a/appended")));
    ASSERT_OK(writer.Close());
    ASSERT_OK_AND_ASSIGN(AtomicFolder folder, AtomicFolder::Create(Path("a/folder")));
    ASSERT_OK(folder.Commit());
    for (const char* name : {"a", "a/b", "a/folder"}) EXPECT_EQ(mode(name), 0777 & ~mask) << name;
    for (const char* name : {"a/whole", "a/appended"}) EXPECT_EQ(mode(name), 0666 & ~mask) << name;
  }
  ::umask(before);
}

TEST_F(FileTest, AtomicFolderNeedsAWritablePlace) {
  ASSERT_OK(WriteFile(Path("file"), ""));
  ExpectError(AtomicFolder::Create(Path("file/ckpt")), absl::StatusCode::kFailedPrecondition, Path("file"));
  if (::geteuid() == 0) return;  // root may write anywhere
  ASSERT_OK(MakeFolders(Path("locked")));
  ::chmod(Path("locked").c_str(), 0555);
  ExpectError(AtomicFolder::Create(Path("locked/ckpt")), absl::StatusCode::kPermissionDenied,
              Path("locked/ckpt"));
}

TEST_F(FileTest, RemoveTreeDoesNotFollowLinks) {
  ASSERT_OK(MakeFolders(Path("a")));
  ASSERT_OK(WriteFile(Path("keep"), "x"));
  ASSERT_EQ(::symlink(Path("keep").c_str(), Path("a/link").c_str()), 0);
  ASSERT_OK(RemoveTree(Path("a")));
  EXPECT_FALSE(IsFolder(Path("a")));
  EXPECT_TRUE(FileExists(Path("keep")));
  EXPECT_OK(RemoveTree(Path("a")));
}

}  // namespace
}  // namespace moe
