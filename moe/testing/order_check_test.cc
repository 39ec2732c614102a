#include "moe/testing/order_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "moe/base/status_matchers.h"
#include "moe/device/host_device.h"

namespace moe::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class OrderCheckTest : public ::testing::Test {
 protected:
  void SetUp() override {
    device_ = check_.Watch(device::NewHostDevice(), 0);
    ASSERT_OK_AND_ASSIGN(memory_, device_->Allocate(256));
    ASSERT_OK_AND_ASSIGN(one_, device_->NewStream("compute"));
    ASSERT_OK_AND_ASSIGN(other_, device_->NewStream("comm"));
    ASSERT_OK_AND_ASSIGN(event_, device_->NewEvent());
  }
  char* at(int64_t byte) { return memory_->data() + byte; }

  OrderCheck check_;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<device::DeviceMemory> memory_;
  std::unique_ptr<device::Stream> one_, other_;
  std::unique_ptr<device::Event> event_;
};

TEST_F(OrderCheckTest, AWaitOrders) {
  ASSERT_OK(one_->Fill(at(0), 1, 64));
  ASSERT_OK(one_->Record(event_.get()));
  ASSERT_OK(other_->Wait(event_.get()));
  other_->Uses("a node", {});
  ASSERT_OK(other_->Copy(at(128), at(0), 64));
  EXPECT_THAT(check_.Races(), IsEmpty());
  const std::vector<OrderCheck::Site> sites = check_.Sites();
  ASSERT_THAT(sites, SizeIs(1));
  EXPECT_EQ(sites[0].what, "comm 0 of device 0 after compute 0 of device 0");
  EXPECT_EQ(sites[0].kind, "comm after compute");
  EXPECT_EQ(sites[0].last, "fill");
  EXPECT_EQ(sites[0].next, "a node, copy");
  EXPECT_EQ(sites[0].waits, 1);
  EXPECT_TRUE(sites[0].adds);
  EXPECT_THAT(check_.Races(&sites[0]),
              ElementsAre("comm 0 of device 0 (a node, copy) reads what compute 0 of device 0 (fill) writes, "
                          "and nothing orders them"));
}

TEST_F(OrderCheckTest, AReaderIsWaitedForToo) {
  ASSERT_OK(one_->Copy(at(128), at(0), 64));
  ASSERT_OK(other_->Fill(at(32), 1, 1));
  EXPECT_THAT(check_.Races(),
              ElementsAre(HasSubstr("(fill) writes what compute 0 of device 0 (copy) reads")));
}

TEST_F(OrderCheckTest, WorkAfterTheRecordIsNotWaitedFor) {
  ASSERT_OK(one_->Record(event_.get()));
  ASSERT_OK(one_->Fill(at(0), 1, 64));
  ASSERT_OK(other_->Wait(event_.get()));
  ASSERT_OK(other_->Fill(at(64), 1, 64));  // beside it
  EXPECT_THAT(check_.Races(), IsEmpty());
  EXPECT_FALSE(check_.Sites()[0].adds);
  ASSERT_OK(other_->Fill(at(63), 1, 2));
  EXPECT_THAT(check_.Races(), SizeIs(1));
}

TEST_F(OrderCheckTest, OrderIsPassedOn) {
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<device::Stream> third, device_->NewStream("copy"));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<device::Event> next, device_->NewEvent());
  ASSERT_OK(one_->Fill(at(0), 1, 64));
  ASSERT_OK(one_->Record(event_.get()));
  ASSERT_OK(other_->Wait(event_.get()));
  ASSERT_OK(other_->Record(next.get()));
  ASSERT_OK(third->Wait(next.get()));
  ASSERT_OK(third->Fill(at(0), 1, 64));
  EXPECT_THAT(check_.Races(), IsEmpty());
  for (const OrderCheck::Site& site : check_.Sites()) EXPECT_THAT(check_.Races(&site), SizeIs(1));
}

TEST_F(OrderCheckTest, ReadersAreNotInEachOthersWay) {
  ASSERT_OK(one_->Copy(at(64), at(0), 64));
  ASSERT_OK(other_->Copy(at(128), at(0), 64));
  EXPECT_THAT(check_.Races(), IsEmpty());
}

TEST_F(OrderCheckTest, TheHostKnowsWhatItWaitedFor) {
  ASSERT_OK(one_->Fill(at(0), 1, 64));
  ASSERT_OK(one_->Synchronize());
  device_->HostUses("a look", {{at(0), 8, false}});
  ASSERT_OK(other_->Fill(at(0), 2, 64));  // given after the host had waited
  EXPECT_THAT(check_.Races(), IsEmpty());
  const std::vector<OrderCheck::Site> sites = check_.Sites();
  ASSERT_THAT(sites, SizeIs(1));
  EXPECT_EQ(sites[0].kind, "host after compute");
  EXPECT_THAT(check_.Races(&sites[0]), ElementsAre(HasSubstr("(a look) reads what compute 0")));
  device_->HostUses("a change", {{at(0), 8, true}});  // while the other may be at work
  EXPECT_THAT(check_.Races(), ElementsAre(HasSubstr("(a change) writes what comm 0 of device 0 (fill)")));
}

TEST_F(OrderCheckTest, AnotherThreadKnowsItByAStream) {
  ASSERT_OK(one_->Fill(at(0), 1, 64));
  ASSERT_OK(one_->Synchronize());
  std::thread([&] {
    EXPECT_OK(other_->Fill(at(0), 1, 1));  // that has heard of nothing
  }).join();
  EXPECT_THAT(check_.Races(), SizeIs(1));
  std::thread([&] {
    EXPECT_OK(one_->Record(event_.get()));  // a thread after the one that waited
    device_->HostUses("a look", {{at(32), 8, false}});
  }).join();
  EXPECT_THAT(check_.Races(), SizeIs(1));
}

TEST_F(OrderCheckTest, MemoryIsGivenBackAfterItsWork) {
  ASSERT_OK(one_->Fill(at(0), 1, 64));
  memory_.reset();
  EXPECT_THAT(check_.Races(), ElementsAre(HasSubstr("(gives it back) writes what compute 0")));
  ASSERT_OK_AND_ASSIGN(memory_, device_->Allocate(256));
  ASSERT_OK(other_->Fill(at(0), 1, 64));
  EXPECT_THAT(check_.Races(), SizeIs(1));
}

TEST_F(OrderCheckTest, RowsGoFromTheFirstByteToTheLast) {
  StridedCopy copy;  // 2 rows of 8 elements to rows of 16
  copy.run = 8;
  ASSERT_OK(one_->CopyRows(copy, 2, at(128), 8, at(0), 16, 1));
  ASSERT_OK(other_->Fill(at(24), 1, 8));
  EXPECT_THAT(check_.Races(), IsEmpty());
  ASSERT_OK(other_->Fill(at(23), 1, 1));
  EXPECT_THAT(check_.Races(), ElementsAre(HasSubstr("(copy of rows)")));
}

}  // namespace
}  // namespace moe::testing
