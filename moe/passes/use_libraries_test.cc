#include "moe/passes/use_libraries.h"

#include <gmock/gmock.h>

#include "absl/strings/str_replace.h"
#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

using ::testing::ElementsAre;

class UseLibrariesTest : public testing::PassTest {
 protected:
  static PassContext WithCudnn() {
    PassContext context;
    context.target.libraries = {"cudnn"};
    return context;
  }
  // What the pass said in the last call.
  const std::vector<std::string>& Notes() const { return results_.at(0).notes; }
};

// dp cuts samples, tp heads; queries and keys have the batch's positions.
constexpr char kAttention[] = R"(
    module @m mesh<dp=2, tp=2>
    func @chunk0(%q: bf16[4@dp,6,4@tp,8], %k: bf16[4@dp,6,2@tp,8], %v: bf16[4@dp,6,2@tp,8],
                 %p: s32[6] {kind = "batch", name = "positions"}, %dy: bf16[4@dp,6,4@tp,8]) {
      // CHECK: %o, %l = nn.attention(%q, %k, %v, %p, %p) {library = "cudnn"}
      %o, %l = nn.attention(%q, %k, %v, %p, %p) : bf16[4@dp,6,4@tp,8], f32[4@dp,6,4@tp]
      // CHECK: nn.attention_grad(%q, %k, %v, %p, %p, %o, %l, %dy) {library = "cudnn"}
      %a, %b, %c = nn.attention_grad(%q, %k, %v, %p, %p, %o, %l, %dy) : bf16[4@dp,6,4@tp,8], bf16[4@dp,6,2@tp,8], bf16[4@dp,6,2@tp,8]
      return %o, %a, %b, %c
    })";

TEST_F(UseLibrariesTest, AttentionByIndexGoesToCudnn) {
  ExpectRewrite(UseLibraries, kAttention, WithCudnn());
  EXPECT_THAT(Notes(), ElementsAre("attention: 2 nodes by cuDNN"));
}

TEST_F(UseLibrariesTest, NothingWithoutALibrary) { ExpectUnchanged(UseLibraries, kAttention); }

TEST_F(UseLibrariesTest, WhatCudnnDoesNotComputeStays) {
  const struct {
    std::string from, to, why;
  } cases[] = {{"bf16[", "f32[", "in f32"},
               {",8]", ",12]", "heads of 12"},
               {"%p, %p", "%p, %other", "keys with positions of their own"},
               {"name = \"positions\"", "name = \"labels\"", "positions in another order"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.why);
    std::string text = absl::StrReplaceAll(kAttention, {{c.from, c.to}, {"CHECK:", ""}});
    text = absl::StrReplaceAll(text, {{"%dy: ", "%other: s32[6], %dy: "}});
    ExpectUnchanged(UseLibraries, text, WithCudnn());
    EXPECT_THAT(Notes(), ElementsAre("attention: 0 nodes by cuDNN; by the target's kernels 2 " + c.why));
  }
}

// Only the backward needs much.
TEST_F(UseLibrariesTest, ScratchIsBounded) {
  runs_ = false;  // too long
  std::string text(kAttention);
  text = absl::StrReplaceAll(text, {{"4@dp,6,", "4@dp,32768,"},
                                    {"s32[6]", "s32[32768]"},
                                    {"%o, %l, %dy) {library = \"cudnn\"}", "%o, %l, %dy) place"}});
  ExpectRewrite(UseLibraries, text, WithCudnn());
  EXPECT_THAT(Notes(), ElementsAre("attention: 1 nodes by cuDNN; by the target's kernels 1 sequences of "
                                   "32768, whose backward needs 4096 MiB of scratch"));
}

TEST_F(UseLibrariesTest, TheStrategySaysHowMuchScratch) {
  PassContext context = WithCudnn();
  context.strategy = *strategy::ParseStrategy("library_scratch=100");
  const std::string text =
      absl::StrReplaceAll(kAttention, {{"%o, %l, %dy) {library = \"cudnn\"}", "%o, %l, %dy) place"}});
  ExpectRewrite(UseLibraries, text, context);
  EXPECT_THAT(Notes(), ElementsAre("attention: 1 nodes by cuDNN; by the target's kernels 1 sequences of 6, "
                                   "whose backward needs 0 MiB of scratch"));
}

TEST_F(UseLibrariesTest, LibrariesThatThereAreNot) {
  PassContext context;
  context.target.libraries = {"mkl"};
  ExpectPassError(UseLibraries, kAttention, absl::StatusCode::kInvalidArgument,
                  {"library 'mkl'", "the only legal library is cudnn"}, context);
}

}  // namespace
}  // namespace moe::passes
