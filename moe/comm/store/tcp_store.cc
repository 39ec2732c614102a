#include "moe/comm/store/tcp_store.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "moe/base/status.h"
#include "moe/comm/store/frames.h"
#include "moe/comm/store/secured_socket.h"

namespace moe::comm {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(5);  // of what is answered at once

}  // namespace

class TcpStore::Client {
 public:
  explicit Client(std::unique_ptr<SocketLoop> loop) : loop_(std::move(loop)) {}
  ~Client() {
    loop_->Quit();
    loop_->Join();
  }

  absl::Status Connect(const std::vector<SocketAddress>& addresses, const std::string& token,
                       absl::Duration timeout) {
    ASSIGN_OR_RETURN(socket_, Dial(*loop_, addresses, {token, "store"}, 0, timeout));
    ReadHead();
    return loop_->Start();
  }

  struct Answer {
    FrameType type;
    uint8_t code;
    std::string value;
  };
  // Unavailable if the connection is gone, Cancelled, DeadlineExceeded.
  absl::StatusOr<Answer> Ask(FrameType type, absl::string_view key, absl::string_view value,
                             absl::Duration timeout, Cancellation* cancel) {
    Call call;
    // Cancel holds its own lock when it calls this, and nobody takes that one while holding mutex_.
    Cancellation::Hook hook(cancel, [&] {
      absl::MutexLock lock(&mutex_);
      call.cancelled = true;
    });
    absl::MutexLock lock(&mutex_);
    if (!closed_.empty()) return absl::UnavailableError(closed_);
    const uint64_t id = next_id_++;
    calls_[id] = &call;
    Send({type, 0, id, key, value});
    const auto over = [&] {
      mutex_.AssertReaderHeld();
      return call.answer.has_value() || call.cancelled || !closed_.empty();
    };
    mutex_.AwaitWithTimeout(absl::Condition(&over), timeout);
    calls_.erase(id);
    if (call.answer.has_value()) return *std::move(call.answer);
    if (!closed_.empty()) return absl::UnavailableError(closed_);
    if (type == FrameType::kGet) Send({FrameType::kCancel, 0, id, "", ""});
    if (call.cancelled) return absl::CancelledError("the wait was cancelled");
    return absl::DeadlineExceededError("");
  }

 private:
  struct Call {
    std::optional<Answer> answer;
    bool cancelled = false;
  };

  void Send(const Frame& frame) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    unsent_.push_back(FrameBytes(frame));
    if (unsent_.size() == 1) loop_->Post([this] { Write(); });
  }

  // From here on: the thread.
  void Write() {
    const std::string* next;
    {
      absl::MutexLock lock(&mutex_);
      next = &unsent_.front();  // stays where it is while others are appended
    }
    socket_->Write(*next, [this](const absl::Status& written) {
      if (!written.ok()) return Close(written);
      bool more;
      {
        absl::MutexLock lock(&mutex_);
        unsent_.pop_front();
        more = !unsent_.empty();
      }
      if (more) Write();
    });
  }

  void ReadHead() {
    socket_->Read(head_.data(), head_.size(), [this](const absl::Status& read) {
      if (!read.ok()) return Close(read);
      const absl::StatusOr<size_t> size = FrameSize(head_);
      if (!size.ok()) return Close(size.status());
      body_.resize(*size);
      ReadBody();
    });
  }

  void ReadBody() {
    socket_->Read(body_.data(), body_.size(), [this](const absl::Status& read) {
      if (!read.ok()) return Close(read);
      const absl::StatusOr<Frame> frame = ParseFrame(body_);
      if (!frame.ok()) return Close(frame.status());
      {
        absl::MutexLock lock(&mutex_);
        const auto it = calls_.find(frame->id);  // who asked may have gone
        if (it != calls_.end()) it->second->answer = {frame->type, frame->code, std::string(frame->value)};
      }
      ReadHead();
    });
  }

  void Close(const absl::Status& why) {
    socket_->Close();
    absl::MutexLock lock(&mutex_);
    if (closed_.empty()) closed_ = std::string(why.message());
  }

  const std::unique_ptr<SocketLoop> loop_;
  std::unique_ptr<Socket> socket_;
  std::string head_ = std::string(kFrameHead, '\0'), body_;
  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, Call*> calls_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> unsent_ ABSL_GUARDED_BY(mutex_);
  std::string closed_ ABSL_GUARDED_BY(mutex_);  // why the connection is gone
};

