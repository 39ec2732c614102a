#include "moe/passes/shard/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status_matchers.h"
#include "moe/cost/node_cost.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/state.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/testing/pass_test.h"
#include "moe/testing/sharded_model.h"

namespace moe::passes {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Value Root(Value v) {
  while (absl::StartsWith(v.node->op_name(), "comm.") && !v.node->Is("comm.stage_reduce"))
    v = v.node->operand(0);
  return v;
}

bool IsAccumulated(const Node& n, int result) {
  return std::any_of(n.uses(result).begin(), n.uses(result).end(), [](const Use& u) {
    return u.user->Is("optim.accumulate") ||
           (absl::StartsWith(u.user->op_name(), "comm.") && IsAccumulated(*u.user, 0));
  });
}

bool IsWeight(Value root) {
  if (root.node->Is("arg") && root.node->binding.kind == Binding::kState) return true;
  return IsAccumulated(*root.node, root.index);
}

// Collectives of values with three or more dims that are no weights and belong to no router, by phase: in
// words, "4RS 3AG | 4RS 7AG", and as bytes that a rank sends.
struct ActivationTraffic {
  std::string counts;
  double kib = 0;
};
ActivationTraffic Activations(const testing::ShardedModel& c) {
  static const std::set<std::string> small = {"moe.top_k",      "moe.slots",      "nn.softmax",
                                              "moe.combine_dp", "moe.top_k_grad", "nn.head_stats"};
  ActivationTraffic out;
  std::map<StepKind, int> counts[2];
  for (const auto& f : c.module().functions()) {
    for (const auto& n : f->body()) {
      if (!ConvertsOne(*n) || n->phase == Phase::kUpdate) continue;
      const Value root = Root(n->operand(0));
      if (IsWeight(root) || n->type().rank() < 3 || small.count(root.node->op_name())) continue;
      const auto parts = *ConversionParts(*n, c.module().mesh());
      for (const ConversionStep& s : parts[0].steps) {
        if (!IsLocal(s.kind)) ++counts[n->phase == Phase::kBackward][s.kind];
      }
      out.kib += cost::CommunicationCost(*n, c.module().mesh()).bytes / 1024;
    }
  }
  std::vector<std::string> sides;
  for (const auto& side : counts) {
    std::vector<std::string> words;
    for (const auto& [kind, name] :
         {std::pair(StepKind::kAllReduce, "AR"), std::pair(StepKind::kReduceScatter, "RS"),
          std::pair(StepKind::kAllGather, "AG"), std::pair(StepKind::kAllToAll, "A2A"),
          std::pair(StepKind::kPermute, "P"), std::pair(StepKind::kRotate, "R")}) {
      const auto it = side.find(kind);
      if (it != side.end()) words.push_back(absl::StrCat(it->second, name));
    }
    sides.push_back(words.empty() ? "-" : absl::StrJoin(words, " "));
  }
  out.counts = absl::StrJoin(sides, " | ");
  return out;
}

std::string Counts(const model::ModelConfig& config, const std::string& strategy, int64_t batch = 8) {
  absl::StatusOr<std::unique_ptr<testing::ShardedModel>> c = testing::CompileSharded(config, strategy, batch);
  return c.ok() ? Activations(**c).counts : c.status().ToString();
}

// Context parallel with its choices made.
const std::string kGathered = " cp_attention=gather cp_order=contiguous";
const std::string kRing = " cp_attention=ring cp_order=contiguous";

// The textbook's, and algebra.md's table.
TEST(Shard, ActivationCollectivesOfKnownStrategies) {
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8"), "- | -");
  EXPECT_EQ(Counts(testing::SmallDense(), "tp=2 dp=4"), "4AR | 4AR");
  EXPECT_EQ(Counts(testing::SmallDense(), "tp=2 dp=4 sp vp"), "5RS 5AG | 5RS 10AG");
  EXPECT_EQ(Counts(testing::SmallDense(), "tp=2 dp=4 vp"), "5AR | 5AR");
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 ep=4"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 ep=8"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(testing::SmallDropless(), "dp=8 ep=4"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=2 dp=4 ep=4 sp vp zero=1"), "4RS 4AG 2A2A | 4RS 8AG 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=4 dp=4 ep=8 sp vp zero=3"), "4RS 4AG 2A2A | 4RS 8AG 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "cp=2 tp=2 dp=2 ep=8 sp vp" + kGathered),
            "4RS 8AG 2A2A | 8RS 12AG 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "cp=2 tp=2 dp=4 ep=8 sp vp zero=1" + kGathered),
            "4RS 8AG 2A2A | 8RS 12AG 2A2A");
}

