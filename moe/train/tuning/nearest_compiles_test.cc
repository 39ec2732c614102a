// The strategy that a refusal proposes is one that compiles, whatever was wrong.
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/train/config/validate.h"
#include "moe/train/tuning/plan_search.h"

namespace moe::train {
namespace {

RunConfig Small(const std::string& strategy) {
  RunConfig config = DefaultRunConfig();
  model::ModelConfig& m = *config.mutable_model();
  m.set_num_layers(2);
  m.set_hidden_size(16);
  m.set_num_attention_heads(4);
  m.set_num_key_value_heads(2);
  m.set_seq_length(8);
  m.set_moe_ffn_hidden_size(12);
  config.mutable_train()->set_global_batch_size(24);
  config.mutable_train()->set_micro_batch_size(2);
  config.set_strategy(strategy);
  return ResolveRunConfig(config);
}

TEST(NearestCompiles, ExpertsOverMoreRanksThanTheyDivideOver) {
  RunConfig config = Small("dp=12 ep=12");
  config.mutable_model()->set_num_experts(128);
  const std::string message(ValidateRunConfig(config, CompilesInFact).message());
  EXPECT_NE(message.find("expert_model_parallel_size = 12 does not divide num_experts = 128"),
            std::string::npos)
      << message;
  EXPECT_EQ(message.find("ep 12"), std::string::npos) << message;
  const std::optional<RunConfig> nearest = NearestLegalStrategy(config, CompilesInFact);
  ASSERT_TRUE(nearest.has_value());
  EXPECT_TRUE(CompilesInFact(*nearest)) << nearest->strategy();
}

TEST(NearestCompiles, AskedOfWhatTheChecksLetThrough) {
  const RunConfig config = Small("dp=3 ep=5");
  int asked = 0;
  std::string first;
  const std::optional<RunConfig> second = NearestLegalStrategy(config, [&](const RunConfig& c) {
    if (asked++ == 0) first = c.strategy();
    return asked > 1;
  });
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(asked, 2);
  EXPECT_NE(second->strategy(), first);
  EXPECT_FALSE(NearestLegalStrategy(config, [](const RunConfig&) { return false; }).has_value());
}

TEST(NearestCompiles, RandomWrongStrategies) {
  const unsigned seed = 12;
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  const auto pick = [&](const std::vector<std::string>& of) { return of[random() % of.size()]; };
  int wrong = 0;
  for (int trial = 0; trial < 30; ++trial) {
    RunConfig config = Small(absl::StrCat(
        pick({"", "pp=2", "pp=3"}), pick({"", " dp=2", " dp=3", " dp=12"}), pick({"", "", " cp=2", " cp=3"}),
        pick({"", " tp=2", " tp=3", " tp=4"}), pick({"", " ep=2", " ep=3", " ep=8", " ep=12"}),
        pick({"", " etp=2", " etp=5"}), pick({"", "", " sp"}), pick({"", " zero=1", " zero=3", " zero=7"}),
        pick({"", " zero_dp=2", " expert_zero_dp=4"}),
        pick({"", "", " schedule=zb-v", " schedule=interleaved", " schedule=dualpipe", " schedule=spiral"}),
        pick({"", " checkpoint=full", " checkpoint=auto", " checkpoint=some"}),
        pick({"", "", " moe_chunks=3", " expert_slots=9", " expert_map=0:1"}),
        pick({"", "", " bf16", " grads=bf16", " fp8_experts"}),
        pick({"", "", " cp_order=zigzag", " overlap=on"}),
        pick({"", "", "", " world_size=8", " world_size=12"})));
    config.mutable_model()->set_num_experts(static_cast<int64_t>(std::vector{8, 6, 7, 128, 0}[random() % 5]));
    if (config.model().num_experts() == 0) config.mutable_model()->set_ffn_hidden_size(24);
    config = ResolveRunConfig(config);
    if (StrategyProblems(config).empty()) continue;
    ++wrong;
    const std::optional<RunConfig> nearest = NearestLegalStrategy(config, CompilesInFact);
    if (!nearest) {  // a world that is given may have no strategy
      EXPECT_NE(config.strategy().find("world_size"), std::string::npos) << config.strategy();
      continue;
    }
    EXPECT_TRUE(StrategyProblems(*nearest).empty()) << config.strategy() << " -> " << nearest->strategy();
    EXPECT_TRUE(CompilesInFact(*nearest)) << config.strategy() << " -> " << nearest->strategy();
  }
  EXPECT_GT(wrong, 10);
}

}  // namespace
}  // namespace moe::train
