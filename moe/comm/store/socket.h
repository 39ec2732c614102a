// Sockets of TCP that are waited for by one thread: what the rendezvous needs of Boost.Asio, which only socket.cc
// includes.
//
//   ASSIGN_OR_RETURN(const std::unique_ptr<SocketLoop> loop, SocketLoop::Create());
//   Acceptor acceptor(*loop);
//   RETURN_IF_ERROR(acceptor.Listen({.host = "10.0.0.7"}));
//   acceptor.Accept([&](std::unique_ptr<Socket> socket) { Serve(std::move(socket)); });
//   RETURN_IF_ERROR(loop->Start());                                    // callbacks run on the loop's thread
//
// The loop outlives its objects, which belong to its thread once that is started; a callback may destroy the object
// that called it. Of what is closed or destroyed the pending operations end as Cancelled.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "moe/comm/store/address.h"

namespace moe::comm {

class SocketLoop {
 public:
  // Unavailable if the system has no descriptor left.
  static absl::StatusOr<std::unique_ptr<SocketLoop>> Create();
  ~SocketLoop();
  // Unavailable if the system has no thread left.
  absl::Status Start();
  // From any thread: runs this on the loop's.
  void Post(std::function<void()> what);
  // From any thread: no callback is called any more, once the one that runs has returned.
  void Quit();
  void Join();  // waits for that
  // Instead of Start: runs callbacks until `done` or so long; whether it is done.
  bool RunUntil(const bool& done, absl::Duration timeout);

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  explicit SocketLoop(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

class Socket {
 public:
  using Done = std::function<void(const absl::Status&)>;  // Unavailable: why
  explicit Socket(SocketLoop& loop);
  ~Socket();
  void Connect(const SocketAddress& address, Done done);
  // All of them. The memory stays until it is done; one call of each at a time.
  void Read(char* to, size_t bytes, Done done);
  void Write(absl::string_view from, Done done);
  void EndWriting();  // the other end reads what was written, then the end
  void Close();
  // The descriptor, which the caller closes.
  absl::StatusOr<int> Release();

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  const std::unique_ptr<Impl> impl_;
};

class Acceptor {
 public:
  explicit Acceptor(SocketLoop& loop);
  ~Acceptor();
  // Unavailable, naming the address, if the system does not let it listen there.
  absl::Status Listen(const SocketAddress& address);
  int port() const { return port_; }
  bool open() const;
  // The next connection; null if there was one that could not be had, for want of descriptors, say.
  void Accept(std::function<void(std::unique_ptr<Socket>)> done);
  void Close();

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
  SocketLoop& loop_;
  int port_ = 0;
};

class Timer {
 public:
  explicit Timer(SocketLoop& loop);
  ~Timer();
  void After(absl::Duration d, std::function<void()> what);  // replaces what it would do
  void Cancel();

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace moe::comm
