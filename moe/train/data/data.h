// Training data: tokens from a text, split into a train and a held-out part, read as samples by global index.
//
//   ASSIGN_OR_RETURN(auto data, TextDataset::Load({.path = "english.txt", .seq_length = 128, .seed = 1}));
//   Batch batch(8, 128);
//   RETURN_IF_ERROR(data->Fill(/*first=*/consumed + 8 * microbatch, batch));
//
// Which tokens sample i of a run has is a function of (text, sequence length, seed, i) alone. It does not
// depend on ranks, microbatches or how a run was interrupted, so a rank fills just the samples that it owns,
// and resuming needs no state but the number of consumed samples.
//
// A dataset does not change after loading; any number of threads may fill batches from it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace moe::train {

// Text <-> tokens.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string name() const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual std::vector<int32_t> Encode(absl::string_view text) const = 0;
  virtual std::string Decode(absl::Span<const int32_t> tokens) const = 0;  // tokens out of range become '?'
};

// One token per byte; vocabulary 256.
class ByteTokenizer : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  int64_t vocab_size() const override { return 256; }
  std::vector<int32_t> Encode(absl::string_view text) const override;
  std::string Decode(absl::Span<const int32_t> tokens) const override;
};

// Consecutive samples, row-major [samples, seq_length]. labels[b, s] is the token that follows tokens[b, s].
// Where mask is 0 there is padding: not routed, in no loss.
struct Batch {
  Batch(int64_t samples, int64_t seq_length)
      : samples(samples),
        seq_length(seq_length),
        tokens(samples * seq_length),
        labels(samples * seq_length),
        mask(samples * seq_length) {}
  int64_t samples, seq_length;
  std::vector<int32_t> tokens, labels;
  std::vector<float> mask;  // 1 valid, 0 padding
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t vocab_size() const = 0;
  // Lengths of its samples, ascending; most datasets have one. Samples are numbered for each length apart.
  virtual std::vector<int64_t> lengths() const = 0;
  // Train samples of one epoch. Sample indices go on beyond it, into further epochs of other orders.
  virtual int64_t samples_per_epoch(int64_t length) const = 0;
  // Held-out samples; the last one may be padded.
  virtual int64_t held_out_samples(int64_t length) const = 0;
  // Fills the batch with train samples [first, first + batch.samples) of its length. InvalidArgument if first
  // is negative or the dataset does not have that length.
  virtual absl::Status Fill(int64_t first, Batch& batch) const = 0;
  // The same of the held-out part, in its own order. Samples from held_out_samples() on are padding only.
  virtual absl::Status FillHeldOut(int64_t first, Batch& batch) const = 0;
  virtual std::string Describe() const = 0;  // "english.txt  4.1 MB, 4,139,038 tokens (5% held out)"
  virtual std::string Fingerprint()
      const = 0;  // of the tokens and the split; a resumed run must have the same
  virtual absl::string_view train() const = 0;
  virtual absl::string_view held_out() const = 0;
};

struct TextOptions {
  std::string path;
  double held_out = 0.05;  // the last part of the text; in [0, 1)
  int64_t seq_length = 128;
  uint64_t seed = 1;
};

// A text is held in memory as a whole.
inline constexpr int64_t kMaxTrainingTextBytes = int64_t{1} << 36;

// The text itself; NotFound with advice.
absl::StatusOr<std::string> ReadTrainingText(const std::string& path);
// "english.txt  4.1 MB, 4,139,038 tokens (5% held out)"
std::string DescribeText(const TextOptions& options, size_t bytes);
// Key of the order of samples in an epoch.
uint64_t EpochKey(uint64_t seed, int64_t epoch);

// A plain text file through the byte tokenizer. The train part is cut into windows of seq_length + 1 tokens
// that overlap by one, so each token is a label once per epoch; each epoch visits them in an order of its
// own.
class TextDataset : public Dataset {
 public:
  // NotFound without the file; InvalidArgument if it is empty, or too short for one window in each part.
  static absl::StatusOr<std::unique_ptr<TextDataset>> Load(const TextOptions& options);
  // From text in memory; `path` of the options serves only as a name.
  static absl::StatusOr<std::unique_ptr<TextDataset>> FromText(std::string text, const TextOptions& options);

  int64_t vocab_size() const override { return 256; }
  std::vector<int64_t> lengths() const override { return {options_.seq_length}; }
  int64_t samples_per_epoch(int64_t length) const override;
  int64_t held_out_samples(int64_t length) const override;
  absl::Status Fill(int64_t first, Batch& batch) const override;
  absl::Status FillHeldOut(int64_t first, Batch& batch) const override;
  std::string Describe() const override;
  std::string Fingerprint() const override;

  absl::string_view train() const override { return absl::string_view(text_).substr(0, train_bytes_); }
  absl::string_view held_out() const override { return absl::string_view(text_).substr(train_bytes_); }

 private:
  TextDataset(std::string text, const TextOptions& options);
  absl::Status CheckBatch(int64_t first, const Batch& batch) const;
  // Sample `row` of the batch from `part` at `begin`; what lies beyond the part's end is padding.
  static void FillRow(absl::string_view part, int64_t begin, int64_t row, Batch& batch);

  TextOptions options_;
  std::string text_;
  int64_t train_bytes_ = 0;
};

// Where index i of [0, n) goes under the permutation of the given key. A bijection for every n and key; no
// table: a Feistel network over the next even number of bits, walked until it lands inside (Black and Rogaway
// 2002, section 3).
int64_t PermutedIndex(int64_t i, int64_t n, uint64_t key);

// A smoothed bigram model of bytes, as a yardstick. With counts c over the fitted text of N bytes,
//   p(b | a) = (c(a, b) + k p(b)) / (c(a) + k),   p(b) = (c(b) + 1) / (N + 256),   k = 4,
// that is, each row is interpolated with the add-one unigram, the more so the rarer its first byte is.
class BigramModel {
 public:
  explicit BigramModel(absl::string_view text);
  double Probability(uint8_t a, uint8_t b) const;
  // Mean of -ln p over the bytes of `text` after its first. 0 for less than two bytes.
  double NatsPerByte(absl::string_view text) const;

 private:
  int64_t total_ = 0;
  std::vector<int64_t> unigram_, first_, pair_;  // [256], [256] as first of a pair, [256 * 256]
};

}  // namespace moe::train
