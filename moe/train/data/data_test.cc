#include "moe/train/data/data.h"

#include <cmath>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"

namespace moe::train {
namespace {

using ::testing::ElementsAre;

std::string Digits(int64_t n) {
  std::string text;
  for (int64_t i = 0; i < n; ++i) text += static_cast<char>(i % 251);
  return text;
}

TEST(ByteTokenizerTest, RoundTripsEveryByte) {
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  ByteTokenizer tokenizer;
  const std::vector<int32_t> tokens = tokenizer.Encode(all);
  EXPECT_EQ(tokens[200], 200);
  EXPECT_EQ(tokenizer.Decode(tokens), all);
  EXPECT_EQ(tokenizer.Decode({65, 256, -1}), "A??");
}

TEST(PermutedIndexTest, IsABijectionThatTheKeyChanges) {
  for (int64_t n : {1, 2, 3, 4, 5, 17, 64, 1000, 4097}) {
    std::set<int64_t> seen;
    int64_t fixed = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t to = PermutedIndex(i, n, 42);
      ASSERT_GE(to, 0);
      ASSERT_LT(to, n);
      seen.insert(to);
      fixed += to == i;
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), n);
    if (n >= 1000) {
      EXPECT_LT(fixed, n / 50);
    }
  }
  int64_t same = 0;
  for (int64_t i = 0; i < 1000; ++i) same += PermutedIndex(i, 1000, 1) == PermutedIndex(i, 1000, 2);
  EXPECT_LT(same, 50);
}

TEST(TextDatasetTest, LabelsFollowTokensAndEpochsCoverEverything) {
  const int64_t S = 7;
  ASSERT_OK_AND_ASSIGN(auto data,
                       TextDataset::FromText(Digits(100), {.path = "t", .held_out = 0.1, .seq_length = S}));
  EXPECT_EQ(data->train().size(), 90u);
  EXPECT_EQ(data->held_out().size(), 10u);
  const int64_t n = data->samples_per_epoch(data->lengths()[0]);
  ASSERT_EQ(n, 12);  // 12 x 7 = 84 <= 89
  std::vector<std::vector<int32_t>> orders;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    Batch batch(n, S);
    ASSERT_OK(data->Fill(epoch * n, batch));
    std::set<int32_t> labels;
    std::vector<int32_t> order;
    for (int64_t b = 0; b < n; ++b) {
      order.push_back(batch.tokens[b * S]);
      for (int64_t s = 0; s < S; ++s) {
        const int64_t at = b * S + s;
        EXPECT_EQ(batch.labels[at], batch.tokens[at] + 1);
        EXPECT_EQ(batch.mask[at], 1);
        EXPECT_LT(batch.labels[at], 90) << "a held-out token in training";
        labels.insert(batch.labels[at]);
      }
    }
    EXPECT_EQ(static_cast<int64_t>(labels.size()), n * S);  // each token once
    orders.push_back(order);
  }
  EXPECT_NE(orders[0], orders[1]);
}

TEST(TextDatasetTest, ASampleDependsOnItsIndexAlone) {
  const int64_t S = 16;
  const TextOptions options{.path = "t", .seq_length = S, .seed = 5};
  ASSERT_OK_AND_ASSIGN(auto data, TextDataset::FromText(Digits(3000), options));
  Batch whole(64, S);
  ASSERT_OK(data->Fill(150, whole));  // crosses an epoch
  for (int64_t part : {1, 4, 16}) {
    for (int64_t first = 0; first < 64; first += part) {
      Batch batch(part, S);
      ASSERT_OK(data->Fill(150 + first, batch));
      for (int64_t i = 0; i < part * S; ++i) {
        ASSERT_EQ(batch.tokens[i], whole.tokens[first * S + i]);
        ASSERT_EQ(batch.labels[i], whole.labels[first * S + i]);
      }
    }
  }
  TextOptions other = options;
  other.seed = 6;
  ASSERT_OK_AND_ASSIGN(auto reseeded, TextDataset::FromText(Digits(3000), other));
  Batch batch(64, S);
  ASSERT_OK(reseeded->Fill(150, batch));
  EXPECT_NE(batch.tokens, whole.tokens);
}

