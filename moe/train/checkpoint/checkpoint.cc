#include "moe/train/checkpoint/checkpoint.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "google/protobuf/text_format.h"
#include "moe/base/json_reader.h"
#include "moe/base/status.h"
#include "moe/base/textproto.h"
#include "moe/ir/limits.h"
#include "moe/model/config.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

using ::nlohmann::json;

constexpr absl::string_view kFormat = "switchyard-checkpoint";
constexpr absl::string_view kManifest = "manifest.json";

struct DTypePair {
  DType dtype;
  absl::string_view stored;
};
constexpr DTypePair kDTypes[] = {
    {DType::kPred, "BOOL"}, {DType::kS32, "I32"}, {DType::kS64, "I64"}, {DType::kBF16, "BF16"},
    {DType::kF16, "F16"},   {DType::kF32, "F32"}, {DType::kF64, "F64"}, {DType::kF8E4M3, "F8_E4M3"},
};

absl::string_view StoredName(DType dtype) {
  for (const DTypePair& pair : kDTypes) {
    if (pair.dtype == dtype) return pair.stored;
  }
  return "";
}

std::string SpecText(absl::string_view dtype, absl::Span<const int64_t> dims) {
  return absl::StrCat(dtype, "[", absl::StrJoin(dims, ", "), "]");
}
std::string SpecText(const TensorSpec& spec) { return SpecText(StoredName(spec.dtype), spec.dims); }

// What readers of the wider world look for.
std::map<std::string, std::string> ShardMetadata() { return {{"format", "pt"}}; }

std::string Hex(uint64_t hash) { return absl::StrFormat("%016x", hash); }

uint64_t HashOf(absl::string_view bytes) { return XXH64(bytes.data(), bytes.size(), 0); }

// Keys are sorted by the JSON library, so the same contents always give the same text, and the same hash.
std::string Checksum(json manifest) {
  manifest.erase("checksum");
  return Hex(HashOf(manifest.dump()));
}

// Greedy split of tensors, in the given order, into files of at most `limit` bytes (one tensor may exceed
// it).
std::vector<std::vector<const LogicalTensor*>> SplitIntoShards(
    const std::vector<const LogicalTensor*>& tensors, const std::vector<int64_t>& bytes, int64_t limit) {
  std::vector<std::vector<const LogicalTensor*>> shards(1);
  int64_t used = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!shards.back().empty() && used + bytes[i] > limit) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(tensors[i]);
    used += bytes[i];
  }
  return shards;
}

// A manifest as it is read, before its files are looked at.
struct ManifestFile {
  std::string name, header_hash;
  int64_t bytes = 0;
};
struct ManifestTensor {
  std::string name, dtype, file, hash;
  std::vector<int64_t> shape;
};
struct Manifest {
  CheckpointMeta meta;
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
};

constexpr int64_t kMaxNumber = std::numeric_limits<int64_t>::max();

// What the checksum stands for, without white space and without the member at [begin, end) of the text and one comma
// beside it: as the JSON library prints it, since the writer sorts keys.
std::string ChecksumOf(absl::string_view text, int64_t begin, int64_t end) {
  std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> state(XXH64_createState(), XXH64_freeState);
  XXH64_reset(state.get(), 0);
  bool quoted = false, comma = false, first = true;
  const auto at = [&](size_t i) { return static_cast<int64_t>(i) >= begin && static_cast<int64_t>(i) < end; };
  for (size_t i = 0; i < text.size();) {
    size_t stop = i;
    while (stop < text.size() && !at(stop) && (quoted || !absl::ascii_isspace(text[stop])) &&
           (quoted || text[stop] != ',')) {
      if (text[stop] == '"') quoted = !quoted;
      if (text[stop] == '\\') ++stop;
      ++stop;
    }
    stop = std::min(stop, text.size());
    if (stop > i) {
      // A comma is held back until something follows it: at most one stands between two members.
      if (comma && !first && text[i] != '}') XXH64_update(state.get(), ",", 1);
      comma = false;
      XXH64_update(state.get(), text.data() + i, stop - i);
      first = text[stop - 1] == '{';
    }
    if (stop < text.size()) comma = comma || (text[stop] == ',' && !at(stop));
    i = stop + 1;
  }
  return Hex(XXH64_digest(state.get()));
}

