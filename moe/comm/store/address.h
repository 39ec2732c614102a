// Where a process listens: a numeric address and a port.
#pragma once

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace moe::comm {

struct SocketAddress {
  std::string host = "127.0.0.1";  // numeric, of IPv4 or IPv6
  int port = 0;                    // to listen at: 0 for any that is free
};

// "10.0.0.7:29500", "[fd00::7]:29500"
inline std::string AddressText(const SocketAddress& address) {
  const bool v6 = absl::StrContains(address.host, ':');
  return absl::StrCat(v6 ? "[" : "", address.host, v6 ? "]:" : ":", address.port);
}

}  // namespace moe::comm
