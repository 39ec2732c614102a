#include "moe/runtime/exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/device/host_device.h"
#include "moe/passes/shard/conversion.h"
#include "moe/testing/delayed_device.h"

namespace moe::runtime {
namespace {

// Small whole numbers, which every dtype here holds and adds exactly.
void Put(char* p, DType dtype, int v) {
  const auto put = [p](auto x) { std::memcpy(p, &x, sizeof(x)); };
  switch (dtype) {
    case DType::kF64:
      return put(static_cast<double>(v));
    case DType::kF32:
      return put(static_cast<float>(v));
    case DType::kBF16:
      return put(static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(v)) >> 16));
    default:
      return put(static_cast<int32_t>(v));
  }
}

int Take(const char* p, DType dtype) {
  const auto take = [p](auto x) {
    std::memcpy(&x, p, sizeof(x));
    return x;
  };
  switch (dtype) {
    case DType::kF64:
      return static_cast<int>(take(double{}));
    case DType::kF32:
      return static_cast<int>(take(float{}));
    case DType::kBF16:
      return static_cast<int>(std::bit_cast<float>(uint32_t{take(uint16_t{})} << 16));
    default:
      return take(int32_t{});
  }
}

std::vector<AxisId> PartialAxes(const Placement& p) {
  std::vector<AxisId> axes;
  for (const Partial& x : p.partial) axes.push_back(x.axis);
  return axes;
}

// One rank's tensor with its storage.
struct Stored {
  std::vector<char> data;
  std::vector<char> spill;
  std::vector<int32_t> sizes;
  kernels::Tensor tensor;
};

// A tensor as the whole mesh sees it: the element at a global index, a summand per coordinate of the partial
// axes, and, if ragged, the size of each cell.
class Global {
 public:
  Global(Type type, uint32_t seed) : type_(std::move(type)), seed_(seed) {}

  int Size(const Dims& cell) const {  // 0 .. 2 P - 1, and often empty
    const uint32_t h = Hash(cell, 17);
    return h % 3 == 0 ? 0 : static_cast<int>(h / 3 % (2 * type_.dims[type_.ragged]));
  }
  int Summand(const Dims& index, int64_t which) const {
    return static_cast<int>(Hash(index, 1000 + which) % 17) - 8;
  }
  // The element, reduced over `partial` of a source placement.
  int Element(const Dims& index, const Mesh& mesh, const Placement& source) const {
    int v = Summand(index, 0);
    for (int64_t i = 1; i < mesh.Size(PartialAxes(source)); ++i) {
      const int x = Summand(index, i);
      v = source.partial[0].kind == Reduction::kMax ? std::max(v, x) : v + x;
    }
    return v;
  }

  // Calls fn(global index, address) for each element of a rank's tensor.
  template <typename Fn>
  void ForEach(const Stored& s, const Placement& p, const Mesh& mesh, int64_t rank, const Fn& fn) const {
    Type placed = type_;
    placed.placement = p;
    const Dims local = placed.LocalDims(mesh);
    const int64_t element = ByteSize(type_.dtype);
    Dims at(type_.rank(), 0), global(type_.rank());
    char* address = static_cast<char*>(s.tensor.data);
    const std::function<void(int)> walk = [&](int d) {
      if (d == type_.rank()) {
        fn(global, address);
        address += element;
        return;
      }
      int64_t extent = local[d];
      if (d == type_.ragged) extent = Size(Dims(global.begin(), global.begin() + d));
      const int64_t offset = mesh.Index(rank, p.dims[d]) * local[d];
      for (int64_t i = 0; i < extent; ++i) {
        global[d] = offset + i;
        walk(d + 1);
      }
    };
    walk(0);
  }

