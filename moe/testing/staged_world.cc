#include "moe/testing/staged_world.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "moe/base/status.h"
#include "moe/comm/call.h"

namespace moe::testing {
namespace {

constexpr int64_t kGuard = 64;
constexpr unsigned char kPoison = 0x5a;

// A buffer of the host and its copy on the device, which is not aligned to more than its elements.
class Staged {
 public:
  absl::Status Place(device::Device* device, device::Stream* stream, const void* host, int64_t bytes,
                     int64_t element) {
    bytes_ = bytes;
    before_ = kGuard + element;
    ASSIGN_OR_RETURN(memory_, device->Allocate(before_ + bytes + kGuard));
    RETURN_IF_ERROR(stream->Fill(memory_->data(), kPoison, memory_->bytes()));
    return stream->Copy(data(), host, bytes);
  }
  char* data() const { return memory_->data() + before_; }
  // Waits for the stream.
  absl::Status Fetch(device::Stream* stream, void* host) const {
    std::vector<char> all(memory_->bytes());
    RETURN_IF_ERROR(stream->Copy(all.data(), memory_->data(), memory_->bytes()));
    RETURN_IF_ERROR(stream->Synchronize());
    for (int64_t i = 0; i < memory_->bytes(); ++i) {
      if (i == before_) i += bytes_;
      if (static_cast<unsigned char>(all[i]) != kPoison) {
        return absl::InternalError(
            absl::StrCat("byte ", i - before_, " of a buffer of ", bytes_, " was written"));
      }
    }
    if (bytes_ > 0) std::memcpy(host, all.data() + before_, bytes_);
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<device::DeviceMemory> memory_;
  int64_t bytes_ = 0, before_ = 0;
};

class StagedCommunicator : public comm::Communicator {
 public:
  StagedCommunicator(comm::World* world, device::Device* device, std::unique_ptr<device::Stream> stream)
      : world_(world), device_(device), stream_(std::move(stream)) {}
  absl::Status Connect(absl::Span<const int64_t> ranks, absl::string_view channel) {
    ASSIGN_OR_RETURN(inner_, world_->Group(ranks, channel, stream_.get()));
    return absl::OkStatus();
  }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void Abort(absl::Status reason) override { inner_->Abort(std::move(reason)); }

  absl::Status Run(const comm::Call& call) override {
    const auto [in, out] = comm::CallExtents(call, rank(), size());
    const int64_t element = ByteSize(call.dtype);
    Staged from, to;
    const bool in_place = call.in == call.out;
    RETURN_IF_ERROR(from.Place(device_, stream_.get(), call.in, in * element, element));
    if (!in_place) RETURN_IF_ERROR(to.Place(device_, stream_.get(), call.out, out * element, element));
    comm::Call staged = call;
    staged.in = from.data();
    staged.out = in_place ? from.data() : to.data();
    const absl::Status status = inner_->Run(staged);
    // Also after an error: the stream may still use the buffers.
    RETURN_IF_ERROR(Finish(status));
    RETURN_IF_ERROR(from.Fetch(stream_.get(), const_cast<void*>(call.in)));
    return in_place ? absl::OkStatus() : to.Fetch(stream_.get(), call.out);
  }

 private:
  absl::Status Finish(absl::Status status) {
    status.Update(stream_->Synchronize());
    status.Update(world_->Failure());
    return status;
  }

  comm::World* const world_;
  device::Device* const device_;
  const std::unique_ptr<device::Stream> stream_;
  comm::Communicator* inner_ = nullptr;
};

class StagedWorld : public comm::World {
 public:
  StagedWorld(comm::World* inner, std::shared_ptr<device::Device> device)
      : inner_(inner), device_(std::move(device)) {}
  int64_t rank() const override { return inner_->rank(); }
  int64_t num_ranks() const override { return inner_->num_ranks(); }
  absl::StatusOr<comm::Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                            device::Stream*) override {
    const std::pair<std::vector<int64_t>, std::string> key({ranks.begin(), ranks.end()},
                                                           std::string(channel));
    {
      absl::MutexLock lock(&mutex_);
      if (const auto it = groups_.find(key); it != groups_.end()) return it->second.get();
    }
    ASSIGN_OR_RETURN(std::unique_ptr<device::Stream> stream, device_->NewStream(channel));
    auto group = std::make_unique<StagedCommunicator>(inner_, device_.get(), std::move(stream));
    RETURN_IF_ERROR(group->Connect(ranks, channel));
    absl::MutexLock lock(&mutex_);
    return groups_.emplace(key, std::move(group)).first->second.get();
  }
  absl::Status Failure() override { return inner_->Failure(); }
  void Abort(absl::Status reason) override { inner_->Abort(std::move(reason)); }

 private:
  comm::World* const inner_;
  const std::shared_ptr<device::Device> device_;
  absl::Mutex mutex_;
  std::map<std::pair<std::vector<int64_t>, std::string>, std::unique_ptr<StagedCommunicator>> groups_;
};

class StagedWorlds : public WorldSet {
 public:
  StagedWorlds(std::unique_ptr<WorldSet> inner, std::vector<std::shared_ptr<device::Device>> devices)
      : inner_(std::move(inner)) {
    for (size_t r = 0; r < devices.size(); ++r) {
      worlds_.push_back(
          std::make_unique<StagedWorld>(inner_->rank(static_cast<int>(r)), std::move(devices[r])));
    }
  }
  // Communicators know their streams: they go first.
  ~StagedWorlds() override { inner_.reset(); }
  comm::World* rank(int rank) override { return worlds_[rank].get(); }

 private:
  std::unique_ptr<WorldSet> inner_;
  std::vector<std::unique_ptr<StagedWorld>> worlds_;
};

}  // namespace

std::unique_ptr<WorldSet> StageOnDevices(std::unique_ptr<WorldSet> worlds,
                                         std::vector<std::shared_ptr<device::Device>> devices) {
  return std::make_unique<StagedWorlds>(std::move(worlds), std::move(devices));
}

}  // namespace moe::testing
