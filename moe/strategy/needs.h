// What words need of other words and of the model: the checks that are too long for a row of words.inc, and
// what the shorter ones and the search for the nearest legal strategy share with them.
//
// Called by Problems() with every number in its range and at most kMaxRanks ranks. Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moe/strategy/problems.h"
#include "moe/strategy/strategy.h"

namespace moe::strategy {

void NeedsOfStages(const Strategy& s, const Facts& f, Report& out);
void NeedsOfTensor(const Strategy& s, const Facts& f, Report& out);
void NeedsOfWorld(const Strategy& s, const Facts& f, Report& out);
void NeedsOfExperts(const Strategy& s, const Facts& f, Report& out);
void NeedsOfSlots(const Strategy& s, const Facts& f, Report& out);
void NeedsOfMap(const Strategy& s, const Facts& f, Report& out);
void NeedsOfMicrobatches(const Strategy& s, const Facts& f, Report& out);
void NeedsOfSchedule(const Strategy& s, const Facts& f, Report& out);

inline constexpr double kMaxRanks = 1e9;

// Whether every size that tensor ranks divide is divided by so many. With fewer key-value heads than ranks,
// ranks share a head, if tp may be split by them.
bool TensorFits(int64_t tp, const Strategy& s, const Facts& f);

// Chunks per stage that a schedule can have.
struct ChunkRange {
  int64_t least, most;
  bool Has(int64_t chunks) const { return least <= chunks && chunks <= most; }
};
ChunkRange ChunksOf(ScheduleKind kind);

std::vector<int64_t> Divisors(int64_t n);  // ascending
std::vector<int64_t> Keep(std::vector<int64_t> values, const std::function<bool(int64_t)>& wanted);
// Of sizes: the absolute difference of their logarithms.
double Distance(int64_t value, int64_t wanted);
// "1, 2, 4, 8"; of many, the dozen nearest to what was asked for.
std::string ShowNear(std::vector<int64_t> values, int64_t wanted);

}  // namespace moe::strategy
