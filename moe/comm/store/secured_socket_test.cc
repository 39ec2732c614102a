// Who has not shown the token gets nothing, costs little and keeps nobody out: sockets that send what they like, or
// nothing, to the port of a rendezvous.

#include "moe/comm/store/secured_socket.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/store/frames.h"
#include "moe/comm/store/store_server.h"
#include "moe/comm/store/tcp_store.h"

namespace moe::comm {
namespace {

const Secret kSecret = {.token = "the token of this test", .purpose = "store"};

// A plain socket to a port of loopback.
class Plain {
 public:
  explicit Plain(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (port >= 0) Connect(port);
  }
  void Connect(int port) const {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(static_cast<uint16_t>(port));
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&a), sizeof(a)), 0) << strerror(errno);
  }
  ~Plain() { close(fd_); }
  Plain(const Plain&) = delete;
  bool Send(absl::string_view bytes) const {
    return send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  // So many bytes, or those that come before the end.
  std::string Receive(size_t bytes) const {
    std::string all(bytes, '\0');
    size_t got = 0;
    while (got < bytes) {
      pollfd p = {fd_, POLLIN, 0};
      if (poll(&p, 1, 20000) != 1) break;
      const ssize_t n = recv(fd_, all.data() + got, bytes - got, 0);
      if (n <= 0) break;
      got += static_cast<size_t>(n);
    }
    all.resize(got);
    return all;
  }
  // Whether the other end closes the connection within so long, whatever it sends before.
  bool Closed(absl::Duration within = absl::Seconds(20)) const {
    char bytes[4096];
    for (const absl::Time end = absl::Now() + within; absl::Now() < end;) {
      pollfd p = {fd_, POLLIN, 0};
      if (poll(&p, 1, 50) == 1 && recv(fd_, bytes, sizeof(bytes), 0) <= 0) return true;
    }
    return false;
  }

 private:
  const int fd_;
};

class StrangersTest : public ::testing::Test {
 protected:
  void Start(int max_strangers, absl::Duration patience) {
    ASSERT_OK_AND_ASSIGN(
        server_,
        StoreServer::Start({.token = kSecret.token, .max_strangers = max_strangers, .patience = patience}));
  }
  absl::StatusOr<std::unique_ptr<TcpStore>> Connect() const {
    return TcpStore::Connect({{.port = server_->port()}}, kSecret.token, absl::Seconds(20));
  }
  void ExpectServes() const {
    ASSERT_OK_AND_ASSIGN(const auto store, Connect());
    ASSERT_OK(store->Set("key", "value"));
  }
  std::unique_ptr<StoreServer> server_;
};

size_t Descriptors() { return ListFolder("/proc/self/fd").value().size(); }

TEST_F(StrangersTest, WhoSendsAnythingElseIsSentAwayAtOnce) {
  Start(16, absl::Hours(1));
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        std::string(kMagicBytes, '\0'), std::string(1 << 20, '\xff'),
        FrameBytes({FrameType::kGet, 0, 1, "joined/0", ""})}) {
    const Plain stranger(server_->port());
    EXPECT_EQ(stranger.Receive(kChallengeBytes).size(), kChallengeBytes);
    stranger.Send(bytes);  // the end of a long one may not be taken any more
    EXPECT_TRUE(stranger.Closed()) << bytes.substr(0, 20);
  }
  ExpectServes();
}

TEST_F(StrangersTest, AnAnswerFromElsewhereIsRefused) {
  Start(16, absl::Hours(1));
  const std::string other_challenge = MakeChallenge();
  for (const auto& [secret, replayed] : {std::pair{Secret{"", "store"}, false},
                                         {Secret{"another", "store"}, false},
                                         {Secret{kSecret.token, "ranks"}, false},
                                         {kSecret, true}}) {
    const Plain stranger(server_->port());
    const std::string challenge = stranger.Receive(kChallengeBytes);
    ASSERT_OK(CheckChallenge(challenge));
    const std::string answer = MakeAnswer(secret, replayed ? other_challenge : challenge, 0);
    ASSERT_TRUE(stranger.Send(answer));
    const std::string verdict = stranger.Receive(kVerdictBytes);
    ExpectError(CheckVerdict(kSecret, challenge, answer, verdict), absl::StatusCode::kPermissionDenied,
                "token");
    EXPECT_EQ(verdict, std::string(1, '\x02') + std::string(32, '\0'));
    EXPECT_TRUE(stranger.Closed());
  }
  ExpectServes();
}

