// What a module may hold at most. The text parser and FromProto refuse input beyond these bounds, so that a
// hostile file costs no more than its own size, and so that sizes computed from any accepted module fit 64
// bits.
#pragma once

#include <cstdint>

namespace moe {

inline constexpr int64_t kMaxTextBytes = int64_t{64} << 20;
inline constexpr int64_t kMaxFunctions = 16384;
inline constexpr int64_t kMaxStates = 1 << 20;
inline constexpr int64_t kMaxNodes = 1'000'000;  // of one function
inline constexpr int64_t kMaxArgs = 65536;       // of one function; also results
inline constexpr int64_t kMaxOperands = 4096;    // of one node
inline constexpr int64_t kMaxResults = 64;       // of one node
inline constexpr int64_t kMaxNameLength = 256;
inline constexpr int64_t kMaxStringLength = 1 << 20;  // of a string attribute
inline constexpr int64_t kMaxListLength = 1 << 20;    // of a list attribute
inline constexpr int64_t kMaxAttributes = 256;        // of one node, argument, state, module
inline constexpr int64_t kMaxRank = 16;
inline constexpr int64_t kMaxExtent = int64_t{1} << 40;
inline constexpr int64_t kMaxElements = int64_t{1} << 56;  // of one value; times 8 bytes fits int64
inline constexpr int64_t kMaxMeshAxes = 32;
inline constexpr int64_t kMaxAliases = 64;
inline constexpr int64_t kMaxAxisSize = int64_t{1} << 24;
inline constexpr int64_t kMaxRanks = int64_t{1} << 32;

}  // namespace moe
