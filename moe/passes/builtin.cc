#include "moe/passes/builtin.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/passes/autodiff.h"
#include "moe/passes/certify/certify.h"
#include "moe/passes/checkpoint/checkpoint.h"
#include "moe/passes/common_subexpressions.h"
#include "moe/passes/context_parallel.h"
#include "moe/passes/expert_slots.h"
#include "moe/passes/fuse/fuse.h"
#include "moe/passes/memory/plan_memory.h"
#include "moe/passes/overlap/bucket_collectives.h"
#include "moe/passes/overlap/overlap.h"
#include "moe/passes/overlap/split_experts.h"
#include "moe/passes/pad_vocabulary.h"
#include "moe/passes/precision/compress.h"
#include "moe/passes/precision/fp8_experts.h"
#include "moe/passes/precision/mixed_precision.h"
#include "moe/passes/remove_dead_nodes.h"
#include "moe/passes/schedule/schedule.h"
#include "moe/passes/schedule/split_backward.h"
#include "moe/passes/schedule/split_phases.h"
#include "moe/passes/shard/insert_collectives.h"
#include "moe/passes/shard/shard.h"
#include "moe/passes/stages/partition_stages.h"
#include "moe/passes/use_libraries.h"

namespace moe::passes {
namespace {

constexpr DefaultStep kDefaultSteps[] = {
    {"fp8-experts",
     "On the forward alone: autodiff hands its marks on to the gradients of the same products."},
    {"autodiff", "Before whatever stores, places or cuts, so that those passes treat both phases at once."},
    {"expert-slots",
     "Before shard, which spreads the dim of slots; after autodiff, whose gradients and moments get it, too."},
    {"pad-vocabulary",
     "Before shard, which needs dims that divide; after autodiff, whose gradients and moments are padded, too."},
    {"context-parallel",
     "On the whole step: the order of the sequence is the same in every chunk and in both phases."},
    {"mixed-precision",
     "After the passes that add nodes to the logical step, so that those compute in the narrow type as well."},
    {"partition-stages",
     "Once the logical step is complete: it takes the inventory of nodes that certify reads."},
    {"shard", "On chunks, since each stage chooses its own placements."},
    {"insert-collectives",
     "Right after shard, whose conversions it lowers: later passes see the exchanges that will run."},
    {"compress", "As soon as there are exchanges, so that every later choice counts the bytes that travel."},
    {"checkpoint", "On placed chunks, where a value has the bytes, and a node the seconds, of one rank."},
    {"fuse",
     "After checkpoint, so that what is computed again is fused among itself and not with the forward."},
    {"use-libraries", "After fuse, on the nodes that will run."},
    {"split-experts",
     "While a chunk has both phases, so that the parts of weights are cut in each and not saved."},
    {"split-phases", "After the rewrites of whole chunks: from here on residuals are arguments and results."},
    {"split-backward", "On whole backwards, before their collectives are joined and their order is chosen."},
    {"bucket-collectives", "Before overlap, which starts a bucket as one exchange."},
    {"overlap", "Last of the rewrites: the order of nodes that it chooses is the one that runs."},
    {"schedule", "After every rewrite, since slots and transfers follow from what functions take and give."},
    {"plan-memory",
     "After schedule, which says how many sets of residuals and boundary values live at once."},
    {"certify", "Last, on the finished plan."},
};

}  // namespace

// Sorted by name.
void RegisterBuiltinPasses(PassRegistry* registry) {
  registry->Add({.name = "autodiff",
                 .doc = "Adds the backward phase, gradient accumulators and the update.",
                 .run = Autodiff,
                 .needs = {Fact::kStep, Fact::kForward, Fact::kUnplaced},
                 .provides = {Fact::kUpdate},
                 .ends = {Fact::kForward}});
  registry->Add({.name = "bucket-collectives",
                 .doc = "Lets small collectives travel together.",
                 .run = BucketCollectives,
                 .needs = {Fact::kLowered},
                 .asked = AsksForBuckets});
  registry->Add({.name = "certify",
                 .doc = "Proves the plan: waits, order, coverage, memory. Changes nothing.",
                 .run = CertifyProgram,
                 .needs = {Fact::kScheduled}});
  registry->Add({.name = "checkpoint",
                 .doc = "Computes values again in the backward instead of keeping them.",
                 .run = Checkpoint,
                 .needs = {Fact::kChunks},
                 .asked = AsksForCheckpoint});
  registry->Add({.name = "common-subexpressions",
                 .doc = "Merges nodes of one phase that compute the same.",
                 .run = ForEachFunction(MergeCommonSubexpressions)});
  registry->Add({.name = "compress",
                 .doc = "Marks exchanges whose values travel narrower than they are.",
                 .run = Compress,
                 .needs = {Fact::kLowered},
                 .asked = AsksForCompression});
  registry->Add({.name = "context-parallel",
                 .doc = "Orders the sequence over context ranks; attention as a ring, or with gathered keys.",
                 .run = ContextParallel,
                 .needs = {Fact::kStep, Fact::kUnplaced},
                 .asked = AsksForContextParallel});
  registry->Add({.name = "expert-slots",
                 .doc = "Stores experts by slots, empty ones and replicas among them, as the strategy says.",
                 .run = StoreByExpertSlots,
                 .needs = {Fact::kStep, Fact::kUnplaced},
                 .asked = AsksForExpertSlots});
  registry->Add({.name = "fp8-experts",
                 .doc = "Marks the products of the experts to be multiplied in e4m3.",
                 .run = Fp8Experts,
                 .needs = {Fact::kStep, Fact::kForward, Fact::kUnplaced},
                 .asked = AsksForFp8Experts});
  registry->Add({.name = "fuse", .doc = "Replaces patterns by ops with a kernel of their own.", .run = Fuse});
  registry->Add({.name = "insert-collectives",
                 .doc = "Lowers conversions to the cheapest legal collectives.",
                 .run = InsertCollectives,
                 .provides = {Fact::kLowered}});
  registry->Add({.name = "mixed-precision",
                 .doc = "Computes in bf16 or f16; keeps masters, sums and statistics wide.",
                 .run = MixedPrecision,
                 .needs = {Fact::kStep, Fact::kUpdate, Fact::kUnplaced},
                 .asked = AsksForMixedPrecision});
  registry->Add({.name = "overlap",
                 .doc = "Hides communication behind compute: order, start and done.",
                 .run = Overlap,
                 .needs = {Fact::kLowered},
                 .asked = AsksForOverlap});
  registry->Add({.name = "pad-vocabulary",
                 .doc = "Pads a sharded vocabulary that does not divide, where that is exact.",
                 .run = PadVocabulary,
                 .needs = {Fact::kStep, Fact::kUnplaced},
                 .asked = AsksForVocabularyBlocks});
  registry->Add({.name = "partition-stages",
                 .doc = "Cuts the step into chunks by cost, each node exactly once.",
                 .run = PartitionStages,
                 .needs = {Fact::kStep, Fact::kUnplaced},
                 .provides = {Fact::kChunks},
                 .ends = {Fact::kStep}});
  registry->Add({.name = "plan-memory",
                 .doc = "Gives every value of every rank its place in the arena.",
                 .run = PlanMemory,
                 .needs = {Fact::kScheduled}});
  registry->Add({.name = "remove-dead-nodes",
                 .doc = "Removes nodes whose results nobody uses.",
                 .run = ForEachFunction(RemoveDeadNodes)});
  registry->Add({.name = "schedule",
                 .doc = "Resolves the actions of every stage from the schedule's table.",
                 .run = ResolveSchedule,
                 .needs = {Fact::kPhases},
                 .provides = {Fact::kScheduled}});
  registry->Add({.name = "shard",
                 .doc = "Places every value by the strategy, the sharding rules and cost.",
                 .run = Shard,
                 .ends = {Fact::kUnplaced, Fact::kLowered}});
  registry->Add({.name = "split-backward",
                 .doc = "Cuts backwards into input and weight gradients where the schedule has both.",
                 .run = SplitBackward,
                 .needs = {Fact::kPhases}});
  registry->Add({.name = "split-experts",
                 .doc = "Cuts the experts of a rank in parts, to be exchanged and computed in turn.",
                 .run = SplitExperts,
                 .needs = {Fact::kLowered},
                 .asked = AsksForExpertParts});
  registry->Add({.name = "split-phases",
                 .doc = "Cuts each chunk into forward and backward with explicit residuals.",
                 .run = SplitPhases,
                 .needs = {Fact::kChunks},
                 .provides = {Fact::kPhases},
                 .ends = {Fact::kChunks}});
  registry->Add({.name = "use-libraries",
                 .doc = "Gives nodes to kernels of the target's libraries, where they compute the same.",
                 .run = UseLibraries});
}

PassRegistry& Passes() {
  static const bool registered = [] {
    RegisterBuiltinPasses(&RegisteredPasses());
    return true;
  }();
  (void)registered;
  return RegisteredPasses();
}

absl::Span<const DefaultStep> DefaultSteps() { return kDefaultSteps; }

std::string DefaultPipeline() {
  return absl::StrJoin(DefaultSteps(), ",",
                       [](std::string* out, const DefaultStep& s) { absl::StrAppend(out, s.step); });
}

}  // namespace moe::passes
