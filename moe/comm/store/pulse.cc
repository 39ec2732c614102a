#include "moe/comm/store/pulse.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

constexpr absl::Duration kBeat = absl::Seconds(1), kSilence = absl::Milliseconds(2500);
constexpr int64_t kPauseMs = 500;       // shorter ones are those of a busy machine
constexpr int kPausesAreWaitedFor = 3;  // times the timeout, beside the first

std::string Key(int64_t process) { return absl::StrCat("pulse/", process); }

}  // namespace

Pulse::Pulse(Store* store, int64_t process, int64_t processes)
    : store_(store), process_(process), processes_(processes), giver_([this] { Give(); }) {}

Pulse::~Pulse() {
  stop_.Cancel();
  giver_.join();
}

void Pulse::Give() {
  int64_t number = 0;
  do {
    store_->Set(Key(process_), absl::StrCat(++number, " ", absl::ToInt64Milliseconds(PausedTime())))
        .IgnoreError();
  } while (!stop_.SleepFor(kBeat));
}

absl::StatusOr<std::vector<Pulse::Beat>> Pulse::Read() {
  std::vector<Beat> beats(processes_);
  for (int64_t p = 0; p < processes_; ++p) {
    const absl::StatusOr<std::string> text = store_->Get(Key(p), absl::ZeroDuration());
    if (absl::IsDeadlineExceeded(text.status())) continue;
    RETURN_IF_ERROR(text.status());
    const std::pair<std::string, std::string> parts = absl::StrSplit(*text, ' ');
    if (!absl::SimpleAtoi(parts.first, &beats[p].number)) beats[p].number = 0;
    if (!absl::SimpleAtoi(parts.second, &beats[p].paused_ms)) beats[p].paused_ms = 0;
  }
  return beats;
}

void Pulse::SetDeathCheck(std::function<bool()> somebody_is_dead) {
  absl::MutexLock lock(&asking_);
  somebody_is_dead_ = std::move(somebody_is_dead);
}

bool Pulse::SomebodyPauses() {
  absl::MutexLock lock(&asking_);
  // The threads of a process that wait for the same peer ask together.
  if (RunningTime() - asked_ < kBeat / 2) return answer_;
  const auto ask = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(asking_) {
    const absl::StatusOr<std::vector<Beat>> before = Read();
    if (!before.ok()) return false;
    const absl::Duration until = RunningTime() + kSilence;
    for (;;) {
      const absl::StatusOr<std::vector<Beat>> now = Read();
      if (!now.ok() || (somebody_is_dead_ && somebody_is_dead_())) return false;
      bool silent = false;
      int64_t paused_ms = 0;
      for (int64_t p = 0; p < processes_; ++p) {
        silent = silent || ((*now)[p].number > 0 && (*now)[p].number == (*before)[p].number);
        paused_ms += (*now)[p].paused_ms;
      }
      if (silent && RunningTime() < until && !stop_.SleepFor(kBeat / 4)) continue;
      const bool paused = paused_ms > paused_ms_ + kPauseMs;
      paused_ms_ = paused_ms;
      return silent || paused;
    }
  };
  answer_ = ask();
  asked_ = RunningTime();
  return answer_;
}

PeerDeadline::PeerDeadline(absl::Duration timeout, Pulse* pulse)
    : timeout_(timeout), at_(RunningTime() + timeout), pulse_(pulse) {}

bool PeerDeadline::Extend() {
  if (pulse_ == nullptr || times_ == kPausesAreWaitedFor || !pulse_->SomebodyPauses()) return false;
  ++times_;
  at_ = RunningTime() + timeout_;
  return true;
}

}  // namespace moe::comm
