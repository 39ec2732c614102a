// Gives Gloo a connection that was made, and whose peer was checked, outside of it. Gloo's own are accepted from
// whoever comes first; so Gloo connects to this process itself, over loopback, and the other connection takes the
// place of that one.
//
//   const std::shared_ptr<gloo::transport::tcp::Device> device = AdoptingDevice();
//   const auto context = device->createContext(rank, num_ranks);
//   AdoptPair(*device, *context, /*peer=*/3, socket);
//
// The Debian package of Gloo lacks a header that tcp::Pair needs, so its type is not used here: a pair is asked by its
// interfaces. Throws what Gloo throws, and std::runtime_error.
#pragma once

#include <gloo/transport/context.h>
#include <gloo/transport/tcp/device.h>

#include <memory>

namespace moe::comm {

// A device whose own listening ports, open for some microseconds each, are at an address of loopback that nobody
// else knows.
std::shared_ptr<gloo::transport::tcp::Device> AdoptingDevice();

// Takes the socket, also if it throws.
void AdoptPair(gloo::transport::tcp::Device& device, gloo::transport::Context& context, int peer, int socket);

}  // namespace moe::comm
