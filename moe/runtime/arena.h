// Arena: one rank's memory, laid out by the Plan, on the rank's device. Room for the planned peak and for the
// spill region is taken when the plan is loaded; nothing is allocated in the step loop. On the host that is
// address space: pages of the spill region are touched only when a ragged value exceeds its bound, and given
// back after the step. A GPU gives all of it at once.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Arena> arena, Arena::Create(stage_memory, device));
//   void* p = arena->At(Space::kFrame, offset);
//
// Plans that share state (ir/state_layout.h) share memory: each has an arena of its own over the same bytes,
// persistent state at the same offsets, and everything else is free for whichever of them runs.
//
// Owned by the rank that uses it; not thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/device/device.h"
#include "moe/ir/program.h"

namespace moe::runtime {

class Arena {
 public:
  // Bytes that a plan needs: its peak, and the room for spilled rows.
  static int64_t BytesOf(const StageMemory& memory);
  // Takes BytesOf(memory), or `reserve` bytes if that is more. Error: ResourceExhausted with the plan's own
  // numbers and the device's.
  static absl::StatusOr<std::unique_ptr<Arena>> Create(const StageMemory& memory, device::Device* device,
                                                       int64_t reserve = 0);
  // In the bytes of another arena. ResourceExhausted if that took too little.
  static absl::StatusOr<std::unique_ptr<Arena>> Share(const StageMemory& memory, const Arena& other);
  Arena(const Arena&) = delete;

  char* At(Space space, int64_t offset) const;
  // Offset of an address from the start of the arena; spill addresses lie beyond planned_bytes().
  int64_t OffsetOf(const void* p) const { return static_cast<const char*>(p) - base_; }
  int64_t planned_bytes() const { return planned_; }
  // The executor marks the end of every buffer that it hands to a kernel, so the measured peak is what was
  // used. Ends are rounded up to the granularity of 64 bytes in which the plan hands memory out.
  // Any thread of the rank may mark.
  void MarkUsed(int64_t end) {
    end = (end + 63) / 64 * 64;
    if (end <= planned_) {
      Raise(used_, end);
    } else {
      Raise(spill_used_, end - start_[5]);
      Raise(spill_peak_, end - start_[5]);
    }
  }
  int64_t used_bytes() const { return used_; }  // highest planned byte in use so far
  int64_t spill_peak_bytes() const { return spill_peak_; }
  void ReleaseSpill();  // gives touched spill pages back to the system

 private:
  explicit Arena(const StageMemory& memory);
  static void Raise(std::atomic<int64_t>& mark, int64_t to) {
    int64_t now = mark.load(std::memory_order_relaxed);
    while (now < to && !mark.compare_exchange_weak(now, to, std::memory_order_relaxed)) {
    }
  }
  std::shared_ptr<device::DeviceMemory> bytes_;  // lives as long as an arena in it
  char* base_ = nullptr;
  int64_t planned_ = 0, reserved_ = 0;
  std::atomic<int64_t> used_{0}, spill_used_{0}, spill_peak_{0};
  int64_t start_[8] = {};
};

}  // namespace moe::runtime
