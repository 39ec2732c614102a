#include "moe/testing/delayed_device.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/clock.h"
#include "moe/base/status.h"
#include "moe/device/host_device.h"

namespace moe::testing {
namespace {

// Outlives the event while work that knows it is waiting.
struct Progress {
  std::mutex mutex;
  std::condition_variable changed;
  int64_t recorded = 0, reached = 0;
  int64_t time_ns = 0;  // of the last

  void Reach(int64_t n) {
    std::lock_guard<std::mutex> lock(mutex);
    reached = std::max(reached, n);
    time_ns = NowNanos();
    changed.notify_all();
  }
  void Await(int64_t n) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return reached >= n; });
  }
};

struct DelayedEvent : device::Event {
  std::shared_ptr<Progress> progress = std::make_shared<Progress>();
};

class DelayedStream : public device::Stream {
 public:
  DelayedStream(device::Device* device, std::unique_ptr<device::Stream> inner, uint64_t seed)
      : device_(device), inner_(std::move(inner)), random_(seed), thread_([this] { Work(); }) {}
  ~DelayedStream() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      end_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  device::DeviceKind kind() const override { return device::DeviceKind::kCuda; }
  device::Device* device() const override { return device_; }
  void* native() const override { return nullptr; }

  absl::Status Copy(void* to, const void* from, int64_t bytes) override {
    return Give([=, this] { return inner_->Copy(to, from, bytes); });
  }
  absl::Status Fill(void* to, unsigned char byte, int64_t bytes) override {
    return Give([=, this] { return inner_->Fill(to, byte, bytes); });
  }
  absl::Status CopyRows(const StridedCopy& copy, int64_t rows, const void* from, int64_t from_row, void* to,
                        int64_t to_row, int64_t element) override {
    return Give([=, this] { return inner_->CopyRows(copy, rows, from, from_row, to, to_row, element); });
  }
  absl::Status Reduce(absl::Span<const void* const> from, void* to, int64_t count, DType dtype,
                      Reduction kind) override {
    const std::vector<const void*> sources(from.begin(), from.end());
    return Give([=, this] { return inner_->Reduce(sources, to, count, dtype, kind); });
  }
  absl::Status Encode(WireFormat wire, DType dtype, const void* from, int64_t n, char* to) override {
    return Give([=, this] { return inner_->Encode(wire, dtype, from, n, to); });
  }
  absl::Status Decode(WireFormat wire, absl::Span<const char* const> from, int64_t n, Reduction kind,
                      DType dtype, void* to) override {
    const std::vector<const char*> sources(from.begin(), from.end());
    return Give([=, this] { return inner_->Decode(wire, sources, n, kind, dtype, to); });
  }
  absl::Status Record(device::Event* event) override {
    const std::shared_ptr<Progress> p = static_cast<DelayedEvent*>(event)->progress;
    int64_t n;
    {
      std::lock_guard<std::mutex> lock(p->mutex);
      n = ++p->recorded;
    }
    return Give([p, n] {
      p->Reach(n);
      return absl::OkStatus();
    });
  }
  absl::Status Wait(const device::Event* event) override {
    const std::shared_ptr<Progress> p = static_cast<const DelayedEvent*>(event)->progress;
    int64_t n;
    {
      std::lock_guard<std::mutex> lock(p->mutex);
      n = p->recorded;
    }
    return Give([p, n] {
      p->Await(n);
      return absl::OkStatus();
    });
  }
  absl::Status Synchronize() override {
    DelayedEvent event;
    RETURN_IF_ERROR(Record(&event));
    event.progress->Await(1);
    std::lock_guard<std::mutex> lock(mutex_);
    return failed_;
  }
  absl::Status BeginGraph() override { return inner_->BeginGraph(); }
  absl::StatusOr<std::unique_ptr<device::WorkGraph>> EndGraph() override { return inner_->EndGraph(); }
  absl::Status Launch(device::WorkGraph* graph) override { return inner_->Launch(graph); }

 private:
  absl::Status Give(std::function<absl::Status()> work) {
    std::lock_guard<std::mutex> lock(mutex_);
    work_.push_back(std::move(work));
    changed_.notify_all();
    return failed_;
  }
  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return end_ || !work_.empty(); });
      if (work_.empty()) return;
      const std::function<absl::Status()> work = std::move(work_.front());
      work_.pop_front();
      lock.unlock();
      if (random_() % 8 == 0) absl::SleepFor(absl::Microseconds(random_() % 100));
      absl::Status status = work();
      lock.lock();
      failed_.Update(status);
    }
  }

  device::Device* const device_;
  const std::unique_ptr<device::Stream> inner_;
  std::mt19937_64 random_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<absl::Status()>> work_;
  bool end_ = false;
  absl::Status failed_;
  std::thread thread_;
};

class DelayedDevice : public device::Device {
 public:
  DelayedDevice(int ordinal, uint64_t seed)
      : ordinal_(ordinal), seed_(seed), host_(device::NewHostDevice()) {}
  device::DeviceKind kind() const override { return device::DeviceKind::kCuda; }
  int ordinal() const override { return ordinal_; }
  std::string description() const override { return absl::StrCat("delayed host ", ordinal_); }
  bool host_accessible() const override { return false; }
  bool has_graphs() const override { return false; }
  absl::Status Use() override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<device::DeviceMemory>> Allocate(int64_t bytes, int64_t filled) override {
    return host_->Allocate(bytes, filled);
  }
  absl::StatusOr<std::unique_ptr<device::DeviceMemory>> AllocateStaging(int64_t bytes) override {
    return host_->AllocateStaging(bytes);
  }
  absl::StatusOr<std::unique_ptr<device::Stream>> NewStream(absl::string_view name) override {
    ASSIGN_OR_RETURN(std::unique_ptr<device::Stream> inner, host_->NewStream(name));
    return std::make_unique<DelayedStream>(this, std::move(inner), seed_ + 1000003 * ++streams_);
  }
  absl::StatusOr<std::unique_ptr<device::Event>> NewEvent() override {
    return std::make_unique<DelayedEvent>();
  }
  absl::StatusOr<std::unique_ptr<device::Event>> NewTimedEvent() override { return NewEvent(); }
  absl::StatusOr<double> SecondsBetween(const device::Event& from, const device::Event& to) override {
    int64_t times[2];
    const device::Event* const events[2] = {&from, &to};
    for (int i = 0; i < 2; ++i) {
      Progress& p = *static_cast<const DelayedEvent*>(events[i])->progress;
      std::unique_lock<std::mutex> lock(p.mutex);
      if (p.recorded == 0) return absl::FailedPreconditionError("an event was never recorded");
      p.changed.wait(lock, [&] { return p.reached >= p.recorded; });
      times[i] = p.time_ns;
    }
    return 1e-9 * static_cast<double>(times[1] - times[0]);
  }

 private:
  const int ordinal_;
  const uint64_t seed_;
  const std::unique_ptr<device::Device> host_;
  std::atomic<uint64_t> streams_ = 0;
};

}  // namespace

std::unique_ptr<device::Device> NewDelayedDevice(int ordinal, uint64_t seed) {
  return std::make_unique<DelayedDevice>(ordinal, seed);
}

}  // namespace moe::testing
