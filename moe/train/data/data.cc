#include "moe/train/data/data.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/file.h"
#include "moe/base/quantities.h"
#include "moe/base/status.h"

namespace moe::train {
namespace {

// The finaliser of MurmurHash3: every bit of the input reaches every bit of the result.
uint64_t Mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

}  // namespace

uint64_t EpochKey(uint64_t seed, int64_t epoch) {
  return Mix(Mix(seed + 0x9e3779b97f4a7c15ULL) ^ Mix(~epoch));
}

std::vector<int32_t> ByteTokenizer::Encode(absl::string_view text) const {
  std::vector<int32_t> tokens;
  tokens.reserve(text.size());
  for (char c : text) tokens.push_back(static_cast<uint8_t>(c));
  return tokens;
}

std::string ByteTokenizer::Decode(absl::Span<const int32_t> tokens) const {
  std::string text;
  text.reserve(tokens.size());
  for (int32_t t : tokens) text += t >= 0 && t < 256 ? static_cast<char>(t) : '?';
  return text;
}

int64_t PermutedIndex(int64_t i, int64_t n, uint64_t key) {
  if (n <= 1) return 0;
  int half = 1;
  while (2 * half < 63 && (int64_t{1} << (2 * half)) < n) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  uint64_t value = i;
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (Mix(key ^ Mix(right + (round << 56))) & mask);
      left = std::exchange(right, next);
    }
    value = left << half | right;
  } while (value >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(value);
}

TextDataset::TextDataset(std::string text, const TextOptions& options)
    : options_(options), text_(std::move(text)) {
  const int64_t size = static_cast<int64_t>(text_.size());
  train_bytes_ = size - static_cast<int64_t>(static_cast<double>(size) * options_.held_out);
}

absl::StatusOr<std::string> ReadTrainingText(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("no training text: data_path is empty");
  absl::StatusOr<std::string> text = ReadFile(path, kMaxTrainingTextBytes);
  if (text.ok()) return text;
  return Annotate(text.status(),
                  "no training text (./setup.sh makes the default one, --data_path names another)");
}

absl::StatusOr<std::unique_ptr<TextDataset>> TextDataset::Load(const TextOptions& options) {
  ASSIGN_OR_RETURN(std::string text, ReadTrainingText(options.path));
  return FromText(std::move(text), options);
}

absl::StatusOr<std::unique_ptr<TextDataset>> TextDataset::FromText(std::string text,
                                                                   const TextOptions& options) {
  if (!(options.held_out >= 0 && options.held_out < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("held_out_fraction = ", options.held_out, "; it must be at least 0 and below 1"));
  }
  if (options.seq_length < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("seq_length = ", options.seq_length, "; it must be positive"));
  }
  if (text.empty())
    return absl::InvalidArgumentError(absl::StrCat("the training text ", options.path, " is empty"));
  auto data = std::unique_ptr<TextDataset>(new TextDataset(std::move(text), options));
  const int64_t train = static_cast<int64_t>(data->train().size()), held = data->held_out().size();
  if (train <= options.seq_length) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the training text ", options.path, " is too short: its train part has ", train,
        " tokens; one sample of seq_length = ", options.seq_length, " needs ", options.seq_length + 1));
  }
  if (options.held_out > 0 && held < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the training text ", options.path, " is too short: ", data->text_.size(), " tokens leave ", held,
        " in a held-out part of ", options.held_out, "; use a longer text, or held_out_fraction = 0"));
  }
  return data;
}

int64_t TextDataset::samples_per_epoch(int64_t length) const {
  if (length != options_.seq_length) return 0;
  return (static_cast<int64_t>(train().size()) - 1) / options_.seq_length;
}

int64_t TextDataset::held_out_samples(int64_t length) const {
  if (length != options_.seq_length) return 0;
  const int64_t labels = std::max<int64_t>(static_cast<int64_t>(held_out().size()) - 1, 0);
  return (labels + options_.seq_length - 1) / options_.seq_length;
}