// No more than hand-written plans issue.
TEST(Shard, ActivationCollectivesOfOtherStrategies) {
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=4 dp=2"), "3AR | 3AR");
  EXPECT_EQ(Counts(testing::SmallDense(), "tp=2 dp=4 sp"), "4RS 3AG | 4RS 7AG");
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=8 etp=8"), "4AR | 4AR");
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=2 dp=4 etp=2"), "4AR | 4AR");
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=4 dp=2 etp=4 sp vp"), "5RS 5AG | 5RS 9AG");
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=2 dp=4 ep=8 sp"), "3RS 2AG 2A2A | 3RS 5AG 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 ep=4 zero=3"), "2A2A | 2A2A");
  // The gathered input of the experts is kept for their weight gradients.
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 etp=2 ep=4"), "1RS 1AG 2A2A | 1RS 1AG 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "cp=2 dp=4" + kGathered), "3AG | 4RS 2AG");
  // A ring: keys and values cp - 1 times a layer in each pass, in the backward their gradients cp times.
  EXPECT_EQ(Counts(testing::SmallDense(), "cp=4 dp=2" + kRing), "12R | 28R");
  EXPECT_EQ(Counts(testing::SmallDense(), "cp=2 dp=4 tp=2" + kRing), "4AR 4R | 4AR 12R");
}

// KiB that a rank sends for activations and their gradients, against what is issued where each strategy is
// written by hand: Megatron's all_reduces (or reduce_scatters and all_gathers, and the gathers for the
// backward under sequence parallelism), keys and values gathered over cp, two exchanges each way for experts,
// a gather and a scatter for expert tensor parallelism.
TEST(Shard, MovesNoMoreThanPlansWrittenByHand) {
  const struct {
    model::ModelConfig config;
    std::string strategy;
    double by_hand;
  } cases[] = {
      {testing::SmallMoe(), "tp=4 dp=2", 36},
      {testing::SmallDense(), "tp=2 dp=4", 16},
      {testing::SmallDense(), "tp=2 dp=4 sp", 20},
      {testing::SmallDense(), "tp=2 dp=4 sp vp", 25},
      {testing::SmallDense(), "tp=2 dp=4 vp", 20},
      {testing::SmallMoe(), "tp=2 dp=4 etp=2", 16},
      {testing::SmallMoe(), "tp=2 dp=4 etp=2 sp", 31},
      {testing::SmallMoe(), "tp=8 etp=8", 112},
      {testing::SmallMoe(), "tp=4 dp=2 etp=4 sp vp", 108},
      {testing::SmallMoe(), "dp=8 ep=4", 12},
      {testing::SmallMoe(), "dp=8 ep=8", 14},
      {testing::SmallDropless(), "dp=8 ep=4", 12},
      {testing::SmallMoe(), "tp=2 dp=4 ep=2", 20},
      {testing::SmallMoe(), "tp=2 dp=4 ep=8", 28},  // with the better axis order; 32 in the other
      {testing::SmallMoe(), "tp=2 dp=4 ep=8 sp", 29},
      {testing::SmallMoe(), "tp=2 dp=4 ep=4", 28},
      {testing::SmallMoe(), "tp=2 dp=4 ep=4 sp", 27},
      {testing::SmallDropless(), "tp=2 dp=4 ep=4 sp", 27},
      {testing::SmallDropless(), "tp=2 dp=4 ep=8", 32},
      {testing::SmallMoe(), "tp=2 dp=4 etp=2 ep=2", 32},
      {testing::SmallMoe(), "tp=2 dp=4 etp=2 ep=2 sp", 39},
      {testing::SmallMoe(), "dp=8 etp=2 ep=4", 28},
      {testing::SmallMoe(), "tp=2 dp=4 etp=4 ep=2 sp", 71},
      {testing::SmallDropless(), "tp=2 dp=4 etp=2 ep=2 sp", 39},
      {testing::SmallMoe(), "tp=2 dp=4 ep=4 sp vp zero=1", 32},
      {testing::SmallDropless(), "tp=2 dp=4 ep=4 sp vp zero=3", 32},
      {testing::SmallMoe(), "cp=2 dp=4" + kGathered, 6},
      {testing::SmallMoe(), "cp=2 tp=2 dp=2 ep=8 sp vp" + kGathered, 40},
      {testing::SmallMoe(), "cp=2 tp=2 dp=4 ep=8 sp vp zero=1" + kGathered, 20},
      {testing::SmallMoe(), "tp=4 dp=4 ep=8 sp vp zero=3", 37},
  };
  for (const auto& c : cases) {
    ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(c.config, c.strategy));
    const ActivationTraffic traffic = Activations(*m);
    EXPECT_LE(traffic.kib, c.by_hand + 1e-9) << c.strategy << ": " << traffic.counts;
  }
}

