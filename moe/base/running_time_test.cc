#include "moe/base/running_time.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace moe {
namespace {

// In a child, which is stopped meanwhile: how much of `limit` it says is over.
TEST(RunningTimeTest, ATimeInWhichTheProcessIsStoppedDoesNotCount) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    const absl::Duration start = RunningTime();
    const absl::Time wall = absl::Now();
    bool rang = false;
    Alarm alarm(start + absl::Milliseconds(800), [&] { rang = true; });
    char ready = 'r';
    if (write(ends[1], &ready, 1) != 1) _exit(9);
    while (absl::Now() - wall < absl::Milliseconds(1500) ||
           (PausedTime() < absl::Milliseconds(900) && absl::Now() - wall < absl::Seconds(10))) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    const absl::Duration ran = RunningTime() - start;
    _exit((ran > absl::Milliseconds(600) ? 1 : 0) + (rang ? 2 : 0) +
          (PausedTime() < absl::Milliseconds(900) ? 4 : 0));
  }
  char ready;
  ASSERT_EQ(read(ends[0], &ready, 1), 1);
  ASSERT_EQ(kill(child, SIGSTOP), 0);
  absl::SleepFor(absl::Milliseconds(1300));
  ASSERT_EQ(kill(child, SIGCONT), 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << "1: it counted; 2: the alarm rang; 4: the pause was not noticed";
  close(ends[0]);
  close(ends[1]);
}

TEST(RunningTimeTest, AnAlarmRingsOnceAndNotBefore) {
  absl::Mutex mutex;
  absl::CondVar changed;
  int rung = 0;
  const absl::Duration at = RunningTime() + absl::Milliseconds(120);
  Alarm alarm(at, [&] {
    absl::MutexLock lock(&mutex);
    ++rung;
    changed.SignalAll();
  });
  {
    absl::MutexLock lock(&mutex);
    while (rung == 0) changed.Wait(&mutex);
  }
  EXPECT_GE(RunningTime(), at);
  const absl::Duration later = RunningTime() + absl::Milliseconds(150);
  while (RunningTime() < later) absl::SleepFor(absl::Milliseconds(5));
  absl::MutexLock lock(&mutex);
  EXPECT_EQ(rung, 1);
}

TEST(RunningTimeTest, AnAlarmThatIsGoneIsSilent) {
  bool rung = false;
  {
    Alarm alarm(RunningTime() + absl::Milliseconds(60), [&] { rung = true; });
  }
  Alarm never(absl::InfiniteDuration(), [&] { rung = true; });
  const absl::Duration later = RunningTime() + absl::Milliseconds(150);
  while (RunningTime() < later) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_FALSE(rung);
}

}  // namespace
}  // namespace moe
