#include "moe/passes/fuse/fuse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/registry.h"
#include "moe/ir/verifier.h"
#include "moe/testing/pass_test.h"
#include "moe/testing/sharded_model.h"

namespace moe::passes {
namespace {

class FuseTest : public testing::PassTest {};

TEST_F(FuseTest, AddRmsNorm) {
  ExpectRewrite(Fuse, R"(
    module @m mesh<tp=2>
    func @f(%x: f32[4, 8@tp, 16], %y: f32[4, 8@tp, 16], %w: f32[16]) {
      // CHECK: %sum, %h = nn.add_rms_norm(%x, %y, %w) {eps = 1e-05, tag = "residual_stream"}
      // CHECK-NOT: math.add
      // CHECK: return %sum, %h
      %sum = math.add(%x, %y) {tag = "residual_stream"} : f32[4, 8@tp, 16]
      %h = nn.rms_norm(%sum, %w) {eps = 1e-05} : f32[4, 8@tp, 16]
      return %sum, %h
    })");
}

// The sum is summed over tp before the norm: a partial sum is no input of a norm.
TEST_F(FuseTest, NoFusionAcrossACollective) {
  ExpectUnchanged(Fuse, R"(
    module @m mesh<tp=2>
    func @f(%x: f32[4, 8, 16] partial(tp), %y: f32[4, 8, 16] partial(tp), %w: f32[16]) {
      %sum = math.add(%x, %y) : f32[4, 8, 16] partial(tp)
      %s = comm.all_reduce(%sum) {axes = [tp]} : f32[4, 8, 16]
      %h = nn.rms_norm(%s, %w) {eps = 1e-05} : f32[4, 8, 16]
      return %h
    })");
}

TEST_F(FuseTest, RouterKeepsTheNameOfItsDecision) {
  ExpectRewrite(Fuse, R"(
    module @m mesh<dp=2>
    func @f(%logits: f32[4@dp, 1, 8, 4], %mask: f32[4@dp, 1, 8]) {
      // CHECK: %probability, %top, %expert, %load = moe.router(%logits, %mask) {k = 2} place<b=dp> : f32[4@dp, 1, 8, 4], f32[4@dp, 1, 8, 2], s32[4@dp, 1, 8, 2], s32[4] partial(dp)
      // CHECK-NOT: nn.softmax
      // CHECK-NOT: moe.top_k
      %probability = nn.softmax(%logits) : f32[4@dp, 1, 8, 4]
      %top, %expert = moe.top_k(%probability, %mask) {k = 2} : f32[4@dp, 1, 8, 2], s32[4@dp, 1, 8, 2]
      %slot = moe.slots(%expert) {experts = 4, capacity = 5} : s32[4@dp, 1, 8, 2]
      %load = moe.count(%expert) {experts = 4} : s32[4] partial(dp)
      return %probability, %top, %slot, %load
    })");
}

// Counted where the choices were gathered first, they are not counted by the router.
TEST_F(FuseTest, RouterWhoseChoicesAreCountedElsewhere) {
  ExpectRewrite(Fuse, R"(
    module @m mesh<dp=2>
    func @f(%logits: f32[4@dp, 1, 8, 4], %mask: f32[4@dp, 1, 8]) {
      // CHECK: %probability, %top, %expert = moe.softmax_top_k(%logits, %mask) {k = 2} place<b=dp> : f32[4@dp, 1, 8, 4], f32[4@dp, 1, 8, 2], s32[4@dp, 1, 8, 2]
      // CHECK: comm.all_gather(%expert)
      // CHECK: moe.count
      // CHECK-NOT: nn.softmax
      %probability = nn.softmax(%logits) : f32[4@dp, 1, 8, 4]
      %top, %expert = moe.top_k(%probability, %mask) {k = 2} : f32[4@dp, 1, 8, 2], s32[4@dp, 1, 8, 2]
      %all = comm.all_gather(%expert) {axes = [dp]} : s32[4, 1, 8, 2]
      %load = moe.count(%all) {experts = 4} : s32[4]
      return %probability, %top, %load
    })");
}

// A backward that computes the probabilities again takes nothing from the forward's fusion.
TEST_F(FuseTest, RouterBesideARecomputedSoftmax) {
  ExpectRewrite(Fuse, R"(
    module @m
    func @f(%logits: f32[4, 1, 8, 4], %mask: f32[4, 1, 8], %d: f32[4, 1, 8, 4]) {
      // CHECK: moe.router(%logits, %mask)
      // CHECK: backward:
      // CHECK: nn.softmax(%logits)
      %probability = nn.softmax(%logits) : f32[4, 1, 8, 4]
      %top, %expert = moe.top_k(%probability, %mask) {k = 2} : f32[4, 1, 8, 2], s32[4, 1, 8, 2]
      %load = moe.count(%expert) {experts = 4} : s32[4]
    backward:
      %again = nn.softmax(%logits) : f32[4, 1, 8, 4]
      %dx = nn.softmax_grad(%again, %d) : f32[4, 1, 8, 4]
      return %top, %load, %dx
    })");
}

// Counted per sequence, the router has no such result.
TEST_F(FuseTest, RouterWithoutACountOfExperts) {
  ExpectRewrite(Fuse, R"(
    module @m
    func @f(%logits: f32[4, 1, 8, 4], %mask: f32[4, 1, 8]) {
      // CHECK: moe.softmax_top_k(%logits, %mask)
      // CHECK: moe.count
      %probability = nn.softmax(%logits) : f32[4, 1, 8, 4]
      %top, %expert = moe.top_k(%probability, %mask) {k = 2} : f32[4, 1, 8, 2], s32[4, 1, 8, 2]
      %load = moe.count(%expert) {experts = 4, per_sequence = true} : s32[4, 4]
      return %top, %load
    })");
}

TEST_F(FuseTest, Chain) {
  ExpectRewrite(Fuse, R"(
    module @m
    func @f(%x: f32[8, 4], %y: f32[8, 4], %c: f32[]) {
      // CHECK: %d = math.fused(%y, %x, %c) {program = ["t0 = mul x1 x2", "t1 = silu t0", "t2 = scale t1 0.5", "t3 = add x0 t2"]}
      // CHECK: return %d
      %a = math.mul(%x, %c) : f32[8, 4]
      %b = math.silu(%a) : f32[8, 4]
      %e = math.scale(%b) {by = 0.5} : f32[8, 4]
      %d = math.add(%y, %e) : f32[8, 4]
      return %d
    })");
}

// A link that others read has to exist; phases stay apart.
TEST_F(FuseTest, NoChainThroughASharedValueOrAPhase) {
  ExpectUnchanged(Fuse, R"(
    module @m
    func @f(%x: f32[8, 4], %y: f32[8, 4]) {
      %a = math.mul(%x, %y) : f32[8, 4]
      %b = math.silu(%a) : f32[8, 4]
      %c = math.log(%x) : f32[8, 4]
    backward:
      %d = math.scale(%c) {by = 0.5} : f32[8, 4]
      return %a, %b, %d
    })");
}

constexpr char kUpdate[] = R"(
    module @m mesh<dp=2>
    state @p : f32[8, 4] {kind = "parameter"}
    state @q : f32[6] {kind = "parameter"}
    func @update(%p: f32[8, 4] {kind = "state", name = "p"}, %q: f32[6] {kind = "state", name = "q"},
                 %gp: f32[8@dp, 4], %mp: f32[8@dp, 4], %vp: f32[8@dp, 4], %gq: f32[6], %mq: f32[6], %vq: f32[6],
                 %factor: f32[], %finite: f32[], %rate: f32[], %bias1: f32[], %bias2: f32[]) {
      // CHECK: %shard = comm.slice(%p)
      // CHECK: %new_p, %new_mp, %new_vp, %new_q, %new_mq, %new_vq = optim.multi_adamw(%factor, %finite, %rate, %bias1, %bias2, %shard, %gp, %mp, %vp, %q, %gq, %mq, %vq) {beta1 = 0.9, beta2 = 0.95, eps = 1e-08, weight_decay = ["0.125", "0"]} place<p0_0=dp>
      // CHECK: %whole = comm.all_gather(%new_p)
      %shard = comm.slice(%p) {axes = [dp]} : f32[8@dp, 4]
      %new_p, %new_mp, %new_vp = optim.adamw(%shard, %gp, %mp, %vp, %factor, %finite, %rate, %bias1, %bias2) {beta1 = 0.9, beta2 = 0.95, eps = 1e-08, weight_decay = 0.125} : f32[8@dp, 4], f32[8@dp, 4], f32[8@dp, 4]
      %whole = comm.all_gather(%new_p) {axes = [dp]} : f32[8, 4]
      %new_q, %new_mq, %new_vq = optim.adamw(%q, %gq, %mq, %vq, %factor, %finite, %rate, %bias1, %bias2) {beta1 = 0.9, beta2 = 0.95, eps = 1e-08, weight_decay = 0.0} : f32[6], f32[6], f32[6]
      return %whole {kind = "state", name = "p"}, %new_q {kind = "state", name = "q"}, %new_mp, %new_vp, %new_mq, %new_vq
    })";

// Tensors of different placement share a node; the gather of an updated one moves behind it.
// Not run here: of second moments drawn at random half are negative, and the root of those is not a number.
// The models of fuse_equivalence_test run it.
TEST_F(FuseTest, AdamWOfManyTensors) {
  runs_ = false;
  ExpectRewrite(Fuse, kUpdate);
}

Pass With(std::map<std::string, std::string> options) {
  return [options](Program& program, PassContext context) {
    context.options = options;
    return Fuse(program, context);
  };
}

TEST_F(FuseTest, OnlyAndSkip) {
  runs_ = false;
  ExpectUnchanged(With({{"skip", "adamw"}}), kUpdate);
  ExpectUnchanged(With({{"only", "router+elementwise"}}), kUpdate);
  ExpectRewrite(With({{"only", "adamw"}}), kUpdate);
  ExpectPassError(With({{"only", "adam"}}), kUpdate, absl::StatusCode::kInvalidArgument,
                  {"'adam'", "add-rms-norm, router, elementwise, adamw"});
}

TEST_F(FuseTest, TargetWithoutTheKernel) {
  PassContext context;
  context.target.all_fusions = false;
  context.target.fusions = {"moe.router"};
  ExpectUnchanged(Fuse, kUpdate, context);
}

// On whole models, under strategies that place everything differently: every residual add before a norm, and
// every router, but where a stage ends. The result verifies.
TEST(FuseModelTest, FindsItsPatterns) {
  const std::map<std::string, std::vector<std::string>> expected = {
      {"", {"add-rms-norm 4", "router 1", "elementwise", "adamw 2"}},
      {"tp=2 dp=4", {"add-rms-norm 4", "router 1", "elementwise", "adamw 2"}},
      {"tp=2 dp=4 etp=2 ep=2", {"add-rms-norm 4", "router 1", "elementwise", "adamw 2"}},
      {"tp=2 dp=4 ep=4 sp vp zero=1", {"add-rms-norm 4", "router 1", "elementwise", "adamw 2"}},
      {"tp=2 cp=2 ep=4 zero=3", {"add-rms-norm 4", "router 1", "elementwise", "adamw 2"}},
      {"dp=4 ep=4 dispatcher=alltoall", {"add-rms-norm 4", "router 1", "elementwise", "adamw 2"}},
      {"dp=4 ep=4 dispatcher=allgather", {"add-rms-norm 4", "router 1", "elementwise", "adamw 2"}},
      {"pp=2 dp=2 ep=2", {"add-rms-norm 3", "router 1", "elementwise", "adamw 2"}},
      {"pp=2 dp=2 tp=2 ep=2 etp=2", {"add-rms-norm 3", "router 1", "elementwise", "adamw 2"}},
  };
  for (const auto& [strategy, names] : expected) {
    for (const model::ModelConfig& config : {testing::SmallMoe(), testing::SmallDropless()}) {
      SCOPED_TRACE(strategy);
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<testing::ShardedModel> model,
                           testing::CompileSharded(config, strategy));
      std::vector<std::string> notes;
      PassContext context;
      context.notes = &notes;
      ASSERT_OK_AND_ASSIGN(const bool changed, Fuse(model->program, context));
      EXPECT_TRUE(changed);
      ASSERT_OK(Verify(*model->program.module));
      ASSERT_EQ(notes.size(), 1);
      for (const std::string& name : names) EXPECT_THAT(notes[0], ::testing::HasSubstr(name));
      ASSERT_OK_AND_ASSIGN(const bool again, Fuse(model->program, context));
      EXPECT_FALSE(again);
    }
  }
}