TEST(Shard, FindsTheBetterOrderOfExpertAxes) {
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=2 dp=4 ep=8 ep_order=fold"), "3AR 1AG 2A2A | 3AR 3AG 3A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=2 dp=4 ep=8"), "4AR 2A2A | 4AR 2A2A");
  ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(testing::SmallMoe(), "tp=2 dp=4 ep=8"));
  EXPECT_THAT(m->notes[0], HasSubstr("axis order: ep reversed"));
}

// Bytes of the plan that the note of the dispatcher reports, by the word that asked for it.
double Sent(const std::string& strategy, const model::ModelConfig& config, std::string* way) {
  absl::StatusOr<std::unique_ptr<testing::ShardedModel>> m = testing::CompileSharded(config, strategy);
  if (!m.ok()) return -1;
  for (const std::string& note : (*m)->notes) {
    double mib = 0;
    char word[16] = {};
    if (sscanf(note.c_str(), "dispatcher %15[a-z]: %lf", word, &mib) == 2) {
      *way = word;
      return mib;
    }
  }
  return -1;
}

TEST(Shard, TheDispatcherIsAWordOfTheStrategy) {
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 ep=8 dispatcher=alltoall"), "2A2A | 2A2A");
  // Tokens in by all_gather, what the experts make of them out by reduce_scatter; the same for the gradients.
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 ep=8 dispatcher=allgather"), "1RS 1AG | 1RS 1AG");
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 ep=2 dispatcher=alltoall"), "2A2A | 2A2A");
  EXPECT_EQ(Counts(testing::SmallMoe(), "dp=8 ep=2 dispatcher=allgather"), "1RS 1AG | 1RS 1AG");
  // Over the ranks that share tokens there is nothing to exchange or to gather.
  EXPECT_EQ(Counts(testing::SmallMoe(), "tp=2 ep=2 dispatcher=alltoall"),
            Counts(testing::SmallMoe(), "tp=2 ep=2 dispatcher=allgather"));
}

