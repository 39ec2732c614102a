#include "moe/testing/sharded_model.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/verifier.h"
#include "moe/model/transformer.h"
#include "moe/passes/autodiff.h"
#include "moe/passes/context_parallel.h"
#include "moe/passes/pass.h"
#include "moe/passes/precision/mixed_precision.h"
#include "moe/passes/shard/insert_collectives.h"
#include "moe/passes/shard/shard.h"
#include "moe/passes/stages/partition_stages.h"
#include "moe/strategy/fold.h"

namespace moe::testing {

model::ModelConfig SmallMoe() {
  model::ModelConfig c;
  c.set_name("small");
  c.set_num_layers(2);
  c.set_hidden_size(16);
  c.set_num_attention_heads(8);
  c.set_num_key_value_heads(2);
  c.set_head_dim(4);
  c.set_ffn_hidden_size(16);
  c.set_vocab_size(32);
  c.set_seq_length(8);
  c.set_num_experts(8);
  c.set_moe_router_topk(2);
  c.set_first_dense_layers(1);
  c.set_capacity_factor(1);
  c.set_routing_groups_per_sequence(4);
  c.set_aux_loss_coeff(0.02);
  c.set_aux_loss_scope("microbatch");
  c.set_vocab_blocks(8);
  c.set_dtype("f64");
  return c;
}

model::ModelConfig SmallDense() {
  model::ModelConfig c = SmallMoe();
  c.set_num_experts(0);
  c.set_moe_router_topk(0);
  c.set_first_dense_layers(0);
  c.set_capacity_factor(0);
  c.clear_routing_groups_per_sequence();
  c.set_aux_loss_coeff(0);
  c.clear_aux_loss_scope();
  return c;
}

model::ModelConfig SmallDropless() {
  model::ModelConfig c = SmallMoe();
  c.set_capacity_factor(0);
  return c;
}

absl::StatusOr<std::unique_ptr<ShardedModel>> CompileSharded(const model::ModelConfig& config,
                                                             const std::string& strategy,
                                                             int64_t global_batch) {
  auto m = std::make_unique<ShardedModel>();
  passes::PassContext context;
  ASSIGN_OR_RETURN(context.strategy, strategy::ParseStrategy(strategy));
  context.notes = &m->notes;
  model::BuildOptions options;
  options.global_batch = global_batch;
  options.microbatches = context.strategy.microbatches;
  const model::ModelConfig resolved = model::ResolveModelConfig(config);
  ASSIGN_OR_RETURN(m->program.module, model::BuildModel(resolved, options));
  ASSIGN_OR_RETURN(m->program.module->mesh(),
                   strategy::FoldMesh(context.strategy, resolved.num_key_value_heads()));
  RETURN_IF_ERROR(passes::Autodiff(m->program, context).status());
  RETURN_IF_ERROR(passes::ContextParallel(m->program, context).status());
  RETURN_IF_ERROR(passes::MixedPrecision(m->program, context).status());
  RETURN_IF_ERROR(passes::PartitionStages(m->program, context).status());
  m->logical = CloneModule(*m->program.module);
  m->notes.clear();
  const auto start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(passes::Shard(m->program, context).status());
  m->milliseconds =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  RETURN_IF_ERROR(Annotate(Verify(*m->program.module), "after shard"));
  RETURN_IF_ERROR(passes::InsertCollectives(m->program, context).status());
  RETURN_IF_ERROR(Annotate(Verify(*m->program.module), "after insert-collectives"));
  return m;
}

}  // namespace moe::testing
