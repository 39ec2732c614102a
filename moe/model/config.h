// Model configurations: reading, defaults, checks, and the numbers that follow from them.
//
//   ASSIGN_OR_RETURN(ModelConfig model, LoadModelConfig("testdata/models/tiny_moe.textproto"));
//   LOG(INFO) << DescribeModel(model);
//
// What LoadModelConfig and ParseModelConfig return is resolved (every field that has a value says it) and valid.
// Plain functions over values; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/model/config.pb.h"

namespace moe::model {

// Errors: InvalidArgument with every unknown field, syntax error and invalid value at once, those of the text
// with `file_name`:line:column. LoadModelConfig also: NotFound and so on, from the file system.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view textproto,
                                             absl::string_view file_name = "model");
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& path);

// Sets every field that was left out and has a default or follows from others; a field that is given keeps its
// value. What must be given and is not stays out, for ModelProblems. Idempotent.
ModelConfig ResolveModelConfig(ModelConfig config);

// Everything that is wrong with a resolved model by itself, one sentence each with the value and what is
// legal; empty if it can be built. A caller with a strategy adds its own problems to these, so that a user
// sees all at once.
std::vector<std::string> ModelProblems(const ModelConfig& config);
absl::Status ValidateModelConfig(const ModelConfig& config);

// The functions below take resolved configurations.

bool IsMoeLayer(const ModelConfig& config, int64_t layer);
int64_t NumMoeLayers(const ModelConfig& config);
bool IsDropless(const ModelConfig& config);
int64_t TokensPerGroup(const ModelConfig& config);
// Slots per expert and routing group: ceil(capacity_factor x tokens x k / experts), at least 1. Dropless: the
// expected number of choices, ceil(tokens x k / experts).
int64_t SlotsPerExpert(const ModelConfig& config);
// Share of choices that a capacity drops when the router is balanced: each choice falls on any expert alike,
// so the load of an expert in a group is binomial. 0 when dropless.
double ExpectedDropShare(const ModelConfig& config);

struct ParameterCount {
  int64_t total = 0;
  int64_t active = 0;  // what one token meets: k of the experts
};
ParameterCount CountParameters(const ModelConfig& config);

// One line: "tiny_moe: 4 layers, hidden 128, 8 heads (4 kv), 8 experts top-2 ffn 192, vocab 256   2.6 M
// parameters, ...".
std::string DescribeModel(const ModelConfig& config);
// Canonical text of all fields, which parses back to the same configuration.
std::string ModelConfigToText(const ModelConfig& config);

}  // namespace moe::model
