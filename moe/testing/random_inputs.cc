#include "moe/testing/random_inputs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/ir/state.h"
#include "moe/ir/stored_rows.h"
#include "moe/runtime/init.h"

namespace moe::testing {

absl::StatusOr<runtime::StepInputs> RandomInputs(const Module& module, const RandomInputOptions& options,
                                                 int64_t step) {
  const Attributes& a = module.attributes();
  const int64_t samples = AttrInt(a, "global_batch"), seq = AttrInt(a, "seq_length");
  const State* embedding = module.FindState("embedding");
  if (samples <= 0 || seq <= 0 || embedding == nullptr) {
    return absl::FailedPreconditionError(
        "random inputs: the module needs attributes global_batch and seq_length and a state 'embedding'");
  }
  const int64_t vocab = LogicalType(module, *embedding).dims[0], n = samples * seq;
  const uint64_t seed = options.seed * 1'000'003 + static_cast<uint64_t>(step);
  runtime::StepInputs in;
  double valid = 0;
  for (int64_t i = 0; i < n; ++i) {
    in.tokens.push_back(
        static_cast<int32_t>(runtime::CounterBits(seed, runtime::StreamOf("tokens"), i) % vocab));
    in.labels.push_back(
        static_cast<int32_t>(runtime::CounterBits(seed, runtime::StreamOf("labels"), i) % vocab));
    const double u =
        static_cast<double>(runtime::CounterBits(seed, runtime::StreamOf("mask"), i) >> 11) * 0x1p-53;
    in.mask.push_back(u < options.masked || (options.empty_sample && i < seq) ? 0.0f : 1.0f);
    valid += in.mask.back();
  }
  if (valid == 0) in.mask.back() = 1, valid = 1;
  in.positions.resize(seq);
  std::iota(in.positions.begin(), in.positions.end(), 0);
  const double t = static_cast<double>(step);
  in.scalars = {{"inv_tokens", 1 / valid},
                {"inv_microbatches", 1.0 / std::max<int64_t>(1, AttrInt(a, "microbatches", 1))},
                {"loss_scale", 1024},
                {"inv_loss_scale", 1.0 / 1024},
                {"learning_rate", options.learning_rate},
                {"bias1", 1 - std::pow(AttrFloat(a, "beta1", 0.9), t)},
                {"bias2", 1 - std::pow(AttrFloat(a, "beta2", 0.95), t)}};
  return in;
}

}  // namespace moe::testing
