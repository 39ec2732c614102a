// VirtualCluster: the ranks of one stage, node by node, in one thread: values that lie on all of them, and what a
// node makes of these values, whatever state of compilation its function is in. Stands below a training step in
// lockstep (cluster_step.h) and the comparison of a placed function with one device (compare_functions.h).
//
//   VirtualCluster cluster(mesh, kernels::Backend::kReference, Conversions::kByMeaning);
//   Placed x = cluster.Distribute(node->operand(0).type(), numbers, /*stage=*/0);
//   ASSIGN_OR_RETURN(std::vector<Placed> y, cluster.Run(*node, {x}, /*stage=*/0));
//   std::vector<double> result = cluster.Read(node->type(), y[0], /*stage=*/0).Global(mesh);
//
// Placed nodes run with their local extents on every rank. Kernels and dtypes are those of the program, and every
// value lies in a buffer of its own, which is shared and never written again. The mesh outlives the cluster.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "moe/comm/world.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/graph.h"
#include "moe/kernels/kernel.h"
#include "moe/passes/shard/conversion.h"

namespace moe::testing {

// How a conversion (comm.*) is done.
enum class Conversions {
  // By its steps through the exchanges of the runtime, one thread per rank, in the wire formats of the program;
  // comm.convert by what the planner would make of it.
  kBySteps,
  // By what its types mean, element by element, so that steps and meaning can be told apart.
  kByMeaning,
};

// Aligned memory, at first all not-a-number.
class Bytes {
 public:
  explicit Bytes(int64_t size);
  ~Bytes();
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  void* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const int64_t size_;
  void* const data_;
};

// A value, one buffer per rank of a stage.
using Placed = std::vector<std::shared_ptr<Bytes>>;

// A value as numbers on all ranks of one stage, partial sums added up. Ragged values are padded with zeros to
// their bound.
struct Snapshot {
  Type type;  // dense, without partials
  int64_t stage = 0;
  std::vector<std::vector<double>> local;  // per rank of the stage
  Type cells;  // of a ragged value: the type of its cells, and per rank their rows
  std::vector<std::vector<double>> sizes;

  std::vector<double> Global(const Mesh& mesh) const;
  std::vector<double> GlobalSizes(const Mesh& mesh) const;  // empty for a dense value
};

// Where local parts differ from the global values `want` by more than `tolerance` of the largest of these:
// "element 17 on rank 3 is 0.25, on one device 0.5", where `elsewhere` is "on one device"; else empty.
std::string Difference(const Snapshot& got, const std::vector<double>& want, const Mesh& mesh,
                       double tolerance, absl::string_view elsewhere);

class VirtualCluster {
 public:
  VirtualCluster(const Mesh& mesh, kernels::Backend backend, Conversions conversions);

  const Mesh& mesh() const { return mesh_; }
  int64_t ranks() const { return ranks_; }  // of one stage
  int64_t RankOf(int64_t stage, int64_t r) const { return stage * ranks_ + r; }
  // Unimplemented for dtypes without arithmetic on the host; `name` is whose dtype it is.
  static absl::Status CheckDType(const Type& type, absl::string_view name);

  Placed Allocate(const Type& type) const;
  // A global dense value on every rank; of a partial sum, the first rank has all and the others zero.
  Placed Distribute(const Type& type, const std::vector<double>& global, int64_t stage) const;
  // The same of given summands, one for each rank over the axes of the partial.
  Placed DistributeSummands(const Type& type, const std::vector<std::vector<double>>& summands,
                            int64_t stage) const;
  Snapshot Read(const Type& type, const Placed& value, int64_t stage) const;

  // The results of a node, from its operands in order. Errors: NotFound for a missing kernel; those of kernels
  // and exchanges; Unimplemented for dtypes, and for a stage reduction by steps (one stage alone cannot do it).
  absl::StatusOr<std::vector<Placed>> Run(const Node& n, absl::Span<const Placed> in, int64_t stage);

 private:
  // The numbers on one rank: a ragged value padded, with the rows of its cells.
  struct Local {
    std::vector<double> data, sizes;
  };
  Local ReadLocal(const Type& type, const Bytes& bytes) const;
  absl::Status WriteLocal(const Type& type, const Local& local, const Bytes& bytes) const;
  kernels::Tensor TensorOf(const Type& type, const Bytes& bytes) const;
  void PlaceBlock(const Type& type, const std::vector<double>& global, int64_t rank,
                  const Bytes& bytes) const;
  bool HoldsNothing(const Type& type, int64_t rank) const;  // of a partial sum that one rank has whole
  absl::Status RunKernels(const Node& n, absl::Span<const Placed> in, int64_t stage,
                          std::vector<Placed>* out);

  // cluster_conversions.cc
  absl::Status Convert(const Node& n, absl::Span<const Placed> in, int64_t stage, std::vector<Placed>* out);
  absl::Status ConvertByMeaning(const Type& from, const Type& to, const Placed& in, int64_t stage,
                                Placed* out) const;
  absl::Status ConvertAsPlanned(const Node& n, const Placed& in, int64_t stage, Placed* out);
  absl::Status Exchange(const Node& n, const std::vector<ConversionPart>& parts, absl::Span<const Placed> in,
                        int64_t stage, std::vector<Placed>* out) const;
  absl::Status ExchangeOne(const Node& n, const Type& from, const Type& to,
                           const std::vector<ConversionStep>& steps, const Placed& in, int64_t stage,
                           Placed* out) const;
  absl::Status OnAllRanks(int64_t stage, const std::function<absl::Status(int64_t, comm::World*)>& run) const;

  const Mesh& mesh_;
  const int64_t ranks_;
  const kernels::Backend backend_;
  const Conversions conversions_;
  passes::ConversionPlanner planner_;
  std::shared_ptr<Bytes> workspace_;
};

}  // namespace moe::testing
