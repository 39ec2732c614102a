#include "moe/passes/stages/partition_stages.h"

#include <gtest/gtest.h>

#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/passes/stages/layer_cuts.h"
#include "moe/strategy/fold.h"

namespace moe::passes {
namespace {

TEST(CutLayers, TheDearestChunkIsAsCheapAsPossible) {
  EXPECT_EQ(*CutLayers({3, 1, 1, 1, 2}, 2), (std::vector<int>{0, 2, 5}));
  EXPECT_EQ(*CutLayers({1, 1, 1, 1, 10}, 3), (std::vector<int>{0, 2, 4, 5}));
  EXPECT_EQ(*CutLayers({1, 1, 1}, 3), (std::vector<int>{0, 1, 2, 3}));
  ExpectError(CutLayers({1, 1, 1}, 4), absl::StatusCode::kInvalidArgument, "3 layers on 4 pipeline chunks",
              "1 to 3");
}

absl::StatusOr<Program> Partition(const std::string& file, bool tied, int pp,
                                  std::vector<std::string>* notes) {
  ASSIGN_OR_RETURN(model::ModelConfig config,
                   model::LoadModelConfig("testdata/models/" + file + ".textproto"));
  config.set_tie_embeddings(tied);
  Program program;
  ASSIGN_OR_RETURN(program.module, model::BuildModel(config, {.global_batch = 8, .microbatches = 4}));
  PassContext context;
  context.strategy.pp = pp;
  context.strategy.microbatches = 4;
  context.notes = notes;
  ASSIGN_OR_RETURN(program.module->mesh(),
                   strategy::FoldMesh(context.strategy, config.num_key_value_heads()));
  RETURN_IF_ERROR(Autodiff(program, context).status());
  RETURN_IF_ERROR(PartitionStages(program, context).status());
  RETURN_IF_ERROR(Verify(*program.module));
  return program;
}

TEST(PartitionStages, UnevenLayersAllHaveAHome) {
  std::vector<std::string> notes;
  ASSERT_OK_AND_ASSIGN(const Program p, Partition("odd_test", false, 2, &notes));  // 3 layers on 2 stages
  ASSERT_FALSE(notes.empty());
  EXPECT_THAT(notes.back(), ::testing::HasSubstr("stage 0: embed + layer"));
  EXPECT_THAT(notes.back(), ::testing::HasSubstr("head"));
  int64_t nodes = 0, copies = 0;
  for (const char* name : {"chunk0", "chunk1"}) nodes += p.module->Find(name)->num_nodes();
  for (const LogicalNode& n : p.inventory) copies += n.chunks.size();
  EXPECT_EQ(nodes, copies);
  // The residual stream forwards, its gradient backwards, nothing else.
  const Function &first = *p.module->Find("chunk0"), &second = *p.module->Find("chunk1");
  EXPECT_NE(FindArg(second, Binding::kBoundary, "act.0"), nullptr);
  EXPECT_NE(FindArg(first, Binding::kBoundary, "grad.0"), nullptr);
  EXPECT_EQ(p.module->Find("step"), nullptr);
  for (const auto& s : p.module->states()) EXPECT_EQ(StagesOf(*s).size(), 1u) << s->name;
}

TEST(PartitionStages, ATiedHeadHasOneGradientPerStage) {
  ASSERT_OK_AND_ASSIGN(const Program p, Partition("small_test", true, 2, nullptr));
  for (const char* state : {"embedding", "grad.embedding", "adam.m.embedding"}) {
    EXPECT_EQ(StagesOf(*p.module->FindState(state)), (std::vector<int64_t>{0, 1})) << state;
  }
  for (const char* chunk : {"chunk0", "chunk1"}) {
    EXPECT_NE(FindArg(*p.module->Find(chunk), Binding::kState, "grad.embedding"), nullptr) << chunk;
  }
  for (const char* update : {"update0", "update1"}) {
    // The shared gradient, then the norm, in the same order on both stages; one square of the shared gradient
    // in all.
    const std::vector<Node*> reduce = p.module->Find(update)->NodesOf("comm.stage_reduce");
    ASSERT_EQ(reduce.size(), 2u) << update;
    EXPECT_EQ(reduce[0]->operand(0).node,
              FindArg(*p.module->Find(update), Binding::kState, "grad.embedding"));
  }
  int squares = 0;
  for (const char* update : {"update0", "update1"}) {
    for (const Node* n : p.module->Find(update)->NodesOf("math.sum_squares")) {
      squares += n->operand(0).node->Is("comm.stage_reduce");
    }
  }
  EXPECT_EQ(squares, 1);
}

TEST(PartitionStages, TooManyStages) {
  ExpectError(Partition("small_test", false, 3, nullptr), absl::StatusCode::kInvalidArgument,
              "2 layers on 3 pipeline chunks leave one empty");
}

}  // namespace
}  // namespace moe::passes
