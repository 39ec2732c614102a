// Every value of placed functions against one device, over many strategies.

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/testing/compare_functions.h"
#include "moe/testing/sharded_model.h"

namespace moe::passes {
namespace {

void ExpectSame(const model::ModelConfig& config, const std::string& strategy, int64_t batch = 8) {
  SCOPED_TRACE(strategy);
  ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(config, strategy, batch));
  for (const auto& f : m->logical->functions()) {
    const Function* placed = m->module().Find(f->name());
    ASSERT_NE(placed, nullptr);
    const absl::Status same =
        testing::CompareWithOneDevice(*f, *placed, {.seed = 3, .vocab = config.vocab_size()});
    EXPECT_TRUE(same.ok()) << "@" << f->name() << ": " << same.ToString();
  }
}

TEST(ShardLockstep, Dense) {
  for (const char* s : {"dp=1", "dp=8", "tp=2 dp=4", "tp=2 dp=4 sp", "tp=2 dp=4 sp vp", "tp=2 dp=4 vp",
                        "dp=8 zero=3", "cp=2 dp=2 tp=2 sp zero=1"}) {
    ExpectSame(testing::SmallDense(), s);
  }
}

TEST(ShardLockstep, ExpertsInTensorParallel) {
  for (const char* s : {"tp=4 dp=2", "tp=2 dp=4 etp=2", "tp=2 dp=4 etp=2 sp", "tp=8 etp=8",
                        "tp=4 dp=2 etp=4 sp vp", "tp=2 dp=4 etp=4 ep=2 sp"}) {
    ExpectSame(testing::SmallMoe(), s);
  }
}

TEST(ShardLockstep, Experts) {
  for (const char* s :
       {"dp=8 ep=4", "dp=8 ep=8 zero=3", "tp=2 dp=4 ep=2", "tp=2 dp=4 ep=8", "tp=2 dp=4 ep=8 sp",
        "tp=2 dp=4 ep=4", "tp=2 dp=4 ep=4 sp vp zero=1", "tp=2 dp=4 ep=8 ep_order=fold",
        "tp=2 dp=4 etp=2 ep=2", "dp=8 etp=2 ep=4", "dp=8 etp=2 ep=4 zero=2"}) {
    ExpectSame(testing::SmallMoe(), s);
  }
}

TEST(ShardLockstep, ContextParallelAndSixteenRanks) {
  for (const char* s : {"cp=2 dp=4", "cp=2 dp=4 ep=4 cp_attention=ring",
                        "cp=4 tp=2 ep=8 sp cp_attention=ring cp_order=zigzag",
                        "cp=4 dp=2 cp_attention=ring cp_order=contiguous", "cp=2 tp=2 dp=2 ep=8 sp vp",
                        "cp=2 tp=2 dp=4 ep=8 sp vp zero=1", "tp=4 dp=4 ep=8 sp vp zero=3"}) {
    ExpectSame(testing::SmallMoe(), s);
  }
}

TEST(ShardLockstep, Dropless) {
  for (const char* s :
       {"dp=8 ep=4", "tp=2 dp=4 ep=4 sp", "tp=2 dp=4 ep=8", "tp=2 dp=4 etp=2 ep=2 sp zero=3"}) {
    ExpectSame(testing::SmallDropless(), s);
  }
}

TEST(ShardLockstep, VariationsOfTheModel) {
  model::ModelConfig tied = testing::SmallMoe();
  tied.set_tie_embeddings(true);
  tied.set_z_loss_coeff(0.01);
  ExpectSame(tied, "tp=2 dp=4 ep=4 sp vp zero=1");
  model::ModelConfig shared = testing::SmallMoe();
  shared.set_shared_expert_ffn_hidden_size(8);
  shared.set_norm_topk_prob(true);
  shared.set_aux_loss_scope("sequence");
  ExpectSame(shared, "tp=2 dp=2 ep=2 sp");
  model::ModelConfig global = testing::SmallMoe();
  global.set_aux_loss_scope("global_batch");
  global.set_first_dense_layers(0);
  ExpectSame(global, "tp=2 dp=4 ep=8 sp vp microbatches=2", 16);
  // One routing group per sequence: sharding the sequence cuts it, and its tokens are gathered.
  model::ModelConfig group = testing::SmallMoe();
  group.set_routing_groups_per_sequence(1);
  ExpectSame(group, "tp=2 dp=4 ep=4 sp");
}

TEST(ShardLockstep, OddSizes) {
  model::ModelConfig odd = testing::SmallMoe();
  odd.set_num_layers(3);
  odd.set_hidden_size(20);
  odd.set_num_attention_heads(6);
  odd.set_num_key_value_heads(3);
  odd.set_head_dim(6);
  odd.set_ffn_hidden_size(18);
  odd.set_vocab_size(37);
  odd.set_vocab_blocks(1);
  odd.set_seq_length(6);
  odd.set_num_experts(7);
  odd.set_moe_router_topk(3);
  odd.set_routing_groups_per_sequence(3);
  for (const char* s : {"dp=3 cp=2", "cp=3 dp=2 cp_attention=ring", "tp=6 dp=2 sp etp=6 zero=1",
                        "tp=3 dp=2 sp", "tp=3 dp=2 etp=3 zero=3", "dp=7 ep=7"}) {
    ExpectSame(odd, s, 42);
  }
}

TEST(ShardLockstep, Stages) {
  model::ModelConfig tied = testing::SmallMoe();
  tied.set_tie_embeddings(true);
  ExpectSame(tied, "pp=2 dp=2 tp=2 ep=2 sp vp zero=1 microbatches=2");
  ExpectSame(testing::SmallMoe(), "pp=2 dp=2 tp=2 ep=2 microbatches=2");
}

// Any strategy that folds and divides must be right, whatever it costs.
TEST(ShardLockstep, RandomStrategiesAndModels) {
  const char* wanted = getenv("CASES");
  const int cases = wanted ? atoi(wanted) : 10;
  std::mt19937 rng(20);
  const auto pick = [&](std::vector<int64_t> from) { return from[rng() % from.size()]; };
  int done = 0;
  for (int i = 0; done < cases; ++i) {
    const int64_t tp = pick({1, 2, 2, 4}), cp = pick({1, 1, 2}), dp = pick({1, 2, 4});
    const int64_t world = tp * cp * dp, ep = pick({1, 2, 4, 8}), etp = pick({1, 1, 2, 4});
    if (world < 2 || world > 16 || world % (ep * etp)) continue;
    std::string strategy = absl::StrCat("tp=", tp, " cp=", cp, " dp=", dp, " ep=", ep, " etp=", etp,
                                        " zero=", pick({0, 1, 2, 3}), " microbatches=", pick({1, 3}));
    if (rng() % 2) strategy += " sp";
    if (rng() % 2) strategy += " vp";
    if (rng() % 3 == 0) strategy += " expert_zero=1";
    if (cp > 1 && rng() % 2) strategy += " cp_attention=ring";
    if (cp > 1 && rng() % 3 == 0) strategy += " cp_order=contiguous";
    model::ModelConfig c = rng() % 3 ? testing::SmallMoe() : testing::SmallDropless();
    c.set_tie_embeddings(rng() % 2);
    c.set_first_dense_layers(rng() % 2);
    c.set_norm_topk_prob(rng() % 2);
    c.set_shared_expert_ffn_hidden_size(rng() % 2 ? 8 : 0);
    c.set_z_loss_coeff(rng() % 2 ? 0.01 : 0);
    c.set_routing_groups_per_sequence(pick({1, 2, 4}));
    c.set_aux_loss_scope(std::vector<std::string>{"sequence", "microbatch", "global_batch"}[rng() % 3]);
    c.set_seq_length(pick({8, 16}));
    const absl::Status fits =
        testing::CompileSharded(c, strategy, 4 * (absl::StrContains(strategy, "microbatches=3") ? 3 : 1))
            .status();
    if (absl::StrContains(fits.message(), "strategy: ")) continue;  // does not fold
    ++done;
    SCOPED_TRACE(absl::StrCat("case ", i, ": ", c.ShortDebugString()));
    ExpectSame(c, strategy, 4 * (absl::StrContains(strategy, "microbatches=3") ? 3 : 1));
  }
}

}  // namespace
}  // namespace moe::passes
