#include "moe/passes/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/registry.h"
#include "moe/ir/state.h"
#include "moe/passes/builtin.h"
#include "moe/passes/pipeline.h"
#include "moe/passes/schedule/schedule_table.h"
#include "moe/passes/schedule/split_phases.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/equivalence.h"

namespace moe::passes {
namespace {

constexpr char kBefore[] = "autodiff,partition-stages,shard,insert-collectives";

absl::StatusOr<Program> Place(const std::string& strategy, const std::string& pipeline) {
  ASSIGN_OR_RETURN(const model::ModelConfig config,
                   model::LoadModelConfig("testdata/models/small_test.textproto"));
  return testing::CompileProgram(config, strategy, {.pipeline = pipeline});
}

int64_t ResidualBytes(const Program& program) {
  int64_t bytes = 0;
  for (const Function* f : ChunkFunctions(*program.module)) {
    for (const Value& v : ResidualsOf(*f)) bytes += StorageOf(v.type(), program.module->mesh()).bytes;
  }
  return bytes;
}

TEST(Checkpoint, SavesBytesAndNeverDecidesTwice) {
  for (const char* strategy : {"", "tp=2 sp", "dp=2 ep=2"}) {
    SCOPED_TRACE(strategy);
    int64_t before = 0;
    for (const std::string mode : {"none", "selective", "full"}) {
      SCOPED_TRACE(mode);
      ASSERT_OK_AND_ASSIGN(const Program p,
                           Place(strategy, absl::StrCat(kBefore, ",checkpoint{mode=", mode, "}")));
      const int64_t bytes = ResidualBytes(p);
      if (before > 0) {
        EXPECT_LT(bytes, before);
      }
      before = bytes;
      for (const Function* f : ChunkFunctions(*p.module)) {
        for (const auto& n : f->body()) {
          if (n->provenance.pass != "checkpoint") continue;
          EXPECT_EQ(n->phase, Phase::kBackward);
          EXPECT_FALSE(n->op().Has(kDecision) || n->op().Has(kStateful)) << n->op_name();
          if (mode == "selective") {
            EXPECT_FALSE(n->op().Has(kCollective)) << n->op_name();
          }
        }
      }
    }
  }
}

TEST(Checkpoint, RefusesDecisionsWithAReason) {
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=selective+moe.top_k}")),
              absl::StatusCode::kInvalidArgument, "moe.top_k is never recomputed", "decid");
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=moe.slots+nn.swiglu}")),
              absl::StatusCode::kInvalidArgument, "moe.slots is never recomputed");
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=selective+optim.accumulate}")),
              absl::StatusCode::kInvalidArgument, "updates state");
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=some}")), absl::StatusCode::kInvalidArgument,
              "selective");
}

std::map<std::string, int> Recomputed(const Program& p) {
  std::map<std::string, int> ops;
  for (const Function* f : ChunkFunctions(*p.module)) {
    for (const auto& n : f->body()) ops[n->op_name()] += n->provenance.pass == "checkpoint";
  }
  for (auto it = ops.begin(); it != ops.end();) it = it->second == 0 ? ops.erase(it) : std::next(it);
  return ops;
}

TEST(Checkpoint, AListOfOpsIsThatAndNothingElse) {
  ASSERT_OK_AND_ASSIGN(const Program p,
                       Place("dp=2 ep=2", absl::StrCat(kBefore, ",checkpoint{mode=nn.rms_norm+nn.swiglu}")));
  const std::map<std::string, int> ops = Recomputed(p);
  EXPECT_EQ(ops.size(), 2);
  EXPECT_GT(ops.at("nn.rms_norm"), 0);
  EXPECT_GT(ops.at("nn.swiglu"), 0);
  ASSERT_OK_AND_ASSIGN(const Program more,
                       Place("dp=2 ep=2", absl::StrCat(kBefore, ",checkpoint{mode=selective+nn.attention}")));
  EXPECT_GT(Recomputed(more).at("nn.attention"), 0);
  EXPECT_GT(Recomputed(more).size(), 2);
}

// ZeRO-3: the backward gathers parameters anew, so none of them is a residual under any policy.
TEST(Checkpoint, GatheredParametersAreNoResiduals) {
  for (const char* mode : {"none", "selective", "full", "auto"}) {
    SCOPED_TRACE(mode);
    ASSERT_OK_AND_ASSIGN(const Program p, Place("dp=4 zero=3 checkpoint_budget=1GiB",
                                                absl::StrCat(kBefore, ",checkpoint{mode=", mode, "}")));
    int gathers = 0;
    for (const Function* f : ChunkFunctions(*p.module)) {
      for (const Value& v : ResidualsOf(*f)) {
        Value root = v;
        while (absl::StartsWith(root.node->op_name(), "comm.")) root = root.node->operand(0);
        EXPECT_FALSE(root.node->Is("arg") && root.node->binding.kind == Binding::kState) << v.name();
      }
      for (const Node* n : f->NodesOf("comm.all_gather")) {
        const Node* root = n->operand(0).node;
        gathers += n->phase == Phase::kBackward && root->Is("arg") && root->binding.kind == Binding::kState;
      }
    }
    EXPECT_GT(gathers, 0);
  }
}

