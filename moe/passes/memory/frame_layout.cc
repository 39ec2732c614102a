#include "moe/passes/memory/frame_layout.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "moe/base/integers.h"

namespace moe::passes {
namespace {}  // namespace

Layout LayOut(absl::Span<const Lifetime> buffers, int64_t alignment) {
  const int n = static_cast<int>(buffers.size());
  Layout out;
  out.offsets.assign(n, 0);
  std::vector<int64_t> size(n);
  std::map<int, int64_t> change;  // position -> change of live bytes
  for (int i = 0; i < n; ++i) {
    size[i] = RoundUp(buffers[i].bytes, alignment);
    change[buffers[i].first] += size[i];
    change[buffers[i].last + 1] -= size[i];
  }
  int64_t live = 0;
  for (const auto& [_, bytes] : change) out.lower_bound = std::max(out.lower_bound, live += bytes);

  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return std::pair(-size[a], buffers[a].first) < std::pair(-size[b], buffers[b].first);
  });
  std::vector<int> placed;  // by offset
  for (const int i : order) {
    if (size[i] == 0) continue;
    int64_t best = -1, best_gap = std::numeric_limits<int64_t>::max(), end = 0;
    for (const int j : placed) {
      if (buffers[j].last < buffers[i].first || buffers[i].last < buffers[j].first) continue;
      const int64_t gap = out.offsets[j] - end;
      if (gap >= size[i] && gap < best_gap) {
        best = end;
        best_gap = gap;
      }
      end = std::max(end, out.offsets[j] + size[j]);
    }
    out.offsets[i] = best >= 0 ? best : end;
    out.bytes = std::max(out.bytes, out.offsets[i] + size[i]);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](int a, int b) { return out.offsets[a] < out.offsets[b]; }),
                  i);
  }
  return out;
}

std::map<int, std::vector<int>> WaitsBetweenQueues(absl::Span<const int> queue_of_node,
                                                   absl::Span<const TouchedBuffer> buffers) {
  std::map<std::pair<int, int>, int>
      latest;  // (node, other queue) -> latest node there that it must wait for
  const auto need = [&](int node, int earlier) {
    const int queue = queue_of_node[earlier];
    if (earlier >= node || queue == queue_of_node[node]) return;
    int& at = latest.emplace(std::pair(node, queue), earlier).first->second;
    at = std::max(at, earlier);
  };
  for (const TouchedBuffer& b : buffers) {
    for (size_t i = 0; i < b.touches.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (b.touches[i].write || b.touches[j].write) need(b.touches[i].node, b.touches[j].node);
      }
    }
  }
  // Bytes used again: whoever writes them waits for all who touched them before.
  std::vector<int> order(buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return std::tuple(buffers[a].space, buffers[a].begin, a) <
           std::tuple(buffers[b].space, buffers[b].begin, b);
  });
  const auto after = [&](const TouchedBuffer& later, const TouchedBuffer& earlier) {
    for (const Touch& t : later.touches) {
      if (!t.write) continue;
      for (const Touch& before : earlier.touches) need(t.node, before.node);
    }
  };
  for (size_t x = 0; x < order.size(); ++x) {
    const TouchedBuffer& a = buffers[order[x]];
    for (size_t y = x + 1; y < order.size(); ++y) {
      const TouchedBuffer& b = buffers[order[y]];
      if (b.space != a.space || b.begin >= a.end) break;
      after(a, b);
      after(b, a);
    }
  }
  std::map<int, std::vector<int>> waits;
  std::map<std::pair<int, int>, int> known;  // (queue, other queue) -> latest node there already waited for
  for (const auto& [key, earlier] : latest) {
    const auto [node, other] = key;
    auto [it, fresh] = known.emplace(std::pair(queue_of_node[node], other), earlier);
    if (!fresh && it->second >= earlier) continue;
    it->second = earlier;
    waits[node].push_back(earlier);
  }
  return waits;
}

}  // namespace moe::passes
