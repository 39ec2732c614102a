// What holds for every field of a configuration, also for those that are still to come: it can be told from
// one that was not given, what is given is kept or refused, and its text says all of it.
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "moe/base/status_matchers.h"
#include "moe/base/textproto.h"
#include "moe/train/config/config.h"
#include "moe/train/config/validate.h"

namespace moe::train {
namespace {

using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;

// Every scalar field below `message`, with the message that it is in. Lists need no presence: an empty one is none.
void ForEachField(Message& message, const std::function<void(Message&, const FieldDescriptor*)>& f) {
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    if (field->is_repeated()) continue;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      ForEachField(*message.GetReflection()->MutableMessage(&message, field), f);
    } else {
      f(message, field);
    }
  }
}

void Set(Message& message, const FieldDescriptor* field, absl::string_view value) {
  const bool text = field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
  message.GetReflection()->ClearField(&message, field);
  ASSERT_OK(MergeTextproto(absl::StrCat(field->name(), ": ", text ? "'" : "", value, text ? "'" : ""), "test",
                           message));
}

std::string Text(const Message& message, const FieldDescriptor* field) {
  return message.GetReflection()->HasField(message, field)
             ? PrintTextproto(message).substr(PrintTextproto(message).find(field->name() + ": "))
             : "";
}

// A legal configuration in which as much as possible may be zero.
RunConfig Base() {
  RunConfig config = DefaultRunConfig();
  config.mutable_model()->set_ffn_hidden_size(64);
  config.mutable_train()->set_min_lr(0);
  config.mutable_train()->set_data_path("text.txt");
  return config;
}

std::string Zero(const FieldDescriptor* field) {
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return "";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return field->enum_type()->value(0)->name();
    default:
      return "0";
  }
}

TEST(Options, PresenceIsNotZero) {
  RunConfig config;
  int fields = 0;
  ForEachField(config, [&](Message&, const FieldDescriptor* field) {
    ++fields;
    EXPECT_TRUE(field->has_presence() && field->is_optional()) << field->full_name();
  });
  EXPECT_GT(fields, 60);
}

TEST(Options, AnExplicitZeroIsKeptOrRefused) {
  ASSERT_OK(ValidateRunConfig(ResolveRunConfig(Base())));
  std::vector<std::string> kept;
  RunConfig names;
  ForEachField(names, [&](Message&, const FieldDescriptor* field) {
    SCOPED_TRACE(field->full_name());
    RunConfig config = Base();
    ForEachField(config, [&](Message& m, const FieldDescriptor* f) {
      if (f == field) Set(m, f, Zero(field));
    });
    const RunConfig resolved = ResolveRunConfig(config);
    RunConfig copy = resolved;
    ForEachField(copy, [&](Message& m, const FieldDescriptor* f) {
      if (f != field || field->name() == "strategy") return;
      const auto* reflection = m.GetReflection();
      ASSERT_TRUE(reflection->HasField(m, f));
      Message* zero = m.New();
      Set(*zero, f, Zero(field));
      MessageDifferencer same;
      EXPECT_TRUE(same.CompareWithFields(m, *zero, {f}, {f})) << Text(m, f);
      delete zero;
    });
    const absl::Status status = ValidateRunConfig(resolved);
    if (status.ok()) {
      kept.push_back(field->name());
    } else {
      EXPECT_THAT(std::string(status.message()), HasSubstr(field->name()));
    }
  });
  // A zero that is legal means what it says; see config.proto.
  EXPECT_THAT(kept,
              ::testing::UnorderedElementsAre(
                  "ffn_hidden_size", "num_experts", "shared_expert_ffn_hidden_size", "first_dense_layers",
                  "norm_topk_prob", "capacity_factor", "aux_loss_coeff", "z_loss_coeff", "tie_embeddings",
                  "strategy", "held_out_fraction", "lr", "min_lr", "lr_warmup_iters", "weight_decay",
                  "adam_beta1", "adam_beta2", "clip_grad", "seed", "eval_interval", "eval_samples",
                  "save_interval", "resume", "length_buckets", "allow_shorter_sequences",
                  "adaptive_micro_batch_size", "micro_batch_interval", "tf32", "cudnn_attention"));
}

TEST(Options, EmptyStrategyIsOneDevice) {
  RunConfig config = Base();
  config.set_strategy("");
  EXPECT_EQ(ResolveRunConfig(config).strategy(), "dp=1");
}

// Some fields, with values that are small, zero or none.
RunConfig RandomConfig(std::mt19937& random) {
  RunConfig config;
  ForEachField(config, [&](Message& m, const FieldDescriptor* field) {
    switch (random() % 4) {
      case 0:
        return;
      case 1:
        return Set(m, field, Zero(field));
    }
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        return Set(m, field, field->name() == "strategy" ? "dp=2 etp=0 microbatches=2" : R"(a\"b\\c\n)");
      case FieldDescriptor::CPPTYPE_BOOL:
        return Set(m, field, "true");
      case FieldDescriptor::CPPTYPE_ENUM:
        return Set(m, field,
                   field->enum_type()
                       ->value(static_cast<int>(random() % field->enum_type()->value_count()))
                       ->name());
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return Set(m, field, absl::StrCat(random() % 2 == 0 ? 1.0 / 3 : 1e-300 * (random() % 1000)));
      default:
        return Set(m, field, absl::StrCat(random() % 7));
    }
  });
  return config;
}

