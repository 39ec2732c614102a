#include "moe/comm/store/socket.h"

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::comm {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

// With the executor of the one kind that there is, which costs less to compile than any.
using Executor = asio::io_context::executor_type;
using TcpSocket = asio::basic_stream_socket<tcp, Executor>;
using TcpAcceptor = asio::basic_socket_acceptor<tcp, Executor>;
using SteadyTimer = asio::basic_waitable_timer<std::chrono::steady_clock,
                                               asio::wait_traits<std::chrono::steady_clock>, Executor>;

absl::Status ToStatus(const error_code& error) {
  if (!error) return absl::OkStatus();
  if (error == asio::error::operation_aborted) return absl::CancelledError("the connection was closed");
  return absl::UnavailableError(error == asio::error::eof ? "it has ended" : error.message());
}

// One type for all handlers: each operation of Asio is compiled once.
struct Handler {
  Socket::Done done;
  void operator()(const error_code& error, size_t = 0) const { done(ToStatus(error)); }
};

absl::StatusOr<tcp::endpoint> EndpointOf(const SocketAddress& address) {
  error_code error;
  const asio::ip::address host = asio::ip::make_address(address.host, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("'", address.host, "' is not a numeric address"));
  return tcp::endpoint(host, static_cast<uint16_t>(address.port));
}

}  // namespace

struct SocketLoop::Impl {
  asio::io_context io{1};
  std::thread thread;
};

SocketLoop::SocketLoop(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<SocketLoop>> SocketLoop::Create() {
  try {
    return std::unique_ptr<SocketLoop>(new SocketLoop(std::make_unique<Impl>()));
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("sockets cannot be waited for: ", e.what()));
  }
}

SocketLoop::~SocketLoop() {
  Quit();
  Join();
}

absl::Status SocketLoop::Start() {
  try {
    impl_->io.restart();
    impl_->thread = std::thread([this] {
      const auto stays = asio::make_work_guard(impl_->io);
      impl_->io.run();
    });
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("no thread can be started: ", e.what()));
  }
  return absl::OkStatus();
}

void SocketLoop::Post(std::function<void()> what) { asio::post(impl_->io, std::move(what)); }
void SocketLoop::Quit() { impl_->io.stop(); }
void SocketLoop::Join() {
  if (impl_->thread.joinable()) impl_->thread.join();
}

bool SocketLoop::RunUntil(const bool& done, absl::Duration timeout) {
  const auto end =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24 * 365)));
  impl_->io.restart();
  while (!done && impl_->io.run_one_until(end) > 0) {
  }
  return done;
}

struct Socket::Impl {
  TcpSocket socket;
};

Socket::Socket(SocketLoop& loop) : impl_(new Impl{TcpSocket(loop.impl().io)}) {}
Socket::~Socket() = default;

void Socket::Connect(const SocketAddress& address, Done done) {
  const absl::StatusOr<tcp::endpoint> endpoint = EndpointOf(address);
  if (!endpoint.ok()) return done(endpoint.status());
  impl_->socket.async_connect(*endpoint, Handler{std::move(done)});
}

void Socket::Read(char* to, size_t bytes, Done done) {
  asio::async_read(impl_->socket, asio::buffer(to, bytes), Handler{std::move(done)});
}

void Socket::Write(absl::string_view from, Done done) {
  error_code ignored;
  impl_->socket.set_option(tcp::no_delay(true), ignored);
  asio::async_write(impl_->socket, asio::buffer(from.data(), from.size()), Handler{std::move(done)});
}

void Socket::EndWriting() {
  error_code ignored;
  impl_->socket.shutdown(asio::socket_base::shutdown_send, ignored);
}

void Socket::Close() {
  error_code ignored;
  impl_->socket.close(ignored);
}

absl::StatusOr<int> Socket::Release() {
  error_code error;
  const int fd = impl_->socket.release(error);
  if (error) return ToStatus(error);
  return fd;
}

struct Acceptor::Impl {
  TcpAcceptor acceptor;
};

Acceptor::Acceptor(SocketLoop& loop) : impl_(new Impl{TcpAcceptor(loop.impl().io)}), loop_(loop) {}
Acceptor::~Acceptor() = default;

absl::Status Acceptor::Listen(const SocketAddress& address) {
  ASSIGN_OR_RETURN(const tcp::endpoint endpoint, EndpointOf(address));
  TcpAcceptor& a = impl_->acceptor;
  error_code error;
  a.open(endpoint.protocol(), error);
  if (!error) a.set_option(TcpAcceptor::reuse_address(true), error);
  if (!error) a.bind(endpoint, error);
  if (!error) a.listen(asio::socket_base::max_listen_connections, error);
  if (!error) port_ = a.local_endpoint(error).port();
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen at ", AddressText(address), ": ", error.message()));
  }
  return absl::OkStatus();
}

bool Acceptor::open() const { return impl_->acceptor.is_open(); }

void Acceptor::Accept(std::function<void(std::unique_ptr<Socket>)> done) {
  auto socket = std::make_shared<std::unique_ptr<Socket>>(std::make_unique<Socket>(loop_));
  TcpSocket& to = (*socket)->impl().socket;
  impl_->acceptor.async_accept(to, Handler{[done = std::move(done), socket](const absl::Status& accepted) {
                                 done(accepted.ok() ? std::move(*socket) : nullptr);
                               }});
}

void Acceptor::Close() {
  error_code ignored;
  impl_->acceptor.close(ignored);
}

struct Timer::Impl {
  SteadyTimer timer;
};

Timer::Timer(SocketLoop& loop) : impl_(new Impl{SteadyTimer(loop.impl().io)}) {}
Timer::~Timer() = default;

void Timer::After(absl::Duration d, std::function<void()> what) {
  impl_->timer.expires_after(absl::ToChronoNanoseconds(d));
  impl_->timer.async_wait(Handler{[what = std::move(what)](const absl::Status& cancelled) {
    if (cancelled.ok()) what();
  }});
}

void Timer::Cancel() { impl_->timer.cancel(); }

}  // namespace moe::comm
