// OrderCheck: says of every two pieces of work on the same memory, one of which writes, whether events order
// them; for tests of what runs on streams. It needs no delays and no luck: what nothing orders is found
// however the work happened to run.
//
//   OrderCheck check;
//   std::unique_ptr<device::Device> watched = check.Watch(device::NewHostDevice(), /*ordinal=*/0);
//   ... a run on it ...
//   EXPECT_THAT(check.Races(), ::testing::IsEmpty());
//   for (const OrderCheck::Site& site : check.Sites()) check.Races(&site);   // without that wait
//
// A watched device passes everything on to the one inside and keeps a record of it. Its memory is not the
// host's to touch, even where the inner device's is: a host device is then used as a GPU would be, with the
// host's kernels as work.
//
// Races goes through the record with vector clocks (L. Lamport, "Time, clocks, and the ordering of events in
// a distributed system", 1978; C. J. Fidge, 1988) of streams and threads. Work of a stream follows what that
// stream was given before, what its Waits bring, and what the thread that gives it did or had waited for
// (Synchronize). A thread that uses a stream follows the one that used it before, since streams are used by
// one thread at a time; nothing else is known of what threads tell each other, and what two threads do with
// memory themselves is not looked at.
//
// Known is what Copy, Fill, CopyRows, Reduce, Encode and Decode touch, from the first byte to the last; what
// others say by Stream::Uses and Device::HostUses; and that memory is given back. All of it in memory of
// watched devices: other memory, and work that nobody tells of, is not seen.
//
// Outlives its devices. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/device/device.h"

namespace moe::testing {

class OrderCheck {
 public:
  // A stream and an event that it waits for, or a stream that threads wait for.
  struct Site {
    int stream = 0, event = 0;  // event -1: Synchronize
    std::string what;           // "comm 0 of device 0 after compute 0 of device 0"
    std::string kind;  // "comm after compute", "comm after comm of another device", "host after compute"
    std::string last, next;  // of the first wait: the work before it there, and after it here
    int64_t waits = 0;
    bool adds = false;  // some wait brought what the waiter did not know yet
  };

  OrderCheck();
  ~OrderCheck();
  OrderCheck(const OrderCheck&) = delete;
  OrderCheck& operator=(const OrderCheck&) = delete;

  // The device inside has that ordinal, or none of its own.
  std::unique_ptr<device::Device> Watch(std::unique_ptr<device::Device> inner, int ordinal);

  // Races in all that was done so far: the first 20 of different words. With a site: the first race that
  // there would be if the waits of that site brought nothing.
  std::vector<std::string> Races(const Site* without = nullptr) const;
  std::vector<Site> Sites() const;  // by stream and event, as they were made
  int64_t size() const;             // of the record, in pieces of work, records and waits

 private:
  friend class WatchedDevice;
  friend class WatchedMemory;
  friend class WatchedStream;
  class Replay;

  struct Actor {  // a stream or a thread
    std::string name, kind;
    bool is_thread = false;
    int device = 0;
  };
  struct Work {
    std::string what;
    std::vector<device::MemoryUse> uses;
  };
  struct Entry {
    enum Kind : uint8_t { kWork, kRecord, kWait, kSynchronize, kHostUse, kGiveBack } kind;
    int thread = 0;
    int stream = 0, event = -1;
    std::shared_ptr<const Work> work;
  };

  int NewStream(absl::string_view name, int device);
  int NewEvent();
  int ThreadLocked();  // the actor of the calling thread
  void Add(Entry::Kind kind, int stream, int event, std::shared_ptr<const Work> work);
  // The uses of memory that watched devices gave.
  std::shared_ptr<const Work> Known(std::string what, absl::Span<const device::MemoryUse> uses);
  void Gave(const device::DeviceMemory& memory);
  void TakesBack(const device::DeviceMemory& memory);

  mutable std::mutex mutex_;
  std::vector<Actor> actors_;
  std::map<int64_t, int> threads_;         // actors, by number of the thread
  std::map<std::string, int> named_;       // streams so far
  std::map<uintptr_t, uintptr_t> blocks_;  // memory that was given: begin, end
  std::vector<Entry> entries_;
  int events_ = 0;
};

}  // namespace moe::testing
