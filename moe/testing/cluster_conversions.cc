// Conversions of VirtualCluster: by their steps, and by what their types mean.

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/runtime/bucket_exchange.h"
#include "moe/runtime/exchange.h"
#include "moe/runtime/local.h"
#include "moe/testing/virtual_cluster.h"

namespace moe::testing {
namespace {

int64_t Product(const Dims& dims) {
  int64_t n = 1;
  for (const int64_t d : dims) n *= d;
  return n;
}

void ForEachIndex(const Dims& dims, const std::function<void(const Dims&, int64_t)>& fn) {
  Dims index(dims.size(), 0);
  for (int64_t flat = 0, n = Product(dims); flat < n; ++flat) {
    fn(index, flat);
    for (int d = static_cast<int>(dims.size()) - 1; d >= 0 && ++index[d] == dims[d]; --d) index[d] = 0;
  }
}

// Finds, for an element of a value placed one way, who holds it placed another way.
class Locator {
 public:
  Locator(const Placement& from, const Placement& to, const Mesh& mesh) : from_(from), to_(to), mesh_(mesh) {
    stride_.assign(mesh.num_axes(), 1);
    for (int a = mesh.num_axes() - 2; a >= 0; --a) stride_[a] = stride_[a + 1] * mesh.size(a + 1);
  }
  // `index` in the local array `to_dims` of `rank`; gives the owner, and the flat index in its array
  // `from_dims`.
  int64_t Owner(int64_t rank, const Dims& index, const Dims& to_dims, const Dims& from_dims,
                int64_t* flat) const {
    int64_t owner = rank;
    *flat = 0;
    for (size_t d = 0; d < index.size(); ++d) {
      const int64_t global = mesh_.Index(rank, to_.dims[d]) * to_dims[d] + index[d];
      int64_t block = global / from_dims[d];
      for (int k = static_cast<int>(from_.dims[d].size()) - 1; k >= 0; --k) {
        const AxisId a = from_.dims[d][k];
        owner += (block % mesh_.size(a) - mesh_.Coordinate(rank, a)) * stride_[a];
        block /= mesh_.size(a);
      }
      *flat = *flat * from_dims[d] + global % from_dims[d];
    }
    return owner;
  }

