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
#include "moe/comm/store/store_server.h"
#include "moe/comm/store/tcp_store.h"

namespace moe::comm {
namespace {

// A store and what keeps it alive. Every call of open() gives another client of the same store.
struct Fixture {
  std::function<absl::StatusOr<std::unique_ptr<Store>>()> open;
  std::shared_ptr<void> keep;
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
  return {[s] { return absl::StatusOr<std::unique_ptr<Store>>(std::make_unique<SharedStore>(s)); }, s};
}

absl::StatusOr<std::unique_ptr<Store>> Connect(const StoreServer& server,
                                               const std::string& token = "secret") {
  return Upcast(TcpStore::Connect({{.port = server.port()}}, token, absl::Seconds(20)));
}

// A server that cannot be started fails the tests.
Fixture Tcp() {
  auto server = StoreServer::Start({.token = "secret"});
  if (!server.ok()) return {[status = server.status()] { return status; }, nullptr};
  const std::shared_ptr<StoreServer> shared = *std::move(server);
  return {[shared] { return Connect(*shared); }, shared};
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

INSTANTIATE_TEST_SUITE_P(Stores, StoreTest, ::testing::Values(Kind{"Memory", Memory}, Kind{"Tcp", Tcp}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(TcpStore, OthersAreRefusedAndAllIsBounded) {
  ASSERT_OK_AND_ASSIGN(
      const auto server,
      StoreServer::Start({.token = "secret", .max_connections = 2, .max_keys = 2, .max_bytes = 1000}));
  for (const char* token : {"", "secre", "secrets", "Secret"}) {
    ExpectError(Connect(*server, token).status(), absl::StatusCode::kPermissionDenied, "token", "127.0.0.1:");
  }
  ASSERT_OK_AND_ASSIGN(const auto one, Connect(*server));
  ASSERT_OK_AND_ASSIGN(const auto two, Connect(*server));
  ExpectError(Connect(*server).status(), absl::StatusCode::kResourceExhausted, "as many are connected");
  ASSERT_OK(one->Set("a", std::string(900, 'x')));
  ExpectError(two->Set("b", std::string(200, 'x')), absl::StatusCode::kResourceExhausted, "full");
  ASSERT_OK(two->Set("a", std::string(10, 'x')));  // replaced, not added
  ASSERT_OK(two->Set("b", "y"));
  ExpectError(two->Set("c", "y"), absl::StatusCode::kResourceExhausted, "2 keys");
}

TEST(TcpStore, AServerThatEndsFreesThoseWhoWait) {
  ASSERT_OK_AND_ASSIGN(auto server, StoreServer::Start({.token = "t"}));
  const SocketAddress address = {.port = server->port()};
  ExpectError(StoreServer::Start({.address = address, .token = "t"}).status(), absl::StatusCode::kUnavailable,
              AddressText(address), "in use");
  ASSERT_OK_AND_ASSIGN(const auto store, TcpStore::Connect({address}, "t", absl::Seconds(20)));
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(50));
    server.reset();
  });
  ExpectError(store->Get("never", absl::Seconds(100)).status(), absl::StatusCode::kUnavailable,
              AddressText(address), "it has ended");
  later.join();
  ExpectError(store->Set("key", "value"), absl::StatusCode::kUnavailable, "it has ended");
  ExpectError(TcpStore::Connect({address}, "t", absl::Milliseconds(300)).status(),
              absl::StatusCode::kUnavailable, AddressText(address), "nobody answers", "300ms");
}

TEST(TcpStore, AServerThatComesLateIsWaitedFor) {
  ASSERT_OK_AND_ASSIGN(auto first, StoreServer::Start({.token = "t"}));
  const SocketAddress address = {.port = first->port()};
  first.reset();
  absl::StatusOr<std::unique_ptr<StoreServer>> server;
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(200));
    server = StoreServer::Start({.address = address, .token = "t"});
  });
  EXPECT_OK(TcpStore::Connect({{.port = 1}, address}, "t", absl::Seconds(20)));  // the second address answers
  later.join();
  EXPECT_OK(server);
}

TEST(TcpStore, ThePortClosesOnceAllHaveCome) {
  ASSERT_OK_AND_ASSIGN(const auto server, StoreServer::Start({.token = "secret", .members = 2}));
  ASSERT_OK_AND_ASSIGN(const auto one, Connect(*server));
  ASSERT_OK_AND_ASSIGN(const auto two, Connect(*server));
  ASSERT_OK(one->SetOnce("joined/0", ""));
  ASSERT_OK(one->SetOnce("joined/0", ""));  // the same one again
  ASSERT_OK(Connect(*server));
  ASSERT_OK(two->SetOnce("joined/1", ""));
  ExpectError(TcpStore::Connect({{.port = server->port()}}, "secret", absl::Milliseconds(200)).status(),
              absl::StatusCode::kUnavailable, "nobody answers");
  ASSERT_OK(one->Set("still", "here"));
  ExpectValue(two->Get("still", absl::Seconds(20)), "here");
}

TEST(TcpStore, OverIpv6) {
  const auto server = StoreServer::Start({.address = {.host = "::1"}, .token = "t"});
  if (!server.ok() && !IsFolder("/proc/sys/net/ipv6")) GTEST_SKIP() << "this system has no IPv6";
  ASSERT_OK(server);
  ASSERT_OK_AND_ASSIGN(const auto store,
                       TcpStore::Connect({{"::1", (*server)->port()}}, "t", absl::Seconds(20)));
  EXPECT_EQ(store->Describe(), absl::StrCat("[::1]:", (*server)->port(), " (run by rank 0)"));
  ASSERT_OK(store->Set("key", "value"));
}

}  // namespace
}  // namespace moe::comm