absl::Status TextDataset::CheckBatch(int64_t first, const Batch& batch) const {
  if (first < 0) return absl::InvalidArgumentError(absl::StrCat("sample index ", first, " is negative"));
  if (batch.seq_length != options_.seq_length) {
    return absl::InvalidArgumentError(absl::StrCat("the batch has sequences of ", batch.seq_length,
                                                   " tokens, the dataset ", options_.seq_length));
  }
  return absl::OkStatus();
}

void TextDataset::FillRow(absl::string_view part, int64_t begin, int64_t row, Batch& batch) {
  const int64_t size = static_cast<int64_t>(part.size());
  for (int64_t s = 0; s < batch.seq_length; ++s) {
    const int64_t at = begin + s, out = row * batch.seq_length + s;
    const bool valid = at + 1 < size;
    batch.tokens[out] = valid ? static_cast<uint8_t>(part[at]) : 0;
    batch.labels[out] = valid ? static_cast<uint8_t>(part[at + 1]) : 0;
    batch.mask[out] = valid ? 1 : 0;
  }
}

absl::Status TextDataset::Fill(int64_t first, Batch& batch) const {
  RETURN_IF_ERROR(CheckBatch(first, batch));
  const int64_t n = samples_per_epoch(options_.seq_length);
  for (int64_t row = 0; row < batch.samples; ++row) {
    const int64_t sample = first + row;
    const int64_t window = PermutedIndex(sample % n, n, EpochKey(options_.seed, sample / n));
    FillRow(train(), window * options_.seq_length, row, batch);
  }
  return absl::OkStatus();
}

absl::Status TextDataset::FillHeldOut(int64_t first, Batch& batch) const {
  RETURN_IF_ERROR(CheckBatch(first, batch));
  for (int64_t row = 0; row < batch.samples; ++row) {
    FillRow(held_out(), (first + row) * options_.seq_length, row, batch);
  }
  return absl::OkStatus();
}

std::string DescribeText(const TextOptions& options, size_t size) {
  const size_t slash = options.path.find_last_of('/');
  const std::string name = slash == std::string::npos ? options.path : options.path.substr(slash + 1);
  const double bytes = static_cast<double>(size);
  const std::string shown = bytes >= 1e6   ? absl::StrFormat("%.1f MB", bytes / 1e6)
                            : bytes >= 1e3 ? absl::StrFormat("%.1f kB", bytes / 1e3)
                                           : absl::StrCat(size, " bytes");
  return absl::StrFormat("%s  %s, %s tokens (%.3g%% held out)", name, shown, CountText(size),
                         100 * options.held_out);
}

std::string TextDataset::Describe() const { return DescribeText(options_, text_.size()); }

std::string TextDataset::Fingerprint() const {
  return absl::StrFormat("byte-%016x-%d-%d", XXH64(text_.data(), text_.size(), 0), train_bytes_,
                         options_.seq_length);
}

BigramModel::BigramModel(absl::string_view text) : unigram_(256), first_(256), pair_(256 * 256) {
  total_ = static_cast<int64_t>(text.size());
  for (char c : text) ++unigram_[static_cast<uint8_t>(c)];
  for (size_t i = 1; i < text.size(); ++i) {
    const int a = static_cast<uint8_t>(text[i - 1]), b = static_cast<uint8_t>(text[i]);
    ++first_[a];
    ++pair_[a * 256 + b];
  }
}

double BigramModel::Probability(uint8_t a, uint8_t b) const {
  constexpr double k = 4;
  const double unigram = (static_cast<double>(unigram_[b]) + 1) / (static_cast<double>(total_) + 256);
  return (static_cast<double>(pair_[a * 256 + b]) + k * unigram) / (static_cast<double>(first_[a]) + k);
}

double BigramModel::NatsPerByte(absl::string_view text) const {
  if (text.size() < 2) return 0;
  std::vector<int64_t> counts(256 * 256);
  for (size_t i = 1; i < text.size(); ++i) {
    ++counts[static_cast<uint8_t>(text[i - 1]) * 256 + static_cast<uint8_t>(text[i])];
  }
  double nats = 0;
  for (int ab = 0; ab < 256 * 256; ++ab) {
    if (counts[ab] > 0) nats -= static_cast<double>(counts[ab]) * std::log(Probability(ab / 256, ab % 256));
  }
  return nats / static_cast<double>(text.size() - 1);
}

}  // namespace moe::train