  // A rank's tensor, poisoned. overload as of StorageOf.
  Stored Allocate(const Placement& p, const Mesh& mesh, double overload) const {
    Type placed = type_;
    placed.placement = p;
    const LocalStorage storage = StorageOf(placed, mesh, overload);
    Stored s;
    s.tensor.dtype = type_.dtype;
    s.tensor.dims = storage.dims;
    s.tensor.ragged = type_.ragged;
    const int64_t element = ByteSize(type_.dtype);
    s.data.assign(storage.bytes - storage.header_bytes + 64, 0x7b);
    s.tensor.data = s.data.data();
    if (type_.ragged < 0) return s;
    s.sizes.assign(storage.cells, -1);
    s.spill.assign(storage.worst_rows * storage.row_elements * element, 0x7b);
    s.tensor.sizes = s.sizes.data();
    s.tensor.cells = storage.cells;
    s.tensor.row_elements = storage.row_elements;
    s.tensor.capacity_rows = storage.rows;
    s.tensor.arena_rows = s.data.data();
    s.tensor.spill_rows = s.spill.data();
    return s;
  }

  // Fills the sizes of a rank's tensor, in order.
  std::vector<int32_t> Sizes(const Placement& p, const Mesh& mesh, int64_t rank) const {
    std::vector<int32_t> sizes;
    Dims cell(type_.ragged);
    const std::function<void(int)> walk = [&](int d) {
      if (d == type_.ragged) {
        sizes.push_back(Size(cell));
        return;
      }
      const int64_t extent = type_.dims[d] / mesh.Size(p.dims[d]);
      for (int64_t i = 0; i < extent; ++i) {
        cell[d] = mesh.Index(rank, p.dims[d]) * extent + i;
        walk(d + 1);
      }
    };
    walk(0);
    return sizes;
  }

  Stored Make(const Placement& p, const Mesh& mesh, int64_t rank, double overload) const {
    Stored s = Allocate(p, mesh, overload);
    if (type_.ragged >= 0) {
      const std::vector<int32_t> sizes = Sizes(p, mesh, rank);
      std::copy(sizes.begin(), sizes.end(), s.sizes.begin());
      EXPECT_OK(s.tensor.PlaceRows());
    }
    const int64_t which = mesh.Index(rank, PartialAxes(p));
    ForEach(s, p, mesh, rank, [&](const Dims& i, char* at) { Put(at, type_.dtype, Summand(i, which)); });
    return s;
  }

  const Type& type() const { return type_; }

 private:
  uint32_t Hash(absl::Span<const int64_t> index, uint32_t salt) const {
    uint32_t h = seed_ * 2654435761u + salt;
    for (int64_t i : index) h = (h ^ static_cast<uint32_t>(i + 1)) * 0x01000193u, h ^= h >> 15;
    h *= 0x85ebca6bu;
    return h ^ (h >> 13);
  }
  const Type type_;
  const uint32_t seed_;
};

struct Phase {
  Placement from, to;
  std::vector<ConversionStep> steps;
};

