// A CUDA device as the runtime sees it, held against the host's: the same work, the same bits.
#include "moe/device/cuda/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "moe/base/status_matchers.h"
#include "moe/device/cuda/cuda.h"
#include "moe/device/device.h"
#include "moe/device/reduce.h"

namespace moe::device {
namespace {

using Bytes = std::vector<char>;

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (CountDevices(DeviceKind::kCuda) == 0) GTEST_SKIP() << OpenDevice(DeviceKind::kCuda, 0).status();
    ASSERT_OK_AND_ASSIGN(device_, OpenDevice(DeviceKind::kCuda, 0));
    ASSERT_OK_AND_ASSIGN(stream_, device_->NewStream("compute"));
    ASSERT_OK_AND_ASSIGN(host_, OpenDevice(DeviceKind::kHost, 0));
    ASSERT_OK_AND_ASSIGN(host_stream_, host_->NewStream("compute"));
    RecordProperty("seed", static_cast<int>(seed_));
  }

  // Device memory of these bytes.
  std::unique_ptr<DeviceMemory> Up(const Bytes& bytes) {
    auto memory = device_->Allocate(static_cast<int64_t>(bytes.size()));
    EXPECT_OK(memory.status());
    EXPECT_OK(stream_->Copy((*memory)->data(), bytes.data(), (*memory)->bytes()));
    EXPECT_OK(stream_->Synchronize());
    return *std::move(memory);
  }
  Bytes Down(const DeviceMemory& memory) {
    Bytes bytes(memory.bytes());
    EXPECT_OK(stream_->Copy(bytes.data(), memory.data(), memory.bytes()));
    EXPECT_OK(stream_->Synchronize());
    return bytes;
  }
  // Numbers of a dtype whose sums lose bits, now and then large, small or infinite.
  Bytes Random(DType dtype, int64_t n) {
    Bytes bytes(n * ByteSize(dtype));
    if (dtype == DType::kS32 || dtype == DType::kS64 || dtype == DType::kPred) {
      for (char& b : bytes) b = static_cast<char>(random_());
      if (dtype == DType::kPred) {
        for (char& b : bytes) b &= 1;
      }
      return bytes;
    }
    std::vector<float> x(n);
    for (float& v : x) {
      v = std::normal_distribution<float>()(random_);
      if (random_() % 50 == 0) v *= 1e5f;
      if (random_() % 50 == 0) v *= 1e-7f;
      if (random_() % 500 == 0) v = INFINITY;
    }
    for (int64_t i = 0; i < n; ++i) {
      char* const at = bytes.data() + i * ByteSize(dtype);
      const double wide = x[i];
      const __nv_bfloat16 bf16(x[i]);
      const __half f16(x[i]);
      std::memcpy(at,
                  dtype == DType::kF64    ? static_cast<const void*>(&wide)
                  : dtype == DType::kBF16 ? static_cast<const void*>(&bf16)
                  : dtype == DType::kF16  ? static_cast<const void*>(&f16)
                                          : static_cast<const void*>(&x[i]),
                  ByteSize(dtype));
    }
    return bytes;
  }

  const uint32_t seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  std::unique_ptr<Device> device_, host_;
  std::unique_ptr<Stream> stream_, host_stream_;
};

// Bytes equal, where NaNs of the dtype may differ.
void ExpectSame(DType dtype, const Bytes& got, const Bytes& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  const auto is_nan = [&](const char* at) {
    if (dtype == DType::kF32) {
      float x;
      std::memcpy(&x, at, 4);
      return x != x;
    }
    if (dtype == DType::kF64) {
      double x;
      std::memcpy(&x, at, 8);
      return x != x;
    }
    uint16_t x;
    if (dtype != DType::kBF16 && dtype != DType::kF16) return false;
    std::memcpy(&x, at, 2);
    return (x & 0x7fff) > (dtype == DType::kBF16 ? 0x7f80 : 0x7c00);
  };
  const int64_t size = ByteSize(dtype);
  for (size_t i = 0; i < got.size(); i += size) {
    if (std::memcmp(&got[i], &want[i], size) == 0 || (is_nan(&got[i]) && is_nan(&want[i]))) continue;
    FAIL() << what << ": element " << i / size << " of " << got.size() / size << " differs";
  }
}

TEST_F(CudaDeviceTest, SaysWhatItIs) {
  EXPECT_EQ(device_->kind(), DeviceKind::kCuda);
  EXPECT_FALSE(device_->host_accessible());
  EXPECT_THAT(device_->description(), ::testing::ContainsRegex("GiB, driver for CUDA [0-9]+\\.[0-9]"));
  ExpectError(OpenDevice(DeviceKind::kCuda, 1000), absl::StatusCode::kInvalidArgument, "no cuda device 1000");
}