// Bytes favour gathering where ep is small against k x capacity factor, and exchanging where it is not; auto
// takes the cheaper, and never costs more than either.
TEST(Shard, AutoTakesTheCheaperDispatcher) {
  model::ModelConfig wide = testing::SmallMoe();
  wide.set_hidden_size(64);
  for (const char* strategy : {"dp=2 ep=2", "dp=8 ep=2", "dp=8 ep=4", "dp=8 ep=8", "tp=2 dp=4 ep=8 sp",
                               "tp=2 dp=4 ep=4", "tp=2 dp=4 etp=2 ep=4", "cp=2 dp=4 ep=8"}) {
    SCOPED_TRACE(strategy);
    std::string way, unused;
    const double automatic = Sent(strategy, wide, &way);
    const double exchanged = Sent(absl::StrCat(strategy, " dispatcher=alltoall"), wide, &unused);
    const double gathered = Sent(absl::StrCat(strategy, " dispatcher=allgather"), wide, &unused);
    ASSERT_GT(std::min({automatic, exchanged, gathered}), 0);
    EXPECT_LE(automatic, std::min(exchanged, gathered) + 0.005);
  }
  std::string way;
  Sent("dp=2 ep=2", wide, &way);
  EXPECT_EQ(way, "allgather");
  Sent("dp=8 ep=8", wide, &way);
  EXPECT_EQ(way, "alltoall");
}

// How many collectives of a kind a function issues for weights: parameters, gradients, moments.
std::map<std::string, int> WeightCollectives(const testing::ShardedModel& m, absl::string_view function,
                                             Phase phase) {
  std::map<std::string, int> counts;
  for (const auto& n : m.module().Find(function)->body()) {
    if (n->phase != phase || !ConvertsOne(*n)) continue;
    const Value root = Root(n->operand(0));
    const bool weight = phase == Phase::kUpdate ? root.type().rank() > 0 : IsWeight(root);
    if (weight && n->queue == Queue::kComm) ++counts[n->op_name()];
  }
  return counts;
}
int NumParameters(const testing::ShardedModel& m) {
  int n = 0;
  for (const auto& s : m.module().states()) n += AttrString(s->attributes, "kind") == "parameter";
  return n;
}
std::string StateType(const testing::ShardedModel& m, absl::string_view name) {
  return TypeToString(m.module().FindState(name)->type, m.module().mesh());
}

TEST(Shard, EachGradientIsReducedOncePerStep) {
  ASSERT_OK_AND_ASSIGN(const auto m,
                       testing::CompileSharded(testing::SmallMoe(), "dp=8 ep=4 microbatches=2", 16));
  EXPECT_THAT(WeightCollectives(*m, "chunk0", Phase::kForward), ::testing::IsEmpty());
  EXPECT_THAT(WeightCollectives(*m, "chunk0", Phase::kBackward), ::testing::IsEmpty());
  EXPECT_EQ(WeightCollectives(*m, "update0", Phase::kUpdate),
            (std::map<std::string, int>{{"comm.all_reduce", NumParameters(*m)}}));
  // The accumulator keeps the partial: dense over dp, experts over edp.
  EXPECT_EQ(StateType(*m, "grad.layers.0.attn.wq"), "f64[16, 8, 4] partial(b, a)");
  EXPECT_EQ(StateType(*m, "grad.layers.1.moe.w_up"), "f64[8@ep, 16, 16] partial(b)");
}

TEST(Shard, ZeroOneScattersGradientsAndGathersParameters) {
  ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(testing::SmallMoe(), "dp=8 ep=4 zero=1"));
  EXPECT_THAT(WeightCollectives(*m, "chunk0", Phase::kBackward), ::testing::IsEmpty());
  EXPECT_EQ(WeightCollectives(*m, "update0", Phase::kUpdate),
            (std::map<std::string, int>{{"comm.reduce_scatter", NumParameters(*m)},
                                        {"comm.all_gather", NumParameters(*m)}}));
  EXPECT_EQ(StateType(*m, "layers.0.attn.wq"), "f64[16, 8, 4]");
  EXPECT_EQ(StateType(*m, "adam.m.layers.0.attn.wq"), "f64[16@dp, 8, 4]");
  EXPECT_EQ(StateType(*m, "adam.m.layers.1.moe.w_up"), "f64[8@a.b, 16, 16]");
}

