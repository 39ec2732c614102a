// What the literature says that strategies cost, read off compiled plans: bytes moved by tensor, sequence,
// expert and data parallelism, memory of model states under ZeRO, memory of activations per layer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/conversion_layout.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/state.h"
#include "moe/model/transformer.h"
#include "moe/plan/compile.h"
#include "moe/testing/sharded_model.h"

namespace moe::plan {
namespace {

// ------------------------------------------------------------------------------------------- bytes moved

struct Traffic {
  int64_t count = 0;
  int64_t bytes = 0;  // that one rank sends, in rings
  friend bool operator==(const Traffic& a, const Traffic& b) {
    return a.count == b.count && a.bytes == b.bytes;
  }
  friend std::ostream& operator<<(std::ostream& os, const Traffic& t) {
    return os << t.count << " of together " << t.bytes << " bytes";
  }
};

// Of collectives of one kind in one phase that `wanted` says yes to.
template <typename F>
Traffic Moved(const testing::ShardedModel& m, Phase phase, StepKind kind, F wanted) {
  Traffic sum;
  const Mesh& mesh = m.module().mesh();
  for (const auto& f : m.module().functions()) {
    for (const auto& n : f->body()) {
      if (!ConvertsOne(*n) || n->phase != phase || !wanted(*n)) continue;
      const std::vector<ConversionStep> steps = (*ConversionParts(*n, mesh))[0].steps;
      const ConversionLayout layout = *LayoutConversion(n->operand(0).type(), n->type(), mesh, 0, steps);
      for (size_t i = 0; i < steps.size(); ++i) {
        if (steps[i].kind != kind) continue;
        ++sum.count;
        sum.bytes += layout.ExpectedTraffic(static_cast<int>(i));
      }
    }
  }
  return sum;
}

// Activations [batch, sequence, hidden] of SmallDense and SmallMoe.
bool Stream(const Node& n) { return n.type().rank() == 3 && n.type().dims == Dims({8, 8, 16}); }

constexpr int64_t kElement = 8;  // f64
constexpr int64_t kBatch = 8, kSequence = 8, kHidden = 16;

// Megatron-LM (arXiv 1909.08053, section 3): two all_reduces of [batch, sequence, hidden] per layer and pass.
TEST(Textbook, TensorParallelReducesTwiceInEachLayerAndPass) {
  for (const int64_t tp : {2, 4}) {
    SCOPED_TRACE(tp);
    const int64_t dp = 8 / tp;
    model::ModelConfig model = testing::SmallDense();
    model.set_num_key_value_heads(8);
    ASSERT_OK_AND_ASSIGN(const auto m, testing::CompileSharded(model, absl::StrCat("tp=", tp, " dp=", dp)));
    const int64_t activation = kBatch / dp * kSequence * kHidden * kElement;
    for (const Phase phase : {Phase::kForward, Phase::kBackward}) {
      EXPECT_EQ(Moved(*m, phase, StepKind::kAllReduce, Stream),
                (Traffic{2 * model.num_layers(), 2 * model.num_layers() * 2 * (tp - 1) * activation / tp}));
    }
  }
}

// Korthikanti et al. (arXiv 2205.05198, section 4.2.2): sequence parallelism moves as much as tensor
// parallelism, an all_reduce being a reduce_scatter and an all_gather. Here the embedding and the head are
// parallel, too, and the backward gathers the inputs of the weights' gradients once more.
TEST(Textbook, SequenceParallelForwardMovesWhatTensorParallelDoes) {
  const int64_t tp = 2, dp = 4;
  ASSERT_OK_AND_ASSIGN(const auto plain, testing::CompileSharded(testing::SmallDense(), "tp=2 dp=4 vp"));
  ASSERT_OK_AND_ASSIGN(const auto sequence,
                       testing::CompileSharded(testing::SmallDense(), "tp=2 dp=4 sp vp"));
  const int64_t activation = kBatch / dp * kSequence * kHidden * kElement;
  const Traffic scattered = Moved(*sequence, Phase::kForward, StepKind::kReduceScatter, Stream);
  const Traffic gathered = Moved(*sequence, Phase::kForward, StepKind::kAllGather, Stream);
  EXPECT_EQ(scattered, (Traffic{5, 5 * (tp - 1) * activation / tp}));
  EXPECT_EQ(gathered, (Traffic{5, 5 * (tp - 1) * activation / tp}));
  const Traffic reduced = Moved(*plain, Phase::kForward, StepKind::kAllReduce, Stream);
  EXPECT_EQ(reduced.bytes, scattered.bytes + gathered.bytes);
  EXPECT_EQ(Moved(*sequence, Phase::kForward, StepKind::kAllReduce, Stream).count, 0);
  EXPECT_EQ(Moved(*sequence, Phase::kBackward, StepKind::kReduceScatter, Stream).count, 5);
  EXPECT_EQ(Moved(*sequence, Phase::kBackward, StepKind::kAllGather, Stream).count, 10);
}

// GShard (arXiv 2006.16668): tokens go to their experts and back by one all_to_all each, forward and
// backward, of the slots of all experts.
TEST(Textbook, ExpertParallelExchangesTwiceEachWay) {
  for (const int64_t ep : {4, 8}) {  // with ep = 2 gathering the tokens moves less
    SCOPED_TRACE(ep);
    ASSERT_OK_AND_ASSIGN(const auto m,
                         testing::CompileSharded(testing::SmallMoe(), absl::StrCat("dp=8 ep=", ep)));
    const auto dispatched = [](const Node& n) { return n.type().rank() == 5; };
    // [experts, batch of a rank, groups, slots, hidden]; capacity factor 1: 1 slot for 2 tokens x top-2 of 8.
    const int64_t bytes = 8 * (kBatch / 8) * 4 * 1 * kHidden * kElement;
    for (const Phase phase : {Phase::kForward, Phase::kBackward}) {
      EXPECT_EQ(Moved(*m, phase, StepKind::kAllToAll, dispatched), (Traffic{2, 2 * (ep - 1) * bytes / ep}));
      for (const StepKind other : {StepKind::kAllGather, StepKind::kAllReduce, StepKind::kReduceScatter}) {
        EXPECT_EQ(Moved(*m, phase, other, dispatched).count, 0);
      }
    }
  }
}

// ZeRO (arXiv 1910.02054, section 7): stages 1 and 2 move what data parallelism does, stage 3 half as much
// again: weights are gathered forward and backward, gradients scattered.
TEST(Textbook, ZeroThreeMovesHalfAsMuchAgain) {
  const int64_t n = 8;
  int64_t parameters = 0;
  const auto total = [&](const std::string& strategy) {
    Traffic sum;
    const auto m = testing::CompileSharded(testing::SmallDense(), strategy);
    EXPECT_OK(m.status());
    if (!m.ok()) return sum;
    parameters = 0;
    for (const auto& s : (*m)->module().states()) {
      if (AttrString(s->attributes, "kind") == "parameter") parameters += s->type.num_elements();
    }
    const auto of_weights = [](const Node& node) {
      return node.type().num_elements() > 1 && !(node.type().rank() == 3 && Stream(node)) &&
             !absl::StrContains(node.result_name(), "report");
    };
    for (const Phase phase : {Phase::kForward, Phase::kBackward, Phase::kUpdate}) {
      for (const StepKind kind : {StepKind::kAllReduce, StepKind::kAllGather, StepKind::kReduceScatter}) {
        const Traffic t = Moved(**m, phase, kind, of_weights);
        sum.count += t.count;
        sum.bytes += t.bytes;
      }
    }
    return sum;
  };
  const Traffic plain = total("dp=8"), one = total("dp=8 zero=1"), two = total("dp=8 zero=2"),
                three = total("dp=8 zero=3");
  const int64_t once = parameters * kElement * (n - 1) / n;
  EXPECT_EQ(plain.bytes, 2 * once);
  EXPECT_EQ(one.bytes, 2 * once);
  EXPECT_EQ(two.bytes, 2 * once);
  // The backward of the embedding's lookup does not read the table, so that is gathered once only.
  const int64_t table = 32 * kHidden * kElement * (n - 1) / n;
  EXPECT_EQ(three.bytes, 3 * once - table);
}

// ----------------------------------------------------------------------------------- memory of model states

absl::StatusOr<Compiled> CompileModel(const model::ModelConfig& model, const std::string& text,
                                      int64_t global_batch) {
  ASSIGN_OR_RETURN(const strategy::Strategy strategy, strategy::ParseStrategy(text));
  model::BuildOptions build;
  build.global_batch = global_batch;
  build.microbatches = strategy.microbatches;
  ASSIGN_OR_RETURN(std::unique_ptr<Module> module,
                   model::BuildModel(model::ResolveModelConfig(model), build));
  return Compile(std::move(module), strategy);
}

// Bytes of one rank's states of a kind, without alignment.
int64_t StateBytes(const Plan& plan, const std::string& kind) {
  int64_t bytes = 0;
  for (const auto& s : plan.module().states()) {
    if (AttrString(s->attributes, "kind") != kind) continue;
    bytes += plan.program.memory.stages[0].states.at(s->name).bytes;
  }
  return bytes;
}

model::ModelConfig Dense(int64_t layers) {
  model::ModelConfig c;
  c.set_name("dense");
  c.set_num_layers(layers);
  c.set_hidden_size(64);
  c.set_num_attention_heads(4);
  c.set_num_key_value_heads(4);
  c.set_ffn_hidden_size(256);
  c.set_vocab_size(512);
  c.set_seq_length(32);
  return c;
}

// The table of ZeRO (arXiv 1910.02054, figure 1) with P parameters on N ranks, 16P, 4P + 12P/N, 2P + 14P/N
// and 16P/N, is of mixed precision, below. In f32 parameters are their own masters: 4 bytes of parameters, 4
// of gradients, 8 of moments.
TEST(Textbook, ZeroTableInF32) {
  const int64_t n = 4;
  const int64_t p = model::CountParameters(model::ResolveModelConfig(Dense(3))).total;
  const std::map<std::string, int64_t> table = {{"dp=4", 16 * p},
                                                {"dp=4 zero=1", 8 * p + 8 * p / n},
                                                {"dp=4 zero=2", 4 * p + 12 * p / n},
                                                {"dp=4 zero=3", 16 * p / n}};
  for (const auto& [strategy, bytes] : table) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const Compiled c, CompileModel(Dense(3), strategy, 8));
    const int64_t parameters = StateBytes(c.plan, "parameter"), gradients = StateBytes(c.plan, "gradient"),
                  moments = StateBytes(c.plan, "moment");
    EXPECT_EQ(parameters + gradients + moments, bytes);
    EXPECT_EQ(parameters, strategy == "dp=4 zero=3" ? 4 * p / n : 4 * p);
    EXPECT_EQ(gradients, strategy == "dp=4" || strategy == "dp=4 zero=1" ? 4 * p : 4 * p / n);
    EXPECT_EQ(moments, strategy == "dp=4" ? 8 * p : 8 * p / n);
  }
}

