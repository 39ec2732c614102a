#include "cuda_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "slow_streams.h"

using Work = std::function<cudaError_t()>;
using Clock = std::chrono::steady_clock;

struct Capture {
  std::vector<Work> work;
  std::vector<CUstream_st*> streams;  // the first began it
  bool valid = true, ended = false, strict = true;
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};
struct CUstream_st {
  int device = 0, priority = 0;
  std::shared_ptr<Capture> capture;
  bool unjoined = false;   // has captured work that no other stream waits for yet
  Clock::time_point idle;  // from then on
};
struct CUevent_st {
  std::shared_ptr<Capture> capture;  // of the last Record
  CUstream_st* stream = nullptr;
  Clock::time_point time;
};

namespace {

struct Block {
  size_t bytes;
  int device;  // -1: the host's
};

// Two, or those of CUDA_VISIBLE_DEVICES: "0,3".
std::vector<int> VisibleDevices() {
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return {0, 1};
  std::vector<int> devices;
  std::istringstream text(visible);
  for (std::string device; std::getline(text, device, ',');) devices.push_back(std::atoi(device.c_str()));
  return devices;
}

struct World {
  std::mutex mutex;
  const std::vector<int> visible = VisibleDevices();
  int devices = static_cast<int>(visible.size());
  size_t bytes_each = size_t{4} << 30;
  int driver = CUDART_VERSION;
  std::map<const char*, Block> blocks;  // by first address
  std::vector<size_t> used;
};
World& TheWorld() {
  static World& world = *new World;
  return world;
}

std::atomic<int64_t> slowness_ns = 0;

cudaError_t AwaitTime(Clock::time_point time) {
  if (slowness_ns > 0) std::this_thread::sleep_until(time);
  return cudaSuccess;
}
cudaError_t QueryTime(Clock::time_point time) {
  return slowness_ns > 0 && time > Clock::now() ? cudaErrorNotReady : cudaSuccess;
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_fault;
thread_local int captures = 0;  // in this thread, of a mode that forbids what is unsafe

cudaError_t Result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

CUstream_st* Of(cudaStream_t stream) {
  static CUstream_st& standard = *new CUstream_st;
  return stream == nullptr || stream == cudaStreamLegacy ? &standard : stream;
}

// Whether [at, at + bytes) lies within one block, or in memory that the runtime does not know.
bool WithinBlock(const void* at, size_t bytes) {
  World& world = TheWorld();
  const std::lock_guard<std::mutex> lock(world.mutex);
  const char* const p = static_cast<const char*>(at);
  auto it = world.blocks.upper_bound(p);
  if (it == world.blocks.begin()) return true;
  --it;
  const char* const end = it->first + it->second.bytes;
  return p >= end || p + bytes <= end;
}

cudaError_t Allocate(void** at, size_t bytes, int device) {
  World& world = TheWorld();
  *at = nullptr;
  if (captures > 0) return Result(cudaErrorStreamCaptureUnsupported);
  if (bytes == 0) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(world.mutex);
  if (device >= 0) {
    if (device >= world.devices) return Result(cudaErrorInvalidDevice);
    world.used.resize(std::max<size_t>(world.used.size(), device + 1));
    if (bytes > world.bytes_each - std::min(world.bytes_each, world.used[device])) {
      return Result(cudaErrorMemoryAllocation);
    }
  }
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return Result(cudaErrorMemoryAllocation);
  if (device >= 0) world.used[device] += bytes;
  world.blocks[static_cast<char*>(p)] = {bytes, device};
  *at = p;
  return cudaSuccess;
}

cudaError_t Free(void* at, bool host) {
  if (at == nullptr) return cudaSuccess;
  World& world = TheWorld();
  const std::lock_guard<std::mutex> lock(world.mutex);
  const auto it = world.blocks.find(static_cast<char*>(at));
  if (it == world.blocks.end() || (it->second.device < 0) != host) return Result(cudaErrorInvalidValue);
  if (!host) world.used[it->second.device] -= it->second.bytes;
  munmap(at, it->second.bytes);
  world.blocks.erase(it);
  return cudaSuccess;
}

}  // namespace

namespace emulated {

cudaError_t Enqueue(cudaStream_t handle, Work work) {
  CUstream_st* const stream = Of(handle);
  if (stream->capture != nullptr) {
    stream->capture->work.push_back(std::move(work));
    stream->unjoined = stream != stream->capture->streams[0];
    return cudaSuccess;
  }
  if (const int64_t each = slowness_ns; each > 0) {
    stream->idle = std::max(stream->idle, Clock::now()) + std::chrono::nanoseconds(each);
  }
  return Result(work());
}

const std::string& LastFault() { return last_fault; }

cudaError_t RunKernel(const Grid& grid) {
  std::string fault = RunGrid(grid);
  if (fault.empty()) return cudaSuccess;
  last_fault = std::move(fault);
  return Result(cudaErrorLaunchFailure);
}

void SetDevices(int count, size_t bytes_each) {
  World& world = TheWorld();
  const std::lock_guard<std::mutex> lock(world.mutex);
  world.devices = count;
  world.bytes_each = bytes_each;
}

int PhysicalDevice(int device) {
  const std::vector<int>& visible = TheWorld().visible;
  return device < static_cast<int>(visible.size()) ? visible[device] : device;
}

void SetDriverVersion(int version) { TheWorld().driver = version; }

void SetSlowness(std::chrono::nanoseconds each) { slowness_ns = each.count(); }

}  // namespace emulated

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInitializationError:
      return "initialization error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnmatched:
      return "capture was not initiated in this stream";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaError";
  }
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  World& world = TheWorld();
  *count = 0;
  if (world.driver == 0 || world.devices == 0) return Result(cudaErrorNoDevice);
  if (world.driver < CUDART_VERSION) return Result(cudaErrorInsufficientDriver);
  *count = world.devices;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= TheWorld().devices) return Result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  World& world = TheWorld();
  if (device < 0 || device >= world.devices) return Result(cudaErrorInvalidDevice);
  *p = {};
  std::strcpy(p->name, "emulated device");
  p->totalGlobalMem = world.bytes_each;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = 227 << 10;
  p->sharedMemPerMultiprocessor = 228 << 10;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->multiProcessorCount = 4;
  p->major = 9;
  p->minor = 0;
  p->l2CacheSize = 50 << 20;
  p->pciBusID = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t e = cudaGetDeviceProperties(&p, device); e != cudaSuccess) return e;
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return Result(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceSynchronize() {
  return captures > 0 ? Result(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  *can = device != peer;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = TheWorld().driver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  World& world = TheWorld();
  const std::lock_guard<std::mutex> lock(world.mutex);
  const size_t used = current_device < world.used.size() ? world.used[current_device] : 0;
  *total = world.bytes_each;
  *free = world.bytes_each - std::min(world.bytes_each, used);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** at, size_t bytes) { return Allocate(at, bytes, current_device); }
cudaError_t cudaFree(void* at) { return Free(at, false); }
cudaError_t cudaMallocHost(void** at, size_t bytes, unsigned) { return Allocate(at, bytes, -1); }
cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) { return Allocate(at, bytes, -1); }
cudaError_t cudaFreeHost(void* at) { return Free(at, true); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* at) {
  World& world = TheWorld();
  const std::lock_guard<std::mutex> lock(world.mutex);
  *attributes = {cudaMemoryTypeUnregistered, -1, nullptr, const_cast<void*>(at)};
  const char* const p = static_cast<const char*>(at);
  auto it = world.blocks.upper_bound(p);
  if (it == world.blocks.begin()) return cudaSuccess;
  --it;
  if (p >= it->first + it->second.bytes) return cudaSuccess;
  const bool host = it->second.device < 0;
  *attributes = {host ? cudaMemoryTypeHost : cudaMemoryTypeDevice, it->second.device, const_cast<void*>(at),
                 host ? const_cast<void*>(at) : nullptr};
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (captures > 0) return Result(cudaErrorStreamCaptureUnsupported);
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (!WithinBlock(to, bytes) || !WithinBlock(from, bytes)) return Result(cudaErrorInvalidValue);
  return emulated::Enqueue(stream, [=] {
    if (bytes > 0) std::memmove(to, from, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return Result(cudaErrorInvalidValue);
  return emulated::Enqueue(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                  width);
    }
    return cudaSuccess;
  });
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemset(void* to, int byte, size_t bytes) {
  if (captures > 0) return Result(cudaErrorStreamCaptureUnsupported);
  return cudaMemsetAsync(to, byte, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
  if (!WithinBlock(to, bytes)) return Result(cudaErrorInvalidValue);
  return emulated::Enqueue(stream, [=] {
    if (bytes > 0) std::memset(to, byte, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  *stream = new CUstream_st;
  (*stream)->device = current_device;
  (*stream)->priority = priority;
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = Of(stream)->priority;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy) return Result(cudaErrorInvalidResourceHandle);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  CUstream_st* const stream = Of(handle);
  if (stream->capture == nullptr) return AwaitTime(stream->idle);
  stream->capture->valid = false;
  return Result(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  CUstream_st* const stream = Of(handle);
  return stream->capture == nullptr ? QueryTime(stream->idle) : cudaStreamSynchronize(handle);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  CUstream_st* const stream = Of(handle);
  if (stream->capture == nullptr && event->capture == nullptr) {
    stream->idle = std::max(stream->idle, event->time);
    return cudaSuccess;
  }
  if (event->stream == nullptr) return cudaSuccess;  // never recorded
  if (event->capture == nullptr || event->capture->ended ||
      (stream->capture != nullptr && stream->capture != event->capture)) {
    // Nothing inside a graph waits for what is outside of it, nor the other way round.
    if (stream->capture != nullptr) stream->capture->valid = false;
    return Result(cudaErrorStreamCaptureUnsupported);
  }
  if (stream->capture == nullptr) {
    stream->capture = event->capture;
    stream->capture->streams.push_back(stream);
    stream->unjoined = true;
  }
  if (event->stream != stream) event->stream->unjoined = false;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void* data) {
  return emulated::Enqueue(stream, [=] {
    call(data);
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  CUstream_st* const stream = Of(handle);
  event->capture = stream->capture;
  event->stream = stream;
  if (stream->capture == nullptr) event->time = std::max(stream->idle, Clock::now());
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->capture == nullptr) return AwaitTime(event->time);
  event->capture->valid = false;
  return Result(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->capture == nullptr ? QueryTime(event->time) : cudaEventSynchronize(event);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (stream == nullptr || stream == cudaStreamLegacy) return Result(cudaErrorStreamCaptureUnsupported);
  if (stream->capture != nullptr) return Result(cudaErrorInvalidValue);
  stream->capture = std::make_shared<Capture>();
  stream->capture->streams = {stream};
  stream->capture->strict = mode != cudaStreamCaptureModeRelaxed;
  captures += stream->capture->strict;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream->capture == nullptr) return Result(cudaErrorInvalidValue);
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->streams[0] != stream) return Result(cudaErrorStreamCaptureUnmatched);
  bool unjoined = false;
  for (CUstream_st* const s : capture->streams) {
    unjoined |= std::exchange(s->unjoined, false);
    s->capture = nullptr;
  }
  capture->ended = true;
  captures -= capture->strict;
  if (!capture->valid) return Result(cudaErrorStreamCaptureInvalidated);
  if (unjoined) return Result(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::move(capture->work)};
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Capture* const capture = Of(stream)->capture.get();
  *status = capture == nullptr ? cudaStreamCaptureStatusNone
            : capture->valid   ? cudaStreamCaptureStatusActive
                               : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) return Result(cudaErrorNotSupported);
  *count = graph->work.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return emulated::Enqueue(stream, [exec] {
    for (const Work& work : exec->work) {
      if (const cudaError_t e = work(); e != cudaSuccess) return e;
    }
    return cudaSuccess;
  });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
