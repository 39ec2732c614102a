// Training data of unequal lengths: each line of a text is a sample, padded to the shortest of a few lengths
// (buckets) that holds it.
//
//   ASSIGN_OR_RETURN(auto data, LineDataset::FromText(text, {.path = "verses.txt"}, {64, 128, 256}));
//   Batch batch(8, 128);                       // its length says which bucket is meant
//   RETURN_IF_ERROR(data->Fill(/*first=*/0, batch));
//
// A sample starts with the end of the line before, so that its first byte has something to follow from, and
// ends with its own line end: a line of n bytes has n + 1 labels. Line ends are those of moe/base/lines.h, each one
// byte. Empty lines are no samples; longer lines than the longest bucket are cut. What sample i of a bucket is depends on (text, lengths, seed, i) alone. Immutable; any number of
// threads may read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/train/data/data.h"

namespace moe::train {

class LineDataset : public Dataset {
 public:
  // `lengths` ascending, each at least 2; seq_length of the options is not used. NotFound without the file;
  // InvalidArgument for lengths that are not ascending, an empty text, or a part without a line. A length
  // that no line of the train part has is an error too: it would never be trained on.
  static absl::StatusOr<std::unique_ptr<LineDataset>> Load(const TextOptions& options,
                                                           std::vector<int64_t> lengths);
  static absl::StatusOr<std::unique_ptr<LineDataset>> FromText(absl::string_view text,
                                                               const TextOptions& options,
                                                               std::vector<int64_t> lengths);

  int64_t vocab_size() const override { return 256; }
  std::vector<int64_t> lengths() const override { return lengths_; }
  int64_t samples_per_epoch(int64_t length) const override;
  int64_t held_out_samples(int64_t length) const override;
  absl::Status Fill(int64_t first, Batch& batch) const override;
  absl::Status FillHeldOut(int64_t first, Batch& batch) const override;
  std::string Describe() const override;
  std::string Fingerprint() const override;
  absl::string_view train() const override { return absl::string_view(text_).substr(0, train_bytes_); }
  absl::string_view held_out() const override { return absl::string_view(text_).substr(train_bytes_); }

 private:
  // Part of a line: `labels` predicted bytes from text_[begin] on; text_[begin - 1] comes before the first.
  struct Piece {
    int64_t begin = 0, labels = 0;
  };
  LineDataset(absl::string_view text, const TextOptions& options, std::vector<int64_t> lengths);
  std::vector<std::vector<Piece>> Cut(int64_t begin,
                                      int64_t end) const;  // per bucket, in the order of the text
  absl::StatusOr<int> BucketOf(int64_t first, const Batch& batch) const;
  void FillRow(const Piece* piece, int64_t row, Batch& batch) const;  // null: padding alone

  TextOptions options_;
  std::vector<int64_t> lengths_;
  std::string text_;
  int64_t train_bytes_ = 0;
  std::vector<std::vector<Piece>> train_pieces_, held_out_pieces_;
};

// Which bucket each step takes: shares as given, spread as evenly as they can be, so that every prefix of the
// steps has each bucket within one step of its share. A function of the shares and the step alone.
//
//   BucketOrder order({3, 1});           // three steps of bucket 0 for each of bucket 1
//   order.MoveTo(17);                    // before step 17, counted from 0
//   order.next();  order.used(1);        // its bucket; how many steps before it took bucket 1
class BucketOrder {
 public:
  explicit BucketOrder(std::vector<double> shares);  // positive; of any sum
  void MoveTo(int64_t step);                         // forwards, or from the start
  int next() const { return next_; }
  int64_t used(int bucket) const { return used_[bucket]; }

 private:
  void Choose();
  std::vector<double> shares_;  // of sum 1
  std::vector<int64_t> used_;
  int64_t step_ = 0;
  int next_ = 0;
};

}  // namespace moe::train
