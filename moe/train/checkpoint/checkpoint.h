// Checkpoints: logical tensors (global shapes, no layout) and where the run stood, in a folder that is whole
// or absent.
//
//   manifest.json                       format version, configuration, position of the run, every tensor with
//                                       its hash
//   model-00001-of-00002.safetensors    the tensors, whole, in shards of bounded size
//
// Because a tensor is stored with its global shape, any plan loads what any plan saved: each rank reads the
// box that it owns.
//
//   CheckpointMeta meta{.model_config = ..., .step = 300, .consumed_samples = 9600};
//   RETURN_IF_ERROR(WriteCheckpoint("runs/7/checkpoint/step_00000300", meta, tensors));
//
//   ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open("runs/7/checkpoint/step_00000300"));
//   RETURN_IF_ERROR(CheckSameModel(checkpoint->meta().model_config, config.model()));
//   RETURN_IF_ERROR(checkpoint->Read("layers.0.wq", {0, 64}, {128, 64}, bytes));
//
// A checkpoint is untrusted: Open checks the manifest's own hash, its limits (below), names, sizes and shapes; a tensor's bytes
// are hashed in full before the first of its values is handed out. An open checkpoint may be read from
// several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "moe/base/json_reader.h"
#include "moe/ir/types.h"
#include "moe/model/config.pb.h"
#include "moe/train/checkpoint/safetensors.h"
#include "moe/train/run/loss_scale.h"

namespace moe::train {

inline constexpr int kCheckpointFormatVersion = 1;

// What a manifest may say at most. A tensor takes about 200 bytes and ten values of it.
inline constexpr int64_t kMaxSteps = int64_t{1} << 40;    // step, and counts of steps
inline constexpr int64_t kMaxSamples = int64_t{1} << 56;  // consumed_samples
inline constexpr int64_t kMaxCheckpointTensors = 200'000;
inline constexpr int64_t kMaxCheckpointFiles = 100'000;
inline constexpr int64_t kMaxCheckpointName =
    1024;  // bytes of the name of a tensor or file, of a fingerprint
inline constexpr JsonLimits kManifestLimits = {.bytes = 64 << 20,
                                               .values = 4'000'000,
                                               .string_bytes = 4 << 20,  // of a configuration
                                               .depth = 4};

struct CheckpointMeta {
  std::string model_config;      // ModelConfig as textproto
  std::string run_config;        // everything that was resolved, for the record
  int64_t step = 0;              // completed steps
  int64_t consumed_samples = 0;  // position in the data, whose order is a function of (seed, sample index)
  int64_t skipped_steps = 0;     // of all, those not applied because something was not finite
  int64_t nan_steps = 0;
  int64_t consecutive_skips = 0;  // up to now
  LossScale::State loss_scale;    // value 0: the run had none
  uint64_t seed = 0;
  std::string data_fingerprint;  // of the training text; see Dataset::Fingerprint
};

struct LogicalTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> dims;                           // global
  std::function<absl::Status(absl::Span<char>)> fill;  // writes all bytes, row-major
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> dims;
  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

// Writes into a temporary folder beside `dir`, syncs, renames. On an error, `dir` is what it was before.
// Tensors are filled one at a time, in the order of the files.
absl::Status WriteCheckpoint(const std::string& dir, const CheckpointMeta& meta,
                             const std::vector<LogicalTensor>& tensors,
                             int64_t max_shard_bytes = 5'000'000'000);

// What a manifest says of the run, after everything that Open checks of its text. `checksum_is_right`: take that for
// granted, so that what comes behind it can be tried.
absl::StatusOr<CheckpointMeta> ParseManifest(absl::string_view text, bool checksum_is_right = false);

class Checkpoint {
 public:
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& dir);

  const CheckpointMeta& meta() const { return meta_; }
  const std::vector<TensorSpec>& tensors() const { return specs_; }  // by name
  const TensorSpec* Find(absl::string_view name) const;              // null if there is none

  // The box [offsets, offsets + extents) of a tensor, packed row-major. DataLoss if the tensor's bytes are
  // not those that were saved.
  absl::Status Read(absl::string_view name, absl::Span<const int64_t> offsets,
                    absl::Span<const int64_t> extents, absl::Span<char> out);
  absl::Status ReadAll(absl::string_view name, absl::Span<char> out);

  // Hashes every tensor.
  absl::Status Verify();

  // Names all tensors that are missing, unexpected, or of another dtype or shape. `optional_prefixes`:
  // tensors whose names begin so may be in the checkpoint without being expected (moments, when only weights
  // are wanted).
  absl::Status CheckTensors(absl::Span<const TensorSpec> expected,
                            const std::vector<std::string>& optional_prefixes = {}) const;

 private:
  struct Stored {
    size_t file;  // in files_
    uint64_t hash;
  };
  Checkpoint() = default;
  absl::Status CheckHash(absl::string_view name, const Stored& stored);

  std::string dir_;
  CheckpointMeta meta_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<TensorSpec> specs_;
  std::map<std::string, Stored, std::less<>> stored_;
  absl::Mutex mutex_;
  std::set<std::string, std::less<>> verified_ ABSL_GUARDED_BY(mutex_);
};

// A line for every field that makes `saved` (textproto) another model than `wanted`: "num_experts: checkpoint
// 8, this run 4". Fields that change neither the tensors nor what they compute are ignored: the name, loss
// coefficients, capacity, sequence length, ... DataLoss if `saved` does not parse.
absl::StatusOr<std::vector<std::string>> ModelDifferences(const std::string& saved,
                                                          const model::ModelConfig& wanted);
// FailedPrecondition with all of them, if there are any.
absl::Status CheckSameModel(const std::string& saved, const model::ModelConfig& wanted);

// "step_00000300", and the reverse, -1 for other names.
std::string CheckpointName(int64_t step);
int64_t CheckpointStep(absl::string_view name);
// Steps that have a folder under `root`, whole or not, ascending; none if there is no `root`.
std::vector<int64_t> ListCheckpoints(const std::string& root);
// The folder of the highest of them, or NotFound; `root`, if that is a checkpoint itself. A damaged one is not
// passed over in silence: who opens it is told.
absl::StatusOr<std::string> FindLatestCheckpoint(const std::string& root);
// Opens a checkpoint and hashes every tensor. Of one that is damaged, the error names the newest whole one
// beside it.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenWhole(const std::string& dir);

}  // namespace moe::train
