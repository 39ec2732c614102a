#include "moe/train/data/line_data.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

#include "moe/base/status_matchers.h"

namespace moe::train {
namespace {

std::string TextOf(const Batch& batch, int64_t row, bool labels) {
  std::string out;
  for (int64_t s = 0; s < batch.seq_length; ++s) {
    const int64_t at = row * batch.seq_length + s;
    if (batch.mask[at] != 0) out += static_cast<char>(labels ? batch.labels[at] : batch.tokens[at]);
  }
  return out;
}

TEST(LineDataset, EveryByteIsALabelOncePerEpochAndFollowsItsPredecessor) {
  const std::string text = "one\n\ntwo words\na line that is longer than all of it\nx\n";
  ASSERT_OK_AND_ASSIGN(const auto data,
                       LineDataset::FromText(text, {.path = "t", .held_out = 0}, {4, 8, 16}));
  std::multiset<std::string> seen;
  for (const int64_t length : data->lengths()) {
    const int64_t n = data->samples_per_epoch(length);
    Batch batch(n, length);
    for (const int64_t epoch : {0, 1}) {
      ASSERT_OK(data->Fill(epoch * n, batch));
      for (int64_t row = 0; row < n; ++row) {
        const std::string tokens = TextOf(batch, row, false), labels = TextOf(batch, row, true);
        ASSERT_FALSE(labels.empty());
        EXPECT_EQ(tokens.substr(1), labels.substr(0, labels.size() - 1));
        if (epoch == 0) seen.insert(labels);
      }
    }
  }
  // The long line is cut at the longest length; the empty line is left out.
  EXPECT_EQ(seen, (std::multiset<std::string>{"one\n", "two words\n", "a line that is l", "onger than all o",
                                              "f it\n", "x\n"}));
}

// What ends a line, and how the file begins and breaks off, makes no difference.
TEST(LineDataset, TheSameLinesAreTheSameSamples) {
  const TextOptions options = {.path = "t", .held_out = 0.2};
  ASSERT_OK_AND_ASSIGN(const auto want, LineDataset::FromText("ab\n\ncd\nefgh\n\nij\n", options, {4, 8}));
  EXPECT_EQ(want->samples_per_epoch(4) + want->held_out_samples(4), 3);
  for (const char* text :
       {"ab\r\n\r\ncd\r\nefgh\r\n\r\nij\r\n", "ab\r\rcd\refgh\r\rij", "ab\n\ncd\nefgh\n\nij",
        "\xEF\xBB\xBF"
        "ab\r\n\r\ncd\r\nefgh\r\n\r\nij"}) {
    ASSERT_OK_AND_ASSIGN(const auto data, LineDataset::FromText(text, options, {4, 8}));
    EXPECT_EQ(data->Fingerprint(), want->Fingerprint());
    EXPECT_EQ(data->train(), want->train());
    EXPECT_EQ(data->held_out(), "ij\n");
  }
}

TEST(LineDataset, PadsToTheShortestLengthThatHoldsALine) {
  ASSERT_OK_AND_ASSIGN(const auto data,
                       LineDataset::FromText("abc\nabcdefg\n", {.path = "t", .held_out = 0}, {4, 8}));
  EXPECT_EQ(data->samples_per_epoch(4), 1);
  EXPECT_EQ(data->samples_per_epoch(8), 1);
  EXPECT_EQ(data->samples_per_epoch(16), 0);
  Batch batch(2, 8);
  ASSERT_OK(data->FillHeldOut(0, batch));  // nothing held out: padding alone
  for (float m : batch.mask) EXPECT_EQ(m, 0);
}

TEST(LineDataset, HeldOutLinesAreWholeAndNotTrainedOn) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "line " + std::to_string(1000 + i) + "\n";
  ASSERT_OK_AND_ASSIGN(const auto data, LineDataset::FromText(text, {.path = "t", .held_out = 0.13}, {16}));
  EXPECT_EQ(data->samples_per_epoch(16) + data->held_out_samples(16), 100);
  EXPECT_EQ(data->train().back(), '\n');
  EXPECT_EQ(data->held_out().substr(0, 5), "line ");
}

TEST(LineDataset, RefusesWhatCannotBeTrainedOn) {
  const TextOptions options = {.path = "t", .held_out = 0};
  ExpectError(LineDataset::FromText("abc\n", options, {8, 4}), absl::StatusCode::kInvalidArgument,
              "must be ascending and at least 2, not 8,4");
  ExpectError(LineDataset::FromText("abc\n", options, {}), absl::StatusCode::kInvalidArgument);
  ExpectError(LineDataset::FromText("", options, {8}), absl::StatusCode::kInvalidArgument, "is empty");
  ExpectError(LineDataset::FromText("abc\n", options, {8, 16}), absl::StatusCode::kInvalidArgument,
              "it has lines for 8");
  ExpectError(LineDataset::FromText("abc\ndefghi", {.path = "t", .held_out = 0.3}, {8}),
              absl::StatusCode::kInvalidArgument, "no line is left in a held-out part of 0.3");
  ASSERT_OK_AND_ASSIGN(const auto data, LineDataset::FromText("abc\n", options, {8}));
  Batch batch(1, 9);
  ExpectError(data->Fill(0, batch), absl::StatusCode::kInvalidArgument, "the dataset 8");
}

TEST(BucketOrder, EveryPrefixIsWithinOneStepOfItsShare) {
  const std::vector<double> shares = {5, 3, 1};
  BucketOrder order(shares);
  std::vector<int64_t> count(3);
  for (int64_t step = 0; step < 500; ++step) {
    order.MoveTo(step);
    for (int b = 0; b < 3; ++b) {
      EXPECT_EQ(order.used(b), count[b]);
      EXPECT_LT(std::abs(static_cast<double>(count[b]) - shares[b] / 9 * static_cast<double>(step)),
                1.0 + 1e-9);
    }
    ++count[order.next()];
  }
  BucketOrder jumped(shares);
  jumped.MoveTo(499);
  order.MoveTo(3);
  order.MoveTo(499);
  EXPECT_EQ(jumped.next(), order.next());
  EXPECT_EQ(jumped.used(1), order.used(1));
}

}  // namespace
}  // namespace moe::train