TEST_F(CudaDeviceTest, ReducesLikeTheHost) {
  for (const DType dtype :
       {DType::kF64, DType::kF32, DType::kBF16, DType::kF16, DType::kS32, DType::kS64, DType::kPred}) {
    for (const Reduction kind : {Reduction::kSum, Reduction::kMax}) {
      if (!CheckReducible(dtype, kind).ok()) continue;
      for (const int64_t n : {0, 1, 7, 1000}) {
        const int sources = 1 + static_cast<int>(random_() % 5);
        const int64_t skew = random_() % 2 * ByteSize(dtype);  // not always aligned
        std::vector<Bytes> x;
        std::vector<std::unique_ptr<DeviceMemory>> memory;
        std::vector<const void*> on_host, on_device;
        for (int k = 0; k < sources; ++k) {
          x.push_back(Random(dtype, n + 1));
          memory.push_back(Up(x.back()));
          on_device.push_back(memory.back()->data() + skew);
        }
        for (const Bytes& b : x) on_host.push_back(b.data() + skew);
        Bytes want(n * ByteSize(dtype));
        ASSERT_OK(host_stream_->Reduce(on_host, want.data(), n, dtype, kind));
        const auto out = Up(Bytes(want.size(), '\xff'));
        ASSERT_OK(stream_->Reduce(on_device, out->data(), n, dtype, kind));
        ExpectSame(dtype, Down(*out), want, std::string(DTypeName(dtype)));
        // In place, into the first.
        ASSERT_OK(stream_->Reduce(on_device, memory[0]->data() + skew, n, dtype, kind));
        const Bytes first = Down(*memory[0]);
        ExpectSame(dtype, Bytes(first.begin() + skew, first.begin() + skew + want.size()), want, "in place");
      }
    }
  }
}

TEST_F(CudaDeviceTest, CopiesBoxesLikeTheHost) {
  for (int round = 0; round < 60; ++round) {
    const int64_t element = int64_t{1} << random_() % 4;
    StridedCopy copy;
    copy.run = 1 + random_() % 9;
    if (round % 3 == 0) copy.run *= 16;
    // Strides that do not overlap, with room between the runs.
    int64_t from = copy.run + random_() % 3, to = copy.run + random_() % 3;
    const int loops = static_cast<int>(random_() % 4);
    for (int l = 0; l < loops; ++l) {
      const int64_t count = random_() % 8 == 0 ? 0 : 1 + random_() % 5;
      copy.loops.insert(copy.loops.begin(), {count, from, to});
      from = from * std::max<int64_t>(count, 1) + random_() % 4;
      to = to * std::max<int64_t>(count, 1) + random_() % 4;
    }
    const int64_t rows = random_() % 4;
    Bytes x((rows + 1) * from * element), y((rows + 1) * to * element, '\x55');
    for (char& b : x) b = static_cast<char>(random_());
    const auto in = Up(x), out = Up(y);
    ASSERT_OK(host_stream_->CopyRows(copy, rows, x.data(), from, y.data(), to, element));
    ASSERT_OK(stream_->CopyRows(copy, rows, in->data(), from, out->data(), to, element));
    ASSERT_EQ(Down(*out), y) << "round " << round;
  }
}

TEST_F(CudaDeviceTest, EncodesLikeTheHost) {
  for (const WireFormat wire : {WireFormat::kBF16, WireFormat::kF8}) {
    for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
      for (const int64_t n : {0, 1, 127, 128, 1001}) {
        const int sources = 3;
        std::vector<std::unique_ptr<DeviceMemory>> memory;
        std::vector<Bytes> encoded;
        std::vector<const char*> on_host, on_device;
        for (int k = 0; k < sources; ++k) {
          const Bytes x = Random(dtype, n);
          const auto in = Up(x);
          // An odd address, as blocks of peers may have.
          Bytes want(WireBytes(wire, dtype, n) + 1);
          ASSERT_OK(host_stream_->Encode(wire, dtype, x.data(), n, want.data() + 1));
          memory.push_back(Up(Bytes(want.size(), 0)));
          ASSERT_OK(stream_->Encode(wire, dtype, in->data(), n, memory.back()->data() + 1));
          const Bytes got = Down(*memory.back());
          if (wire == WireFormat::kBF16) {
            ExpectSame(DType::kBF16, Bytes(got.begin() + 1, got.end()), Bytes(want.begin() + 1, want.end()),
                       "bf16");
          } else {
            const int64_t scales = (n + kWireBlock - 1) / kWireBlock * 4;
            ExpectSame(DType::kF32, Bytes(got.begin() + 1, got.begin() + 1 + scales),
                       Bytes(want.begin() + 1, want.begin() + 1 + scales), "scales");
            EXPECT_TRUE(std::equal(got.begin() + 1 + scales, got.end(), want.begin() + 1 + scales));
          }
          encoded.push_back(std::move(want));
        }
        for (int k = 0; k < sources; ++k) {
          on_host.push_back(encoded[k].data() + 1);
          on_device.push_back(memory[k]->data() + 1);
        }
        for (const Reduction kind : {Reduction::kSum, Reduction::kMax}) {
          for (const size_t count : {1, sources}) {
            Bytes want(n * ByteSize(dtype));
            ASSERT_OK(host_stream_->Decode(wire, absl::MakeSpan(on_host).subspan(0, count), n, kind, dtype,
                                           want.data()));
            const auto out = Up(Bytes(want.size(), '\xff'));
            ASSERT_OK(stream_->Decode(wire, absl::MakeSpan(on_device).subspan(0, count), n, kind, dtype,
                                      out->data()));
            ExpectSame(dtype, Down(*out), want, std::string(DTypeName(dtype)));
          }
        }
      }
    }
  }
}