// The same table in its own setting, computing in 16 bits. Published per parameter: 2 bytes of parameters, 2
// of gradients, 12 of optimizer state, of which 4 are the f32 master and 8 the moments. Here gradients have 4
// bytes, or 2 with grads=. Under ZeRO-1 and -2 a parameter that is read narrow is a sharded master (4 / N)
// with a narrow copy (2); otherwise it is its own master, and narrow casts lie in the frame. What is read
// wide (norms and the embedding) has no copy and stays whole (4): the only bytes beyond the publication.
TEST(Textbook, ZeroTableInMixedPrecision) {
  const int64_t n = 4;
  const int64_t p = model::CountParameters(model::ResolveModelConfig(Dense(3))).total;
  const std::map<std::string, int64_t> published = {{"dp=4", 16 * p},
                                                    {"dp=4 zero=1", 4 * p + 12 * p / n},
                                                    {"dp=4 zero=2", 2 * p + 14 * p / n},
                                                    {"dp=4 zero=3", 16 * p / n}};
  for (const char* precision : {"bf16", "f16"}) {
    for (const bool narrow_gradients : {false, true}) {
      for (const auto& [strategy, bytes] : published) {
        const std::string text = absl::StrCat(strategy, " ", precision,
                                              narrow_gradients ? absl::StrCat(" grads=", precision) : "");
        SCOPED_TRACE(text);
        ASSERT_OK_AND_ASSIGN(const Compiled c, CompileModel(Dense(3), text, 8));
        int64_t copied = 0;
        for (const auto& s : c.plan.module().states()) {
          if (AttrString(s->attributes, "kind") == "working_copy") copied += s->type.num_elements();
        }
        const bool masters = strategy == "dp=4 zero=1" || strategy == "dp=4 zero=2";
        const bool scattered = strategy == "dp=4 zero=2" || strategy == "dp=4 zero=3";
        const int64_t parameter = StateBytes(c.plan, "parameter"), copy = StateBytes(c.plan, "working_copy"),
                      gradient = StateBytes(c.plan, "gradient"), moments = StateBytes(c.plan, "moment");
        if (masters) {
          EXPECT_GT(copied, p / 2);
        } else {
          EXPECT_EQ(copied, 0);
        }
        EXPECT_EQ(copy, 2 * copied);
        EXPECT_EQ(parameter, strategy == "dp=4 zero=3" ? 4 * p / n : 4 * (p - copied) + 4 * copied / n);
        EXPECT_EQ(gradient, (narrow_gradients ? 2 : 4) * p / (scattered ? n : 1));
        EXPECT_EQ(moments, strategy == "dp=4" ? 8 * p : 8 * p / n);
        const int64_t wide = masters ? 2 * (p - copied) - 4 * (p - copied) / n : 0;
        const int64_t more = narrow_gradients ? wide : wide + 2 * p / (scattered ? n : 1);
        EXPECT_LE(parameter + copy + gradient + moments, bytes + more);
        if (masters) {
          EXPECT_EQ(parameter + copy + gradient + moments, bytes + more);
        }
      }
    }
  }
}