TEST(Options, TextThereAndBack) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 200; ++trial) {
    RunConfig config = RandomConfig(random);
    if (trial % 2 == 0) config = ResolveRunConfig(config);
    RunConfig again;
    ASSERT_OK(MergeTextproto(RunConfigToText(config), "text", again));
    ASSERT_TRUE(MessageDifferencer::Equals(config, again)) << RunConfigToText(config);
    ASSERT_EQ(RunConfigToText(again), RunConfigToText(config));
  }
}

// A legal configuration that was resolved says all of itself: the same over any other, and resolved again.
TEST(Options, AResolvedTextNeedsNoDefaults) {
  for (const char* text : {"", "model { num_experts: 0 ffn_hidden_size: 64 }",
                           "train { global_batch_size: 64 } strategy: 'dp=4 ep=4'",
                           "strategy: 'dp=2 microbatches=4'", "strategy: 'dp=0 world_size=8 pp=2 etp=0'",
                           "cluster { target: 'h100' link_microseconds: 3 } train { tf32: true }"}) {
    RunConfig config = Base();
    ASSERT_OK(MergeTextproto(text, "text", config));
    config = ResolveRunConfig(config);
    ASSERT_OK(ValidateRunConfig(config));
    EXPECT_TRUE(MessageDifferencer::Equals(ResolveRunConfig(config), config));
    RunConfig again = DefaultRunConfig();
    again.mutable_model()->set_moe_ffn_hidden_size(7);
    again.mutable_train()->set_lr(7);
    ASSERT_OK(MergeTextproto(RunConfigToText(config), "text", again));
    EXPECT_TRUE(MessageDifferencer::Equals(again, config)) << RunConfigToText(again);
  }
}

TEST(Options, TwoOfThreeDecideABatch) {
  struct Case {
    const char *given, *wrong;
    int64_t global = 0, micro = 0, count = 0;
  };
  const std::string dp = "dp=2";
  for (const Case& c : std::vector<Case>{
           {"", "", 32, 4, 4},
           {"train { global_batch_size: 64 }", "", 64, 4, 8},
           {"train { micro_batch_size: 2 }", "", 32, 2, 8},
           {"train { global_batch_size: 64 micro_batch_size: 2 }", "", 64, 2, 16},
           {"strategy: 'microbatches=4'", "", 32, 4, 4},
           {"strategy: 'microbatches=1'", "", 32, 16, 1},
           {"train { global_batch_size: 64 } strategy: 'microbatches=4'", "", 64, 8, 4},
           {"train { global_batch_size: 64 } strategy: 'microbatches=1'", "", 64, 32, 1},
           {"train { micro_batch_size: 2 } strategy: 'microbatches=3'", "", 12, 2, 3},
           {"train { micro_batch_size: 2 } strategy: 'microbatches=1'", "", 4, 2, 1},
           {"train { global_batch_size: 64 micro_batch_size: 8 } strategy: 'microbatches=4'", "", 64, 8, 4},
           {"train { global_batch_size: 64 micro_batch_size: 2 } strategy: 'microbatches=4'",
            "microbatches = 4 with micro_batch_size = 2, which makes 16 of global_batch_size = 64"},
           {"train { global_batch_size: 64 micro_batch_size: 2 } strategy: 'microbatches=1'",
            "legal here: one of the two left out, or micro_batch_size = 32"},
           {"train { global_batch_size: 64 } strategy: 'microbatches=3'",
            "microbatches that divide 32, or global_batch_size of 60"},
           {"train { global_batch_size: 3 } strategy: 'microbatches=4'", "global_batch_size of 8"}}) {
    SCOPED_TRACE(c.given);
    RunConfig config;
    *config.mutable_model() = DefaultRunConfig().model();
    ASSERT_OK(MergeTextproto(c.given, "text", config));
    config.set_strategy(absl::StrCat(dp, " ", config.strategy()));
    config = ResolveRunConfig(config);
    EXPECT_TRUE(MessageDifferencer::Equals(ResolveRunConfig(config), config));
    const absl::Status status = ValidateRunConfig(config);
    if (*c.wrong != '\0') {
      EXPECT_THAT(std::string(status.message()), HasSubstr(c.wrong));
      continue;
    }
    EXPECT_OK(status);
    EXPECT_EQ(config.train().global_batch_size(), c.global);
    EXPECT_EQ(config.train().micro_batch_size(), c.micro);
    EXPECT_EQ(StrategyOf(config).microbatches, c.count);
    EXPECT_EQ(config.strategy(), dp) << "there would be two truths";
  }
}

}  // namespace
}  // namespace moe::train
