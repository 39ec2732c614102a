#include "moe/comm/store/secured_socket.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr absl::Duration kAttempt = absl::Seconds(5);
constexpr absl::Duration kAcceptAgain = absl::Milliseconds(100);

// Waits for one operation of the socket. Unavailable also if it takes too long.
absl::Status Wait(SocketLoop& loop, Socket& socket, Clock::time_point end,
                  const std::function<void(Socket::Done)>& start) {
  bool done = false;
  absl::Status result;
  start([&](const absl::Status& status) {
    done = true;
    result = status;
  });
  if (loop.RunUntil(done, absl::FromChrono(end - Clock::now()))) return result;
  socket.Close();
  loop.RunUntil(done, absl::InfiniteDuration());
  return absl::UnavailableError("no answer");
}

// One attempt. Unavailable if another may succeed.
absl::StatusOr<std::unique_ptr<Socket>> DialOnce(SocketLoop& loop, const SocketAddress& address,
                                                 const Secret& secret, uint64_t who, Clock::time_point end) {
  auto socket = std::make_unique<Socket>(loop);
  const auto wait = [&](const std::function<void(Socket::Done)>& start) {
    return Wait(loop, *socket, end, start);
  };
  std::string challenge(kChallengeBytes, '\0'), verdict(kVerdictBytes, '\0');
  RETURN_IF_ERROR(wait([&](Socket::Done f) { socket->Connect(address, std::move(f)); }));
  RETURN_IF_ERROR(
      wait([&](Socket::Done f) { socket->Read(challenge.data(), challenge.size(), std::move(f)); }));
  RETURN_IF_ERROR(CheckChallenge(challenge));
  const std::string answer = MakeAnswer(secret, challenge, who);
  RETURN_IF_ERROR(wait([&](Socket::Done f) { socket->Write(answer, std::move(f)); }));
  RETURN_IF_ERROR(wait([&](Socket::Done f) { socket->Read(verdict.data(), verdict.size(), std::move(f)); }));
  RETURN_IF_ERROR(CheckVerdict(secret, challenge, answer, verdict));
  return socket;
}

}  // namespace

struct SecuredListener::Stranger {
  Stranger(std::unique_ptr<Socket> s, SocketLoop& loop) : socket(std::move(s)), patience(loop) {}
  std::unique_ptr<Socket> socket;
  Timer patience;
  const std::string challenge = MakeChallenge();
  std::string answer = std::string(kAnswerBytes, '\0'), verdict;
};

SecuredListener::SecuredListener(SocketLoop& loop, SecuredListenerOptions options, Admitted admitted)
    : loop_(loop),
      options_(std::move(options)),
      admitted_(std::move(admitted)),
      acceptor_(loop),
      retry_(loop) {}

absl::Status SecuredListener::Open(const SocketAddress& address) {
  RETURN_IF_ERROR(acceptor_.Listen(address));
  Accept();
  return absl::OkStatus();
}

void SecuredListener::Close() {
  acceptor_.Close();
  retry_.Cancel();
  while (!strangers_.empty()) SendAway(strangers_.front());
}

void SecuredListener::Accept() {
  acceptor_.Accept([this](std::unique_ptr<Socket> socket) {
    if (!acceptor_.open()) return;
    if (socket == nullptr) {
      retry_.After(kAcceptAgain, [this] {
        if (acceptor_.open()) Accept();
      });
      return;
    }
    Greet(std::move(socket));
    Accept();
  });
}

void SecuredListener::Greet(std::unique_ptr<Socket> socket) {
  if (static_cast<int>(strangers_.size()) >= options_.max_strangers) SendAway(strangers_.front());
  const auto stranger = std::make_shared<Stranger>(std::move(socket), loop_);
  strangers_.push_back(stranger);
  stranger->patience.After(options_.patience, [this, stranger] { SendAway(stranger); });
  stranger->socket->Write(stranger->challenge, [this, stranger](const absl::Status& sent) {
    if (!sent.ok()) return SendAway(stranger);
    Hear(stranger, 0, kMagicBytes);
  });
}

// Reads these bytes of the answer: first those that tell another protocol, then the rest.
void SecuredListener::Hear(const std::shared_ptr<Stranger>& stranger, size_t begin, size_t end) {
  stranger->socket->Read(stranger->answer.data() + begin, end - begin,
                         [this, stranger, end](const absl::Status& heard) {
                           if (!heard.ok() || !BeginsAnswer(stranger->answer.substr(0, kMagicBytes)))
                             return SendAway(stranger);
                           if (end < kAnswerBytes) return Hear(stranger, end, kAnswerBytes);
                           Judge(stranger);
                         });
}

void SecuredListener::Judge(const std::shared_ptr<Stranger>& stranger) {
  const absl::StatusOr<uint64_t> who = CheckAnswer(options_.secret, stranger->challenge, stranger->answer);
  const Admission admission = !who.ok()             ? Admission::kWrongToken
                              : options_.has_room() ? Admission::kAdmitted
                                                    : Admission::kFull;
  if (!who.ok()) ++refused_;
  stranger->verdict = MakeVerdict(options_.secret, stranger->challenge, stranger->answer, admission);
  stranger->socket->Write(stranger->verdict, [this, stranger, who, admission](const absl::Status& sent) {
    if (!sent.ok() || admission != Admission::kAdmitted || std::erase(strangers_, stranger) == 0) {
      return SendAway(stranger);
    }
    stranger->patience.Cancel();
    admitted_(std::move(stranger->socket), *who);
  });
}

// Its operations end as cancelled, and with them it.
void SecuredListener::SendAway(const std::shared_ptr<Stranger>& stranger) {
  const std::shared_ptr<Stranger> kept = stranger;
  if (std::erase(strangers_, kept) == 0) return;
  kept->patience.Cancel();
  kept->socket->Close();
}

absl::StatusOr<std::unique_ptr<Socket>> Dial(SocketLoop& loop, const std::vector<SocketAddress>& addresses,
                                             const Secret& secret, uint64_t who, absl::Duration timeout) {
  const Clock::time_point end =
      Clock::now() + absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24 * 365)));
  absl::Duration pause = absl::Milliseconds(50);
  absl::Status last = absl::UnavailableError("there is no address");
  for (;;) {
    for (const SocketAddress& address : addresses) {
      const Clock::time_point attempt = std::min(end, Clock::now() + absl::ToChronoNanoseconds(kAttempt));
      absl::StatusOr<std::unique_ptr<Socket>> socket = DialOnce(loop, address, secret, who, attempt);
      if (socket.ok() || !absl::IsUnavailable(socket.status())) return socket;
      last = socket.status();
    }
    if (absl::FromChrono(end - Clock::now()) <= pause) return last;
    absl::SleepFor(pause);
    pause = std::min(2 * pause, absl::Seconds(1));
  }
}

}  // namespace moe::comm
