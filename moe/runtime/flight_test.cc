#include "moe/runtime/flight.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/compute_gate.h"
#include "moe/comm/device_worlds.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/model/config.h"
#include "moe/runtime/executor.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/random_inputs.h"

namespace moe::runtime {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

comm::RecordedCall CallOf(std::vector<int64_t> ranks, int64_t number, comm::RecordedCall::State state,
                          double seconds = 0) {
  comm::RecordedCall c;
  c.ranks = std::move(ranks);
  c.channel = "compute";
  c.op = "all_to_all";
  c.what = "layers.2.moe %d = comm.all_to_all";
  c.number = number;
  c.state = state;
  c.seconds = seconds;
  return c;
}

FlightRecord RecordOf(int64_t rank, std::vector<comm::RecordedCall> calls) {
  FlightRecord r;
  r.rank = rank;
  r.place = "stage 1, dp 0";
  r.host = "box";
  r.pid = 100 + rank;
  r.actions = {{"B1.3", 2.5}, {"F1.3", 4}};
  r.node = "layers.2.moe %h";
  r.calls = std::move(calls);
  return r;
}

TEST(Diagnose, NamesTheEndOfAChainOfWaits) {
  // 3 waits for 2, which waits for 1, which waits for nobody: it computes.
  const Diagnosis d = Diagnose({
      RecordOf(1, {CallOf({1, 2}, 4, comm::RecordedCall::kDone)}),
      RecordOf(2, {CallOf({1, 2}, 5, comm::RecordedCall::kFailed, 30),
                   CallOf({2, 3}, 1, comm::RecordedCall::kDone)}),
      RecordOf(3, {CallOf({2, 3}, 2, comm::RecordedCall::kRunning, 31)}),
  });
  EXPECT_THAT(d.culprits, ElementsAre(1));
  EXPECT_THAT(d.text, HasSubstr("rank 2 (stage 1, dp 0) waits 30 s in all_to_all for layers.2.moe"));
  EXPECT_THAT(
      d.text,
      HasSubstr(
          "rank 1 (stage 1, dp 0) never entered it: its last action was B1.3 (layers.2.moe %h), 2.5 s ago"));
}

TEST(Diagnose, SaysWhoIsInTheSameCall) {
  const Diagnosis d = Diagnose({
      RecordOf(4, {CallOf({4, 5, 7}, 9, comm::RecordedCall::kFailed, 29)}),
      RecordOf(5, {CallOf({4, 5, 7}, 9, comm::RecordedCall::kFailed, 30)}),
      RecordOf(7, {CallOf({4, 5, 7}, 8, comm::RecordedCall::kDone)}),
  });
  EXPECT_THAT(d.culprits, ElementsAre(7));
  EXPECT_THAT(d.text, HasSubstr("rank 5 ("));
  EXPECT_THAT(d.text, HasSubstr("rank 4 is in the same call; rank 7"));
}

TEST(Diagnose, ARankThatDoesNotAnswerIsAtFaultWhateverItSaidBefore) {
  FlightRecord stopped = RecordOf(1, {CallOf({0, 1}, 3, comm::RecordedCall::kRunning, 1)});
  stopped.stale = true;
  stopped.silent = 12;
  const Diagnosis d = Diagnose({RecordOf(0, {CallOf({0, 1}, 3, comm::RecordedCall::kFailed, 20)}), stopped});
  EXPECT_THAT(d.culprits, ElementsAre(1));
  EXPECT_THAT(d.text, HasSubstr("process 101 on box) does not answer, silent for 12 s"));
  EXPECT_THAT(d.text, HasSubstr("rank 0 (stage 1, dp 0) waits 20 s"));
}

TEST(Diagnose, NobodyWaitsNobodyIsToBlame) {
  const Diagnosis d = Diagnose({RecordOf(0, {CallOf({0, 1}, 3, comm::RecordedCall::kDone)}),
                                RecordOf(1, {CallOf({0, 1}, 3, comm::RecordedCall::kDone)})});
  EXPECT_THAT(d.culprits, IsEmpty());
  EXPECT_EQ(d.text, "");
}

TEST(FlightRecord, JsonAndBack) {
  FlightRecord r = RecordOf(
      3, {CallOf({0, 3}, 7, comm::RecordedCall::kFailed, 1.5), CallOf({3, 4}, 1, comm::RecordedCall::kDone)});
  r.step = 312;
  r.program = "train_step";
  r.error = "rank 3: \"quoted\"\n";
  ASSERT_OK_AND_ASSIGN(const FlightRecord back, ParseFlight(FlightJson(r)));
  EXPECT_EQ(FlightJson(back), FlightJson(r));
  EXPECT_EQ(back.calls[0].state, comm::RecordedCall::kFailed);
  EXPECT_EQ(back.error, r.error);
  for (const char* bad : {"", "{", "[]", "{\"rank\": \"x\"}"}) EXPECT_FALSE(ParseFlight(bad).ok()) << bad;
}

// A rank that, from some moment on, never comes back from a collective that its peers have finished: as if it
// computed for ever after it.
class StuckWorld : public comm::World {
 public:
  explicit StuckWorld(comm::World* inner) : inner_(inner) {}
  int64_t rank() const override { return inner_->rank(); }
  int64_t num_ranks() const override { return inner_->num_ranks(); }
  absl::StatusOr<comm::Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                            device::Stream* stream) override {
    absl::StatusOr<comm::Communicator*> inner = inner_->Group(ranks, channel, stream);
    if (!inner.ok()) return inner;
    stuck_.push_back(std::make_unique<Stuck>(*inner, &stop));
    return stuck_.back().get();
  }
  void Abort(absl::Status reason) override { inner_->Abort(std::move(reason)); }
  std::atomic<bool> stop{false};