TEST_F(CudaDeviceTest, StreamsWaitForEvents) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Stream> other, device_->NewStream("comm"));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Event> event, device_->NewEvent());
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<DeviceMemory> staging, device_->AllocateStaging(1 << 20));
  std::memset(staging->data(), 7, 1 << 20);
  const auto a = Up(Bytes(1 << 20)), b = Up(Bytes(1 << 20));
  ASSERT_OK(stream_->Copy(a->data(), staging->data(), 1 << 20));
  ASSERT_OK(stream_->Record(event.get()));
  ASSERT_OK(other->Wait(event.get()));
  ASSERT_OK(other->Copy(b->data(), a->data(), 1 << 20));
  ASSERT_OK(other->Synchronize());
  EXPECT_EQ(Down(*b), Bytes(1 << 20, 7));
}

TEST_F(CudaDeviceTest, TimedEventsKnowTheTime) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Event> begin, device_->NewTimedEvent());
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Event> end, device_->NewTimedEvent());
  ExpectError(device_->SecondsBetween(*begin, *end), absl::StatusCode::kFailedPrecondition);
  ASSERT_OK(stream_->Record(begin.get()));
  ASSERT_OK(stream_->Record(end.get()));
  ASSERT_OK_AND_ASSIGN(const double seconds, device_->SecondsBetween(*begin, *end));
  EXPECT_GE(seconds, 0);
}

TEST_F(CudaDeviceTest, GraphsRepeatWork) {
  ASSERT_TRUE(device_->has_graphs());
  const Bytes ones = {1, 0, 0, 0}, zeros(4);
  const auto one = Up(ones), sum = Up(zeros);
  const std::vector<const void*> sources = {sum->data(), one->data()};
  ASSERT_OK(stream_->BeginGraph());
  ASSERT_OK(stream_->Reduce(sources, sum->data(), 1, DType::kS32, Reduction::kSum));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<WorkGraph> graph, stream_->EndGraph());
  EXPECT_EQ(graph->nodes(), 1);
  for (int i = 0; i < 5; ++i) ASSERT_OK(stream_->Launch(graph.get()));
  EXPECT_EQ(Down(*sum), (Bytes{5, 0, 0, 0}));

  ASSERT_OK(stream_->BeginGraph());
  ExpectError(stream_->Synchronize(), absl::StatusCode::kFailedPrecondition);
  ExpectError(stream_->EndGraph(), absl::StatusCode::kFailedPrecondition);
  EXPECT_OK(stream_->Synchronize());
}

TEST_F(CudaDeviceTest, TooMuchMemoryIsRefusedWithNumbers) {
  ExpectError(device_->Allocate(int64_t{1} << 50), absl::StatusCode::kResourceExhausted,
              "1125899906842624 bytes", "are free");
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<DeviceMemory> none, device_->Allocate(0));
  EXPECT_EQ(none->data(), nullptr);
}

#ifdef MOE_EMULATED

TEST(MissingDevices, AreClearErrors) {
  emulated::SetDevices(0, 0);
  EXPECT_EQ(CountDevices(DeviceKind::kCuda), 0);
  ExpectError(OpenDevice(DeviceKind::kCuda, 0), absl::StatusCode::kUnavailable, "no CUDA device is visible");
  emulated::SetDevices(2, 1 << 20);
  emulated::SetDriverVersion(12080);
  ExpectError(OpenDevice(DeviceKind::kCuda, 0), absl::StatusCode::kUnavailable, "is for CUDA 12.8",
              "built for CUDA 13.0");
  emulated::SetDriverVersion(0);
  ExpectError(OpenDevice(DeviceKind::kCuda, 0), absl::StatusCode::kUnavailable, "no driver");
  emulated::SetDriverVersion(13000);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Device> second, OpenDevice(DeviceKind::kCuda, 1));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<DeviceMemory> most, second->Allocate(900000));
  ExpectError(second->Allocate(200000), absl::StatusCode::kResourceExhausted, "200000 bytes were asked for",
              "CUDA device 1", "1048576 bytes 148576 are free");
  emulated::SetDevices(2, size_t{4} << 30);
}

#endif

}  // namespace
}  // namespace moe::device
