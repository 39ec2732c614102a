#include "moe/train/data/line_data.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/lines.h"
#include "moe/base/status.h"
#include "xxhash.h"

namespace moe::train {

LineDataset::LineDataset(absl::string_view text, const TextOptions& options, std::vector<int64_t> lengths)
    : options_(options), lengths_(std::move(lengths)), text_(UnixLines(text)) {
  const int64_t size = static_cast<int64_t>(text_.size());
  train_bytes_ = size - static_cast<int64_t>(static_cast<double>(size) * options_.held_out);
  // No line is in both parts.
  while (train_bytes_ > 0 && train_bytes_ < size && text_[train_bytes_ - 1] != '\n') ++train_bytes_;
}

absl::StatusOr<std::unique_ptr<LineDataset>> LineDataset::Load(const TextOptions& options,
                                                               std::vector<int64_t> lengths) {
  ASSIGN_OR_RETURN(const std::string text, ReadTrainingText(options.path));
  return FromText(text, options, std::move(lengths));
}

absl::StatusOr<std::unique_ptr<LineDataset>> LineDataset::FromText(absl::string_view text,
                                                                   const TextOptions& options,
                                                                   std::vector<int64_t> lengths) {
  if (!(options.held_out >= 0 && options.held_out < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("held_out_fraction = ", options.held_out, "; it must be at least 0 and below 1"));
  }
  bool ascending = !lengths.empty();
  for (size_t i = 0; i < lengths.size(); ++i) ascending &= lengths[i] > (i > 0 ? lengths[i - 1] : 1);
  if (!ascending) {
    return absl::InvalidArgumentError(absl::StrCat(
        "lengths of samples must be ascending and at least 2, not ", absl::StrJoin(lengths, ",")));
  }
  if (text.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the training text ", options.path, " is empty"));
  }
  auto data = std::unique_ptr<LineDataset>(new LineDataset(text, options, std::move(lengths)));
  const int64_t size = static_cast<int64_t>(data->text_.size());
  data->train_pieces_ = data->Cut(0, data->train_bytes_);
  data->held_out_pieces_ = data->Cut(data->train_bytes_, size);
  const auto none = [](const std::vector<Piece>& pieces) { return pieces.empty(); };
  if (options.held_out > 0 &&
      std::all_of(data->held_out_pieces_.begin(), data->held_out_pieces_.end(), none)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the training text ", options.path, " is too short: no line is left in a held-out part of ",
        options.held_out, "; use a longer text, or held_out_fraction = 0"));
  }
  std::vector<int64_t> used;
  for (size_t b = 0; b < data->lengths_.size(); ++b) {
    if (!data->train_pieces_[b].empty()) used.push_back(data->lengths_[b]);
  }
  if (used.size() != data->lengths_.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the training text ", options.path,
                                                   " has no line for some of the lengths ",
                                                   absl::StrJoin(data->lengths_, ","), "; it has lines for ",
                                                   used.empty() ? "none of them" : absl::StrJoin(used, ",")));
  }
  return data;
}

std::vector<std::vector<LineDataset::Piece>> LineDataset::Cut(int64_t begin, int64_t end) const {
  std::vector<std::vector<Piece>> out(lengths_.size());
  for (int64_t at = begin; at < end;) {
    const int64_t stop = std::min<int64_t>(end, text_.find('\n', at) + 1);
    // An empty line says nothing.
    for (int64_t from = at; stop - at > 1 && from < stop;) {
      const int64_t labels = std::min(stop - from, lengths_.back());
      const auto fits = std::lower_bound(lengths_.begin(), lengths_.end(), labels);
      out[fits - lengths_.begin()].push_back({from, labels});
      from += labels;
    }
    at = stop;
  }
  return out;
}

absl::StatusOr<int> LineDataset::BucketOf(int64_t first, const Batch& batch) const {
  if (first < 0) return absl::InvalidArgumentError(absl::StrCat("sample index ", first, " is negative"));
  const auto it = std::find(lengths_.begin(), lengths_.end(), batch.seq_length);
  if (it == lengths_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("the batch has sequences of ", batch.seq_length,
                                                   " tokens, the dataset ", absl::StrJoin(lengths_, ", ")));
  }
  return static_cast<int>(it - lengths_.begin());
}

