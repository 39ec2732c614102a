#include "moe/train/run/resume_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/text_format.h"
#include "moe/base/status.h"
#include "moe/base/textproto.h"
#include "moe/train/run/learning_rate.h"

namespace moe::train {
namespace {

// The configuration of the run that saved; nothing if it does not parse.
std::optional<RunConfig> SavedConfig(const CheckpointMeta& saved) {
  RunConfig config;
  if (!MergeTextproto(saved.run_config, "run_config", config).ok()) return std::nullopt;
  return ResolveRunConfig(config);
}

template <typename T>
std::string Difference(absl::string_view field, const T& saved, const T& now) {
  return absl::StrCat(field, ": checkpoint ", saved, ", this run ", now);
}

// Parts of a fingerprint of Dataset: how the text is cut, its hash, the bytes of the part that is trained on,
// and the lengths of samples; then the trainer's, where there are several lengths: the batch of each.
struct Data {
  explicit Data(absl::string_view fingerprint) {
    std::vector<std::string> parts = absl::StrSplit(fingerprint, absl::MaxSplits('-', 3));
    parts.resize(4);
    cut = parts[0], text = parts[1], trained = parts[2];
    numbers = absl::StrSplit(parts[3], '-');
  }
  std::string Numbers(size_t first, size_t end) const {
    return absl::StrJoin(numbers.begin() + std::min(first, numbers.size()),
                         numbers.begin() + std::min(end, numbers.size()), ", ");
  }
  std::string cut, text, trained;
  std::vector<std::string> numbers;
};

std::string Cut(const Data& data, absl::string_view lengths) {
  return absl::StrCat(data.cut == "lines" ? "lines of " : "windows of ", lengths, " tokens");
}

void DataDifferences(const CheckpointMeta& saved, const RunConfig& config, absl::string_view fingerprint,
                     bool planned, std::vector<std::string>* out) {
  if (saved.data_fingerprint == fingerprint) return;
  const size_t before = out->size();
  const Data was(saved.data_fingerprint), is(fingerprint);
  const std::optional<RunConfig> old = SavedConfig(saved);
  const TrainConfig& now = config.train();
  // Lengths that no plan fits are dropped from the end when the run is planned.
  const size_t trained = (was.numbers.size() + 1) / 2,
               lengths = planned ? (is.numbers.size() + 1) / 2 : trained;
  const std::string old_lengths = was.Numbers(0, trained), new_lengths = is.Numbers(0, lengths);
  if (was.cut != is.cut) {
    out->push_back(
        Difference("length_buckets", Cut(was, old_lengths), Cut(is, is.Numbers(0, planned ? lengths : -1))));
  } else if (old_lengths != new_lengths) {
    out->push_back(
        Difference(was.cut == "lines" ? "length_buckets" : "seq_length", old_lengths, new_lengths));
  } else if (old && trained > 1 && old->train().global_batch_size() != now.global_batch_size()) {
    out->push_back(Difference("global_batch_size, by which lengths take turns",
                              old->train().global_batch_size(), now.global_batch_size()));
  } else if (planned && was.Numbers(trained, -1) != is.Numbers(lengths, -1)) {
    out->push_back(
        Difference("samples in a step of each length", was.Numbers(trained, -1), is.Numbers(lengths, -1)));
  }
  const bool other_share = old && old->train().held_out_fraction() != now.held_out_fraction();
  if (other_share) {
    out->push_back(
        Difference("held_out_fraction", old->train().held_out_fraction(), now.held_out_fraction()));
  }
  if (was.text != is.text) {
    out->push_back(absl::StrCat("data_path: ", now.data_path(),
                                " is not the text that the checkpoint was trained on",
                                old && old->train().data_path() != now.data_path()
                                    ? absl::StrCat(", which was ", old->train().data_path())
                                    : ""));
  } else if (was.cut == is.cut && was.trained != is.trained && !other_share) {
    out->push_back(Difference("bytes of the text that are trained on", was.trained, is.trained));
  }
  if (planned && out->size() == before) {
    out->push_back(Difference<absl::string_view>("data", saved.data_fingerprint, fingerprint));
  }
}

LearningRateSchedule ScheduleOf(const TrainConfig& t) {
  return {.peak = t.lr(), .floor = t.min_lr(), .warmup = t.lr_warmup_iters(), .total = t.train_iters()};
}

// Lines "prefix + field: 1 -> 2" of what differs in two messages of one type.
void Changes(const google::protobuf::Message& was, const google::protobuf::Message& is,
             const std::set<std::string>& but, std::vector<std::string>* out) {
  google::protobuf::TextFormat::Printer printer;
  for (int i = 0; i < is.GetDescriptor()->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = is.GetDescriptor()->field(i);
    if (field->is_repeated() || but.count(field->name()) > 0) continue;
    std::string a, b;
    printer.PrintFieldValueToString(was, field, -1, &a);
    printer.PrintFieldValueToString(is, field, -1, &b);
    if (a != b) out->push_back(absl::StrCat(field->name(), ": ", a, " -> ", b));
  }
}

}  // namespace

absl::Status CheckResume(const CheckpointMeta& saved, const RunConfig& config,
                         absl::string_view data_fingerprint, bool planned) {
  ASSIGN_OR_RETURN(std::vector<std::string> differences,
                   ModelDifferences(saved.model_config, config.model()));
  const std::optional<RunConfig> old = SavedConfig(saved);
  if (old && old->model().dtype() != config.model().dtype()) {
    differences.push_back(Difference("dtype", old->model().dtype(), config.model().dtype()));
  }
  const bool other_model = !differences.empty();
  if (saved.seed != config.train().seed()) {
    differences.push_back(Difference("seed", saved.seed, config.train().seed()));
  }
  DataDifferences(saved, config, data_fingerprint, planned, &differences);
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "cannot go on from this checkpoint; ", differences.size(),
      differences.size() == 1 ? " setting is not what it was saved with\n  "
                              : " settings are not what it was saved with\n  ",
      absl::StrJoin(differences, "\n  "), "\n",
      other_model ? "Leave them as they were, or start a new run"
                  : "Leave them as they were, or evaluate its weights on any text with --eval_only"));
}

