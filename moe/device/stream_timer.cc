#include "moe/device/stream_timer.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "moe/base/clock.h"
#include "moe/base/status.h"

namespace moe::device {
namespace {

constexpr int kRoundTrips = 4;

}  // namespace

absl::Status StreamTimer::Reserve(int64_t marks) {
  while (static_cast<int64_t>(events_.size()) < marks) {
    ASSIGN_OR_RETURN(events_.emplace_back(), stream_->device()->NewTimedEvent());
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> StreamTimer::Mark() {
  if (used_ == static_cast<int64_t>(events_.size())) {
    return absl::ResourceExhaustedError(absl::StrCat("more than the ", used_, " marks that were reserved"));
  }
  RETURN_IF_ERROR(stream_->Record(events_[used_].get()));
  return used_++;
}

absl::StatusOr<double> StreamTimer::Seconds(int64_t from, int64_t to) const {
  return stream_->device()->SecondsBetween(event(from), event(to));
}

absl::StatusOr<std::unique_ptr<ClockReference>> ClockReference::Create(Stream* stream) {
  std::unique_ptr<ClockReference> r(new ClockReference(stream));
  for (int i = 0; i < kRoundTrips; ++i) {
    ASSIGN_OR_RETURN(r->events_.emplace_back(), stream->device()->NewTimedEvent());
  }
  return r;
}

absl::Status ClockReference::Set() {
  RETURN_IF_ERROR(stream_->Synchronize());
  int64_t shortest = INT64_MAX;
  for (size_t i = 0; i < events_.size(); ++i) {
    const int64_t before = NowNanos();
    RETURN_IF_ERROR(stream_->Record(events_[i].get()));
    RETURN_IF_ERROR(stream_->Synchronize());
    const int64_t trip = NowNanos() - before;
    if (trip >= shortest) continue;
    shortest = trip;
    best_ = i;
    host_ns_ = before + trip / 2;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ClockReference::HostNanos(const StreamTimer& timer, int64_t mark) const {
  ASSIGN_OR_RETURN(const double seconds,
                   stream_->device()->SecondsBetween(*events_[best_], timer.event(mark)));
  return host_ns_ + std::llround(1e9 * seconds);
}

}  // namespace moe::device
