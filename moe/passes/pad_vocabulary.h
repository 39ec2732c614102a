// pad-vocabulary: where the vocabulary is sharded (strategy word `vp`) and does not divide over tp, the
// embedding and the head get rows of padding behind the last word, and the head's loss as many blocks as tp
// divides.
//
//   vocabulary 1009, tp=2:  embedding f32[1009, 328] -> f32[1010, 328], nn.head_stats {blocks = 1 -> 2}
//
// This is exact: no token names a row of padding, and nn.head_stats gives such rows no logit (its attribute
// `vocab`), so they hold zeros, have zero gradients and stay zero. Outside the graph the tensors keep their
// rows (stored_rows.h).
//
// Runs on the graph of one device, after autodiff. A vocabulary that divides is left alone.
#pragma once

#include "absl/status/statusor.h"
#include "moe/passes/pass.h"

namespace moe::passes {

// The strategy shards the vocabulary.
bool AsksForVocabularyBlocks(const PassContext& context);

absl::StatusOr<bool> PadVocabulary(Program& program, const PassContext& context);

}  // namespace moe::passes