// Converts on all ranks in lockstep and compares what each holds with the global tensor. `late`: over streams
// that do their work later.
void CheckConversion(const Global& g, const Mesh& mesh, const std::vector<Phase>& phases, double overload,
                     DType dtype, bool late) {
  const int64_t n = mesh.num_ranks();
  comm::InProcessWorld world(n, {.timeout = absl::Seconds(20), .small_bytes = 2000});
  std::vector<absl::Status> statuses(n);
  std::vector<Stored> values(n);
  std::vector<std::thread> threads;
  const Placement source = phases.front().from, target = phases.back().to;
  for (int64_t r = 0; r < n; ++r) {
    threads.emplace_back([&, r] {
      Stored value = g.Make(source, mesh, r, overload);
      const std::unique_ptr<device::Device> device =
          late ? testing::NewDelayedDevice(0, r) : device::NewHostDevice();
      statuses[r] = [&]() -> absl::Status {
        ASSIGN_OR_RETURN(const std::unique_ptr<device::Stream> stream, device->NewStream("comm"));
        for (const Phase& phase : phases) {
          Type src = g.type(), dst = g.type();
          src.placement = phase.from;
          dst.placement = phase.to;
          ASSIGN_OR_RETURN(std::unique_ptr<Exchange> e,
                           Exchange::Create(src, dst, phase.steps, mesh, r, world.rank(r), "",
                                            WireFormat::kNone, stream.get()));
          Stored out = g.Allocate(phase.to, mesh, overload);
          const int64_t bytes = e->WorkspaceBytes(overload);
          std::vector<char> room(bytes + 128, 0x55);
          char* workspace = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64);
          RETURN_IF_ERROR(e->Run(value.tensor, out.tensor, bytes > 0 ? workspace : nullptr, bytes, "x"));
          RETURN_IF_ERROR(stream->Synchronize());
          if (room.back() != 0x55) return absl::InternalError("wrote behind the workspace");
          value = std::move(out);
        }
        return absl::OkStatus();
      }();
      if (!statuses[r].ok()) world.rank(r)->Abort(statuses[r]);
      values[r] = std::move(value);
    });
  }
  for (std::thread& t : threads) t.join();
  for (const absl::Status& s : statuses) ASSERT_OK(s);

  // Sum (or maximum) over partial coordinates of what replicas, which must agree, hold.
  const std::vector<AxisId> partial = PartialAxes(target);
  const bool max = !target.partial.empty() && target.partial[0].kind == Reduction::kMax;
  std::map<std::vector<int64_t>, std::map<int64_t, int>> held;
  for (int64_t r = 0; r < n; ++r) {
    if (g.type().ragged >= 0) {
      ASSERT_EQ(values[r].sizes, g.Sizes(target, mesh, r)) << "sizes on rank " << r;
    }
    g.ForEach(values[r], target, mesh, r, [&](const Dims& i, const char* at) {
      const int v = Take(at, dtype);
      const auto [it, is_new] =
          held[std::vector<int64_t>(i.begin(), i.end())].try_emplace(mesh.Index(r, partial), v);
      EXPECT_EQ(it->second, v) << "replicas differ on rank " << r;
    });
  }
  for (const auto& [index, summands] : held) {
    ASSERT_EQ(summands.size(), static_cast<size_t>(mesh.Size(partial)));
    int v = summands.begin()->second;
    for (auto it = std::next(summands.begin()); it != summands.end(); ++it) {
      v = max ? std::max(v, it->second) : v + it->second;
    }
    ASSERT_EQ(v, g.Element(Dims(index.begin(), index.end()), mesh, source))
        << "at " << absl::StrJoin(index, ",");
  }
}

Placement RandomPlacement(const Mesh& mesh, int rank, int ragged, Reduction kind, std::mt19937& rng) {
  std::vector<AxisId> axes;
  for (AxisId a = 0; a < mesh.num_axes(); ++a) axes.push_back(a);
  std::shuffle(axes.begin(), axes.end(), rng);
  Placement p = Placement::Replicated(rank);
  for (AxisId a : axes) {
    const int role = static_cast<int>(rng() % (rank + 2));
    if (role == rank) p.AddPartial({a, kind});
    if (role < rank && role != ragged) p.dims[role].push_back(a);
  }
  return p;
}

bool Divides(const Type& type, const Placement& p, const Mesh& mesh) {
  for (int d = 0; d < type.rank(); ++d) {
    if (type.dims[d] % mesh.Size(p.dims[d]) != 0) return false;
  }
  return true;
}

