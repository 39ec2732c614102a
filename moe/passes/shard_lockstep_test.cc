// Every value of placed functions against one device, over many strategies.

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/match.h"
#include "moe/base/status_matchers.h"
#include "moe/testing/lockstep.h"
#include "moe/testing/sharded_model.h"

namespace moe {
namespace {

void ExpectSame(const ModelConfig& config, const std::string& strategy, int64_t batch = 8) {
  SCOPED_TRACE(strategy);
  ASSERT_OK_AND_ASSIGN(const auto m, CompileSharded(config, strategy, batch));
  for (const auto& f : m->logical->functions()) {
    const Function* placed = m->module().Find(f->name());
    ASSERT_NE(placed, nullptr);
    const absl::Status same = Lockstep({.seed = 3, .vocab = config.vocab_size()}).Compare(*f, *placed);
    EXPECT_TRUE(same.ok()) << "@" << f->name() << ": " << same.ToString();
  }
}

TEST(ShardLockstep, Dense) {
  for (const char* s : {"dp=1", "dp=8", "tp=2 dp=4", "tp=2 dp=4 sp", "tp=2 dp=4 sp vp", "tp=2 dp=4 vp",
                        "dp=8 zero=3", "cp=2 dp=2 tp=2 sp zero=1"}) {
    ExpectSame(SmallDense(), s);
  }
}

TEST(ShardLockstep, ExpertsInTensorParallel) {
  for (const char* s : {"tp=4 dp=2", "tp=2 dp=4 etp=2", "tp=2 dp=4 etp=2 sp", "tp=8 etp=8",
                        "tp=4 dp=2 etp=4 sp vp", "tp=2 dp=4 etp=4 ep=2 sp"}) {
    ExpectSame(SmallMoe(), s);
  }
}

TEST(ShardLockstep, Experts) {
  for (const char* s :
       {"dp=8 ep=4", "dp=8 ep=8 zero=3", "tp=2 dp=4 ep=2", "tp=2 dp=4 ep=8", "tp=2 dp=4 ep=8 sp",
        "tp=2 dp=4 ep=4", "tp=2 dp=4 ep=4 sp vp zero=1", "tp=2 dp=4 ep=8 ep_order=fold",
        "tp=2 dp=4 etp=2 ep=2", "dp=8 etp=2 ep=4", "dp=8 etp=2 ep=4 zero=2"}) {
    ExpectSame(SmallMoe(), s);
  }
}

TEST(ShardLockstep, ContextParallelAndSixteenRanks) {
  for (const char* s : {"cp=2 dp=4", "cp=2 tp=2 dp=2 ep=8 sp vp", "cp=2 tp=2 dp=4 ep=8 sp vp zero=1",
                        "tp=4 dp=4 ep=8 sp vp zero=3"}) {
    ExpectSame(SmallMoe(), s);
  }
}

TEST(ShardLockstep, Dropless) {
  for (const char* s :
       {"dp=8 ep=4", "tp=2 dp=4 ep=4 sp", "tp=2 dp=4 ep=8", "tp=2 dp=4 etp=2 ep=2 sp zero=3"}) {
    ExpectSame(SmallDropless(), s);
  }
}

TEST(ShardLockstep, VariationsOfTheModel) {
  ModelConfig tied = SmallMoe();
  tied.set_tie_embeddings(true);
  tied.set_z_loss_coeff(0.01);
  ExpectSame(tied, "tp=2 dp=4 ep=4 sp vp zero=1");
  ModelConfig shared = SmallMoe();
  shared.set_shared_expert_ffn_hidden_size(8);
  shared.set_norm_topk_prob(true);
  shared.set_aux_loss_scope("sequence");
  ExpectSame(shared, "tp=2 dp=2 ep=2 sp");
  ModelConfig global = SmallMoe();
  global.set_aux_loss_scope("global_batch");
  global.set_first_dense_layers(0);
  ExpectSame(global, "tp=2 dp=4 ep=8 sp vp microbatches=2", 16);
  // One routing group per sequence: sharding the sequence cuts it, and its tokens are gathered.
  ModelConfig group = SmallMoe();
  group.set_routing_groups_per_sequence(1);
  ExpectSame(group, "tp=2 dp=4 ep=4 sp");
}

TEST(ShardLockstep, Stages) {
  ModelConfig tied = SmallMoe();
  tied.set_tie_embeddings(true);
  ExpectSame(tied, "pp=2 dp=2 tp=2 ep=2 sp vp zero=1 microbatches=2");
  ExpectSame(SmallMoe(), "pp=2 dp=2 tp=2 ep=2 microbatches=2");
}

}  // namespace
}  // namespace moe