// Experts have their own ranks: with ep, a rank holds its experts, and ZeRO divides them by edp.
TEST(Textbook, ZeroDividesExpertsByTheirOwnDataRanks) {
  model::ModelConfig model = Dense(2);
  model.set_num_experts(8);
  model.set_moe_router_topk(2);
  model.set_moe_ffn_hidden_size(32);
  const model::ParameterCount count = model::CountParameters(model::ResolveModelConfig(model));
  const int64_t experts = 2 * 8 * 3 * 64 * 32, dense = count.total - experts;
  ASSERT_OK_AND_ASSIGN(const Compiled plain, CompileModel(model, "dp=8 ep=4", 8));
  EXPECT_EQ(StateBytes(plain.plan, "moment"), 8 * (dense + experts / 4));
  ASSERT_OK_AND_ASSIGN(const Compiled one, CompileModel(model, "dp=8 ep=4 zero=1", 8));
  EXPECT_EQ(StateBytes(one.plan, "moment"), 8 * (dense / 8 + experts / 8));
  EXPECT_EQ(StateBytes(one.plan, "parameter"), 4 * (dense + experts / 4));
}

// -------------------------------------------------------------------------------------- memory of
// activations

// Bytes that a layer keeps for its backward, a microbatch: what one layer more adds.
int64_t LayerResidualBytes(model::ModelConfig model, const std::string& strategy, int64_t batch) {
  int64_t bytes[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    model.set_num_layers(3 + i);
    const absl::StatusOr<Compiled> c = CompileModel(model, strategy, batch);
    EXPECT_OK(c.status());
    if (!c.ok()) return -1;
    bytes[i] = c->plan.program.memory.stages[0].residuals.at(0).bytes;
  }
  return bytes[1] - bytes[0];
}

