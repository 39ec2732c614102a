#include "moe/passes/checkpoint.h"

#include <gtest/gtest.h>

#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/registry.h"
#include "moe/model/transformer.h"
#include "moe/passes/split_phases.h"
#include "moe/testing/equivalence.h"

namespace moe {
namespace {

constexpr char kBefore[] = "autodiff,partition-stages,shard,insert-collectives";

absl::StatusOr<Program> Place(const std::string& strategy, const std::string& pipeline) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig("testdata/models/small_test.textproto"));
  PassContext context;
  ASSIGN_OR_RETURN(context.strategy, ParseStrategy(strategy));
  Program program;
  ASSIGN_OR_RETURN(program.module,
                   BuildModel(config, {.global_batch = 8, .microbatches = context.strategy.microbatches}));
  ASSIGN_OR_RETURN(program.module->mesh(), FoldMesh(context.strategy, config.num_key_value_heads()));
  RETURN_IF_ERROR(RunPipeline(pipeline, program, context).status());
  return program;
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
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=selective,recompute=moe.top_k}")),
              absl::StatusCode::kInvalidArgument, "moe.top_k is never recomputed", "decid");
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=selective,recompute=optim.accumulate}")),
              absl::StatusCode::kInvalidArgument, "updates state");
  ExpectError(Place("", absl::StrCat(kBefore, ",checkpoint{mode=some}")), absl::StatusCode::kInvalidArgument,
              "selective");
}

TEST(Checkpoint, GradientsAreThose) {
  for (const char* strategy :
       {"checkpoint=selective", "checkpoint=full", "tp=2 sp checkpoint=full",
        "dp=2 ep=2 checkpoint=selective", "pp=2 dp=2 ep=2 microbatches=2 zero=1 checkpoint=full"}) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, LoadModelConfig("testdata/models/small_test.textproto"));
    ASSERT_OK_AND_ASSIGN(const Strategy s, ParseStrategy(strategy));
    EquivalenceCase c;
    c.name = strategy;
    c.steps = 2;
    ASSERT_OK_AND_ASSIGN(const EquivalenceResult r, CheckEquivalence(config, s, c));
    EXPECT_LT(r.worst_gradient, 1e-9) << r.ToString();
    EXPECT_LT(r.worst_loss, 1e-9) << r.ToString();
    EXPECT_EQ(r.planned_peak, r.measured_peak);
  }
}

}  // namespace
}  // namespace moe
