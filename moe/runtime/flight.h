// Flight records: the last actions of a rank and the one that it is in, kept while it runs and read when
// something goes wrong. The records of all ranks together show which rank holds up the others.
//
//   std::vector<FlightRecord> records = executor->Flight();
//   Diagnosis d = Diagnose(records);
//   // d.text: "rank 5 (stage 1, dp 0, tp 1) waits 30 s in all_to_all of layers.2.moe %d
//   //          rank 4 is in the same call; rank 7 never entered it: its last action was B1.3, 31 s ago"
//
// Plain data. ActionLog is written by one thread and read by any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/base/json_reader.h"
#include "moe/comm/recorded_world.h"
#include "moe/ir/types.h"

namespace moe::runtime {

// The last actions of a rank, without a lock: a reader may see one that has just been overwritten, but whole.
class ActionLog {
 public:
  static constexpr int kKept = 16;
  struct Entry {
    const std::string* name = nullptr;
    int64_t begin_ns = 0;
  };
  void Action(const std::string* name, int64_t now_ns);
  void Node(const std::string* name) { node_.store(name, std::memory_order_relaxed); }
  const std::string* node() const { return node_.load(std::memory_order_relaxed); }
  std::vector<Entry> Last() const;  // the latest first

 private:
  std::atomic<uint64_t> count_{0};
  std::array<std::atomic<const std::string*>, kKept> names_{};
  std::array<std::atomic<int64_t>, kKept> begin_{};
  std::atomic<const std::string*> node_{nullptr};
};

struct FlightRecord {
  struct Action {
    std::string name;  // "B1.3": what of which chunk, and the microbatch
    double ago = 0;    // seconds since it began
  };
  int64_t rank = 0;
  std::string place;  // "stage 1, dp 0, tp 1"
  std::string host;
  int64_t pid = 0;
  int64_t step = 0;                       // 0: none yet
  std::string program;                    // "train_step"
  std::string node;                       // that it began last
  std::vector<Action> actions;            // the latest first
  std::vector<comm::RecordedCall> calls;  // the last of each communicator
  std::string error;                      // that its part of the step ended with
  // Not by the rank's process after the failure, but what it had said `silent` seconds before.
  bool stale = false;
  double silent = 0;
  bool unknown = false;  // nothing was ever heard of it

  bool Waits() const;
};

// Where a rank stands in the mesh: "stage 1, dp 0, tp 1".
std::string CoordinatesText(const Mesh& mesh, int64_t rank);

// What a record may hold at most.
inline constexpr JsonLimits kFlightLimits = {
    .bytes = 16 << 20, .values = 1 << 20, .string_bytes = 1 << 16, .depth = 4};

std::string FlightJson(const FlightRecord& record);
// Another process wrote it: bounded, and each value checked. Error: InvalidArgument with the byte.
absl::StatusOr<FlightRecord> ParseFlight(absl::string_view json);

struct Diagnosis {
  std::vector<int64_t> culprits;  // hold up the others; empty if nobody waits
  std::string text;               // two lines; empty without culprits
};
Diagnosis Diagnose(const std::vector<FlightRecord>& records);

}  // namespace moe::runtime