// Format, version and checksum: what must be right before anything else is believed.
absl::Status CheckWhole(absl::string_view text, bool checksum_is_right) {
  JsonReader json(text, kManifestLimits);
  if (json.Peek() != JsonReader::Kind::kObject)
    return absl::DataLossError("not a JSON object; truncated or damaged");
  std::string format, checksum;
  int64_t version = 0, begin = 0, end = 0;
  JsonFields fields(&json);
  fields.Text("format", 64, &format);
  fields.Int("format_version", 1, kMaxNumber, &version);
  fields.Value("checksum", [&]() -> absl::Status {
    begin = json.key_begin();
    ASSIGN_OR_RETURN(checksum, json.Text(64));
    end = json.position();
    return absl::OkStatus();
  });
  absl::Status read = fields.Read();
  if (read.ok()) read = json.End();
  if (!read.ok()) {
    return absl::DataLossError(absl::StrCat("not a manifest; truncated or damaged: ", read.message()));
  }
  if (format != kFormat) return absl::DataLossError(absl::StrCat("not of format ", kFormat));
  if (version > kCheckpointFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat("format_version ", version, " is newer than ",
                                                      kCheckpointFormatVersion,
                                                      ", the newest that this build reads"));
  }
  if (!checksum_is_right && checksum != ChecksumOf(text, begin, end)) {
    return absl::DataLossError("its checksum does not match; it was damaged or edited");
  }
  return absl::OkStatus();
}

absl::Status ReadManifestFile(JsonReader* json, ManifestFile* file) {
  JsonFields fields(json);
  fields.Text("name", kMaxCheckpointName, &file->name);
  fields.Int("bytes", 0, kMaxNumber, &file->bytes);
  fields.Text("header_xxh64", 16, &file->header_hash);
  return fields.Read();
}

absl::Status ReadManifestTensor(JsonReader* json, ManifestTensor* tensor) {
  JsonFields fields(json);
  fields.Text("name", kMaxCheckpointName, &tensor->name);
  fields.Text("dtype", kMaxSafetensorsDType, &tensor->dtype);
  fields.Text("file", kMaxCheckpointName, &tensor->file);
  fields.Text("xxh64", 16, &tensor->hash);
  fields.Value("shape", [&] {
    return json->List(kMaxRank, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const int64_t extent, json->Int(0, kMaxExtent));
      tensor->shape.push_back(extent);
      return absl::OkStatus();
    });
  });
  return fields.Read();
}

absl::StatusOr<Manifest> ReadManifest(absl::string_view text, bool checksum_is_right = false) {
  RETURN_IF_ERROR(CheckWhole(text, checksum_is_right));
  Manifest manifest;
  CheckpointMeta& meta = manifest.meta;
  JsonReader json(text, kManifestLimits);
  JsonFields fields(&json);
  fields.Text("model_config", kManifestLimits.string_bytes, &meta.model_config);
  fields.Text("run_config", kManifestLimits.string_bytes, &meta.run_config);
  fields.Int("step", 0, kMaxSteps, &meta.step);
  fields.Int("consumed_samples", 0, kMaxSamples, &meta.consumed_samples);
  fields.Int("skipped_steps", 0, kMaxSteps, &meta.skipped_steps);
  fields.Int("nan_steps", 0, kMaxSteps, &meta.nan_steps);
  fields.Int("consecutive_skips", 0, kMaxSteps, &meta.consecutive_skips);
  fields.Optional().Number("loss_scale", 0, 0x1p127, &meta.loss_scale.value);
  fields.Optional().Int("loss_scale_finite_steps", 0, kMaxSteps, &meta.loss_scale.finite_steps);
  fields.Optional().Int("loss_scale_tolerance", 0, kMaxSteps, &meta.loss_scale.tolerance);
  fields.Unsigned("seed", &meta.seed);
  fields.Text("data_fingerprint", kMaxCheckpointName, &meta.data_fingerprint);
  fields.Value("files", [&] {
    return json.List(kMaxCheckpointFiles,
                     [&] { return ReadManifestFile(&json, &manifest.files.emplace_back()); });
  });
  fields.Value("tensors", [&] {
    return json.List(kMaxCheckpointTensors,
                     [&] { return ReadManifestTensor(&json, &manifest.tensors.emplace_back()); });
  });
  RETURN_IF_ERROR(fields.Read());
  for (const auto& [name, steps] : {std::pair("skipped_steps", meta.skipped_steps),
                                    {"nan_steps", meta.nan_steps},
                                    {"consecutive_skips", meta.consecutive_skips}}) {
    if (steps > meta.step) {
      return absl::DataLossError(
          absl::StrCat("\"", name, "\" = ", steps, " is above \"step\" = ", meta.step));
    }
  }
  return manifest;
}

}  // namespace