// The budget counts microbatches in flight: a stage that holds more of them keeps less of each.
TEST(Checkpoint, AutoFitsItsBudgetWithTheLeastRecomputation) {
  for (const char* strategy :
       {"", "tp=2 sp", "dp=2 ep=2", "pp=2 microbatches=4", "pp=2 microbatches=4 schedule=gpipe",
        "pp=2 virtual_chunks=1 schedule=zb-h1 microbatches=4"}) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const Program all, Place(strategy, kBefore));
    const std::vector<int> in_flight = MicrobatchesInFlight(all.schedule);
    const auto held = [&](const Program& p) {
      int64_t most = 0;
      const std::vector<Function*> chunks = ChunkFunctions(*p.module);
      for (size_t c = 0; c < chunks.size(); ++c) {
        int64_t bytes = 0;
        for (const Value& v : ResidualsOf(*chunks[c])) {
          bool sent = false;
          for (const Use& u : v.node->uses(v.index)) sent = sent || u.user->Is("return");
          if (!sent) bytes += (StorageOf(v.type(), p.module->mesh()).bytes + 63) / 64 * 64;
        }
        most = std::max(most, bytes * in_flight[c]);
      }
      return most;
    };
    const int64_t most = held(all);
    double seconds = 0;
    for (const int percent : {100, 80, 60, 40}) {
      SCOPED_TRACE(percent);
      const int64_t budget = most * percent / 100;
      ASSERT_OK_AND_ASSIGN(const Program p, Place(absl::StrCat(strategy, " checkpoint_budget=", budget),
                                                  absl::StrCat(kBefore, ",checkpoint{mode=auto}")));
      EXPECT_LE(held(p), budget);
      double recomputed = 0;
      for (const Function* f : ChunkFunctions(*p.module)) {
        for (const auto& n : f->body()) {
          if (n->provenance.pass != "checkpoint") continue;
          EXPECT_FALSE(n->op().Has(kDecision) || n->op().Has(kStateful)) << n->op_name();
          recomputed += cost::NodeSeconds(*n, p.module->mesh(), cost::Target()) + 1e-7;
        }
      }
      if (percent == 100) {
        EXPECT_EQ(recomputed, 0);
      } else {
        EXPECT_GT(recomputed, 0);
      }
      EXPECT_GE(recomputed, 0.99 * seconds);  // a smaller budget is not met by less
      seconds = recomputed;
    }
  }
}

TEST(Checkpoint, AutoWantsABudgetThatSomethingFits) {
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=auto}")), absl::StatusCode::kInvalidArgument,
              "checkpoint_budget=", "memory_limit=");
  ExpectError(Place("checkpoint_budget=64", absl::StrCat(kBefore, ",checkpoint{mode=auto}")),
              absl::StatusCode::kInvalidArgument, "stage 0 keeps at least", "checkpoint_budget is 64 B");
  ExpectError(Place("memory_limit=1GiB", absl::StrCat(kBefore, ",checkpoint{mode=auto}")),
              absl::StatusCode::kFailedPrecondition, "plan-memory");
}

// The plan as a whole fits the limit, on every stage; just under what it takes without recomputation, and
// further down.
TEST(Checkpoint, AutoFitsAMemoryLimit) {
  for (const std::string strategy : {"dp=2 ep=2", "pp=2 dp=2 microbatches=4 schedule=gpipe"}) {
    SCOPED_TRACE(strategy);
    const auto peak = [](const Program& p) {
      int64_t most = 0;
      for (const StageMemory& stage : p.memory.stages) most = std::max(most, stage.peak_bytes());
      return most;
    };
    ASSERT_OK_AND_ASSIGN(const Program none, Place(strategy, DefaultPipeline()));
    ASSERT_OK_AND_ASSIGN(const Program full, Place(strategy + " checkpoint=full", DefaultPipeline()));
    ASSERT_LT(peak(full), peak(none));
    for (const int part : {1, 8, 15}) {
      const int64_t limit = peak(none) - (peak(none) - peak(full)) * part / 16;
      SCOPED_TRACE(limit);
      ASSERT_OK_AND_ASSIGN(
          const Program p,
          Place(absl::StrCat(strategy, " checkpoint=auto memory_limit=", limit), DefaultPipeline()));
      EXPECT_LE(peak(p), limit);
    }
    ExpectError(
        Place(absl::StrCat(strategy, " checkpoint=auto memory_limit=", peak(full) / 2), DefaultPipeline()),
        absl::StatusCode::kInvalidArgument, "even with the fewest bytes", "memory_limit is");
  }
}

TEST(Checkpoint, GradientsAreThose) {
  for (const char* strategy :
       {"checkpoint=selective", "checkpoint=full", "tp=2 sp checkpoint=full",
        "checkpoint=selective+nn.attention", "tp=2 sp checkpoint=auto checkpoint_budget=20KiB",
        "dp=2 ep=2 checkpoint=selective", "pp=2 dp=2 ep=2 microbatches=2 zero=1 checkpoint=full"}) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const model::ModelConfig config,
                         model::LoadModelConfig("testdata/models/small_test.textproto"));
    ASSERT_OK_AND_ASSIGN(const strategy::Strategy s, strategy::ParseStrategy(strategy));
    testing::EquivalenceCase c;
    c.name = strategy;
    c.steps = 2;
    ASSERT_OK_AND_ASSIGN(const testing::EquivalenceResult r, testing::CheckEquivalence(config, s, c));
    EXPECT_LT(r.worst_gradient, 1e-9) << r.ToString();
    EXPECT_LT(r.worst_loss, 1e-9) << r.ToString();
    EXPECT_EQ(r.planned_peak, r.measured_peak);
  }
}

}  // namespace
}  // namespace moe::passes
