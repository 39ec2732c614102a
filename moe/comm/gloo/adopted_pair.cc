#include "moe/comm/gloo/adopted_pair.h"

#include <dirent.h>
#include <fcntl.h>
#include <gloo/transport/pair.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace moe::comm {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {
    if (fd < 0) throw std::runtime_error(absl::StrCat("a socket: ", std::strerror(errno)));
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

sockaddr_in Loopback() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

template <typename Ask>
sockaddr_in Name(int fd, const Ask& ask) {
  sockaddr_in address{};
  socklen_t size = sizeof(address);
  if (ask(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0 || address.sin_family != AF_INET) return {};
  return address;
}

bool SamePlace(const sockaddr_in& a, const sockaddr_in& b) {
  return a.sin_family == AF_INET && a.sin_family == b.sin_family && a.sin_port == b.sin_port &&
         a.sin_addr.s_addr == b.sin_addr.s_addr;
}

// The socket of this process that is connected from `own` to `other`; -1 if it has none.
int FindSocket(const sockaddr_in& own, const sockaddr_in& other) {
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) throw std::runtime_error(absl::StrCat("/proc/self/fd: ", std::strerror(errno)));
  int found = -1;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] == '.') continue;
    const int fd = std::atoi(entry->d_name);
    if (SamePlace(Name(fd, getsockname), own) && SamePlace(Name(fd, getpeername), other)) found = fd;
  }
  closedir(folder);
  return found;
}

// Gloo's address of a listening socket: its sockaddr_storage and a number that only other versions use.
std::vector<char> AddressBytes(const sockaddr_in& address, const std::vector<char>& like) {
  if (like.size() < sizeof(sockaddr_storage)) throw std::runtime_error("this Gloo has other addresses");
  std::vector<char> bytes = like;
  std::memset(bytes.data(), 0, sizeof(sockaddr_storage));
  std::memcpy(bytes.data(), &address, sizeof(address));
  return bytes;
}

}  // namespace

std::shared_ptr<gloo::transport::tcp::Device> AdoptingDevice() {
  std::random_device random;
  const std::string address =
      absl::StrCat("127.", 1 + random() % 254, ".", random() % 256, ".", 1 + random() % 254);
  return std::make_shared<gloo::transport::tcp::Device>(
      gloo::transport::tcp::CreateDeviceAttr(gloo::transport::tcp::attr(address.c_str())));
}

void AdoptPair(gloo::transport::tcp::Device& device, gloo::transport::Context& context, int peer,
               int socket) {
  const Descriptor adopted(socket);
  const Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // Below the device's address, so that it is Gloo that connects.
  const sockaddr_in loopback = Loopback();
  if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&loopback), sizeof(loopback)) != 0 ||
      listen(listener.get(), 4) != 0) {
    throw std::runtime_error(absl::StrCat("cannot listen at loopback: ", std::strerror(errno)));
  }
  const sockaddr_in here = Name(listener.get(), getsockname);
  gloo::transport::Pair& pair = *context.createPair(peer);
  pair.connect(AddressBytes(here, pair.address().bytes()));
  // Whoever else connects here is closed.
  for (int others = 0; others < 100; ++others) {
    const Descriptor accepted(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const int pairs = FindSocket(Name(accepted.get(), getpeername), here);
    if (pairs < 0) continue;
    const int on = 1;
    setsockopt(adopted.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (fcntl(adopted.get(), F_SETFL, fcntl(adopted.get(), F_GETFL) | O_NONBLOCK) != 0 ||
        dup3(adopted.get(), pairs, O_CLOEXEC) != pairs) {
      throw std::runtime_error(absl::StrCat("the socket of a pair: ", std::strerror(errno)));
    }
    // The one that was there has left Gloo's loop with its last descriptor.
    device.registerDescriptor(pairs, EPOLLIN, &dynamic_cast<gloo::transport::tcp::Handler&>(pair));
    return;
  }
  throw std::runtime_error("strangers keep connecting at loopback");
}

}  // namespace moe::comm
