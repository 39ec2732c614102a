#include "moe/passes/pad_vocabulary.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/integers.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/passes/resize_states.h"

namespace moe::passes {
namespace {}  // namespace

bool AsksForVocabularyBlocks(const PassContext& context) {
  return context.strategy.vocab_parallel && context.strategy.tp > 1;
}

absl::StatusOr<bool> PadVocabulary(Program& program, const PassContext& context) {
  const int64_t tp = context.strategy.tp;
  if (!AsksForVocabularyBlocks(context)) return false;
  Module& module = *program.module;
  Function* step = module.Find(FunctionKind::kStep);
  std::vector<Node*> heads;
  for (const char* op : {"nn.head_stats", "nn.head_stats_grad"}) {
    for (Node* n : step->NodesOf(op)) heads.push_back(n);
  }
  if (heads.empty()) return false;
  const int64_t vocab = heads[0]->Int("vocab"), old_blocks = heads[0]->Int("blocks");
  const int64_t blocks = RoundUp(old_blocks, tp), rows = RoundUp(vocab, blocks);
  if (blocks == old_blocks && rows == vocab) return false;

  std::set<std::string> words;  // parameters with a row per word
  for (const auto& state : module.states()) {
    const std::string role = AttrString(state->attributes, "role");
    if ((role == "emb" || role == "head") && state->type.dims[0] == vocab) words.insert(state->name);
  }
  for (const auto& state : module.states()) {
    if (words.count(state->name) + words.count(AttrString(state->attributes, "of")) == 0 || rows == vocab)
      continue;
    state->attributes["logical_rows"] = vocab;
    ResizeState(module, state.get(), rows);
  }
  for (Node* n : heads) n->Set("blocks", blocks);
  for (Node* n : step->NodesOf("nn.embed_grad")) n->Set("vocab", rows);
  RETURN_IF_ERROR(InferTypesAgain(*step));
  if (Function* update = module.Find(FunctionKind::kUpdate)) RETURN_IF_ERROR(InferTypesAgain(*update));
  context.Note(rows == vocab ? absl::StrCat("head in ", blocks, " blocks, one or more for each of tp = ", tp)
                             : absl::StrCat("vocabulary ", vocab, " padded to ", rows, " rows for tp = ", tp,
                                            ", ", blocks, " blocks"));
  return true;
}

}  // namespace moe::passes
