// Pipeline schedules: generators of tables. Each gives one row per stage, the order of its cells; what runs
// where is the schedule's chunk -> stage map (modulo, or folded into a V).
//
//   ScheduleTable t = ZeroBubbleH1Table(/*stages=*/4, /*microbatches=*/8);  // t[0]: F0.0 ... F0.3 I0.0 W0.0 ...
//
// p stages, m microbatches, v chunks per stage. In flight means: forwards whose residuals are still held.
//
//   name         chunks  in flight on stage s        bubble (share of the step, B = 2 F, transfers free)
//   gpipe        any     m per chunk                 (p-1)/(vm+p-1), v = 1
//   1f1b         1       p - s                       (p-1)/(m+p-1)
//   interleaved  v > 1   2(p-1-s) + (v-1)p + 1       (p-1)/(vm+p-1)
//   zb-h1        1       p                           (p-1)/(3m+p-1): a bubble of p-1 forwards, with I = W = F
//   zb-v         2       2p of half the size         close to that of zb-h1 with half-sized chunks
//   dualpipe     2       p + 1, and the parameters   (p-2)/(3m+p-2), with I = W = F
//                        twice
//
// Sources: interleaved: Narayanan et al., arXiv 2104.04473. zb-h1 and zb-v: Qi et al., arXiv 2401.10241; zb-v
// here as a greedy list schedule.
#pragma once

#include <vector>

#include "moe/passes/schedule/schedule_table.h"

namespace moe::passes {

// `microbatches` must be a multiple of `stages`. Chunk c is on stage c mod stages.
ScheduleTable InterleavedTable(int stages, int chunks_per_stage, int microbatches);

// 1F1B with the backward cut in two; stage s lets its weight gradients lag s microbatches behind, so that
// every stage holds at most as much as the first one does in 1F1B.
ScheduleTable ZeroBubbleH1Table(int stages, int microbatches);

// Two chunks per stage, placed by VPlacement, so that the loss is computed where the batch is read. Greedy
// along a simulated run in which F, I and W take the same time: input gradients first, then forwards, the
// chunk farther from the input before the other; a weight gradient where nothing else can start as early, or
// no room is left.
ScheduleTable ZeroBubbleVTable(int stages, int microbatches);

// Bidirectional: the model is there twice, its second copy (chunks p .. 2p-1) on the stages in reverse.
// Microbatches 0 .. m/2-1 go down, m/2 .. m-1 up, so that both ends start at once; weight gradients fill what
// is left. p and m must be even, and m >= 2p. DeepSeek-AI, arXiv 2412.19437, section 3.2.1. Its bubble is
// (p/2-1)(F+B + B - 3W), where F+B is a forward and a backward that run together; here they run one after
// the other.
ScheduleTable DualPipeTable(int stages, int microbatches);

// Chunk -> stage, there and back: 0, 1, ..., p-1, p-1, ..., 1, 0.
std::vector<int> VPlacement(int stages);

}  // namespace moe::passes