absl::Status WriteCheckpoint(const std::string& dir, const CheckpointMeta& meta,
                             const std::vector<LogicalTensor>& tensors, int64_t max_shard_bytes) {
  std::vector<const LogicalTensor*> order;
  for (const LogicalTensor& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && order[i]->name == order[i - 1]->name) {
      return absl::InvalidArgumentError(
          absl::StrCat("checkpoint has two tensors called \"", order[i]->name, "\""));
    }
    ASSIGN_OR_RETURN(const int64_t bytes, SafetensorsBytes(StoredName(order[i]->dtype), order[i]->dims));
    sizes.push_back(bytes);
  }

  absl::StatusOr<AtomicFolder> folder = AtomicFolder::Create(dir);
  if (!folder.ok()) return Annotate(folder.status(), "cannot write a checkpoint");
  json files = json::array(), listed = json::array();
  const auto shards = SplitIntoShards(order, sizes, max_shard_bytes);
  for (size_t s = 0; s < shards.size(); ++s) {
    const std::string name = ShardFileName("model", s + 1, shards.size());
    SafetensorsWriter writer;
    for (const LogicalTensor* t : shards[s]) {
      writer.Add({t->name, std::string(StoredName(t->dtype)), t->dims}, t->fill);
    }
    std::map<std::string, uint64_t> hashes;
    const absl::Status written =
        writer.Write(JoinPath(folder->path(), name), ShardMetadata(),
                     [&](const SafetensorsEntry& entry, absl::Span<const char> bytes) {
                       hashes[entry.name] = HashOf(absl::string_view(bytes.data(), bytes.size()));
                     });
    if (!written.ok()) return Annotate(written, "cannot write a checkpoint");
    ASSIGN_OR_RETURN(const std::string header, writer.Header(ShardMetadata()));
    int64_t bytes = static_cast<int64_t>(header.size());
    for (const LogicalTensor* t : shards[s]) bytes += *SafetensorsBytes(StoredName(t->dtype), t->dims);
    files.push_back({{"name", name}, {"bytes", bytes}, {"header_xxh64", Hex(HashOf(header))}});
    for (const LogicalTensor* t : shards[s]) {
      listed.push_back({{"name", t->name},
                        {"dtype", std::string(StoredName(t->dtype))},
                        {"shape", t->dims},
                        {"file", name},
                        {"xxh64", Hex(hashes[t->name])}});
    }
  }
  json manifest = {
      {"format", std::string(kFormat)},
      {"format_version", kCheckpointFormatVersion},
      {"model_config", meta.model_config},
      {"run_config", meta.run_config},
      {"step", meta.step},
      {"consumed_samples", meta.consumed_samples},
      {"skipped_steps", meta.skipped_steps},
      {"nan_steps", meta.nan_steps},
      {"consecutive_skips", meta.consecutive_skips},
      {"loss_scale", meta.loss_scale.value},
      {"loss_scale_finite_steps", meta.loss_scale.finite_steps},
      {"loss_scale_tolerance", meta.loss_scale.tolerance},
      {"seed", meta.seed},
      {"data_fingerprint", meta.data_fingerprint},
      {"files", files},
      {"tensors", listed},
  };
  std::string text;
  try {
    manifest["checksum"] = Checksum(manifest);
    text = manifest.dump(1) + "\n";
  } catch (const json::exception& e) {  // thrown for strings that are not UTF-8
    return absl::InvalidArgumentError(
        absl::StrCat("the checkpoint's configuration is not UTF-8: ", e.what()));
  }
  RETURN_IF_ERROR(WriteFile(JoinPath(folder->path(), kManifest), text));
  return folder->Commit();
}

