#include "moe/runtime/init.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "glog/logging.h"
#include "moe/ir/state.h"
#include "moe/kernels/kernel.h"

namespace moe::runtime {
namespace {

// One round of SplitMix64 (Steele, Lea and Flood 2014, figure 17).
uint64_t Mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

uint64_t CounterBits(uint64_t seed, uint64_t stream, uint64_t counter) {
  return Mix(Mix(Mix(seed) ^ stream) ^ counter);
}

uint64_t StreamOf(absl::string_view name) {
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

Initializer::Initializer(const Module& module, const State& given, uint64_t seed)
    : kind_(kZeros), seed_(seed) {
  const bool copy = AttrString(given.attributes, "kind") == "working_copy";
  const State* const of = copy ? module.FindState(AttrString(given.attributes, "of")) : nullptr;
  const State& state = of != nullptr ? *of : given;
  stream_ = StreamOf(state.name);
  const std::string kind = AttrString(state.attributes, "kind");
  if (kind == "expert_map") {
    kind_ = kTable;
    table_ = std::get<std::vector<int64_t>>(state.attributes.at("slots"));
    return;
  }
  if (kind != "parameter") return;
  const std::string init = AttrString(state.attributes, "init", "zeros");
  CHECK(init == "normal" || init == "ones" || init == "zeros") << "init of " << state.name << ": " << init;
  if (init == "normal") {
    kind_ = kNormal;
    std_ = AttrFloat(state.attributes, "std", 0.02);
  } else if (init == "ones") {
    kind_ = kOnes;
  }
  rows_ = StoredRowsOf(module, state);
  if (rows_) row_elements_ = state.type.num_elements() / state.type.dims[0];
}

double Initializer::operator()(int64_t index) const {
  if (kind_ == kTable) return static_cast<double>(table_[index]);
  if (rows_) index = rows_->LogicalIndex(index, row_elements_);
  if (kind_ == kZeros || index < 0) return 0;
  if (kind_ == kOnes) return 1;
  // 53 bits each; the first in (0, 1], so that its logarithm is finite.
  const double u = static_cast<double>((CounterBits(seed_, stream_, 2 * index) >> 11) + 1) * 0x1p-53;
  const double v = static_cast<double>(CounterBits(seed_, stream_, 2 * index + 1) >> 11) * 0x1p-53;
  return std_ * std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

void InitializeBlock(const Initializer& init, const Block& block, DType dtype, char* data) {
  struct Run {
    int64_t from, to, count;
  };
  std::vector<Run> runs;  // by `to`
  if (!init.AllZero()) {
    ForEachRun(block, [&](int64_t from, int64_t to, int64_t n) { runs.push_back({from, to, n}); });
  }
  const auto part = [&](int64_t begin, int64_t end) {
    if (init.AllZero()) {
      std::memset(data + begin * ByteSize(dtype), 0, (end - begin) * ByteSize(dtype));
      return;
    }
    auto run = std::upper_bound(runs.begin(), runs.end(), begin,
                                [](int64_t at, const Run& r) { return at < r.to + r.count; });
    for (; run != runs.end() && run->to < end; ++run) {
      const int64_t last = std::min(run->to + run->count, end);
      for (int64_t i = std::max(run->to, begin); i < last; ++i)
        kernels::StoreElement(dtype, data, i, init(run->from + i - run->to));
    }
  };
  const int64_t n = block.elements(), worth_a_thread = init.AllZero() ? 1 << 20 : 1 << 14;
  const int64_t threads =
      std::clamp<int64_t>(n / worth_a_thread, 1, std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i)
    others.emplace_back([&part, n, i, threads] { part(n * i / threads, n * (i + 1) / threads); });
  part(0, n / threads);
  for (std::thread& t : others) t.join();
}

}  // namespace moe::runtime
