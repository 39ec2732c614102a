#include "moe/comm/compute_gate.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "absl/time/clock.h"

namespace moe::comm {
namespace {

// Counts who is inside and how many were at most.
class Inside {
 public:
  void Enter() {
    const int now = ++inside_;
    for (int seen = most_; now > seen && !most_.compare_exchange_weak(seen, now);) {
    }
  }
  void Leave() { --inside_; }
  int most() const { return most_; }

 private:
  std::atomic<int> inside_ = 0, most_ = 0;
};

TEST(ComputeGate, NoMoreThanItsTokensComputeAtOnce) {
  ComputeGate gate(3);
  Inside inside;
  std::vector<std::thread> threads;
  for (int t = 0; t < 12; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        ComputeGate::Scope scope(&gate);
        inside.Enter();
        std::this_thread::yield();
        inside.Leave();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_LE(inside.most(), 3);
}

TEST(ComputeGate, ReleasedLetsAnotherIn) {
  ComputeGate gate(1);
  ComputeGate::Scope scope(&gate);
  EXPECT_FALSE(ComputeGate::HasIdleTokens());
  {
    ComputeGate::Released released;
    std::thread([&] { ComputeGate::Scope other(&gate); }).join();  // would wait for ever
  }
  ComputeGate::Released again;  // holds one again, and can release it again
}

TEST(ComputeGate, ThreadsWithoutAGateAreLeftAlone) {
  ComputeGate::Released released;
  ComputeGate::Scope none(nullptr);
  EXPECT_TRUE(ComputeGate::HasIdleTokens());
}

// Threads with and without tokens take turns. A lost notification would hang.
TEST(ComputeGate, TurnsPassThroughACondition) {
  constexpr int kThreads = 6, kTurns = 600;
  ComputeGate gate(2);
  absl::Mutex mutex;
  ComputeGate::Condition changed;
  int turn = 0;
  Inside inside;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const bool gated = t % 3 != 0;
      ComputeGate::Scope scope(gated ? &gate : nullptr);
      for (int i = t; i < kTurns; i += kThreads) {
        absl::MutexLock lock(&mutex);
        while (turn != i) {
          changed.Wait(&mutex);
          if (gated) inside.Enter();
          if (gated) inside.Leave();
        }
        ++turn;
        changed.NotifyAll();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(turn, kTurns);
  EXPECT_LE(inside.most(), 2);
}

TEST(ComputeGate, WaitingGivesTheTokenUpAndANotificationBringsItBack) {
  ComputeGate gate(1);
  ComputeGate::Scope scope(&gate);
  absl::Mutex mutex;
  ComputeGate::Condition changed;
  bool entered = false;
  std::thread other([&] {
    ComputeGate::Scope scope(&gate);
    absl::MutexLock lock(&mutex);
    entered = true;
    changed.NotifyAll();
  });
  {
    absl::MutexLock lock(&mutex);
    while (!entered) changed.Wait(&mutex);
  }
  other.join();
  EXPECT_FALSE(ComputeGate::HasIdleTokens());
}

// Notifications at any time, also for nothing: none may take a token away or bring a second.
TEST(ComputeGate, TokensSurviveRacesOfNotifications) {
  ComputeGate gate(2);
  absl::Mutex mutex;
  ComputeGate::Condition changed;
  Inside inside;
  std::atomic<int> running = 4;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      ComputeGate::Scope scope(&gate);
      for (int i = 0; i < 300; ++i) {
        {
          absl::MutexLock lock(&mutex);
          changed.Wait(&mutex);
        }
        inside.Enter();
        std::this_thread::yield();
        inside.Leave();
      }
      --running;
    });
  }
  while (running > 0) {
    absl::SleepFor(absl::Microseconds(20));
    absl::MutexLock lock(&mutex);
    changed.NotifyAll();
  }
  for (std::thread& t : threads) t.join();
  EXPECT_LE(inside.most(), 2);
  ComputeGate::Scope one(&gate);  // both are there
  std::thread([&] { ComputeGate::Scope two(&gate); }).join();
}

TEST(ComputeGate, HoldersOfAllTokensRunOnDifferentCores) {
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  const int cores = CPU_COUNT(&before);
  if (cores < 2) GTEST_SKIP() << "one core";
  ComputeGate gate(cores);
  std::vector<int> core(cores);
  std::atomic<int> there = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < cores; ++t) {
    threads.emplace_back([&, t] {
      {
        ComputeGate::Scope scope(&gate);
        core[t] = sched_getcpu();
        ++there;
        while (there < cores) std::this_thread::yield();
      }
      // Whoever has left runs where he likes, as before.
      if (t == 0) sched_getaffinity(0, sizeof(after), &after);
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(std::set<int>(core.begin(), core.end()).size(), cores);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

}  // namespace
}  // namespace moe::comm