TEST(Shard, ZeroThreeGathersAgainInTheBackward) {
  ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(testing::SmallDense(), "dp=8 zero=3"));
  const int n = NumParameters(*m);
  EXPECT_EQ(WeightCollectives(*m, "chunk0", Phase::kForward),
            (std::map<std::string, int>{{"comm.all_gather", n}}));
  // The backward of the embedding lookup does not read the table.
  EXPECT_EQ(WeightCollectives(*m, "chunk0", Phase::kBackward),
            (std::map<std::string, int>{{"comm.all_gather", n - 1}, {"comm.reduce_scatter", n}}));
  EXPECT_THAT(WeightCollectives(*m, "update0", Phase::kUpdate), ::testing::IsEmpty());
  EXPECT_EQ(StateType(*m, "layers.0.attn.wq"), "f64[16@dp, 8, 4]");
  EXPECT_EQ(StateType(*m, "grad.layers.0.attn.wq"), "f64[16@dp, 8, 4]");
}

TEST(Shard, ExpertsMayHaveAZeroStageOfTheirOwn) {
  ASSERT_OK_AND_ASSIGN(const auto m,
                       testing::CompileSharded(testing::SmallMoe(), "dp=8 ep=4 zero=3 expert_zero=0"));
  EXPECT_EQ(StateType(*m, "layers.0.attn.wq"), "f64[16@dp, 8, 4]");
  EXPECT_EQ(StateType(*m, "adam.m.layers.1.moe.w_up"), "f64[8@ep, 16, 16]");
}

TEST(Shard, TheGradientNormIsOneScalarAllReduce) {
  for (const char* strategy : {"tp=2 dp=4 ep=4 sp vp zero=1", "dp=8 zero=3", "tp=4 dp=2 etp=2 ep=2"}) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(testing::SmallMoe(), strategy));
    int reductions = 0;
    for (const auto& n : m->module().Find("update0")->body()) {
      reductions +=
          n->type().rank() == 0 && absl::StartsWith(n->op_name(), "comm.") && n->queue == Queue::kComm;
    }
    EXPECT_EQ(reductions, 1);
  }
}

TEST(Shard, StatesAndWhatIsWrittenToThemAgree) {
  model::ModelConfig tied = testing::SmallMoe();
  tied.set_tie_embeddings(true);
  for (const char* strategy :
       {"pp=2 dp=2 tp=2 ep=2 sp vp zero=1 microbatches=2", "tp=2 dp=4 ep=8 sp vp", "dp=8 zero=2"}) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(tied, strategy));
    for (const auto& f : m->module().functions()) {
      for (const Node* a : f->args()) {
        if (a->binding.kind != Binding::kState) continue;
        EXPECT_EQ(a->type(), m->module().FindState(a->binding.name)->type) << a->result_name();
      }
      for (int i = 0; i < f->num_results(); ++i) {
        const Binding& binding = f->result_binding(i);
        if (binding.kind == Binding::kReport) {
          EXPECT_TRUE(f->result(i).type().placement.IsReplicated());
        }
        if (binding.kind != Binding::kState) continue;
        EXPECT_EQ(f->result(i).type(), m->module().FindState(binding.name)->type) << f->result(i).name();
      }
    }
  }
}