absl::StatusOr<CheckpointMeta> ParseManifest(absl::string_view text, bool checksum_is_right) {
  ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(text, checksum_is_right));
  return std::move(manifest.meta);
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir) {
  auto result = std::unique_ptr<Checkpoint>(new Checkpoint);
  result->dir_ = dir;
  const std::string where = JoinPath(dir, kManifest);
  if (!FileExists(where)) {
    return absl::NotFoundError(absl::StrCat(dir, " is not a checkpoint: it has no ", kManifest));
  }
  auto wrong = [&](absl::string_view what) { return absl::DataLossError(absl::StrCat(where, ": ", what)); };
  ASSIGN_OR_RETURN(const std::string text, ReadFile(where, kManifestLimits.bytes));
  absl::StatusOr<Manifest> manifest = ReadManifest(text);
  if (!manifest.ok()) {
    return absl::Status(manifest.status().code() == absl::StatusCode::kFailedPrecondition
                            ? absl::StatusCode::kFailedPrecondition
                            : absl::StatusCode::kDataLoss,
                        absl::StrCat(where, ": ", manifest.status().message()));
  }
  result->meta_ = std::move(manifest->meta);
  std::map<std::string, size_t> file_index;
  size_t entries = 0;
  for (const ManifestFile& file : manifest->files) {
    const absl::Status plain = CheckPlainFileName(file.name);
    if (!plain.ok()) return wrong(plain.message());
    const std::string path = JoinPath(dir, file.name);
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0) return wrong(absl::StrCat("its file ", file.name, " is missing"));
    if (!S_ISREG(info.st_mode)) return wrong(absl::StrCat("its file ", file.name, " is not a regular file"));
    if (info.st_size != file.bytes) {
      return absl::DataLossError(absl::StrCat(path, ": ", info.st_size < file.bytes ? "truncated: " : "",
                                              "it has ", info.st_size, " bytes, the manifest says ",
                                              file.bytes));
    }
    ASSIGN_OR_RETURN(auto opened, SafetensorsFile::Open(path));
    ASSIGN_OR_RETURN(const std::string header, opened->ReadHeader());
    if (Hex(HashOf(header)) != file.header_hash) {
      return absl::DataLossError(
          absl::StrCat(path, ": its header is damaged or edited; the hash does not match"));
    }
    if (!file_index.emplace(file.name, result->files_.size()).second)
      return wrong(absl::StrCat("lists ", file.name, " twice"));
    entries += opened->entries().size();
    result->files_.push_back(std::move(opened));
  }
  for (const ManifestTensor& tensor : manifest->tensors) {
    TensorSpec spec{.name = tensor.name};
    uint64_t hash = 0;
    const auto known = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                    [&](const DTypePair& pair) { return pair.stored == tensor.dtype; });
    const auto at = file_index.find(tensor.file);
    if (known == std::end(kDTypes) || at == file_index.end() || !absl::SimpleHexAtoi(tensor.hash, &hash)) {
      return wrong(absl::StrCat("tensor \"", spec.name, "\" has an unknown dtype, file or hash"));
    }
    spec.dtype = known->dtype;
    const SafetensorsEntry* entry = result->files_[at->second]->Find(spec.name);
    if (entry == nullptr) return wrong(absl::StrCat("tensor \"", spec.name, "\" is not in ", tensor.file));
    if (tensor.dtype != entry->dtype || tensor.shape != entry->shape) {
      return wrong(absl::StrCat("tensor \"", spec.name, "\" is ", SpecText(tensor.dtype, tensor.shape),
                                " here but ", SpecText(entry->dtype, entry->shape), " in ", tensor.file));
    }
    spec.dims = entry->shape;
    if (!result->stored_.emplace(spec.name, Stored{at->second, hash}).second) {
      return wrong(absl::StrCat("lists tensor \"", spec.name, "\" twice"));
    }
    result->specs_.push_back(std::move(spec));
  }
  if (entries != result->specs_.size()) {
    return wrong(absl::StrCat("lists ", result->specs_.size(), " tensors, its files hold ", entries));
  }
  std::sort(result->specs_.begin(), result->specs_.end(),
            [](const TensorSpec& a, const TensorSpec& b) { return a.name < b.name; });
  return result;
}

