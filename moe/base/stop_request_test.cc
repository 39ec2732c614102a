#include "moe/base/stop_request.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "moe/base/exit_code.h"

namespace moe {
namespace {

// Each test in a process of its own, since handlers are a process's.
class StopRequestTest : public ::testing::Test {
 protected:
  StopRequestTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  static void Send(int signal) {
    kill(getpid(), signal);
    absl::SleepFor(absl::Milliseconds(50));
  }
  static void AwaitAsked(const StopRequest& stop) {
    while (!stop.asked()) absl::SleepFor(absl::Milliseconds(1));
  }
};

TEST_F(StopRequestTest, EverySignalOfALauncherEndsAtOnceWhatHasNothingToSave) {
  for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGUSR1, SIGUSR2}) {
    EXPECT_EXIT(
        {
          StopRequest::Listen().EndsAtOnce("before it began");
          kill(getpid(), s);
          absl::SleepFor(absl::Seconds(20));
        },
        ::testing::ExitedWithCode(kExitStopped),
        "^stopped by SIG(INT|TERM|HUP|XCPU|USR1|USR2) before it began")
        << s;
  }
}

TEST_F(StopRequestTest, WhatIsSentTwiceIsOneRequest) {
  EXPECT_EXIT(
      {
        StopRequest& stop = StopRequest::Listen();
        stop.EndsInOrder("");
        Send(SIGTERM);
        Send(SIGTERM);
        Send(SIGINT);  // a parent's beside the launcher's
        AwaitAsked(stop);
        absl::SleepFor(absl::Milliseconds(700));
        Send(SIGTERM);
        Send(SIGUSR1);
        Send(SIGHUP);
        _exit(stop.by() == "SIGTERM" && !stop.insists() ? 7 : 8);
      },
      ::testing::ExitedWithCode(7), "");
}

TEST_F(StopRequestTest, ASecondInterruptEndsAtOnceAndSaysHowToGoOn) {
  EXPECT_EXIT(
      {
        StopRequest::Listen().EndsInOrder("at once; go on with --resume=runs/7");
        Send(SIGINT);
        absl::SleepFor(absl::Milliseconds(600));
        Send(SIGINT);
        absl::SleepFor(absl::Seconds(20));
      },
      ::testing::ExitedWithCode(kExitAtOnce), "stopped by SIGINT at once; go on with --resume=runs/7");
}

TEST_F(StopRequestTest, ARequestIsNotLostBetweenTwoPhases) {
  EXPECT_EXIT(
      {
        StopRequest& stop = StopRequest::Listen();
        stop.EndsInOrder("");
        stop.Ask("a closed output");
        AwaitAsked(stop);
        stop.EndsAtOnce("after the last step");
        absl::SleepFor(absl::Seconds(20));
      },
      ::testing::ExitedWithCode(kExitStopped), "stopped by a closed output after the last step");
}

TEST_F(StopRequestTest, UnderNohupAHangUpIsNone) {
  EXPECT_EXIT(
      {
        signal(SIGHUP, SIG_IGN);
        StopRequest& stop = StopRequest::Listen();
        Send(SIGHUP);
        _exit(stop.asked() ? 8 : 7);
      },
      ::testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace moe
