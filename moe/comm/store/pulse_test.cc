#include "moe/comm/store/pulse.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/running_time.h"
#include "moe/base/status_matchers.h"

namespace moe::comm {
namespace {

void Await(absl::Duration time) {
  while (RunningTime() < time) absl::SleepFor(absl::Milliseconds(10));
}

TEST(PulseTest, NobodyPausesAmongThoseThatBeat) {
  MemoryStore store;
  Pulse one(&store, 0, 2), other(&store, 1, 2);
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_FALSE(one.SomebodyPauses());
  PeerDeadline deadline(absl::Milliseconds(100), &one);
  Await(deadline.at());
  EXPECT_FALSE(deadline.Extend());  // a peer that runs and does not come hangs
}

TEST(PulseTest, OneThatFallsSilentIsWaitedForAndNotForEver) {
  MemoryStore store;
  Pulse one(&store, 0, 2);
  { Pulse other(&store, 1, 2); }  // its last beat stays
  ASSERT_OK(store.Set("pulse/1", "7 0"));
  PeerDeadline deadline(absl::Milliseconds(50), &one);
  int times = 0;
  for (; deadline.Extend(); ++times) {
    ASSERT_LT(times, 10);
    EXPECT_GT(deadline.at(), RunningTime());
  }
  EXPECT_EQ(times, 3);
}

TEST(PulseTest, APauseThatIsOverCountsOnce) {
  MemoryStore store;
  Pulse one(&store, 0, 2);
  // As another process says after it was stopped for a minute.
  Cancellation stop;
  std::thread other([&] {
    for (int n = 1; !stop.SleepFor(absl::Milliseconds(100)); ++n) {
      EXPECT_OK(store.Set("pulse/1", absl::StrCat(n, " 60000")));
    }
  });
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_TRUE(one.SomebodyPauses());
  Await(RunningTime() + absl::Milliseconds(700));
  EXPECT_FALSE(one.SomebodyPauses());
  stop.Cancel();
  other.join();
}

TEST(PulseTest, OneThatHasNotBegunIsNotPaused) {
  MemoryStore store;
  Pulse one(&store, 0, 3);
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_FALSE(one.SomebodyPauses());
}

}  // namespace
}  // namespace moe::comm