const TensorSpec* Checkpoint::Find(absl::string_view name) const {
  const auto it = std::lower_bound(specs_.begin(), specs_.end(), name,
                                   [](const TensorSpec& spec, absl::string_view n) { return spec.name < n; });
  return it != specs_.end() && it->name == name ? &*it : nullptr;
}

absl::Status Checkpoint::CheckHash(absl::string_view name, const Stored& stored) {
  {
    absl::MutexLock lock(&mutex_);
    if (verified_.find(name) != verified_.end()) return absl::OkStatus();
  }
  // Two threads may hash the same tensor at once; both come to the same answer.
  const SafetensorsFile& file = *files_[stored.file];
  const SafetensorsEntry& entry = *file.Find(name);
  std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> state(XXH64_createState(), XXH64_freeState);
  XXH64_reset(state.get(), 0);
  std::vector<char> block(std::min<int64_t>(entry.bytes, 4 << 20));
  for (int64_t begin = 0; begin < entry.bytes; begin += static_cast<int64_t>(block.size())) {
    const int64_t count = std::min<int64_t>(block.size(), entry.bytes - begin);
    RETURN_IF_ERROR(file.ReadBytes(entry, begin, absl::MakeSpan(block.data(), count)));
    XXH64_update(state.get(), block.data(), count);
  }
  const uint64_t hash = XXH64_digest(state.get());
  if (hash != stored.hash) {
    return absl::DataLossError(absl::StrCat(file.path(), ": tensor \"", name,
                                            "\" is damaged: its bytes hash to ", Hex(hash), ", saved were ",
                                            Hex(stored.hash)));
  }
  absl::MutexLock lock(&mutex_);
  verified_.emplace(name);
  return absl::OkStatus();
}

absl::Status Checkpoint::Read(absl::string_view name, absl::Span<const int64_t> offsets,
                              absl::Span<const int64_t> extents, absl::Span<char> out) {
  const auto it = stored_.find(name);
  if (it == stored_.end()) return absl::NotFoundError(absl::StrCat(dir_, " has no tensor \"", name, "\""));
  RETURN_IF_ERROR(CheckHash(name, it->second));
  const SafetensorsFile& file = *files_[it->second.file];
  return file.ReadSlice(*file.Find(name), offsets, extents, out);
}

absl::Status Checkpoint::ReadAll(absl::string_view name, absl::Span<char> out) {
  const TensorSpec* spec = Find(name);
  if (spec == nullptr) return absl::NotFoundError(absl::StrCat(dir_, " has no tensor \"", name, "\""));
  return Read(name, std::vector<int64_t>(spec->dims.size(), 0), spec->dims, out);
}

absl::Status Checkpoint::Verify() {
  for (const auto& [name, stored] : stored_) RETURN_IF_ERROR(CheckHash(name, stored));
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckTensors(absl::Span<const TensorSpec> expected,
                                      const std::vector<std::string>& optional_prefixes) const {
  std::vector<std::string> problems;
  std::set<std::string> names;
  for (const TensorSpec& want : expected) {
    names.insert(want.name);
    const TensorSpec* have = Find(want.name);
    if (have == nullptr) {
      problems.push_back(absl::StrCat(want.name, ": missing; this model needs ", SpecText(want)));
    } else if (have->dtype != want.dtype || have->dims != want.dims) {
      problems.push_back(
          absl::StrCat(want.name, ": saved as ", SpecText(*have), ", this model needs ", SpecText(want)));
    }
  }
  for (const TensorSpec& have : specs_) {
    const bool optional =
        std::any_of(optional_prefixes.begin(), optional_prefixes.end(),
                    [&](const std::string& prefix) { return absl::StartsWith(have.name, prefix); });
    if (!optional && names.count(have.name) == 0) {
      problems.push_back(absl::StrCat(have.name, ": not a tensor of this model"));
    }
  }
  if (problems.empty()) return absl::OkStatus();
  constexpr size_t kShown = 20;
  const size_t hidden = problems.size() > kShown ? problems.size() - kShown : 0;
  if (hidden > 0) problems.resize(kShown);
  return absl::FailedPreconditionError(
      absl::StrCat(dir_, " is a checkpoint of another model:\n  ", absl::StrJoin(problems, "\n  "),
                   hidden > 0 ? absl::StrCat("\n  and ", hidden, " more") : ""));
}

absl::StatusOr<std::vector<std::string>> ModelDifferences(const std::string& saved_text,
                                                          const model::ModelConfig& wanted_config) {
  // These change neither the parameters nor the function that they compute on an unmasked token.
  static const auto* const ignored = new std::set<std::string>{
      "name",     "seq_length",     "capacity_factor", "routing_groups_per_sequence",
      "init_std", "aux_loss_coeff", "aux_loss_scope",  "z_loss_coeff",
      "dtype",    "vocab_blocks"};
  model::ModelConfig saved;
  const std::vector<std::string> problems =
      ParseTextproto(saved_text, "the checkpoint's model configuration", saved);
  if (!problems.empty())
    return absl::DataLossError(absl::StrCat("does not parse: ", absl::StrJoin(problems, "\n")));
  saved = model::ResolveModelConfig(std::move(saved));
  const model::ModelConfig wanted = model::ResolveModelConfig(wanted_config);
  const google::protobuf::Descriptor* descriptor = model::ModelConfig::descriptor();
  google::protobuf::TextFormat::Printer printer;
  std::vector<std::string> differences;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = descriptor->field(i);
    if (field->is_repeated() || ignored->count(field->name()) > 0) continue;
    std::string a, b;
    printer.PrintFieldValueToString(saved, field, -1, &a);
    printer.PrintFieldValueToString(wanted, field, -1, &b);
    if (a != b) differences.push_back(absl::StrCat(field->name(), ": checkpoint ", a, ", this run ", b));
  }
  return differences;
}

