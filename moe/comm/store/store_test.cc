// One test body for all stores; what only one of them does, with it.

#include "moe/comm/store/store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/store/directory_store.h"
#include "moe/comm/store/grpc_store.h"

namespace moe::comm {
namespace {

// A store and what keeps it alive. Every call of open() gives another client of the same store.
struct Fixture {
  std::function<absl::StatusOr<std::unique_ptr<Store>>()> open;
  std::shared_ptr<void> keep;
  std::string unavailable;
};

template <typename T>
absl::StatusOr<std::unique_ptr<Store>> Upcast(absl::StatusOr<std::unique_ptr<T>> store) {
  if (!store.ok()) return store.status();
  return absl::StatusOr<std::unique_ptr<Store>>(*std::move(store));
}

class SharedStore : public Store {
 public:
  explicit SharedStore(std::shared_ptr<MemoryStore> s) : s_(std::move(s)) {}
  absl::Status Set(absl::string_view k, absl::string_view v) override { return s_->Set(k, v); }
  absl::StatusOr<bool> SetOnce(absl::string_view k, absl::string_view v) override {
    return s_->SetOnce(k, v);
  }
  absl::StatusOr<std::string> Get(absl::string_view k, absl::Duration t, Cancellation* c) override {
    return s_->Get(k, t, c);
  }
  std::string Describe() const override { return s_->Describe(); }

 private:
  std::shared_ptr<MemoryStore> s_;
};

Fixture Memory() {
  auto s = std::make_shared<MemoryStore>();
  return {[s] { return absl::StatusOr<std::unique_ptr<Store>>(std::make_unique<SharedStore>(s)); }, s, ""};
}

Fixture Directory() {
  const std::string path = JoinPath(::testing::TempDir(), absl::StrCat("store", getpid(), "/job"));
  RemoveTree(path).IgnoreError();
  return {[path] { return Upcast(DirectoryStore::Open(path)); }, nullptr, ""};
}

Fixture Grpc() {
  auto server = StoreServer::Start({.token = "secret"});
  if (!server.ok()) return {nullptr, nullptr, std::string(server.status().message())};
  const std::string address = absl::StrCat("127.0.0.1:", (*server)->port());
  return {[address] { return Upcast(GrpcStore::Connect(address, "secret", absl::Seconds(20))); },
          std::shared_ptr<StoreServer>(*std::move(server)), ""};
}

void ExpectValue(const absl::StatusOr<std::string>& got, const std::string& want) {
  ASSERT_OK(got);
  EXPECT_TRUE(*got == want) << got->size() << " bytes, not the " << want.size() << " expected";
}

struct Kind {
  const char* name;
  Fixture (*make)();
};

class StoreTest : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    fixture_ = GetParam().make();
    if (!fixture_.unavailable.empty()) GTEST_SKIP() << fixture_.unavailable;
    ASSERT_OK_AND_ASSIGN(store_, fixture_.open());
  }
  Fixture fixture_;
  std::unique_ptr<Store> store_;
};

TEST_P(StoreTest, KeepsAnyBytes) {
  std::string bytes;
  for (int i = 0; i < 70000; ++i) bytes += static_cast<char>(i * 31);
  ASSERT_OK(store_->Set("gloo/0", bytes));
  ASSERT_OK(store_->Set("empty", ""));
  ASSERT_OK(store_->Set("gloo/0/a", "other"));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Store> other, fixture_.open());
  ExpectValue(other->Get("gloo/0", absl::ZeroDuration()), bytes);
  ExpectValue(other->Get("empty", absl::ZeroDuration()), std::string());
  ASSERT_OK(other->Set("gloo/0", "new"));
  ExpectValue(store_->Get("gloo/0", absl::ZeroDuration()), std::string("new"));
}

TEST_P(StoreTest, TheFirstOfManyWins) {
  std::vector<std::thread> threads;
  std::vector<int> won(6, 0);
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      absl::StatusOr<bool> stored = store_->SetOnce("abort", absl::StrCat("rank ", t));
      won[t] = stored.ok() && *stored ? 1 : 0;
    });
  }
  for (std::thread& t : threads) t.join();
  int winner = -1, count = 0;
  for (int t = 0; t < 6; ++t) {
    if (won[t] == 1) winner = t;
    count += won[t];
  }
  EXPECT_EQ(count, 1);
  ExpectValue(store_->Get("abort", absl::ZeroDuration()), absl::StrCat("rank ", winner));
}

