#include "moe/device/host_device.h"

#include <sys/mman.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "moe/device/copy_rows.h"
#include "moe/device/reduce.h"
#include "moe/device/wire_codec.h"

namespace moe {
namespace {

// Pages come when they are touched.
class HostMemory : public DeviceMemory {
 public:
  HostMemory(void* data, int64_t bytes) : data_(static_cast<char*>(data)), bytes_(bytes) {}
  ~HostMemory() override {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  char* data() const override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  char* const data_;
  const int64_t bytes_;
};

struct HostEvent : Event {
  absl::Time reached = absl::InfinitePast();  // by its last Record; of timed events alone
  bool timed = false;
};

absl::Status NoGraphs() {
  return absl::FailedPreconditionError("the host has no graphs: its streams do their work at once");
}

class HostStream : public Stream {
 public:
  explicit HostStream(Device* device) : device_(device) {}
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
    moe::CopyRows(copy, rows, static_cast<const char*>(from), from_row, static_cast<char*>(to), to_row,
                  element);
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
  absl::Status Decode(WireFormat wire, const char* from, int64_t n, int64_t begin, int64_t count,
                      float* to) override {
    DecodeWire(wire, from, n, begin, count, to);
    return absl::OkStatus();
  }
  absl::Status Record(Event* event) override {
    HostEvent* e = static_cast<HostEvent*>(event);
    if (e->timed) e->reached = absl::Now();
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
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(int64_t bytes) override {
    if (bytes == 0) return std::make_unique<HostMemory>(nullptr, 0);
    void* p = bytes < 0 ? MAP_FAILED
                        : mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("no address space for ", bytes, " bytes"));
    }
    return std::make_unique<HostMemory>(p, bytes);
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateStaging(int64_t bytes) override {
    return Allocate(bytes);
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream(absl::string_view) override {
    return std::make_unique<HostStream>(this);
  }
  absl::StatusOr<std::unique_ptr<Event>> NewEvent() override { return std::make_unique<HostEvent>(); }
  absl::StatusOr<std::unique_ptr<Event>> NewTimedEvent() override {
    auto event = std::make_unique<HostEvent>();
    event->timed = true;
    return event;
  }
  absl::StatusOr<double> SecondsBetween(const Event& from, const Event& to) override {
    const absl::Time begin = static_cast<const HostEvent&>(from).reached;
    const absl::Time end = static_cast<const HostEvent&>(to).reached;
    if (begin == absl::InfinitePast() || end == absl::InfinitePast()) {
      return absl::FailedPreconditionError(
          "no time is known of an event that is not timed or was never recorded");
    }
    return absl::ToDoubleSeconds(end - begin);
  }
};

}  // namespace

std::unique_ptr<Device> NewHostDevice() { return std::make_unique<HostDevice>(); }

}  // namespace moe