 private:
  const Placement &from_, &to_;
  const Mesh& mesh_;
  std::vector<int64_t> stride_;
};

// Of a ragged value padded to its bound.
Dims PaddedDims(const Type& type, const Mesh& mesh) {
  Dims dims = type.LocalDims(mesh);
  if (type.ragged >= 0) dims[type.ragged] = type.ragged_bound;
  return dims;
}

}  // namespace

absl::Status VirtualCluster::Convert(const Node& n, absl::Span<const Placed> in, int64_t stage,
                                     std::vector<Placed>* out) {
  if (conversions_ == Conversions::kByMeaning) {
    if (n.Is("comm.rotate")) {
      for (int64_t r = 0; r < ranks_; ++r) {
        const int64_t rank = RankOf(stage, r);
        const std::vector<int64_t> ring = mesh_.Group(rank, n.axes());
        const int64_t from = ring[(mesh_.Index(rank, n.axes()) + ring.size() - 1) % ring.size()];
        (*out)[0][r] = in[0][from - RankOf(stage, 0)];
      }
      return absl::OkStatus();
    }
    for (int i = 0; i < n.num_results(); ++i) {
      RETURN_IF_ERROR(ConvertByMeaning(n.operand(i).type(), n.type(i), in[i], stage, &(*out)[i]));
    }
    return absl::OkStatus();
  }
  if (n.Is("comm.stage_reduce")) return absl::UnimplementedError("a stage reduction outside of the update");
  if (n.Is("comm.done")) {
    (*out)[0] = in[0];  // lies where the future does
    return absl::OkStatus();
  }
  if (!HasConversionParts(n)) return ConvertAsPlanned(n, in[0], stage, &(*out)[0]);
  ASSIGN_OR_RETURN(const std::vector<ConversionPart> parts, ConversionParts(n, mesh_));
  return Exchange(n, parts, in, stage, out);
}

absl::Status VirtualCluster::ConvertByMeaning(const Type& from, const Type& to, const Placed& in,
                                              int64_t stage, Placed* out) const {
  AxisList reduced;
  bool max = false;
  for (const Partial& p : from.placement.partial) {
    if (to.placement.Role(p.axis) == from.placement.Role(p.axis)) continue;
    reduced.push_back(p.axis);
    max = p.kind == Reduction::kMax;
  }
  const Locator locator(from.placement, to.placement, mesh_);
  const Dims from_dims = PaddedDims(from, mesh_), to_dims = PaddedDims(to, mesh_);
  std::vector<Local> held;
  for (const std::shared_ptr<Bytes>& bytes : in) held.push_back(ReadLocal(from, *bytes));
  for (int64_t r = 0; r < ranks_; ++r) {
    const int64_t rank = RankOf(stage, r), first_rank = RankOf(stage, 0);
    Local y;
    y.data.assign(Product(to_dims), 0);
    bool zeroed = false;
    for (const Partial& p : to.placement.partial) {
      zeroed |= from.placement.Role(p.axis) == Placement::kNone && mesh_.Coordinate(rank, p.axis) != 0;
    }
    int64_t there;
    if (!zeroed) {
      ForEachIndex(to_dims, [&](const Dims& index, int64_t flat) {
        const int64_t owner = locator.Owner(rank, index, to_dims, from_dims, &there);
        bool first = true;
        for (const int64_t q : mesh_.Group(owner, reduced)) {
          const double v = held[q - first_rank].data[there];
          y.data[flat] = first ? v : max ? std::max(y.data[flat], v) : y.data[flat] + v;
          first = false;
        }
      });
    }
    if (to.ragged >= 0) {
      const Dims from_cells(from_dims.begin(), from_dims.begin() + from.ragged);
      const Dims to_cells(to_dims.begin(), to_dims.begin() + to.ragged);
      y.sizes.assign(Product(to_cells), 0);
      ForEachIndex(to_cells, [&](const Dims& index, int64_t flat) {
        const int64_t owner = locator.Owner(rank, index, to_cells, from_cells, &there);
        y.sizes[flat] = held[owner - first_rank].sizes[there];
      });
    }
    RETURN_IF_ERROR(WriteLocal(to, y, *(*out)[r]));
  }
  return absl::OkStatus();
}

absl::Status VirtualCluster::ConvertAsPlanned(const Node& n, const Placed& in, int64_t stage, Placed* out) {
  Type from = n.operand(0).type();
  const passes::Conversion& conversion = planner_.Plan(from.placement, n.type().placement);
  if (!conversion.legal) {
    return absl::InternalError(absl::StrCat("no conversion from ", TypeToString(from, mesh_), " to ",
                                            TypeToString(n.type(), mesh_)));
  }
  Placed value = in;
  for (const passes::ConversionPhase& p : conversion.phases) {
    Type to = from;
    to.placement = p.to;
    Placed next = Allocate(to);
    RETURN_IF_ERROR(ExchangeOne(n, from, to, p.steps, value, stage, &next));
    from = std::move(to);
    value = std::move(next);
  }
  *out = std::move(value);
  return absl::OkStatus();
}

absl::Status VirtualCluster::ExchangeOne(const Node& n, const Type& from, const Type& to,
                                         const std::vector<ConversionStep>& steps, const Placed& in,
                                         int64_t stage, Placed* out) const {
  return OnAllRanks(stage, [&](int64_t r, comm::World* world) -> absl::Status {
    ASSIGN_OR_RETURN(std::unique_ptr<runtime::Exchange> e,
                     runtime::Exchange::Create(from, to, steps, mesh_, RankOf(stage, r), world, "comm",
                                               runtime::WireOf(n)));
    kernels::Tensor x = TensorOf(from, *in[r]), y = TensorOf(to, *(*out)[r]);
    if (x.is_ragged()) RETURN_IF_ERROR(x.PlaceRows());
    const Bytes workspace(e->WorkspaceBytes());
    return e->Run(x, y, workspace.size() > 0 ? workspace.data() : nullptr, workspace.size(), n.result_name());
  });
}

// A bucket, or the start of an exchange: one part as by itself, several together.
absl::Status VirtualCluster::Exchange(const Node& n, const std::vector<ConversionPart>& parts,
                                      absl::Span<const Placed> in, int64_t stage,
                                      std::vector<Placed>* out) const {
  if (parts.size() == 1) {
    return ExchangeOne(n, parts[0].from.type(), parts[0].to, parts[0].steps, in[0], stage, &(*out)[0]);
  }
  return OnAllRanks(stage, [&](int64_t r, comm::World* world) -> absl::Status {
    std::vector<kernels::Tensor> x, y;
    for (size_t i = 0; i < parts.size(); ++i) {
      x.push_back(TensorOf(parts[i].from.type(), *in[i][r]));
      y.push_back(TensorOf(parts[i].to, *(*out)[i][r]));
      if (x.back().is_ragged()) RETURN_IF_ERROR(x.back().PlaceRows());
    }
    ASSIGN_OR_RETURN(
        std::unique_ptr<runtime::BucketExchange> e,
        runtime::BucketExchange::Create(parts, mesh_, RankOf(stage, r), world, "comm", runtime::WireOf(n)));
    ASSIGN_OR_RETURN(const int64_t bytes,
                     runtime::BucketExchange::WorkspaceBytes(parts, mesh_, runtime::WireOf(n)));
    const Bytes workspace(bytes);
    return e->Run(x, y, workspace.data(), workspace.size(), n.result_name());
  });
}

// Calls run(r, world of that rank) for the ranks of a stage, each on a thread of its own.
absl::Status VirtualCluster::OnAllRanks(int64_t stage,
                                        const std::function<absl::Status(int64_t, comm::World*)>& run) const {
  comm::InProcessWorld world(mesh_.num_ranks());
  std::vector<absl::Status> statuses(ranks_);
  const auto run_one = [&](int64_t r) {
    statuses[r] = run(r, world.rank(RankOf(stage, r)));
    if (!statuses[r].ok()) world.Abort(statuses[r]);
  };
  std::vector<std::thread> threads;
  for (int64_t r = 1; r < ranks_; ++r) threads.emplace_back([&, r] { run_one(r); });
  run_one(0);
  for (std::thread& t : threads) t.join();
  for (const absl::Status& s : statuses) RETURN_IF_ERROR(s);
  return absl::OkStatus();
}

}  // namespace moe::testing
