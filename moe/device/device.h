// Device: whose memory a rank's values lie in, and the streams that work on it. The runtime knows no back end
// but through this.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Device> device, OpenDevice(DeviceKind::kCuda, 0));
//   ASSIGN_OR_RETURN(std::unique_ptr<DeviceMemory> memory, device->Allocate(bytes));
//   ASSIGN_OR_RETURN(std::unique_ptr<Stream> compute, device->NewStream("compute"));
//   RETURN_IF_ERROR(compute->Copy(memory->data(), host, bytes));
//   RETURN_IF_ERROR(compute->Synchronize());
//
// A stream does its work in the order in which it was given; work of two streams is ordered by events alone.
// On the host every call has done its work when it returns, and events are nothing. On CUDA calls return once
// the work is enqueued, and errors of the work come out of a later call. The host may use memory that a
// stream works on after Synchronize, and only if `host_accessible`; staging memory it may use always. All
// numbers are bytes unless stated.
//
// A device outlives its memory, streams and events. Streams are used by one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/ir/conversion_layout.h"
#include "moe/ir/types.h"
#include "moe/ir/wire_format.h"

namespace moe::device {

enum class DeviceKind : uint8_t { kHost, kCuda };
absl::string_view DeviceKindName(DeviceKind kind);  // "cpu", "cuda"
// Error: InvalidArgument, with the kinds there are.
absl::StatusOr<DeviceKind> ParseDeviceKind(absl::string_view word);

class DeviceMemory {  // freed with it
 public:
  virtual ~DeviceMemory() = default;
  virtual char* data() const = 0;  // aligned to 256; null of 0 bytes
  virtual int64_t bytes() const = 0;
  // What lies in [begin, begin + bytes) is no longer wanted, by work in flight neither. The host gives whole
  // pages back to the system.
  virtual void Forget(int64_t begin, int64_t bytes) {}
};

class Event {
 public:
  virtual ~Event() = default;
};

class Device;

// What a piece of work does with some bytes.
struct MemoryUse {
  const void* at = nullptr;
  int64_t bytes = 0;
  bool writes = false;  // else reads
};

// A recorded sequence of work, launched as one.
class WorkGraph {
 public:
  virtual ~WorkGraph() = default;
  virtual int64_t nodes() const = 0;
};

class Stream {
 public:
  virtual ~Stream() = default;
  virtual DeviceKind kind() const = 0;
  virtual Device* device() const = 0;
  virtual void* native() const = 0;  // cudaStream_t; null on the host

  // Any direction; host memory that is not staging memory may make the call wait. No overlap.
  virtual absl::Status Copy(void* to, const void* from, int64_t bytes) = 0;
  virtual absl::Status Fill(void* to, unsigned char byte, int64_t bytes) = 0;

  // What exchanges do with a value, all in memory of the device. Rows of so many elements of `element` bytes:
  // of each the box `copy`; from_row, to_row: elements from one row to the next.
  virtual absl::Status CopyRows(const StridedCopy& copy, int64_t rows, const void* from, int64_t from_row,
                                void* to, int64_t to_row, int64_t element) = 0;
  // to[i] = sum or maximum of from[0][i], from[1][i], ... in this order, as moe/device/reduce.h has it.
  virtual absl::Status Reduce(absl::Span<const void* const> from, void* to, int64_t count, DType dtype,
                              Reduction kind) = 0;
  // As moe/device/wire_codec.h has it: n values of `dtype` (f64, f32, bf16, f16) to their encoded block.
  virtual absl::Status Encode(WireFormat wire, DType dtype, const void* from, int64_t n, char* to) = 0;
  // to[i] = sum or maximum of the decoded from[0][i], from[1][i], ... in this order, in f32, rounded once to
  // `dtype`. Each is an encoded block of n values.
  virtual absl::Status Decode(WireFormat wire, absl::Span<const char* const> from, int64_t n, Reduction kind,
                              DType dtype, void* to) = 0;

