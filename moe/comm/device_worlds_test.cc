#include "moe/comm/device_worlds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"

namespace moe::comm {
namespace {

using ::testing::ElementsAre;

DeviceWorldsOptions Ranks(int64_t num_ranks, int64_t processes = 1, int64_t local_processes = 1) {
  DeviceWorldsOptions o;
  o.kind = device::DeviceKind::kCuda;
  o.num_ranks = num_ranks;
  o.processes = processes;
  o.local_processes = local_processes;
  return o;
}

TEST(PlaceRanks, ARankWithAGpuToItselfGoesByNccl) {
  ASSERT_OK_AND_ASSIGN(const DevicePlacement p, PlaceRanks(Ranks(4), 8));
  EXPECT_TRUE(p.nccl);
  EXPECT_THAT(p.ordinals, ElementsAre(0, 1, 2, 3));
}

TEST(PlaceRanks, RanksOfOneProcessShareGpus) {
  ASSERT_OK_AND_ASSIGN(DevicePlacement p, PlaceRanks(Ranks(5), 2));
  EXPECT_FALSE(p.nccl);
  EXPECT_THAT(p.ordinals, ElementsAre(0, 1, 0, 1, 0));
  ASSERT_OK_AND_ASSIGN(p, PlaceRanks(Ranks(1), 8));
  EXPECT_FALSE(p.nccl);
}

TEST(PlaceRanks, ProcessesTakeTheirPartOfTheMachine) {
  // 2 machines, 4 processes of 2 ranks each.
  DeviceWorldsOptions o = Ranks(8, 4, 2);
  o.process = 3;
  o.local_process = 1;
  ASSERT_OK_AND_ASSIGN(DevicePlacement p, PlaceRanks(o, 4));
  EXPECT_TRUE(p.nccl);
  EXPECT_THAT(p.ordinals, ElementsAre(2, 3));
  // Each process sees devices of its own.
  ASSERT_OK_AND_ASSIGN(p, PlaceRanks(o, 2));
  EXPECT_THAT(p.ordinals, ElementsAre(0, 1));
}

TEST(PlaceRanks, WhatCannotBeIsExplained) {
  ExpectError(PlaceRanks(Ranks(8, 4, 4), 3), absl::StatusCode::kInvalidArgument, "8 ranks in 4 processes",
              "3 GPUs", "in one process");
  ExpectError(PlaceRanks(Ranks(3, 2), 3), absl::StatusCode::kInvalidArgument, "3 ranks", "2 processes");
  ExpectError(PlaceRanks(Ranks(2), 0), absl::StatusCode::kUnavailable, "no cuda device");
}

TEST(DeviceWorlds, WithoutABackEndSaysSo) {
  ExpectError(DeviceWorlds::Open(Ranks(2)), absl::StatusCode::kUnavailable, "not built");
}

TEST(DeviceWorlds, TheHostIsOneDeviceForAll) {
  DeviceWorldsOptions o;
  o.num_ranks = 3;
  ASSERT_OK_AND_ASSIGN(const auto worlds, DeviceWorlds::Open(o));
  ASSERT_EQ(worlds->size(), 3);
  EXPECT_EQ(worlds->device(2), worlds->device(0));
  EXPECT_EQ(worlds->world(2)->rank(), 2);
  EXPECT_EQ(worlds->Describe(), "3 ranks that share 1 host, in this process");
}

}  // namespace
}  // namespace moe::comm