absl::Status CheckSameModel(const std::string& saved, const model::ModelConfig& wanted) {
  ASSIGN_OR_RETURN(const std::vector<std::string> differences, ModelDifferences(saved, wanted));
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the checkpoint is of another model:\n  ", absl::StrJoin(differences, "\n  ")));
}

std::string CheckpointName(int64_t step) { return absl::StrFormat("step_%08d", step); }

int64_t CheckpointStep(absl::string_view name) {
  int64_t step = -1;
  absl::string_view digits = name;
  if (!absl::ConsumePrefix(&digits, "step_") || !absl::SimpleAtoi(digits, &step)) return -1;
  return name == CheckpointName(step) ? step : -1;
}

std::vector<int64_t> ListCheckpoints(const std::string& root) {
  std::vector<int64_t> steps;
  for (const std::string& name : ListFolder(root).value_or(std::vector<std::string>())) {
    const int64_t step = CheckpointStep(name);
    if (step >= 0 && IsFolder(JoinPath(root, name))) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

absl::StatusOr<std::string> FindLatestCheckpoint(const std::string& root) {
  if (FileExists(JoinPath(root, kManifest))) return root;  // it is one itself
  const std::vector<int64_t> steps = ListCheckpoints(root);
  if (steps.empty()) return absl::NotFoundError(absl::StrCat("there is no checkpoint in ", root));
  return JoinPath(root, CheckpointName(steps.back()));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenWhole(const std::string& dir) {
  const auto open = [](const std::string& d) -> absl::StatusOr<std::unique_ptr<Checkpoint>> {
    ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(d));
    RETURN_IF_ERROR(checkpoint->Verify());
    return checkpoint;
  };
  absl::StatusOr<std::unique_ptr<Checkpoint>> opened = open(dir);
  const absl::Status status = opened.status();
  if (!absl::IsDataLoss(status) && !absl::IsNotFound(status) && !absl::IsInvalidArgument(status))
    return opened;
  const std::filesystem::path path = std::filesystem::path(dir).lexically_normal();
  const std::string root = path.has_parent_path() ? path.parent_path().string() : ".";
  std::vector<int64_t> steps = ListCheckpoints(root);
  std::reverse(steps.begin(), steps.end());
  std::string advice = "there is no whole one beside it";
  for (const int64_t step : steps) {
    const std::string other = JoinPath(root, CheckpointName(step));
    if (path == std::filesystem::path(other).lexically_normal() || !open(other).ok()) continue;
    advice = absl::StrCat("the newest whole one is that of step ", step, ": --resume=", other);
    break;
  }
  return absl::Status(status.code(),
                      absl::StrCat("checkpoint ", dir, " is damaged: ", status.message(), ";\n", advice));
}

}  // namespace moe::train
