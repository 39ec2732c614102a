#include "moe/train/checkpoint/session_state.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/ir/stored_rows.h"

namespace moe::train {
namespace {

template <typename T>
void Narrow(const std::vector<double>& values, absl::Span<char> out) {
  for (size_t i = 0; i < values.size(); ++i) {
    const T v = static_cast<T>(values[i]);
    std::memcpy(out.data() + i * sizeof(T), &v, sizeof(T));
  }
}

template <typename T>
std::vector<double> Widen(absl::Span<const char> bytes) {
  std::vector<double> out(bytes.size() / sizeof(T));
  for (size_t i = 0; i < out.size(); ++i) {
    T v;
    std::memcpy(&v, bytes.data() + i * sizeof(T), sizeof(T));
    out[i] = static_cast<double>(v);
  }
  return out;
}

int64_t Elements(const TensorSpec& spec) {
  int64_t n = 1;
  for (int64_t d : spec.dims) n *= d;
  return n;
}

}  // namespace

std::vector<TensorSpec> PersistentTensors(const Module& module, bool moments) {
  std::vector<TensorSpec> specs;
  for (const auto& state : module.states()) {
    const std::string kind = AttrString(state->attributes, "kind");
    if (kind != "parameter" && !(moments && kind == "moment")) continue;
    const Type type = LogicalType(module, *state);
    specs.push_back({state->name, type.dtype, {type.dims.begin(), type.dims.end()}});
  }
  return specs;
}

absl::Status SaveSession(const std::string& dir, const CheckpointMeta& meta, const Module& module,
                         runtime::Session& session, bool writes) {
  std::vector<TensorSpec> specs = PersistentTensors(module);
  if (!writes) {
    // The order in which WriteCheckpoint fills.
    std::sort(specs.begin(), specs.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    for (const TensorSpec& spec : specs) RETURN_IF_ERROR(session.ReadState(spec.name).status());
    return absl::OkStatus();
  }
  std::vector<LogicalTensor> tensors;
  for (const TensorSpec& spec : specs) {
    tensors.push_back(
        {spec.name, spec.dtype, spec.dims, [&session, spec](absl::Span<char> out) -> absl::Status {
           ASSIGN_OR_RETURN(const std::vector<double> values, session.ReadState(spec.name));
           if (spec.dtype == DType::kF64) {
             Narrow<double>(values, out);
           } else {
             Narrow<float>(values, out);
           }
           return absl::OkStatus();
         }});
  }
  return WriteCheckpoint(dir, meta, tensors);
}

absl::StatusOr<CheckpointMeta> RestoreSession(const std::string& dir, const model::ModelConfig& model,
                                              const Module& module, runtime::Session& session, bool moments) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(dir));
  RETURN_IF_ERROR(CheckSameModel(checkpoint->meta().model_config, model));
  const std::vector<TensorSpec> specs = PersistentTensors(module, moments);
  std::vector<std::string> unused;
  if (!moments) unused.push_back("adam.");
  RETURN_IF_ERROR(checkpoint->CheckTensors(specs, unused));
  for (const TensorSpec& spec : specs) {
    std::vector<char> bytes(Elements(spec) * ByteSize(spec.dtype));
    RETURN_IF_ERROR(checkpoint->ReadAll(spec.name, absl::MakeSpan(bytes)));
    RETURN_IF_ERROR(session.WriteState(
        spec.name, spec.dtype == DType::kF64 ? Widen<double>(bytes) : Widen<float>(bytes)));
  }
  return checkpoint->meta();
}

absl::StatusOr<std::string> FindCheckpoint(const std::string& path) {
  if (!IsFolder(path)) return absl::NotFoundError(absl::StrCat("there is no checkpoint folder ", path));
  const std::filesystem::path named(path);
  const std::string name = (named.has_filename() ? named : named.parent_path()).filename().string();
  if (CheckpointStep(name) >= 0) return path;  // whoever opens it is told what is missing
  const std::string inside = JoinPath(path, "checkpoint");
  return FindLatestCheckpoint(IsFolder(inside) ? inside : path);
}

}  // namespace moe::train