TEST_F(StrangersTest, WhoDawdlesIsSentAwayInTime) {
  Start(16, absl::Milliseconds(300));
  const Plain silent(server_->port()), slow(server_->port());
  const std::string challenge = slow.Receive(kChallengeBytes);
  const std::string answer = MakeAnswer(kSecret, challenge, 0);
  for (size_t i = 0; i < 12; ++i) {  // a byte at a time, and never the last
    slow.Send(answer.substr(i, 1));
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_TRUE(slow.Closed());
  EXPECT_TRUE(silent.Closed());
  ExpectServes();
}

// There are never more of them than may be, whatever they wait for; who has the token comes in between them.
TEST_F(StrangersTest, ManyThatSayNothingCostLittle) {
  Start(8, absl::Hours(1));
  const size_t before = Descriptors();
  std::vector<std::unique_ptr<Plain>> idle;
  size_t most = 0;
  for (int i = 0; i < 300; ++i) {
    idle.push_back(std::make_unique<Plain>(server_->port()));
    if (i % 100 == 50) ExpectServes();
    const size_t own = before + idle.size();
    most = std::max(most, Descriptors() > own ? Descriptors() - own : size_t{0});
  }
  EXPECT_LE(most, 8 + 4);  // of the server; a few are about to be closed
  EXPECT_TRUE(idle[0]->Closed());
  ExpectServes();
}

TEST_F(StrangersTest, AFirehoseIsNotRead) {
  Start(8, absl::Milliseconds(500));
  const Plain stranger(server_->port());
  std::string much(1 << 20, 'x');
  much.replace(0, kMagicBytes, MakeChallenge().substr(0, kMagicBytes));  // begins like an answer
  size_t taken = 0;
  while (taken < 64 && stranger.Send(much)) ++taken;
  EXPECT_LT(taken, 64);
  ExpectServes();
}

TEST_F(StrangersTest, AFrameOutOfBoundsEndsTheConnectionAndFreesIt) {
  Start(8, absl::Hours(1));
  const size_t before = Descriptors();
  for (const std::string& bytes : {std::string("\xff\xff\xff\x7f", 4) + std::string(100, 'x'),
                                   std::string("\x0c\0\0\0", 4) + std::string(12, '\xee')}) {
    const Plain member(server_->port());
    const std::string challenge = member.Receive(kChallengeBytes);
    const std::string answer = MakeAnswer(kSecret, challenge, 0);
    ASSERT_TRUE(member.Send(answer));
    ASSERT_OK(CheckVerdict(kSecret, challenge, answer, member.Receive(kVerdictBytes)));
    ASSERT_TRUE(member.Send(bytes));
    EXPECT_TRUE(member.Closed());
  }
  ExpectServes();
  for (int i = 0; i < 200 && Descriptors() > before; ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_LE(Descriptors(), before);
}

// One that dies while it waits is forgotten; what it waited for reaches the others.
TEST_F(StrangersTest, AMemberThatDiesWhileItWaits) {
  Start(8, absl::Hours(1));
  ASSERT_OK_AND_ASSIGN(const auto store, Connect());
  {
    const Plain member(server_->port());
    const std::string challenge = member.Receive(kChallengeBytes);
    ASSERT_TRUE(member.Send(MakeAnswer(kSecret, challenge, 0)));
    member.Receive(kVerdictBytes);
    for (uint64_t id = 0; id < 10; ++id)
      ASSERT_TRUE(member.Send(FrameBytes({FrameType::kGet, 0, id, "late", ""})));
  }
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(50));
    EXPECT_OK(store->Set("late", "here"));
  });
  ASSERT_OK_AND_ASSIGN(const std::string value, store->Get("late", absl::Seconds(20)));
  EXPECT_EQ(value, "here");
  later.join();
  ExpectServes();
}

