// Target: what a back end can do, as data, so that passes never link a kernel. Stored in the Plan.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

namespace moe::cost {

struct Target {
  std::string name = "cpu";
  std::string device = "cpu";          // whose kernels run: "cpu" or "cuda"
  double flops = 1e11;                 // of one device
  double f8_flops = 1e11;              // of products of e4m3; 0: there are none
  double bytes_per_second = 1e10;      // of its memory
  double link_bytes_per_second = 5e9;  // of one device, to others in its node
  double link_latency_seconds = 5e-6;  // of one message
  double node_bytes_per_second =
      1.25e9;  // of one device, to other nodes; the mesh says which ranks share a node
  double node_latency_seconds = 2e-5;
  int64_t bucket_bytes = 0;  // Strategy::bucket where it does not say
  // Whether communication runs beside compute on engines of its own. In-process devices move data with the
  // cores that compute.
  bool overlaps = false;
  std::set<std::string> fusions;  // ops that `fuse` may create; empty with all_fusions
  bool all_fusions = true;
  // Libraries to whose kernels `use-libraries` gives nodes: "cudnn".
  std::set<std::string> libraries;
  // Whether `fuse` may create nodes of this op.
  bool CanFuse(const std::string& op) const { return all_fusions || fusions.count(op) > 0; }
};

}  // namespace moe::cost