TEST(TextDatasetTest, HeldOutIsReadOnceInOrderAndPadded) {
  ASSERT_OK_AND_ASSIGN(auto data,
                       TextDataset::FromText(Digits(100), {.path = "t", .held_out = 0.1, .seq_length = 4}));
  ASSERT_EQ(data->held_out_samples(data->lengths()[0]), 3);  // 9 labels
  Batch batch(4, 4);
  ASSERT_OK(data->FillHeldOut(0, batch));
  EXPECT_THAT(batch.tokens, ElementsAre(90, 91, 92, 93, 94, 95, 96, 97, 98, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(batch.labels, ElementsAre(91, 92, 93, 94, 95, 96, 97, 98, 99, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(batch.mask, ElementsAre(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0));
}

TEST(TextDatasetTest, BadInputs) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(TextDataset::Load({.path = "/no/such/text"}), absl::StatusCode::kNotFound, "/no/such/text",
              "setup.sh", "data_path");
  ExpectError(TextDataset::Load({}), kInvalid, "data_path is empty");
  const std::string path = JoinPath(::testing::TempDir(), "empty.txt");
  ASSERT_OK(WriteFile(path, ""));
  ExpectError(TextDataset::Load({.path = path}), kInvalid, path, "empty");
  ExpectError(TextDataset::FromText(Digits(100), {.path = "t", .seq_length = 128}), kInvalid, "too short",
              "95 tokens", "needs 129");
  ExpectError(TextDataset::FromText(Digits(20), {.path = "t", .held_out = 0.05, .seq_length = 4}), kInvalid,
              "held-out", "too short");
  ExpectError(TextDataset::FromText(Digits(20), {.path = "t", .held_out = 1, .seq_length = 4}), kInvalid,
              "below 1");
  ExpectError(TextDataset::FromText(Digits(20), {.path = "t", .held_out = std::nan(""), .seq_length = 4}),
              kInvalid, "held_out_fraction");
  ASSERT_OK_AND_ASSIGN(auto data, TextDataset::FromText(Digits(100), {.path = "t", .seq_length = 8}));
  Batch batch(1, 9), good(1, 8);
  ExpectError(data->Fill(0, batch), kInvalid, "9", "8");
  ExpectError(data->Fill(-1, good), kInvalid, "negative");
}

TEST(TextDatasetTest, DescribesItself) {
  ASSERT_OK_AND_ASSIGN(auto data, TextDataset::FromText(Digits(1234567), {.path = "/a/b/english.txt"}));
  EXPECT_EQ(data->Describe(), "english.txt  1.2 MB, 1,234,567 tokens (5% held out)");
  ASSERT_OK_AND_ASSIGN(auto shorter, TextDataset::FromText(Digits(1234566), {.path = "/a/b/english.txt"}));
  EXPECT_NE(data->Fingerprint(), shorter->Fingerprint());
}

TEST(BigramModelTest, ProbabilitiesSumToOne) {
  BigramModel model("the cat sat on the mat");
  for (int a : {int{'t'}, int{'q'}, 0, 255}) {
    double sum = 0;
    for (int b = 0; b < 256; ++b) sum += model.Probability(a, b);
    EXPECT_NEAR(sum, 1, 1e-12) << a;
  }
  EXPECT_GT(model.Probability('t', 'h'), model.Probability('t', 'q'));
}

TEST(BigramModelTest, KnowsTheEntropyOfItsSource) {
  // A chain over {a, b} that stays with probability 0.9: H = -(0.9 ln 0.9 + 0.1 ln 0.1).
  std::mt19937 random(7);
  std::string text = "a";
  for (int i = 0; i < 200000; ++i)
    text += (random() % 10 == 0) ? (text.back() == 'a' ? 'b' : 'a') : text.back();
  const double entropy = -(0.9 * std::log(0.9) + 0.1 * std::log(0.1));
  BigramModel model(absl::string_view(text).substr(0, 180000));
  EXPECT_NEAR(model.NatsPerByte(absl::string_view(text).substr(180000)), entropy, 0.02);
  // On what it never saw, it falls back to about a uniform guess, never to infinity.
  EXPECT_LT(model.NatsPerByte("zqzqzq"), 20);
  EXPECT_EQ(model.NatsPerByte("a"), 0);
}

}  // namespace
}  // namespace moe::train
