#include "moe/device/host_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "moe/base/integers.h"
#include "moe/device/convert.h"
#include "moe/device/copy_rows.h"
#include "moe/device/reduce.h"
#include "moe/device/wire_codec.h"

namespace moe::device {
namespace {

constexpr int64_t kPage = 4096, kHugePage = 2 << 20;

// Pages come when they are touched.
class HostMemory : public DeviceMemory {
 public:
  HostMemory(char* data, int64_t bytes, char* mapped, int64_t mapped_bytes)
      : data_(data), bytes_(bytes), mapped_(mapped), mapped_bytes_(mapped_bytes) {}
  ~HostMemory() override {
    if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
  }
  char* data() const override { return data_; }
  int64_t bytes() const override { return bytes_; }
  void Forget(int64_t begin, int64_t bytes) override {
    const int64_t first = RoundUp(begin, kPage), end = (begin + bytes) / kPage * kPage;
    if (first < end) madvise(data_ + first, end - first, MADV_DONTNEED);
  }

 private:
  char* const data_;
  const int64_t bytes_;
  char* const mapped_;
  const int64_t mapped_bytes_;
};

constexpr int64_t kPart = 8 * kWireBlock;  // elements decoded at a time

void StoreFloats(DType dtype, const float* x, int64_t count, char* to) {
  if (dtype == DType::kF64) {
    for (int64_t i = 0; i < count; ++i) reinterpret_cast<double*>(to)[i] = x[i];
  } else {
    FromF32(dtype, x, to, count);
  }
}

using Clock = std::chrono::steady_clock;  // that of NowNanos()

struct HostEvent : Event {
  Clock::time_point reached;  // by its last Record; of timed events alone
  bool timed = false;
};

absl::Status NoGraphs() {
  return absl::FailedPreconditionError("the host has no graphs: its streams do their work at once");
}

class ImmediateStream : public Stream {
 public:
  explicit ImmediateStream(Device* device) : device_(device) {}
  DeviceKind kind() const override { return DeviceKind::kHost; }
  Device* device() const override { return device_; }
  void* native() const override { return nullptr; }
  absl::Status Copy(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status Fill(void* to, unsigned char byte, int64_t bytes) override {
    if (bytes > 0) std::memset(to, byte, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyRows(const StridedCopy& copy, int64_t rows, const void* from, int64_t from_row, void* to,
                        int64_t to_row, int64_t element) override {
    moe::device::CopyRows(copy, rows, static_cast<const char*>(from), from_row, static_cast<char*>(to),
                          to_row, element);
    return absl::OkStatus();
  }
  absl::Status Reduce(absl::Span<const void* const> from, void* to, int64_t count, DType dtype,
                      Reduction kind) override {
    ReduceInOrder(from, to, count, dtype, kind);
    return absl::OkStatus();
  }
  absl::Status Encode(WireFormat wire, DType dtype, const void* from, int64_t n, char* to) override {
    EncodeWire(wire, dtype, from, n, to);
    return absl::OkStatus();
  }
  absl::Status Decode(WireFormat wire, absl::Span<const char* const> from, int64_t n, Reduction kind,
                      DType dtype, void* to) override {
    float sum[kPart], part[kPart];
    for (int64_t i = 0; i < n; i += kPart) {
      const int64_t m = std::min(kPart, n - i);
      DecodeWire(wire, from[0], n, i, m, sum);
      for (size_t p = 1; p < from.size(); ++p) {
        DecodeWire(wire, from[p], n, i, m, part);
        for (int64_t j = 0; j < m; ++j) {
          sum[j] = kind == Reduction::kMax ? (part[j] > sum[j] || part[j] != part[j] ? part[j] : sum[j])
                                           : sum[j] + part[j];
        }
      }
      StoreFloats(dtype, sum, m, static_cast<char*>(to) + i * ByteSize(dtype));
    }
    return absl::OkStatus();
  }
  absl::Status Record(Event* event) override {
    HostEvent* e = static_cast<HostEvent*>(event);
    if (e->timed) e->reached = Clock::now();
    return absl::OkStatus();
  }
  absl::Status Wait(const Event*) override { return absl::OkStatus(); }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  absl::Status BeginGraph() override { return NoGraphs(); }
  absl::StatusOr<std::unique_ptr<WorkGraph>> EndGraph() override { return NoGraphs(); }
  absl::Status Launch(WorkGraph*) override { return NoGraphs(); }

 private:
  Device* const device_;
};

class HostDevice : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kHost; }
  int ordinal() const override { return 0; }
  std::string description() const override { return "cpu"; }
  bool host_accessible() const override { return true; }
  bool has_graphs() const override { return false; }
  absl::Status Use() override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(int64_t bytes, int64_t filled) override {
    if (bytes == 0) return std::make_unique<HostMemory>(nullptr, 0, nullptr, 0);
    if (filled < 0) filled = bytes;
    // Ranks take turns on a core, and their arenas together have far more small pages than a core keeps
    // addresses of. Only what is filled is asked for in huge ones; it is a hint.
    const bool huge = filled >= kHugePage;
    const int64_t mapped = bytes + (huge ? kHugePage : 0);
    void* p = bytes < 0 ? MAP_FAILED
                        : mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no address space for ", bytes, " bytes: ", std::strerror(errno)));
    }
    char* data = static_cast<char*>(p);
    if (huge) {
      const int64_t start = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p));
      data += RoundUp(start, kHugePage) - start;
      madvise(data, filled / kHugePage * kHugePage, MADV_HUGEPAGE);
    }
    return std::make_unique<HostMemory>(data, bytes, static_cast<char*>(p), mapped);
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateStaging(int64_t bytes) override {
    return Allocate(bytes, 0);
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream(absl::string_view) override {
    return std::make_unique<ImmediateStream>(this);
  }
  absl::StatusOr<std::unique_ptr<Event>> NewEvent() override { return std::make_unique<HostEvent>(); }
  absl::StatusOr<std::unique_ptr<Event>> NewTimedEvent() override {
    auto event = std::make_unique<HostEvent>();
    event->timed = true;
    return event;
  }
  absl::StatusOr<double> SecondsBetween(const Event& from, const Event& to) override {
    const Clock::time_point begin = static_cast<const HostEvent&>(from).reached;
    const Clock::time_point end = static_cast<const HostEvent&>(to).reached;
    if (begin == Clock::time_point() || end == Clock::time_point()) {
      return absl::FailedPreconditionError(
          "no time is known of an event that is not timed or was never recorded");
    }
    return std::chrono::duration<double>(end - begin).count();
  }
};

}  // namespace

std::unique_ptr<Device> NewHostDevice() { return std::make_unique<HostDevice>(); }

Stream* HostStream() {
  static HostDevice& device = *new HostDevice;
  static ImmediateStream& stream = *new ImmediateStream(&device);
  return &stream;
}

}  // namespace moe::device