void CheckRandomConversions(const Mesh& mesh, Type type, double overload, int cases, uint32_t seed) {
  std::mt19937 rng(seed);
  passes::ConversionPlanner planner(mesh);
  int checked = 0;
  for (int attempt = 0; checked < cases; ++attempt) {
    ASSERT_LT(attempt, 100 * cases);
    const DType dtypes[] = {DType::kF32, DType::kF64, DType::kBF16, DType::kS32};
    type.dtype = dtypes[rng() % 4];
    const Reduction kind = rng() % 4 == 0 ? Reduction::kMax : Reduction::kSum;
    const Placement from = RandomPlacement(mesh, type.rank(), type.ragged, kind, rng);
    const Placement to = RandomPlacement(mesh, type.rank(), type.ragged, kind, rng);
    if (from == to) continue;
    const passes::Conversion& c = planner.Plan(from, to);
    if (!c.legal) continue;
    if (!std::all_of(c.phases.begin(), c.phases.end(), [&](const passes::ConversionPhase& p) {
          return Divides(type, p.from, mesh) && Divides(type, p.to, mesh);
        })) {
      continue;
    }
    std::vector<Phase> phases;
    std::string text;
    for (const passes::ConversionPhase& p : c.phases) {
      phases.push_back({p.from, p.to, p.steps});
      absl::StrAppend(&text, "[", PrintSteps(p.steps, mesh), "] ");
    }
    Type src = type, dst = type;
    src.placement = from;
    dst.placement = to;
    SCOPED_TRACE(absl::StrCat("seed ", seed, ", case ", checked, ": ", TypeToString(src, mesh), " -> ",
                              TypeToString(dst, mesh), " by ", text));
    CheckConversion(Global(type, rng()), mesh, phases, overload, type.dtype, checked % 3 == 2);
    if (::testing::Test::HasFatalFailure()) return;
    ++checked;
  }
}

const Mesh& TwoAxes() {
  static const Mesh mesh({{"a", 2}, {"b", 3}});
  return mesh;
}
const Mesh& ThreeAxes() {
  static const Mesh mesh({{"a", 2}, {"b", 2}, {"c", 2}});
  return mesh;
}

TEST(Exchange, AnyDenseConversion) {
  CheckRandomConversions(TwoAxes(), Type(DType::kF32, {12, 6}), 0, 150, 1);
  CheckRandomConversions(ThreeAxes(), Type(DType::kF32, {8, 16, 8}), 0, 150, 2);
  CheckRandomConversions(Mesh({{"a", 3}, {"b", 1}, {"c", 2}, {"d", 2}}), Type(DType::kF32, {12, 12}), 0, 60,
                         3);
}

Type Ragged(absl::Span<const int64_t> dims, int ragged, int64_t bound) {
  Type type(DType::kF32, dims);
  type.ragged = ragged;
  type.ragged_bound = bound;
  return type;
}

TEST(Exchange, AnyRaggedConversion) {
  // Experts, batch, chunk, ~slot, hidden; a (batch, chunk) has at most 2 P rows per expert here.
  CheckRandomConversions(TwoAxes(), Ragged({6, 6, 2, 3, 6}, 3, 36), 0, 120, 4);
  CheckRandomConversions(ThreeAxes(), Ragged({8, 8, 1, 3, 8}, 3, 48), 0, 120, 5);
}

TEST(Exchange, RaggedValuesBeyondTheirBoundSpill) {
  CheckRandomConversions(ThreeAxes(), Ragged({8, 8, 1, 3, 8}, 3, 48), 0.2, 80, 6);
}

TEST(Exchange, EmptyRaggedValues) {
  // P = 1 with the sizes 0 and 1: ranks without any row are common.
  CheckRandomConversions(ThreeAxes(), Ragged({8, 8, 1, 1, 8}, 3, 8), 0, 60, 7);
}

absl::StatusOr<std::unique_ptr<Exchange>> Make(const Type& src, const Type& dst, const std::string& steps,
                                               const Mesh& mesh, comm::World* world) {
  ASSIGN_OR_RETURN(const std::vector<ConversionStep> parsed, ParseSteps(steps, mesh));
  return Exchange::Create(src, dst, parsed, mesh, world->rank(), world, "");
}

Placement Dims2(AxisList first, AxisList second) {
  Placement p;
  p.dims = {std::move(first), std::move(second)};
  return p;
}