// What stands beside a node, through conversions: producers of its operands and readers of its results.
void Neighbours(const Node& n, std::vector<const Node*>* out) {
  const auto is_conversion = [](const Node& x) { return absl::StartsWith(x.op_name(), "comm."); };
  for (const Value& v : n.operands()) {
    const Node* from = v.node;
    while (is_conversion(*from)) from = from->operand(0).node;
    out->push_back(from);
  }
  const std::function<void(const Node&)> readers = [&](const Node& x) {
    for (const Use& u : x.uses()) {
      out->push_back(u.user);
      if (is_conversion(*u.user)) readers(*u.user);
    }
  };
  readers(n);
}

// The probability is an operand of combine, and of the gradient that dispatches, and both read and write what
// their neighbours do, also where these compute in 16 bits: no pass over dispatched rows scales or casts
// them.
TEST(FuseModelTest, DispatchAndCombineCarryTheirScaleAndDType) {
  for (const char* strategy : {"", "dp=4 ep=4", "tp=2 dp=4 ep=8 sp", "tp=2 dp=4 ep=4 sp zero=3",
                               "tp=2 dp=2 etp=2 ep=2 dispatcher=allgather"}) {
    for (model::ModelConfig config : {testing::SmallMoe(), testing::SmallDropless()}) {
      for (const char* precision : {"", "bf16", "f16"}) {
        SCOPED_TRACE(absl::StrCat(strategy, " ", precision));
        const bool narrow = precision[0] != 0;
        config.set_norm_topk_prob(true);
        config.set_shared_expert_ffn_hidden_size(16);
        if (narrow) config.set_dtype("f32");
        ASSERT_OK_AND_ASSIGN(const std::unique_ptr<testing::ShardedModel> model,
                             testing::CompileSharded(config, absl::StrCat(strategy, " ", precision)));
        ASSERT_OK(Fuse(model->program, PassContext()).status());
        int found = 0;
        for (const auto& f : model->module().functions()) {
          for (const char* op :
               {"moe.dispatch", "moe.undispatch", "moe.combine", "moe.combine_do", "moe.combine_dp"}) {
            for (const Node* n : f->NodesOf(op)) {
              ++found;
              EXPECT_EQ(ByteSize(n->operand(0).type().dtype), narrow ? 2 : 8) << op;
              std::vector<const Node*> neighbours;
              Neighbours(*n, &neighbours);
              for (const Node* other : neighbours) {
                EXPECT_FALSE(other->Is("math.scale") || other->Is("math.mul") || other->Is("math.cast"))
                    << op << " beside " << other->op_name() << " %" << other->result_name();
              }
            }
          }
        }
        EXPECT_EQ(found, 5);
      }
    }
  }
}

}  // namespace
}  // namespace moe::passes
