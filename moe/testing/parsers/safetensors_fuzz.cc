// safetensors files: of what opens, every tensor can be read.
#include <glog/logging.h>
#include <sys/mman.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "moe/train/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int fd = ::memfd_create("safetensors", 0);
  CHECK_EQ(::ftruncate(fd, 0), 0);
  CHECK_EQ(::pwrite(fd, data, size, 0), static_cast<ssize_t>(size));
  const auto file = moe::train::SafetensorsFile::Open(absl::StrCat("/proc/self/fd/", fd));
  if (!file.ok()) return 0;
  for (const moe::train::SafetensorsEntry& entry : (*file)->entries()) {
    CHECK_LE(entry.bytes, static_cast<int64_t>(size));
    std::string bytes(entry.bytes, '\0');
    const auto status = (*file)->ReadBytes(entry, 0, absl::MakeSpan(bytes.data(), bytes.size()));
    CHECK(status.ok()) << status;
    const std::vector<int64_t> begin(entry.shape.size(), 0);
    (void)(*file)->ReadSlice(entry, begin, entry.shape, absl::MakeSpan(bytes.data(), bytes.size()));
  }
  return 0;
}