int64_t LineDataset::samples_per_epoch(int64_t length) const {
  const auto it = std::find(lengths_.begin(), lengths_.end(), length);
  return it == lengths_.end() ? 0 : static_cast<int64_t>(train_pieces_[it - lengths_.begin()].size());
}

int64_t LineDataset::held_out_samples(int64_t length) const {
  const auto it = std::find(lengths_.begin(), lengths_.end(), length);
  return it == lengths_.end() ? 0 : static_cast<int64_t>(held_out_pieces_[it - lengths_.begin()].size());
}

void LineDataset::FillRow(const Piece* piece, int64_t row, Batch& batch) const {
  for (int64_t s = 0; s < batch.seq_length; ++s) {
    const int64_t out = row * batch.seq_length + s;
    const bool valid = piece != nullptr && s < piece->labels;
    const int64_t at = valid ? piece->begin + s : 0;
    batch.tokens[out] = !valid ? 0 : at == 0 ? '\n' : static_cast<uint8_t>(text_[at - 1]);
    batch.labels[out] = valid ? static_cast<uint8_t>(text_[at]) : 0;
    batch.mask[out] = valid ? 1 : 0;
  }
}

absl::Status LineDataset::Fill(int64_t first, Batch& batch) const {
  ASSIGN_OR_RETURN(const int bucket, BucketOf(first, batch));
  const std::vector<Piece>& pieces = train_pieces_[bucket];
  const int64_t n = static_cast<int64_t>(pieces.size());
  for (int64_t row = 0; row < batch.samples; ++row) {
    const int64_t sample = first + row;
    const uint64_t key = EpochKey(options_.seed + 0x9e3779b97f4a7c15u * (bucket + 1), sample / n);
    FillRow(&pieces[PermutedIndex(sample % n, n, key)], row, batch);
  }
  return absl::OkStatus();
}

absl::Status LineDataset::FillHeldOut(int64_t first, Batch& batch) const {
  ASSIGN_OR_RETURN(const int bucket, BucketOf(first, batch));
  const std::vector<Piece>& pieces = held_out_pieces_[bucket];
  for (int64_t row = 0; row < batch.samples; ++row) {
    const int64_t sample = first + row;
    FillRow(sample < static_cast<int64_t>(pieces.size()) ? &pieces[sample] : nullptr, row, batch);
  }
  return absl::OkStatus();
}

std::string LineDataset::Describe() const {
  std::vector<std::string> parts;
  for (size_t b = 0; b < lengths_.size(); ++b) {
    parts.push_back(absl::StrCat(train_pieces_[b].size(), " of ", lengths_[b]));
  }
  return absl::StrCat(DescribeText(options_, text_.size()), ", by lines: ", absl::StrJoin(parts, ", "));
}

std::string LineDataset::Fingerprint() const {
  return absl::StrFormat("lines-%016x-%d-%s", XXH64(text_.data(), text_.size(), 0), train_bytes_,
                         absl::StrJoin(lengths_, "-"));
}

BucketOrder::BucketOrder(std::vector<double> shares) : shares_(std::move(shares)), used_(shares_.size(), 0) {
  const double sum = std::accumulate(shares_.begin(), shares_.end(), 0.0);
  for (double& share : shares_) share /= sum;
  Choose();
}

void BucketOrder::MoveTo(int64_t step) {
  if (step < step_) {
    step_ = 0;
    std::fill(used_.begin(), used_.end(), 0);
    Choose();
  }
  while (step_ < step) {
    ++used_[next_];
    ++step_;
    Choose();
  }
}

void BucketOrder::Choose() {
  // The bucket that would be furthest behind its share after this step.
  double most = -1e300;
  for (size_t b = 0; b < shares_.size(); ++b) {
    const double behind = shares_[b] * static_cast<double>(step_ + 1) - static_cast<double>(used_[b]);
    if (behind <= most + 1e-9) continue;
    most = behind;
    next_ = static_cast<int>(b);
  }
}

}  // namespace moe::train