TEST(Shard, DecisionsSeeTheSameBitsOnAllRanksThatShareThem) {
  for (const char* strategy : {"tp=2 dp=4 ep=8", "tp=2 dp=4 etp=2 ep=2 sp", "cp=2 tp=2 dp=2 ep=8 sp"}) {
    ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(testing::SmallMoe(), strategy));
    int decisions = 0;
    for (const auto& n : m->module().Find("chunk0")->body()) {
      if (!n->op().Has(kDecision)) continue;
      ++decisions;
      for (const Value& v : n->operands())
        EXPECT_TRUE(v.type().placement.partial.empty()) << n->result_name();
      for (int i = 0; i < n->num_results(); ++i) EXPECT_TRUE(n->type(i).placement.partial.empty());
    }
    EXPECT_GE(decisions, 2);
  }
}

TEST(Shard, TextbookLocalShapes) {
  ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(testing::SmallMoe(), "tp=2 dp=4 ep=4 sp vp"));
  const Mesh& mesh = m->module().mesh();
  const Function& f = *m->module().Find("chunk0");
  const auto local = [&](absl::string_view name) {
    for (const auto& n : f.body()) {
      for (int i = 0; i < n->num_results(); ++i) {
        if (n->result_name(i) == name) return absl::StrJoin(n->type(i).LocalDims(mesh), "x");
      }
    }
    return absl::StrCat("no value ", name);
  };
  EXPECT_EQ(local("layers.0.attn.x"), "2x4x16");        // [B/dp, S/tp, H]
  EXPECT_EQ(local("layers.0.attn.q"), "2x8x4x4");       // [B/dp, S, N/tp, D]
  EXPECT_EQ(local("layers.0.attn.k"), "2x8x1x4");       // [B/dp, S, KV/tp, D]
  EXPECT_EQ(local("layers.0.mlp.gate"), "2x8x8");       // [B/dp, S, F/tp]
  EXPECT_EQ(local("layers.1.moe.logits"), "2x2x2x8");   // [B/dp, C/tp, T, E]
  EXPECT_EQ(local("layers.1.moe.gate"), "2x4x4x1x16");  // [E/ep, B/edp, C, P, F]
  EXPECT_EQ(local("layers.1.moe.combined"), "2x2x2x16");
  EXPECT_EQ(local("head.max"), "2x8");
}

TEST(Shard, StrategiesThatDoNotDivideNameEveryProblem) {
  model::ModelConfig odd = testing::SmallDense();
  odd.set_num_attention_heads(6);
  odd.set_ffn_hidden_size(18);
  const auto m = testing::CompileSharded(odd, "tp=4 dp=16 no_kv_axis");
  ExpectError(m, absl::StatusCode::kInvalidArgument, "q parameter layers.0.attn.wq", "extent 6",
              "legal here: 1, 2, 3, 6", "up parameter", "extent 18", "batch tokens", "dp = 16");
}

TEST(Shard, ANodeThatCannotBePlacedIsNamed) {
  model::ModelConfig blocks = testing::SmallDense();
  blocks.set_vocab_blocks(1);
  ExpectError(testing::CompileSharded(blocks, "tp=2 vp"), absl::StatusCode::kInvalidArgument, "@chunk0",
              "nn.head_stats", "no legal placement");
}

TEST(Shard, SaysWhenTheLayoutCutsRoutingGroups) {
  model::ModelConfig c = testing::SmallMoe();
  c.set_routing_groups_per_sequence(1);
  ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(c, "tp=2 dp=4 ep=4 sp"));
  EXPECT_THAT(absl::StrJoin(m->notes, " "), HasSubstr("cuts its 1 routing group"));
  ASSERT_OK_AND_ASSIGN(const auto whole, testing::CompileSharded(testing::SmallMoe(), "tp=2 dp=4 ep=4 sp"));
  EXPECT_THAT(absl::StrJoin(whole->notes, " "), Not(HasSubstr("routing group")));
}

TEST(Shard, InsertedNodesSayWhy) {
  ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(testing::SmallMoe(), "dp=8 ep=4"));
  std::vector<std::string> reasons;
  for (const Node* n : m->module().Find("chunk0")->NodesOf("comm.all_to_all"))
    reasons.push_back(n->provenance.reason);
  ASSERT_EQ(reasons.size(), 4);
  EXPECT_EQ(reasons[0], "batch@ep -> experts@ep, for %layers.1.moe.d");
  EXPECT_EQ(reasons[1], "experts@ep -> batch@ep, for %layers.1.moe.o");
}

