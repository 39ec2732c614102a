#include "moe/plan/plan.h"

#include <gtest/gtest.h>

#include <iostream>
#include <limits>

#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/text.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"

namespace moe::plan {
namespace {

absl::StatusOr<Compiled> CompileModel(const std::string& file, const std::string& strategy_text,
                                      int layers = 0) {
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(strategy_text));
  ASSIGN_OR_RETURN(model::ModelConfig config,
                   model::LoadModelConfig("testdata/models/" + file + ".textproto"));
  if (layers > 0) config.set_num_layers(layers);
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module,
                   model::BuildModel(config, {.global_batch = 16, .microbatches = strategy.microbatches}));
  CompileOptions options;
  options.model_text = model::ModelConfigToText(config);
  // Some scratch for each GEMM, so that its place is planned and certified, too.
  options.workspace = [](const Node& n, const Mesh&) {
    return n.Is("math.einsum") ? int64_t{1000} : int64_t{0};
  };
  return Compile(std::move(module), strategy, options);
}

TEST(Plan, EveryStrategyIsCertified) {
  for (const char* strategy :
       {"", "dp=2 microbatches=2", "tp=2 sp", "pp=2 microbatches=4",
        "pp=2 microbatches=4 schedule=gpipe tp=2", "dp=2 tp=2 ep=2 etp=2 zero=1 microbatches=2",
        "dp=4 ep=4 zero=3", "cp=2", "cp=2 cp_attention=ring cp_order=zigzag zero=2 zero_dp=1",
        "dp=4 ep=4 zero=3 devices_per_node=2 hierarchical=on",
        "pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=4 zero=2 checkpoint=selective",
        "pp=2 dp=2 microbatches=4 zero=1 checkpoint=full", "tp=2 sp checkpoint=full",
        "pp=2 schedule=zb-h1 microbatches=4"}) {
    SCOPED_TRACE(strategy);
    const absl::StatusOr<Compiled> c = CompileModel("small_test", strategy);
    ASSERT_TRUE(c.ok()) << c.status();
    for (const auto& [pass, line] : c->plan.program.notes) std::cout << pass << ": " << line << "\n";
  }
}

TEST(Plan, SeveralChunksPerStageAreCertified) {
  for (const char* strategy :
       {"pp=2 virtual_chunks=2 schedule=interleaved microbatches=4",
        "pp=2 dp=2 virtual_chunks=2 schedule=zb-v microbatches=4 zero=2 checkpoint=full"}) {
    SCOPED_TRACE(strategy);
    EXPECT_OK(CompileModel("small_test", strategy, 4));
  }
}

TEST(Plan, ZeroBubbleHoldsAsManyResidualsAsTheFirstStageOf1F1B) {
  ASSERT_OK_AND_ASSIGN(const Compiled one, CompileModel("small_test", "pp=4 microbatches=8", 4));
  ASSERT_OK_AND_ASSIGN(const Compiled zero,
                       CompileModel("small_test", "pp=4 schedule=zb-h1 microbatches=8", 4));
  for (int s = 0; s < 4; ++s) {
    EXPECT_EQ(one.plan.program.memory.stages[s].residuals.at(s).count, 4 - s);
    EXPECT_LE(zero.plan.program.memory.stages[s].residuals.at(s).count, 4);
    // Weight gradients lag s microbatches behind.
    EXPECT_EQ(zero.plan.program.memory.stages[s].weight_residuals.at(s).count, s + 1);
  }
}