// Korthikanti et al. (arXiv 2205.05198, equation 1): a layer keeps sbh (34 + 5as/h) bytes in 16 bits. Its
// terms, in elements (halves of the bytes) of an attention block and a GELU block of width 4h:
//   inputs of the two norms 2 sbh, input of QKV sbh, Q and K 2 sbh, V sbh, input of the projection sbh,
//   input of the first linear sbh, of GELU 4 sbh, of the second linear 4 sbh: 16 sbh elements, 32 sbh bytes;
//   two dropout masks of a byte: 2 sbh bytes;
//   softmax, its dropout mask and output: 5 as^2 b bytes.
// Here: no dropout; attention is blockwise and keeps its log-sum-exp, asb elements, instead of the 5 as^2 b;
// SwiGLU has a gate and an up projection, F each, and the input of the second linear, F, in place of 8h. So a
// layer keeps sbh (8 + 3F/h) + asb elements. Q and K are kept after the rotation.
TEST(Textbook, ActivationsOfALayer) {
  const int64_t s = 32, b = 2, h = 64, a = 4, f = 256, element = 4;
  const int64_t whole = (s * b * h * 8 + s * b * f * 3 + s * b * a) * element;
  EXPECT_EQ(LayerResidualBytes(Dense(3), "dp=1", b), whole);
  // The same terms of the published formula, at its own block width and with its 16 bits.
  EXPECT_EQ((s * b * h * 8 + 2 * s * b * (4 * h)) * 2, 32 * s * b * h);
  // Selective recomputation drops what cheap nodes give back: the outputs of both norms, of SwiGLU, and the
  // second residual sum stays.
  EXPECT_EQ(LayerResidualBytes(Dense(3), "checkpoint=selective", b),
            whole - (2 * s * b * h + s * b * f) * element);
  // Full: the layer's input alone (section 5 of the paper: 2 sbh bytes in 16 bits).
  EXPECT_EQ(LayerResidualBytes(Dense(3), "checkpoint=full", b), s * b * h * element);
  // Tensor parallelism divides what is between the projections (equation 2), sequence parallelism the rest
  // (equation 4).
  const int64_t t = 4;
  EXPECT_EQ(LayerResidualBytes(Dense(3), "tp=4", b),
            (s * b * h * 4 + (s * b * h * 4 + s * b * f * 3 + s * b * a) / t) * element);
  EXPECT_EQ(LayerResidualBytes(Dense(3), "tp=4 sp", b), whole / t);
  EXPECT_EQ(LayerResidualBytes(Dense(3), "tp=4 sp checkpoint=full", b), s * b * h / t * element);
}

}  // namespace
}  // namespace moe::plan
