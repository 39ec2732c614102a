// Whole runs of training with --device=cuda, on a GPU or the emulated device, against the run on the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/base/textproto.h"
#include "moe/device/cuda/cuda.h"
#include "moe/device/device.h"
#include "moe/train/config/config.h"
#include "moe/train/run/run.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

constexpr char kModel[] = R"(
  name: "test" num_layers: 2 hidden_size: 24 num_attention_heads: 4 num_key_value_heads: 2 head_dim: 8 ffn_hidden_size: 32
  vocab_size: 256 seq_length: 16 num_experts: 4 moe_router_topk: 2 moe_ffn_hidden_size: 16 first_dense_layers: 1
  norm_topk_prob: true aux_loss_coeff: 0.01 aux_loss_scope: "sequence" init_std: 0.1
)";

class CudaRun : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir();
    std::string text;
    for (int i = 0; i < 2000; ++i) absl::StrAppend(&text, "line ", i * 7919 % 101, " of the text\n");
    ASSERT_OK(WriteFile(JoinPath(folder_, "text.txt"), text));
  }

  // Losses of the steps, and what was printed.
  absl::StatusOr<std::vector<double>> Losses(const std::string& device, const std::string& strategy,
                                             const std::string& dtype, std::string* printed) {
    RunConfig config = DefaultRunConfig();
    config.clear_model();
    RETURN_IF_ERROR(MergeTextproto(kModel, "model", *config.mutable_model()));
    config.mutable_model()->set_dtype(dtype);
    TrainConfig& t = *config.mutable_train();
    t.set_device(device);
    t.set_tf32(tf32_);
    t.set_cudnn_attention(cudnn_);
    t.set_data_path(JoinPath(folder_, "text.txt"));
    t.set_train_iters(3);
    t.set_global_batch_size(8);
    t.set_eval_samples(4);
    t.set_log_interval(1);
    t.set_run_dir(JoinPath(folder_, absl::StrCat("run", ++runs_)));
    ASSIGN_OR_RETURN(const strategy::Strategy parsed, strategy::ParseStrategy(strategy));
    SetStrategy(parsed, config);
    config = ResolveRunConfig(config);
    std::ostringstream out;
    RunOptions options;
    RETURN_IF_ERROR(RunTraining(config, options, out));
    *printed = out.str();
    ASSIGN_OR_RETURN(const std::string metrics,
                     ReadFile(JoinPath(config.train().run_dir(), "metrics.jsonl")));
    std::vector<double> losses;
    std::istringstream lines(metrics);
    for (std::string line; std::getline(lines, line);) {
      const auto j = nlohmann::json::parse(line);
      if (j.contains("lm_loss")) losses.push_back(j["lm_loss"].get<double>());
    }
    return losses;
  }

  void ExpectSame(const std::string& strategy, const std::string& how) {
    if (device::CountDevices(device::DeviceKind::kCuda) == 0)
      GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
    std::string printed;
    ASSERT_OK_AND_ASSIGN(const std::vector<double> cpu, Losses("cpu", strategy, "f32", &printed));
    ASSERT_OK_AND_ASSIGN(const std::vector<double> cuda, Losses("cuda", strategy, "f32", &printed));
    EXPECT_THAT(printed, ::testing::HasSubstr(how));
    ASSERT_GE(cpu.size(), 3u);
    ASSERT_EQ(cpu.size(), cuda.size());
    for (size_t i = 0; i < cpu.size(); ++i) EXPECT_NEAR(cpu[i], cuda[i], 1e-4) << "step " << i + 1;
  }

  std::string folder_;
  bool tf32_ = false, cudnn_ = false;
  static inline int runs_ = 0;
};

TEST_F(CudaRun, RanksThatShareAGpu) {
#ifdef MOE_EMULATED
  emulated::SetDevices(1, size_t{4} << 30);
#endif
  ExpectSame("dp=2 ep=2", "share 1 GPU");
}

TEST_F(CudaRun, Tf32RoundsWhatIsMultiplied) {
  if (device::CountDevices(device::DeviceKind::kCuda) == 0)
    GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
  std::string printed;
  ASSERT_OK_AND_ASSIGN(const std::vector<double> f32, Losses("cuda", "", "f32", &printed));
  tf32_ = true;
  ASSERT_OK_AND_ASSIGN(const std::vector<double> tf32, Losses("cuda", "", "f32", &printed));
  ASSERT_EQ(f32.size(), tf32.size());
  for (size_t i = 0; i < f32.size(); ++i) {
    EXPECT_NE(f32[i], tf32[i]) << "step " << i + 1;
    EXPECT_NEAR(f32[i], tf32[i], 1e-2) << "step " << i + 1;
  }
}

TEST_F(CudaRun, AttentionByCudnn) {
  if (device::CountDevices(device::DeviceKind::kCuda) == 0)
    GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
  std::string printed;
  ASSERT_OK_AND_ASSIGN(const std::vector<double> own, Losses("cuda", "dp=2 ep=2 bf16", "f32", &printed));
  cudnn_ = true;
  const absl::StatusOr<std::vector<double>> cudnn = Losses("cuda", "dp=2 ep=2 bf16", "f32", &printed);
  if (absl::IsUnavailable(cudnn.status())) GTEST_SKIP() << cudnn.status();
  ASSERT_OK(cudnn.status());
  EXPECT_THAT(printed, ::testing::HasSubstr("attention: 4 nodes by cuDNN"));
  ASSERT_EQ(own.size(), cudnn->size());
  for (size_t i = 0; i < own.size(); ++i) EXPECT_NEAR(own[i], (*cudnn)[i], 1e-2) << "step " << i + 1;
}

TEST_F(CudaRun, RanksWithAGpuEach) {
#ifdef MOE_EMULATED
  emulated::SetDevices(4, size_t{4} << 30);
#endif
  if (device::CountDevices(device::DeviceKind::kCuda) == 1) GTEST_SKIP() << "one GPU";
  ExpectSame("pp=2 dp=2 ep=2 microbatches=2", "by NCCL");
}

}  // namespace
}  // namespace moe::train
