#include "moe/comm/device_worlds.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

std::optional<NcclBackend>& Nccl() {
  static auto& backend = *new std::optional<NcclBackend>;
  return backend;
}

absl::StatusOr<std::string> NcclVersion() {
  if (!Nccl().has_value()) return absl::UnavailableError("this binary was built without NCCL");
  return Nccl()->version();
}

std::string Count(int64_t n, absl::string_view what) { return absl::StrCat(n, " ", what, n == 1 ? "" : "s"); }

}  // namespace

NcclBackendRegistration::NcclBackendRegistration(NcclBackend backend) { Nccl() = backend; }

absl::StatusOr<DevicePlacement> PlaceRanks(const DeviceWorldsOptions& o, int devices) {
  if (o.num_ranks < 1 || o.processes < 1 || o.local_processes < 1 || o.num_ranks % o.processes != 0 ||
      o.process < 0 || o.process >= o.processes || o.local_process < 0 ||
      o.local_process >= o.local_processes) {
    return absl::InvalidArgumentError(
        absl::StrCat(Count(o.num_ranks, "rank"), " cannot be dealt to ", o.processes, " processes evenly"));
  }
  if (devices < 1)
    return absl::UnavailableError(absl::StrCat("no ", device::DeviceKindName(o.kind), " device"));
  const int64_t local = o.num_ranks / o.processes;
  DevicePlacement p;
  p.nccl = o.kind == device::DeviceKind::kCuda && o.num_ranks > 1 && (o.processes > 1 || local <= devices);
  int64_t first = 0;
  if (o.processes > 1 && o.kind == device::DeviceKind::kCuda) {
    // A launcher may have given each process devices of its own to see.
    const bool sees_all = devices >= local * o.local_processes;
    if (!sees_all && devices != local) {
      return absl::InvalidArgumentError(absl::StrCat(
          Count(local * o.local_processes, "rank"), " in ", o.local_processes,
          o.local_processes == 1 ? " process" : " processes", " on this machine, and ", Count(devices, "GPU"),
          ": processes do not share one. Legal: at most as many ranks on a machine as it has GPUs, or all "
          "ranks in one process, where they share them"));
    }
    if (sees_all) first = o.local_process * local;
  }
  for (int64_t i = 0; i < local; ++i) p.ordinals.push_back(static_cast<int>((first + i) % devices));
  return p;
}

absl::StatusOr<std::unique_ptr<DeviceWorlds>> DeviceWorlds::Open(const DeviceWorldsOptions& options) {
  RETURN_IF_ERROR(device::CheckDevices(options.kind));
  const int devices = options.devices > 0 ? options.devices : device::CountDevices(options.kind);
  const auto open = options.open ? options.open : decltype(options.open)(&device::OpenDevice);
  ASSIGN_OR_RETURN(DevicePlacement placement, PlaceRanks(options, devices));
  if (options.processes > 1 &&
      (options.store == nullptr || options.host.size() != placement.ordinals.size())) {
    return absl::InvalidArgumentError("several processes need a store and a host world for each rank");
  }
  std::unique_ptr<DeviceWorlds> w(new DeviceWorlds);
  std::map<int, device::Device*> opened;
  for (const int ordinal : placement.ordinals) {
    if (opened.count(ordinal) == 0) {
      ASSIGN_OR_RETURN(std::unique_ptr<device::Device> device, open(options.kind, ordinal));
      opened[ordinal] = device.get();
      w->devices_.push_back(std::move(device));
    }
    w->rank_devices_.push_back(opened[ordinal]);
  }
  const std::string unit = options.kind == device::DeviceKind::kCuda ? "GPU" : "host";
  std::string by = "in this process";
  if (placement.nccl) {
    const absl::StatusOr<std::string> version = NcclVersion();
    if (version.ok()) {
      by = absl::StrCat("by NCCL ", *version);
    } else if (options.processes > 1) {
      return version.status();
    } else {
      placement.nccl = false;
      by = absl::StrCat("in this process, since ", version.status().message());
    }
  }
  const int64_t local = static_cast<int64_t>(placement.ordinals.size());
  std::vector<World*> host = options.host;
  if (host.empty()) {
    w->in_process_ =
        std::make_unique<InProcessWorld>(options.num_ranks, InProcessOptions{.timeout = options.timeout});
    for (int64_t r = 0; r < options.num_ranks; ++r) host.push_back(w->in_process_->rank(r));
  }
  Store* store = options.store;
  if (placement.nccl && store == nullptr) {
    w->store_ = std::make_unique<MemoryStore>();
    store = w->store_.get();
  }
  for (int64_t i = 0; i < local; ++i) {
    if (!placement.nccl) {
      w->worlds_.push_back(host[i]);
      continue;
    }
    ASSIGN_OR_RETURN(
        std::unique_ptr<World> world,
        Nccl()->connect(options.process * local + i, options.num_ranks, store, host[i], options));
    w->worlds_.push_back(world.get());
    w->owned_.push_back(std::move(world));
  }
  w->uses_nccl_ = placement.nccl;
  const int64_t used = static_cast<int64_t>(w->devices_.size());
  w->description_ = absl::StrCat(Count(options.num_ranks, "rank"),
                                 options.num_ranks == 1 ? absl::StrCat(" on ", w->devices_[0]->description())
                                 : used == local        ? absl::StrCat(", a ", unit, " each, ", by)
                                                 : absl::StrCat(" that share ", Count(used, unit), ", ", by));
  return w;
}

}  // namespace moe::comm