TcpStore::TcpStore(std::string address, std::string run_by)
    : address_(std::move(address)), run_by_(std::move(run_by)) {}
TcpStore::~TcpStore() = default;

absl::StatusOr<std::unique_ptr<TcpStore>> TcpStore::Connect(const std::vector<SocketAddress>& addresses,
                                                            const std::string& token, absl::Duration timeout,
                                                            const std::string& run_by) {
  std::unique_ptr<TcpStore> store(
      new TcpStore(addresses.empty() ? "nowhere" : AddressText(addresses[0]), run_by));
  ASSIGN_OR_RETURN(std::unique_ptr<SocketLoop> loop, SocketLoop::Create());
  store->client_ = std::make_unique<Client>(std::move(loop));
  const absl::Status status = store->client_->Connect(addresses, token, timeout);
  if (absl::IsUnavailable(status)) {
    return absl::UnavailableError(absl::StrCat("nobody answers at ", store->Describe(), " within ",
                                               absl::FormatDuration(timeout), " (", status.message(), ")"));
  }
  RETURN_IF_ERROR(Annotate(status, absl::StrCat("the rendezvous at ", store->Describe())));
  return store;
}

absl::Status TcpStore::Said(const absl::Status& status) const {
  const absl::string_view message =
      absl::IsDeadlineExceeded(status) ? absl::string_view("it does not answer") : status.message();
  const absl::StatusCode code =
      absl::IsDeadlineExceeded(status) ? absl::StatusCode::kUnavailable : status.code();
  return Annotate(absl::Status(code, message), absl::StrCat("the rendezvous at ", Describe()));
}

absl::StatusOr<bool> TcpStore::Put(absl::string_view key, absl::string_view value, bool once) {
  RETURN_IF_ERROR(CheckStoreEntry(key, value));
  absl::StatusOr<Client::Answer> answer =
      client_->Ask(once ? FrameType::kSetOnce : FrameType::kSet, key, value, kCallTimeout, nullptr);
  RETURN_IF_ERROR(Said(answer.status()));
  if (answer->type == FrameType::kStored) return answer->code == 1;
  return Said(absl::Status(static_cast<absl::StatusCode>(answer->code), answer->value));
}

absl::Status TcpStore::Set(absl::string_view key, absl::string_view value) {
  return Put(key, value, false).status();
}

absl::StatusOr<bool> TcpStore::SetOnce(absl::string_view key, absl::string_view value) {
  return Put(key, value, true);
}

absl::StatusOr<std::string> TcpStore::Get(absl::string_view key, absl::Duration timeout,
                                          Cancellation* cancel) {
  RETURN_IF_ERROR(CheckStoreEntry(key, ""));
  const bool waits = timeout > absl::ZeroDuration();
  absl::StatusOr<Client::Answer> answer = client_->Ask(waits ? FrameType::kGet : FrameType::kPeek, key, "",
                                                       waits ? timeout : kCallTimeout, cancel);
  if (waits && absl::IsDeadlineExceeded(answer.status())) return StoreTimeout(*this, key, timeout);
  if (absl::IsCancelled(answer.status())) return answer.status();
  RETURN_IF_ERROR(Said(answer.status()));
  if (answer->type == FrameType::kValue) return std::move(answer->value);
  if (!waits) return StoreTimeout(*this, key, timeout);
  return Said(absl::Status(static_cast<absl::StatusCode>(answer->code), answer->value));
}

}  // namespace moe::comm