  virtual absl::Status Record(Event* event) = 0;      // reached when all work so far is done
  virtual absl::Status Wait(const Event* event) = 0;  // work from here on waits for the event's last Record
  virtual absl::Status Synchronize() = 0;             // the calling thread waits for all work so far

  // Work between the two is recorded and not done. Error: FailedPrecondition where the device has no graphs,
  // or if something between was not of the kind that can be recorded.
  virtual absl::Status BeginGraph() = 0;
  virtual absl::StatusOr<std::unique_ptr<WorkGraph>> EndGraph() = 0;
  virtual absl::Status Launch(WorkGraph* graph) = 0;

  // Said before work that goes past this interface, to native() or done by the host in the stream's place:
  // what it does with memory. `what` names it and the work after it, up to the next name; if empty, the last
  // name stays. Uses may be none. Nothing comes of it but on devices that check the order of work
  // (order_check.h).
  virtual void Uses(absl::string_view what, absl::Span<const MemoryUse> uses) {}
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  virtual int ordinal() const = 0;
  virtual std::string description() const = 0;  // "NVIDIA H200, 139.8 GiB, driver 580.65"
  virtual bool host_accessible() const = 0;     // the host may read and write its memory
  virtual bool has_graphs() const = 0;
  virtual bool checks_order() const { return false; }  // must be told of Uses

  // The calling thread gives this device's streams work from now on. Every thread says so before it does.
  virtual absl::Status Use() = 0;

  // The first `filled` of the bytes will be written in any case; all of them if negative. The host has only
  // address space until they are, a GPU has all of them at once.
  // Error: ResourceExhausted, with what was asked for and what is free.
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(int64_t bytes, int64_t filled = -1) = 0;
  // Host memory that streams copy from and to without waiting (pinned).
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateStaging(int64_t bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<Stream>> NewStream(absl::string_view name) = 0;
  virtual absl::StatusOr<std::unique_ptr<Event>> NewEvent() = 0;
  // An event that keeps the time at which it is reached; dearer than the other kind.
  virtual absl::StatusOr<std::unique_ptr<Event>> NewTimedEvent() = 0;
  // Seconds between two timed events of this device, by its clock. Waits until both are reached. Error:
  // FailedPrecondition for one that was never recorded, or is not timed.
  virtual absl::StatusOr<double> SecondsBetween(const Event& from, const Event& to) = 0;

  // As Stream::Uses, of what the calling thread does with the device's memory or with staging memory itself.
  virtual void HostUses(absl::string_view what, absl::Span<const MemoryUse> uses) {}
};

// Makes the back end of a kind known to a program that does not link it: for kCuda it loads
// libswitchyard_cuda.so, which brings devices, kernels and NCCL. It does nothing for the host, for a back end
// that is linked in, and the second time. The caller must come before the first use of Kernels(), and before
// other threads ask for devices. Error: Unavailable where the library was not built, with how to build it, and
// where something that the library needs is missing.
absl::Status LoadBackend(DeviceKind kind);

// Devices of a kind that this process can use; 0 if there are none, or the back end is neither linked in nor
// loaded.
int CountDevices(DeviceKind kind);
// Ok if there is one; else Unavailable as of OpenDevice. Opens none.
absl::Status CheckDevices(DeviceKind kind);
// Errors: Unavailable where there is no such device, or the driver is too old, or the back end is neither
// linked in nor loaded, saying which; InvalidArgument for an ordinal beyond CountDevices.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(DeviceKind kind, int ordinal);

// How a back end makes itself known, when it is linked in (alwayslink) or loaded: one object at namespace scope.
struct DeviceBackend {
  DeviceKind kind;
  int (*count)();
  absl::StatusOr<std::unique_ptr<Device>> (*open)(int ordinal);
};
struct DeviceBackendRegistration {
  explicit DeviceBackendRegistration(DeviceBackend backend);
};

}  // namespace moe::device