 private:
  class Stuck : public comm::Communicator {
   public:
    Stuck(comm::Communicator* c, std::atomic<bool>* stop) : c_(c), stop_(stop) {}
    int rank() const override { return c_->rank(); }
    int size() const override { return c_->size(); }
    absl::Status Run(const comm::Call& call) override {
      absl::Status status = c_->Run(call);
      comm::ComputeGate::Released released;
      while (*stop_ && call.op != comm::Call::kSend && call.op != comm::Call::kBarrier)
        absl::SleepFor(absl::Milliseconds(10));
      return status;
    }
    void Abort(absl::Status reason) override { c_->Abort(std::move(reason)); }

   private:
    comm::Communicator* const c_;
    std::atomic<bool>* const stop_;
  };
  comm::World* const inner_;
  std::vector<std::unique_ptr<Stuck>> stuck_;
};

TEST(Flight, ARankThatHangsIsNamedAndLeftBehind) {
  ASSERT_OK_AND_ASSIGN(const model::ModelConfig model, model::ParseModelConfig(R"(
      num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2 vocab_size: 64 seq_length: 16
      num_experts: 4 moe_router_topk: 2 moe_ffn_hidden_size: 32 capacity_factor: 1.25)",
                                                                               "model"));
  // What a hanging thread may touch when it goes on is never freed.
  auto& program = *new Program;
  ASSERT_OK_AND_ASSIGN(program, testing::CompileProgram(model, "pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=2"));
  auto& inner = *new comm::InProcessWorld(8, {.timeout = absl::Seconds(2)});
  auto& stuck = *new StuckWorld(inner.rank(6));
  comm::DeviceWorldsOptions ranks;
  ranks.num_ranks = 8;
  for (int64_t r = 0; r < 8; ++r) ranks.host.push_back(r == 6 ? &stuck : inner.rank(r));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<comm::DeviceWorlds> worlds, comm::DeviceWorlds::Open(ranks));
  ExecutorOptions options;
  options.timeout = absl::Seconds(2);
  options.worlds = worlds.release();
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Executor> executor, Executor::Create(program, options));
  ASSERT_OK(executor->InitializeState(1));
  ASSERT_OK_AND_ASSIGN(const StepInputs inputs, testing::RandomInputs(*program.module, {}, 1));
  ASSERT_OK(executor->TrainStep(inputs).status());
  executor->NameStep(2);
  stuck.stop = true;
  ExpectError(executor->TrainStep(inputs), absl::StatusCode::kDeadlineExceeded, "never ");
  const std::vector<FlightRecord> records = executor->Flight();
  ASSERT_EQ(records.size(), 8);
  EXPECT_EQ(records[6].step, 2);
  EXPECT_EQ(records[6].error, "");
  EXPECT_FALSE(records[6].actions.empty());
  const Diagnosis d = Diagnose(records);
  EXPECT_THAT(d.culprits, ElementsAre(6)) << d.text;
  EXPECT_THAT(d.text, HasSubstr("rank 6 (stage 1, ")) << d.text;
  EXPECT_THAT(d.text, HasSubstr("never entered it: its last action was"));
  EXPECT_FALSE(executor->TrainStep(inputs).ok());
  executor.reset();  // does not wait for the rank
}

}  // namespace
}  // namespace moe::runtime
