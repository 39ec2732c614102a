// The legal strategy nearest to one that is not, to be proposed.
//
//   const auto nearest = NearestLegal(wanted, facts, [&](const Strategy& s, int64_t micro_batch) {
//     return CompilesFor(s, micro_batch);
//   });
//   if (nearest) std::cout << DescribeNearest(wanted, *nearest, facts, {});
//
// There is one search: whoever refuses a strategy asks here. Plain functions; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "moe/strategy/problems.h"
#include "moe/strategy/strategy.h"

namespace moe::strategy {

struct Nearest {
  Strategy strategy;
  int64_t micro_batch = 1;
};

// Whether a strategy without problems can be had in fact: whether it compiles. Null: all can.
using Accepts = std::function<bool(const Strategy& s, int64_t micro_batch)>;

// The strategy without problems, and accepted, that differs least from `wanted`: in the sum of logarithms of
// ratios of parallel sizes, chunks and micro batch size. Any other word that has a problem falls back to its
// default, which weighs as much as nearly a factor of three. A world size that is given stays. `accepts` is
// asked a few times at most, nearest first. Nothing if none was found.
std::optional<Nearest> NearestLegal(const Strategy& wanted, const Facts& facts,
                                    const Accepts& accepts = nullptr);

// "pp 2 x dp 2 x tp 2, ep 2, etp 1, 4 experts per rank", and in a second line the flags that make it of
// `wanted`; `unread` are words of which no value was read, so that their flags are among them.
std::string DescribeNearest(const Strategy& wanted, const Nearest& nearest, const Facts& facts,
                            absl::Span<const Problem> unread);

}  // namespace moe::strategy