TEST_P(StoreTest, GetWaitsForWhatComesLater) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Store> other, fixture_.open());
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(50));
    EXPECT_OK(other->Set("late", "here"));
  });
  ExpectValue(store_->Get("late", absl::Seconds(30)), std::string("here"));
  later.join();
}

TEST_P(StoreTest, WaitsEndInTimeAndWhenCancelled) {
  ExpectError(store_->Get("never", absl::Milliseconds(150)).status(), absl::StatusCode::kDeadlineExceeded,
              "never", store_->Describe());
  Cancellation cancel;
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(50));
    cancel.Cancel();
  });
  ExpectError(store_->Get("never", absl::Seconds(100), &cancel).status(), absl::StatusCode::kCancelled, "");
  later.join();
  ExpectError(store_->Get("never", absl::Seconds(100), &cancel).status(), absl::StatusCode::kCancelled, "");
}

TEST_P(StoreTest, RefusesWhatIsNoEntry) {
  for (const std::string& key : {std::string(), std::string("a b"), std::string("a\\b"),
                                 std::string("/etc/passwd"), std::string(300, 'k'), std::string("a\0b", 3)}) {
    EXPECT_EQ(store_->Set(key, "x").code(), absl::StatusCode::kInvalidArgument) << key;
  }
  EXPECT_EQ(store_->Set("large", std::string(kMaxStoreValue + 1, 'x')).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_OK(store_->Set("..", "a name like any other"));
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreTest,
                         ::testing::Values(Kind{"Memory", Memory}, Kind{"Directory", Directory},
                                           Kind{"Grpc", Grpc}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(GrpcStore, StrangersAndFloodsAreRefused) {
  ASSERT_OK_AND_ASSIGN(
      const auto server,
      StoreServer::Start({.token = "secret", .max_connections = 2, .max_keys = 3, .max_bytes = 1000}));
  const std::string address = absl::StrCat("127.0.0.1:", server->port());
  for (const char* token : {"", "secre", "secrets", "Secret"}) {
    ExpectError(GrpcStore::Connect(address, token, absl::Seconds(20)).status(),
                absl::StatusCode::kPermissionDenied, "token");
  }
  ASSERT_OK_AND_ASSIGN(const auto one, GrpcStore::Connect(address, "secret", absl::Seconds(20)));
  ASSERT_OK_AND_ASSIGN(const auto two, GrpcStore::Connect(address, "secret", absl::Seconds(20)));
  ExpectError(GrpcStore::Connect(address, "secret", absl::Seconds(20)).status(),
              absl::StatusCode::kResourceExhausted, "2 connections");
  ASSERT_OK(one->Set("a", std::string(900, 'x')));
  ExpectError(two->Set("b", std::string(200, 'x')), absl::StatusCode::kResourceExhausted, "full");
  ASSERT_OK(two->Set("a", std::string(10, 'x')));  // replaced, not added
  ASSERT_OK(two->Set("b", "y"));
  ExpectError(two->Set("c", "y"), absl::StatusCode::kResourceExhausted, "3 keys");
}

TEST(GrpcStore, AServerThatEndsFreesThoseWhoWait) {
  ASSERT_OK_AND_ASSIGN(auto server, StoreServer::Start({.token = "t"}));
  const std::string address = absl::StrCat("127.0.0.1:", server->port());
  ExpectError(StoreServer::Start({.address = address, .token = "t"}).status(), absl::StatusCode::kUnavailable,
              address);
  ASSERT_OK_AND_ASSIGN(const auto store, GrpcStore::Connect(address, "t", absl::Seconds(20)));
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(50));
    server.reset();
  });
  ExpectError(store->Get("never", absl::Seconds(100)).status(), absl::StatusCode::kUnavailable, address);
  later.join();
  ExpectError(GrpcStore::Connect(address, "t", absl::Milliseconds(300)).status(),
              absl::StatusCode::kUnavailable, address);
}

}  // namespace
}  // namespace moe::comm