// Hybrid sharding: a copy of the state per group of zero_dp ranks.
TEST(Plan, StateOverAnInnerPartOfTheDataRanks) {
  const auto bytes = [](const std::string& strategy, const std::string& kind) -> double {
    const absl::StatusOr<Compiled> c = CompileModel("small_test", strategy);
    EXPECT_TRUE(c.ok()) << c.status();
    return c.ok() ? c->plan.program.memory.stages[0].state_bytes_by_kind.at(kind) : 0;
  };
  for (const char* kind : {"moment", "gradient", "parameter"}) {
    const double whole = bytes("dp=8", kind);
    // All dims of this model divide by 8; bytes are rounded up to the alignment of each buffer.
    EXPECT_NEAR(bytes("dp=8 zero=3", kind), whole / 8, whole / 200) << kind;
    EXPECT_NEAR(bytes("dp=8 zero=3 zero_dp=4 expert_zero_dp=4", kind), whole / 4, whole / 200) << kind;
    EXPECT_NEAR(bytes("dp=8 zero=3 zero_dp=2 expert_zero_dp=2", kind), whole / 2, whole / 200) << kind;
    std::cout << kind << ": " << whole << " replicated, " << bytes("dp=8 zero=3", kind) << " over 8, "
              << bytes("dp=8 zero=3 zero_dp=2 expert_zero_dp=2", kind) << " over 2\n";
  }
  const double moments = bytes("dp=8", "moment");
  EXPECT_NEAR(bytes("dp=8 zero=1 zero_dp=2 expert_zero_dp=2", "moment"), moments / 2, moments / 200);
  EXPECT_EQ(bytes("dp=8 zero=1 zero_dp=2 expert_zero_dp=2", "parameter"), bytes("dp=8", "parameter"));
}

TEST(Plan, DroplessOverflowHasRoom) {
  ASSERT_OK_AND_ASSIGN(
      const Compiled c,
      CompileModel("odd_test", "pp=3 dp=2 microbatches=4 overload=0.5 checkpoint=selective"));
  int64_t spill = 0;
  for (const StageMemory& s : c.plan.program.memory.stages) spill += s.spill_bytes;
  EXPECT_GT(spill, 0);
}

TEST(Plan, WhatIsSavedIsWhatLoads) {
  ASSERT_OK_AND_ASSIGN(const Compiled c, CompileModel("small_test", "pp=2 dp=2 microbatches=4 zero=1"));
  const std::string folder = JoinPath(::testing::TempDir(), "plan");
  ASSERT_OK(SavePlan(c.plan, folder));
  ASSERT_OK_AND_ASSIGN(const Plan same, LoadPlan(folder));
  EXPECT_EQ(SerializePlan(same), SerializePlan(c.plan));
  EXPECT_EQ(PlanToText(same), PlanToText(c.plan));
  EXPECT_EQ(same.program.schedule.actions, c.plan.program.schedule.actions);
  EXPECT_EQ(same.model_text, c.plan.model_text);
  // Same input, same bytes.
  ASSERT_OK_AND_ASSIGN(const Compiled again, CompileModel("small_test", "pp=2 dp=2 microbatches=4 zero=1"));
  EXPECT_EQ(SerializePlan(again.plan), SerializePlan(c.plan));
}

TEST(Plan, SplitBackwardsLoadToo) {
  ASSERT_OK_AND_ASSIGN(const Compiled c,
                       CompileModel("small_test", "pp=2 virtual_chunks=2 schedule=zb-v microbatches=4", 4));
  ASSERT_OK_AND_ASSIGN(const Plan same, ParsePlan(SerializePlan(c.plan)));
  EXPECT_EQ(same.program.schedule.actions, c.plan.program.schedule.actions);
  EXPECT_EQ(same.program.schedule.table, c.plan.program.schedule.table);
  EXPECT_EQ(PlanToText(same), PlanToText(c.plan));
  EXPECT_FALSE(same.program.memory.stages[0].weight_residuals.empty());
}

