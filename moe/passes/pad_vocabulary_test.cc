#include "moe/passes/pad_vocabulary.h"

#include "moe/base/status_matchers.h"
#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

constexpr char kModule[] = R"(
module @m
state @words : f32[9, 4] {kind = "parameter", role = "emb", init = "normal"}
state @head : f32[9, 4] {kind = "parameter", role = "head", init = "normal"}
state @grad.words : f32[9, 4] {kind = "gradient", of = "words"}
state @grad.head : f32[9, 4] {kind = "gradient", of = "head"}
func @step(%tokens: s32[2, 3], %words: f32[9, 4] {kind = "state", name = "words"},
           %head: f32[9, 4] {kind = "state", name = "head"}, %g: f32[9, 4] {kind = "state", name = "grad.words"},
           %gh: f32[9, 4] {kind = "state", name = "grad.head"}) {
  %x = nn.embed(%tokens, %words) : f32[2, 3, 4]
  %max, %sum, %label = nn.head_stats(%x, %head, %tokens) {blocks = 1, vocab = 9} : f32[2, 3, 1], f32[2, 3, 1], f32[2, 3]
  %most = math.reduce_max(%max) {eq = "b s u -> b s"} : f32[2, 3]
  %total = nn.merge_sum_exp(%max, %sum, %most) : f32[2, 3]
backward:
  %dsum = nn.merge_sum_exp_grad(%max, %most, %total) : f32[2, 3, 1]
  %dx, %dh = nn.head_stats_grad(%x, %head, %tokens, %max, %dsum, %label) {blocks = 1, vocab = 9} : f32[2, 3, 4], f32[9, 4]
  %de = nn.embed_grad(%tokens, %dx) {vocab = 9} : f32[9, 4]
  %g2 = optim.accumulate(%g, %de) : f32[9, 4]
  %gh2 = optim.accumulate(%gh, %dh) : f32[9, 4]
  return %most, %total, %g2 {kind = "state", name = "grad.words"}, %gh2 {kind = "state", name = "grad.head"}
}
)";

class PadVocabularyTest : public testing::PassTest {
 protected:
  static PassContext Over(int64_t tp, bool vocab_parallel) {
    PassContext context;
    context.strategy.tp = tp;
    context.strategy.vocab_parallel = vocab_parallel;
    return context;
  }
};

TEST_F(PadVocabularyTest, RowsAndBlocksDivide) {
  ExpectRewrite(PadVocabulary, std::string(kModule) + R"(
    // CHECK: state @words : f32[10, 4] {init = "normal", kind = "parameter", logical_rows = 9, role = "emb"}
    // CHECK: state @grad.words : f32[10, 4] {{.*}}logical_rows = 9
    // CHECK: nn.embed(%tokens, %words) : f32[2, 3, 4]
    // CHECK: nn.head_stats(%x, %head, %tokens) {blocks = 2, vocab = 9} : f32[2, 3, 2], f32[2, 3, 2], f32[2, 3]
    // CHECK: nn.head_stats_grad({{.*}} {blocks = 2, vocab = 9} : f32[2, 3, 4], f32[10, 4]
    // CHECK: nn.embed_grad(%tokens, %dx) {vocab = 10} : f32[10, 4]
    // CHECK: optim.accumulate(%g, %de) : f32[10, 4]
  )",
                Over(2, true));
}

TEST_F(PadVocabularyTest, OnlyBlocksWhereTheRowsDivide) {
  ExpectRewrite(PadVocabulary, std::string(kModule) + R"(
    // CHECK: state @words : f32[9, 4] {init = "normal", kind = "parameter", role = "emb"}
    // CHECK: nn.head_stats(%x, %head, %tokens) {blocks = 3, vocab = 9} : f32[2, 3, 3]
  )",
                Over(3, true));
}

TEST_F(PadVocabularyTest, LeavesTheRestAlone) {
  ExpectUnchanged(PadVocabulary, kModule, Over(2, false));
  ExpectUnchanged(PadVocabulary, kModule, Over(1, true));
}

}  // namespace
}  // namespace moe::passes
