// Frames of the rendezvous: the body of one that parses is written as it was.
#include <glog/logging.h>

#include "moe/comm/store/frames.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (size >= moe::comm::kFrameHead) (void)moe::comm::FrameSize(bytes.substr(0, moe::comm::kFrameHead));
  const auto frame = moe::comm::ParseFrame(bytes);
  if (frame.ok()) CHECK_EQ(moe::comm::FrameBytes(*frame).substr(moe::comm::kFrameHead), bytes);
  return 0;
}