TEST(Plan, RefusesWhatItCannotRead) {
  ASSERT_OK_AND_ASSIGN(const Compiled c, CompileModel("small_test", "pp=2 microbatches=2"));
  PlanProto other = PlanToProto(c.plan);
  other.set_version(kPlanVersion + 1);
  ExpectError(PlanFromProto(other), absl::StatusCode::kFailedPrecondition, "format version 4",
              "reads version 3", "newer build");
  other.set_version(kPlanVersion - 1);
  ExpectError(PlanFromProto(other), absl::StatusCode::kFailedPrecondition, "format version 2",
              "compile again");

  const std::string bytes = SerializePlan(c.plan);
  for (const size_t size : {size_t{0}, size_t{1}, bytes.size() / 2, bytes.size() - 1}) {
    EXPECT_FALSE(ParsePlan(bytes.substr(0, size)).ok()) << size;
  }
  PlanProto bad = PlanToProto(c.plan);
  bad.mutable_schedule()->mutable_programs(0)->mutable_stages(0)->mutable_actions(1)->set_residual_slot(
      1 << 20);
  ExpectError(PlanFromProto(bad), absl::StatusCode::kFailedPrecondition, "residual slot");
  bad = PlanToProto(c.plan);
  bad.mutable_memory()->clear_stages();
  ExpectError(PlanFromProto(bad), absl::StatusCode::kFailedPrecondition, "memory of 0 stages");
}

TEST(Plan, EveryFlippedByteIsFound) {
  ASSERT_OK_AND_ASSIGN(const Compiled c, CompileModel("small_test", "dp=2"));
  const std::string good = SerializePlan(c.plan);
  ASSERT_OK(ParsePlan(good));
  for (size_t i = 0; i < good.size(); i += i + 64 < good.size() ? 17 : 1) {
    std::string bad = good;
    bad[i] ^= 0x11;
    ExpectError(ParsePlan(bad), absl::StatusCode::kDataLoss, "checksum");
  }
  // As builds before format version 3 wrote them.
  PlanProto old = PlanToProto(c.plan);
  old.set_version(2);
  ExpectError(ParsePlan(old.SerializeAsString()), absl::StatusCode::kDataLoss, "no checksum", "older build",
              "compile again");
}

TEST(Plan, NumbersHaveLimits) {
  ASSERT_OK_AND_ASSIGN(const Compiled c, CompileModel("small_test", "pp=2 microbatches=2"));
  const PlanProto good = PlanToProto(c.plan);
  PlanProto bad = good;
  bad.mutable_memory()->mutable_stages(1)->set_frame_bytes(std::numeric_limits<int64_t>::max());
  ExpectError(PlanFromProto(bad), absl::StatusCode::kInvalidArgument, "memory.stages[1].frame_bytes");
  bad = good;
  bad.mutable_schedule()->set_microbatches(-7);
  ExpectError(PlanFromProto(bad), absl::StatusCode::kInvalidArgument, "schedule.microbatches = -7");
  bad = good;
  bad.mutable_target()->set_flops(std::numeric_limits<double>::quiet_NaN());
  ExpectError(PlanFromProto(bad), absl::StatusCode::kInvalidArgument, "target.flops = nan");
  bad = good;
  SlotsProto& slots = (*bad.mutable_memory()->mutable_stages(0)->mutable_residuals())[0];
  slots.set_bytes(int64_t{1} << 50);
  slots.set_count(1 << 20);
  ExpectError(PlanFromProto(bad), absl::StatusCode::kInvalidArgument, "1048576 slots");
}

TEST(Plan, AMemoryLimitIsKept) {
  ASSERT_OK_AND_ASSIGN(const strategy::Strategy strategy, strategy::ParseStrategy("tp=2"));
  ASSERT_OK_AND_ASSIGN(const model::ModelConfig config,
                       model::LoadModelConfig("testdata/models/small_test.textproto"));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Module> module, model::BuildModel(config, {.global_batch = 4}));
  CompileOptions options;
  options.memory_limit = 1000;
  ExpectError(Compile(std::move(module), strategy, options), absl::StatusCode::kFailedPrecondition,
              "over the limit");
}

}  // namespace
}  // namespace moe::plan
