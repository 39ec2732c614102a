// When streams reached points of their work, by the clock of their device, and when that was by the host's.
//
//   StreamTimer timer(stream);
//   RETURN_IF_ERROR(timer.Reserve(/*marks=*/2));
//   ASSIGN_OR_RETURN(const int64_t begin, timer.Mark());
//   ... work for the stream ...
//   ASSIGN_OR_RETURN(const int64_t end, timer.Mark());
//   ASSIGN_OR_RETURN(const double seconds, timer.Seconds(begin, end));   // waits until both are reached
//
// A mark is reached when the work before it is done: a span between two marks holds the work given between
// them, and where the stream had nothing else to do, the time that the host took to give it. Used by one
// thread at a time, as the stream is; the stream and its device outlive both classes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "moe/device/device.h"

namespace moe::device {

class StreamTimer {
 public:
  explicit StreamTimer(Stream* stream) : stream_(stream) {}

  // Makes the events for so many marks between two Clears; nothing is made after that.
  absl::Status Reserve(int64_t marks);
  // The number of the mark, from 0. Error: ResourceExhausted beyond what was reserved.
  absl::StatusOr<int64_t> Mark();
  // Waits until both are reached.
  absl::StatusOr<double> Seconds(int64_t from, int64_t to) const;
  void Clear() { used_ = 0; }

  int64_t marks() const { return used_; }
  const Event& event(int64_t mark) const { return *events_[mark]; }

 private:
  Stream* const stream_;
  std::vector<std::unique_ptr<Event>> events_;
  int64_t used_ = 0;
};

// One moment by a device's clock and by NowNanos(), from which times of the one follow from the other's: for
// a while, since the clocks drift apart by some microseconds a second, and CUDA gives the time between two
// events in f32, exact to a microsecond up to 16 s.
class ClockReference {
 public:
  static absl::StatusOr<std::unique_ptr<ClockReference>> Create(Stream* stream);

  // Now. Waits for the stream; one that has nothing to do makes the reference good: off by at most half of
  // the shortest of a few round trips.
  absl::Status Set();
  // NowNanos() when the mark of a timer of this device was reached. Waits until it is.
  absl::StatusOr<int64_t> HostNanos(const StreamTimer& timer, int64_t mark) const;

 private:
  explicit ClockReference(Stream* stream) : stream_(stream) {}

  Stream* const stream_;
  std::vector<std::unique_ptr<Event>> events_;
  size_t best_ = 0;
  int64_t host_ns_ = 0;  // when events_[best_] was reached
};

}  // namespace moe::device