TEST(Exchange, WhatLiesInOrderIsNotPacked) {
  const Mesh& mesh = ThreeAxes();
  comm::InProcessWorld world(8);
  const auto bytes = [&](Placement from, Placement to, const std::string& steps) {
    const Type src(DType::kF32, {8, 16}, std::move(from)), dst(DType::kF32, {8, 16}, std::move(to));
    auto e = Make(src, dst, steps, mesh, world.rank(3));
    EXPECT_OK(e);
    return e.ok() ? (*e)->WorkspaceBytes() : -1;
  };
  Placement partial = Dims2({}, {});
  partial.AddPartial({0, Reduction::kSum});
  EXPECT_EQ(bytes(partial, Dims2({}, {}), "all_reduce a:sum>-"), 0);
  EXPECT_EQ(bytes(partial, Dims2({0}, {}), "reduce_scatter a:sum>0"), 0);
  EXPECT_EQ(bytes(Dims2({0, 1}, {}), Dims2({}, {}), "all_gather a:0>- b:0>-"), 0);
  EXPECT_EQ(bytes(partial, Dims2({}, {0}), "reduce_scatter a:sum>1"), 8 * 16 * 4);   // packs
  EXPECT_EQ(bytes(Dims2({}, {0}), Dims2({}, {}), "all_gather a:1>-"), 8 * 16 * 4);   // unpacks
  EXPECT_EQ(bytes(Dims2({0}, {}), Dims2({}, {0}), "all_to_all a:0>1"), 4 * 16 * 4);  // packs
  EXPECT_EQ(bytes(Dims2({}, {0}), Dims2({0}, {}), "all_to_all a:1>0"), 8 * 8 * 4);   // unpacks
}

TEST(Exchange, CountsWhatItSends) {
  const Mesh& mesh = ThreeAxes();
  Type src(DType::kF32, {8, 16}, Dims2({0, 1}, {})), dst(DType::kF32, {8, 16}, Dims2({}, {}));
  ASSERT_OK_AND_ASSIGN(const std::vector<ConversionStep> steps, ParseSteps("all_gather a:0>- b:0>-", mesh));
  ASSERT_OK_AND_ASSIGN(const ConversionLayout layout, LayoutConversion(src, dst, mesh, 0, steps));
  EXPECT_EQ(layout.ExpectedTraffic(0), 3 * 2 * 16 * 4);
}

TEST(Exchange, RefusesWhatIsNoConversion) {
  const Mesh& mesh = ThreeAxes();
  comm::InProcessWorld world(8);
  const Type whole(DType::kF32, {8, 6}), rows(DType::kF32, {8, 6}, Dims2({0}, {}));
  const auto error = [&](const Type& src, const Type& dst, const std::string& steps,
                         const std::string& part) {
    ExpectError(Make(src, dst, steps, mesh, world.rank(0)), absl::StatusCode::kInvalidArgument, part,
                "f32[8");
  };
  error(whole, rows, "slice b:->0", "neither loses nor gains");
  error(whole, rows, "all_gather a:0>-", "starts where the axis is not");
  error(whole, rows, "", "wrong place");
  error(whole, rows, "slice a:0>1", "not a step of this kind");
  error(whole, Type(DType::kF64, {8, 6}, Dims2({0}, {})), "slice a:->0", "only the placement");
  error(whole, Type(DType::kF32, {8, 6}, Dims2({}, {0, 1})), "slice a:->1 b:->1", "not divisible");
  error(rows, Type(DType::kF32, {8, 6}, Dims2({1}, {})), "all_gather a:0>-; slice b:->0",
        "both loses and gains");
  const Type ab(DType::kF32, {8, 6}, Dims2({0, 1}, {})), ba(DType::kF32, {8, 6}, Dims2({1, 0}, {}));
  error(ab, ba, "permute a:0>0", "has to move b");
  error(ab, rows, "permute a:0>0 b:0>0", "keeps the set");
}

TEST(Exchange, RefusesTensorsOfAnotherShape) {
  const Mesh& mesh = ThreeAxes();
  comm::InProcessWorld world(8);
  const Type src(DType::kF32, {8, 6}), dst(DType::kF32, {8, 6}, Dims2({0}, {}));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Exchange> e, Make(src, dst, "slice a:->0", mesh, world.rank(0)));
  kernels::Tensor in, out;
  in.dims = {8, 6};
  out.dims = {8, 6};
  ExpectError(e->Run(in, out, nullptr, 0, "x"), absl::StatusCode::kFailedPrecondition, "[8,6]", "[4,6]");
}

}  // namespace
}  // namespace moe::runtime
