#include "moe/device/cuda/cuda_device.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/device/cuda/cuda.h"
#include "moe/device/cuda/stream_kernels.h"

namespace moe::device {
namespace {

std::string VersionName(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

std::string Gibibytes(double bytes) { return absl::StrFormat("%.1f GiB", bytes / (1 << 30)); }

// Why there is no device.
absl::Status NoDevice() {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (driver == 0) {
    return absl::UnavailableError("no CUDA device: this machine has no driver of NVIDIA");
  }
  if (error == cudaErrorInsufficientDriver || driver / 1000 < runtime / 1000) {
    return absl::UnavailableError(absl::StrCat("the driver of this machine is for CUDA ", VersionName(driver),
                                               ", this binary was built for CUDA ", VersionName(runtime),
                                               ": a newer driver is needed"));
  }
  return absl::UnavailableError(
      absl::StrCat("no CUDA device is visible (CUDA_VISIBLE_DEVICES chooses): ", cudaGetErrorString(error)));
}

class DeviceBlock : public DeviceMemory {
 public:
  DeviceBlock(int ordinal, char* data, int64_t bytes) : ordinal_(ordinal), data_(data), bytes_(bytes) {}
  ~DeviceBlock() override {
    int before = 0;
    cudaGetDevice(&before);
    cudaSetDevice(ordinal_);
    cudaFree(data_);
    cudaSetDevice(before);
  }
  char* data() const override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  const int ordinal_;
  char* const data_;
  const int64_t bytes_;
};

class PinnedBlock : public DeviceMemory {
 public:
  PinnedBlock(char* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  ~PinnedBlock() override { cudaFreeHost(data_); }
  char* data() const override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  char* const data_;
  const int64_t bytes_;
};

class CudaEvent : public Event {
 public:
  CudaEvent(cudaEvent_t event, bool timed) : event(event), timed(timed) {}
  ~CudaEvent() override { cudaEventDestroy(event); }
  const cudaEvent_t event;
  const bool timed;
  bool recorded = false;
};

class CudaGraph : public WorkGraph {
 public:
  CudaGraph(cudaGraphExec_t exec, int64_t nodes) : exec(exec), nodes_(nodes) {}
  ~CudaGraph() override { cudaGraphExecDestroy(exec); }
  int64_t nodes() const override { return nodes_; }
  const cudaGraphExec_t exec;

 private:
  const int64_t nodes_;
};

class CudaStream : public Stream {
 public:
  CudaStream(Device* device, cudaStream_t stream) : device_(device), stream_(stream) {}
  ~CudaStream() override {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  DeviceKind kind() const override { return DeviceKind::kCuda; }
  Device* device() const override { return device_; }
  void* native() const override { return stream_; }

  absl::Status Copy(void* to, const void* from, int64_t bytes) override {
    if (bytes == 0) return absl::OkStatus();
    RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
    return absl::OkStatus();
  }
  absl::Status Fill(void* to, unsigned char byte, int64_t bytes) override {
    if (bytes == 0) return absl::OkStatus();
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(to, byte, bytes, stream_));
    return absl::OkStatus();
  }
  absl::Status CopyRows(const StridedCopy& copy, int64_t rows, const void* from, int64_t from_row, void* to,
                        int64_t to_row, int64_t element) override {
    const int64_t bytes = copy.run * element;
    if (rows == 0 || bytes == 0) return absl::OkStatus();
    if (copy.IsContiguous() && (rows == 1 || (copy.run == from_row && copy.run == to_row))) {
      return Copy(to, from, rows * bytes);
    }
    return cuda::CopyRows(stream_, copy, rows, from, from_row, to, to_row, element);
  }
  absl::Status Reduce(absl::Span<const void* const> from, void* to, int64_t count, DType dtype,
                      Reduction kind) override {
    return cuda::Reduce(stream_, from, to, count, dtype, kind);
  }
  absl::Status Encode(WireFormat wire, DType dtype, const void* from, int64_t n, char* to) override {
    return cuda::Encode(stream_, wire, dtype, from, n, to);
  }
  absl::Status Decode(WireFormat wire, absl::Span<const char* const> from, int64_t n, Reduction kind,
                      DType dtype, void* to) override {
    return cuda::Decode(stream_, wire, from, n, kind, dtype, to);
  }

  absl::Status Record(Event* event) override {
    auto* const e = static_cast<CudaEvent*>(event);
    RETURN_IF_CUDA_ERROR(cudaEventRecord(e->event, stream_));
    e->recorded = true;
    return absl::OkStatus();
  }
  absl::Status Wait(const Event* event) override {
    RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream_, static_cast<const CudaEvent*>(event)->event, 0));
    return absl::OkStatus();
  }
  absl::Status Synchronize() override {
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
    return absl::OkStatus();
  }

  absl::Status BeginGraph() override {
    RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<WorkGraph>> EndGraph() override {
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    if (ended != cudaSuccess || graph == nullptr) {
      const absl::Status status = cuda::StatusOf(ended, "cudaStreamEndCapture");
      return absl::FailedPreconditionError(status.ok() ? "nothing was captured" : status.message());
    }
    size_t nodes = 0;
    cudaGraphExec_t exec = nullptr;
    cudaError_t error = cudaGraphGetNodes(graph, nullptr, &nodes);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    if (error != cudaSuccess) return cuda::StatusOf(error, "cudaGraphInstantiate");
    return std::make_unique<CudaGraph>(exec, static_cast<int64_t>(nodes));
  }
  absl::Status Launch(WorkGraph* graph) override {
    RETURN_IF_CUDA_ERROR(cudaGraphLaunch(static_cast<CudaGraph*>(graph)->exec, stream_));
    return absl::OkStatus();
  }

 private:
  Device* const device_;
  const cudaStream_t stream_;
};

class CudaDevice : public Device {
 public:
  CudaDevice(int ordinal, std::string name, std::string description)
      : ordinal_(ordinal), name_(std::move(name)), description_(std::move(description)) {}
  DeviceKind kind() const override { return DeviceKind::kCuda; }
  int ordinal() const override { return ordinal_; }
  std::string description() const override { return description_; }
  bool host_accessible() const override { return false; }
  bool has_graphs() const override { return true; }

  absl::Status Use() override {
    RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(int64_t bytes, int64_t) override {
    RETURN_IF_ERROR(Use());
    void* p = nullptr;
    const cudaError_t error = bytes < 0 ? cudaErrorMemoryAllocation : cudaMalloc(&p, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      return absl::ResourceExhaustedError(absl::StrCat(bytes, " bytes were asked for on CUDA device ",
                                                       ordinal_, " (", name_, "), of whose ", total,
                                                       " bytes ", free, " are free"));
    }
    RETURN_IF_CUDA_ERROR(error);
    return std::make_unique<DeviceBlock>(ordinal_, static_cast<char*>(p), bytes);
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateStaging(int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    void* p = nullptr;
    const cudaError_t error = bytes < 0    ? cudaErrorMemoryAllocation
                              : bytes == 0 ? cudaSuccess
                                           : cudaHostAlloc(&p, bytes, cudaHostAllocPortable);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return absl::ResourceExhaustedError(absl::StrCat("the host has no ", bytes, " bytes of pinned memory"));
    }
    RETURN_IF_CUDA_ERROR(error);
    return std::make_unique<PinnedBlock>(static_cast<char*>(p), bytes);
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream(absl::string_view name) override {
    RETURN_IF_ERROR(Use());
    int least = 0, greatest = 0;
    RETURN_IF_CUDA_ERROR(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    const int priority = name == "comm" ? greatest : name == "copy" ? (least + greatest) / 2 : least;
    cudaStream_t stream = nullptr;
    RETURN_IF_CUDA_ERROR(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority));
    return std::make_unique<CudaStream>(this, stream);
  }
  absl::StatusOr<std::unique_ptr<Event>> NewEvent() override { return MakeEvent(false); }
  absl::StatusOr<std::unique_ptr<Event>> NewTimedEvent() override { return MakeEvent(true); }
  absl::StatusOr<double> SecondsBetween(const Event& from, const Event& to) override {
    const auto& begin = static_cast<const CudaEvent&>(from);
    const auto& end = static_cast<const CudaEvent&>(to);
    if (!begin.timed || !end.timed || !begin.recorded || !end.recorded) {
      return absl::FailedPreconditionError(
          "no time is known of an event that is not timed or was never recorded");
    }
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(begin.event));
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end.event));
    float milliseconds = 0;
    RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, begin.event, end.event));
    return milliseconds / 1e3;
  }

 private:
  absl::StatusOr<std::unique_ptr<Event>> MakeEvent(bool timed) {
    RETURN_IF_ERROR(Use());
    cudaEvent_t event = nullptr;
    RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
    return std::make_unique<CudaEvent>(event, timed);
  }

  const int ordinal_;
  const std::string name_, description_;
};

const DeviceBackendRegistration registration({DeviceKind::kCuda, &CountCudaDevices, &OpenCudaDevice});

}  // namespace

int CountCudaDevices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int ordinal) {
  if (CountCudaDevices() == 0) return NoDevice();
  cudaDeviceProp properties;
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  int driver = 0;
  RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver));
  RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal));
  return std::make_unique<CudaDevice>(
      ordinal, properties.name,
      absl::StrCat(properties.name, ", ", Gibibytes(static_cast<double>(properties.totalGlobalMem)),
                   ", driver for CUDA ", VersionName(driver)));
}

}  // namespace moe::device