TEST_F(StrangersTest, WithoutDescriptorsNobodyIsAcceptedUntilThereAreSome) {
  Start(8, absl::Hours(1));
  ASSERT_OK_AND_ASSIGN(const auto store, Connect());
  Plain early(-1);
  rlimit old;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  rlimit low = old;
  low.rlim_cur = 3;  // all that are open stay
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  early.Connect(server_->port());
  const absl::Status during = store->Set("key", "value");  // a connection that is there goes on
  absl::SleepFor(absl::Milliseconds(150));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_OK(during);
  EXPECT_EQ(early.Receive(kChallengeBytes).size(), kChallengeBytes);
  ExpectServes();
}

// Listens at a port of loopback, and treats who connects as it likes.
class Other {
 public:
  explicit Other(std::function<void(int socket)> treat)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(a);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&a), size), 0);
    EXPECT_EQ(listen(fd_, 1), 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&a), &size);
    port_ = ntohs(a.sin_port);
    thread_ = std::thread([this, treat = std::move(treat)] {
      const int socket = accept(fd_, nullptr, nullptr);
      treat(socket);
      close(socket);
    });
  }
  ~Other() {
    thread_.join();
    close(fd_);
  }
  int port() const { return port_; }
  absl::Status DialIt() const {
    ASSIGN_OR_RETURN(const std::unique_ptr<SocketLoop> loop, SocketLoop::Create());
    return Dial(*loop, {{.port = port_}}, kSecret, 0, absl::Seconds(20)).status();
  }

 private:
  const int fd_;
  int port_ = 0;
  std::thread thread_;
};

TEST(Dial, WhatIsNotARendezvousIsSaid) {
  for (const auto& [bytes, why] :
       {std::pair{std::string("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3 and what else it says\r\n"),
                  "not a rendezvous"},
        {std::string("SWYARD\x02\n") + std::string(32, 'x'), "another version"}}) {
    const Other other([&, &bytes = bytes](int socket) {
      send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      char end;
      recv(socket, &end, 1, 0);
    });
    ExpectError(other.DialIt(), absl::StatusCode::kFailedPrecondition, why);
  }
}

// One that has not the token but answers as if it had.
TEST(Dial, AFalseListenerIsNotBelieved) {
  const Other other([](int socket) {
    const std::string challenge = MakeChallenge();
    send(socket, challenge.data(), challenge.size(), MSG_NOSIGNAL);
    std::string answer(kAnswerBytes, '\0');
    recv(socket, answer.data(), answer.size(), MSG_WAITALL);
    const std::string verdict = MakeVerdict({"guessed", "store"}, challenge, answer, Admission::kAdmitted);
    send(socket, verdict.data(), verdict.size(), MSG_NOSIGNAL);
  });
  ExpectError(other.DialIt(), absl::StatusCode::kPermissionDenied, "another token");
}

// It hears of no connection, and the time is kept.
TEST(Dial, AListenerThatSaysNothing) {
  std::atomic<bool> over = false;
  const Other other([&](int) {
    while (!over) absl::SleepFor(absl::Milliseconds(10));
  });
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<SocketLoop> loop, SocketLoop::Create());
  ExpectError(Dial(*loop, {{.port = other.port()}}, kSecret, 0, absl::Milliseconds(300)).status(),
              absl::StatusCode::kUnavailable, "no answer");
  over = true;
}

TEST(Handshake, ProofsAreOfOneConnection) {
  const std::string challenge = MakeChallenge(), other = MakeChallenge();
  EXPECT_NE(challenge, other);
  const std::string answer = MakeAnswer(kSecret, challenge, 71);
  ASSERT_OK_AND_ASSIGN(const uint64_t who, CheckAnswer(kSecret, challenge, answer));
  EXPECT_EQ(who, 71);
  EXPECT_OK(CheckVerdict(kSecret, challenge, answer,
                         MakeVerdict(kSecret, challenge, answer, Admission::kAdmitted)));
  EXPECT_FALSE(CheckAnswer(kSecret, other, answer).ok());
  for (size_t i = 0; i < answer.size(); ++i) {
    std::string changed = answer;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_FALSE(CheckAnswer(kSecret, challenge, changed).ok()) << i;
  }
  // The listener's proof is not the other's given back.
  EXPECT_FALSE(
      CheckVerdict(kSecret, challenge, answer, absl::StrCat("\x01", answer.substr(kAnswerBytes - 32))).ok());
}

}  // namespace
}  // namespace moe::comm
