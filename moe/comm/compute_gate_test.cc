#include "moe/comm/compute_gate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace moe {
namespace {

TEST(ComputeGate, NoMoreThanItsTokensComputeAtOnce) {
  ComputeGate gate(3);
  std::atomic<int> inside = 0, most = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 12; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        ComputeGate::Scope scope(&gate);
        const int now = ++inside;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        std::this_thread::yield();
        --inside;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_LE(most, 3);
}

TEST(ComputeGate, ReleasedLetsAnotherIn) {
  ComputeGate gate(1);
  ComputeGate::Scope scope(&gate);
  {
    ComputeGate::Released released;
    std::thread([&] { ComputeGate::Scope other(&gate); }).join();  // would wait for ever
  }
  ComputeGate::Released again;  // holds one again, and can release it again
}

TEST(ComputeGate, ThreadsWithoutAGateAreLeftAlone) {
  ComputeGate::Released released;
  ComputeGate::Scope none(nullptr);
}

}  // namespace
}  // namespace moe