std::vector<std::string> ChangedSettings(const CheckpointMeta& saved, const RunConfig& config) {
  std::vector<std::string> changes;
  const std::optional<RunConfig> old = SavedConfig(saved);
  if (!old) return changes;
  Changes(old->model(), config.model(), {"name"}, &changes);
  if (old->strategy() != config.strategy()) {
    changes.push_back(absl::StrCat("strategy: ", old->strategy(), " -> ", config.strategy()));
  }
  Changes(
      old->train(), config.train(),
      {"data_path", "run_dir", "resume", "log_interval", "eval_interval", "eval_samples", "save_interval"},
      &changes);
  return changes;
}

std::string ChangedLearningRate(const CheckpointMeta& saved, const RunConfig& config) {
  const std::optional<RunConfig> old = SavedConfig(saved);
  const int64_t next = saved.step + 1;
  if (!old || next > config.train().train_iters()) return "";
  const double was = LearningRate(ScheduleOf(old->train()), next),
               is = LearningRate(ScheduleOf(config.train()), next);
  if (std::abs(is - was) <= 1e-9 * std::max(std::abs(is), std::abs(was))) return "";
  return absl::StrFormat("the learning rate of step %d is %.3g; by the settings so far it was %.3g", next, is,
                         was);
}

std::string WarmUpBeyondTheEnd(const TrainConfig& train) {
  if (train.lr_warmup_iters() <= train.train_iters()) return "";
  return absl::StrFormat(
      "lr_warmup_iters = %d is more than the %d steps: the learning rate ends at %.3g of lr = %.3g",
      train.lr_warmup_iters(), train.train_iters(), LearningRate(ScheduleOf(train), train.train_iters()),
      train.lr());
}

}  // namespace moe::train
