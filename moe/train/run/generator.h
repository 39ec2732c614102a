// Generator: text from a trained model, on one device.
//
//   ASSIGN_OR_RETURN(auto generator, Generator::Create(model));
//   RETURN_IF_ERROR(generator->Load("runs/7"));              // or LoadFrom(session) while training
//   ASSIGN_OR_RETURN(std::string text, generator->Continue("In the beginning", {.tokens = 200}));
//
// The logical forward of one sample, run by the interpreter with CPU kernels; its loss is cut away and the
// logits taken instead. Each token evaluates the whole window of up to seq_length tokens again; what lies
// after the prompt is masked as padding, so it is not routed. Deterministic in (weights, prompt, options).
// One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"
#include "moe/model/config.pb.h"
#include "moe/runtime/interpreter.h"
#include "moe/train/data/data.h"

namespace moe::train {

struct GenerateOptions {
  int64_t tokens = 200;
  double temperature = 0.7;  // 0: always the likeliest token
  int64_t top_k = 0;         // choose among the k likeliest; 0: all
  uint64_t seed = 1;
  std::function<void(absl::string_view piece)> sink;  // called with each token's text
};

class Generator {
 public:
  // InvalidArgument for a model that cannot be built, or whose vocabulary lacks some of the 256 bytes.
  static absl::StatusOr<std::unique_ptr<Generator>> Create(const model::ModelConfig& model);

  absl::Status Load(const std::string& checkpoint);  // as FindCheckpoint takes it
  absl::Status LoadFrom(runtime::Session& session);

  // Logits of the token after the last one of `tokens` (1 to seq_length of them).
  absl::StatusOr<std::vector<double>> NextLogits(absl::Span<const int32_t> tokens);
  // What follows the prompt, without it. InvalidArgument for an empty prompt or senseless options;
  // FailedPrecondition for logits that are not finite.
  absl::StatusOr<std::string> Continue(absl::string_view prompt, const GenerateOptions& options = {});

 private:
  Generator() = default;
  model::ModelConfig model_;
  std::unique_ptr<Module> module_;
  std::unique_ptr<runtime::Interpreter> interpreter_;
  ByteTokenizer tokenizer_;
  std::vector<double> logits_;  // of all positions; written by the interpreter's observer
};

// The prompt of the sample that a training run ends with.
inline constexpr char kSamplePrompt[] = "The light of the";

}  // namespace moe::train