class ShardTextTest : public testing::PassTest {
 protected:
  PassContext Context(absl::string_view strategy) {
    PassContext context;
    context.strategy = *strategy::ParseStrategy(strategy);
    return context;
  }
};

TEST_F(ShardTextTest, ColumnThenRow) {
  ExpectRewrite(Shard, R"(
    module @m mesh<dp=2, tp=2>
    state @w1 : f32[16, 32] {kind = "parameter", role = "up"}
    state @w2 : f32[32, 16] {kind = "parameter", role = "down"}
    // CHECK: state @w1 : f32[16, 32@tp]
    // CHECK: state @w2 : f32[32@tp, 16]
    func @f(%x: f32[8, 4, 16] {kind = "batch", name = "x"}, %w1: f32[16, 32] {kind = "state", name = "w1"},
            %w2: f32[32, 16] {kind = "state", name = "w2"}) {
      // CHECK: math.einsum(%x, %w1) {{.*}}place<b=dp, f=tp> : f32[8@dp, 4, 32@tp]
      // CHECK-NEXT: math.silu(%h){{.*}} : f32[8@dp, 4, 32@tp]
      // CHECK-NEXT: %y = {{.*}} : f32[8@dp, 4, 16] partial(tp)
      // CHECK-NEXT: %[[R:.*]] = comm.convert(%y) {axes = [tp]} @comm : f32[8@dp, 4, 16] {{.*}}partial sum@tp -> whole
      // CHECK-NEXT: math.silu(%[[R]])
      %h = math.einsum(%x, %w1) {eq = "b s h, h f -> b s f"} : f32[8, 4, 32]
      %a = math.silu(%h) : f32[8, 4, 32]
      %y = math.einsum(%a, %w2) {eq = "b s f, f h -> b s h"} : f32[8, 4, 16]
      %z = math.silu(%y) : f32[8, 4, 16]
      return %z
    })");
}

TEST_F(ShardTextTest, SequenceParallelResidualIsScattered) {
  runs_ = false;  // a chunk without the one before it, which would give it act.0
  ExpectRewrite(Shard, R"(
    module @m mesh<tp=2>
    state @w2 : f32[32, 16] {kind = "parameter", role = "down"}
    func @f(%x: f32[8, 4, 16] {kind = "boundary", name = "act.0", peer = 0}, %a: f32[8, 4, 32],
            %w2: f32[32, 16] {kind = "state", name = "w2"}) {
      // CHECK: comm.convert(%y) {axes = [tp]} @comm : f32[8, 4@tp, 16]
      // CHECK: math.add(%x, %{{.*}} : f32[8, 4@tp, 16]
      %y = math.einsum(%a, %w2) {eq = "b s f, f h -> b s h"} : f32[8, 4, 16]
      %z = math.add(%x, %y) {tag = "residual_stream"} : f32[8, 4, 16]
      return %z {kind = "boundary", name = "act.1", peer = 2}
    })",
                Context("tp=2 sp"));
}

// A node that the text places stays as it is, and what it needs is brought to it.
TEST_F(ShardTextTest, WrittenPlacementsStay) {
  ExpectRewrite(Shard, R"(
    module @m mesh<a=2>
    func @f(%x: f32[8@a, 16], %y: f32[8, 16]) {
      // CHECK: math.silu(%x) place<a0=a> : f32[8@a, 16]
      // CHECK: math.silu(%y) {{.*}}: f32[8, 16]
      %u = math.silu(%x) : f32[8@a, 16]
      %v = math.silu(%y) : f32[8, 16]
      return %u, %v
    })");
}

}  // namespace
}  // namespace moe::passes
