// The library that --device=cuda loads: the command trains with the one of the emulated device as it does on the
// CPU, so the two share their registries, and it says what is wrong with a library that does not load.

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "tools/run_tool.h"

namespace moe::tools {
namespace {

using ::testing::HasSubstr;

class CudaLibrary : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = JoinPath(::testing::TempDir(), "cuda_library");
    ASSERT_OK(RemoveTree(folder_));
    ASSERT_OK(MakeFolders(folder_));
    std::string text;
    for (int i = 0; i < 3000; ++i) absl::StrAppend(&text, "the ", i % 13, " quick brown foxes\n");
    ASSERT_OK(WriteFile(JoinPath(folder_, "text.txt"), text));
  }

  // Two steps on two ranks, with the library of `libraries`.
  Outcome Train(const std::string& device, const std::string& libraries) const {
    return RunShell(absl::StrCat(
        "CUDA_VISIBLE_DEVICES=0,1 LD_LIBRARY_PATH=", libraries, " ", ToolPath("compile_and_train"),
        " --device=", device, " --data_path=", JoinPath(folder_, "text.txt"), " --run_dir=",
        JoinPath(folder_, device), " --strategy=\"dp=2 ep=2\" --train_iters=2 --log_interval=1",
        " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2",
        " --moe_ffn_hidden_size=32 --seq_length=32 --global_batch_size=8 --micro_batch_size=1 --eval_samples=8"));
  }
  std::vector<double> Losses(const std::string& device) const {
    std::vector<double> losses;
    const std::string metrics = ReadFile(JoinPath(JoinPath(folder_, device), "metrics.jsonl")).value_or("");
    for (absl::string_view field : absl::StrSplit(metrics, ',')) {
      double loss = 0;
      if (absl::ConsumePrefix(&field, "\"lm_loss\":") && absl::SimpleAtod(field, &loss))
        losses.push_back(loss);
    }
    return losses;
  }

  std::string folder_;
};

TEST_F(CudaLibrary, TrainsAsTheCpuDoes) {
  const Outcome cpu = Train("cpu", ""), cuda = Train("cuda", ToolPath("gpu/emulated"));
  ASSERT_EQ(cpu.code, 0) << cpu.output;
  ASSERT_EQ(cuda.code, 0) << cuda.output;
  EXPECT_THAT(cuda.output, HasSubstr("a GPU each, by NCCL"));
  const std::vector<double> expected = Losses("cpu"), losses = Losses("cuda");
  ASSERT_GE(expected.size(), 2);
  ASSERT_EQ(losses.size(), expected.size());
  for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses[i], expected[i], 1e-3 * expected[i]) << i;
}

TEST_F(CudaLibrary, WhatDoesNotLoadIsSaid) {
  ASSERT_OK(WriteFile(JoinPath(folder_, "libswitchyard_cuda.so"), "no library"));
  const Outcome o = Train("cuda", folder_);
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.output, HasSubstr("error: --device=cuda: "));
  EXPECT_THAT(o.output, HasSubstr("libswitchyard_cuda.so: file too short"));
}

}  // namespace
}  // namespace moe::tools
