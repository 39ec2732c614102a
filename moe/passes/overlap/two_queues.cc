#include "moe/passes/overlap/two_queues.h"

#include <algorithm>

#include "absl/strings/string_view.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/scope.h"

namespace moe::passes {
namespace {

constexpr int kMostLookedAt = 256;  // nodes that may come first, of those behind the one that waits

class Scheduler {
 public:
  Scheduler(const NodeOrder& order, absl::Span<const double> seconds) : order_(order), seconds_(seconds) {
    const int n = order.size();
    placed_.assign(n, false);
    end_.assign(n, 0);
    layer_.assign(n, 0);
    absl::string_view layer;
    int number = 0;
    for (int i = 0; i < n; ++i) {
      if (IsComm(i)) {
        (order.before(i).empty() ? fetches_ : exchanges_).push_back(i);
      } else {
        compute_.push_back(i);
        const absl::string_view here = ParseScope(order.node(i)->scope).layer_text;
        if (!here.empty() && here != layer) layer = here, ++number;
      }
      layer_[i] = number;
    }
  }

  TwoQueueOrder Run() {
    for (size_t next = 0;;) {
      while (next < compute_.size() && placed_[compute_[next]]) ++next;
      StartExchanges();
      if (next == compute_.size()) break;
      const int i = compute_[next];
      StartFetches(layer_[i]);
      StartWhatNeeds(i);
      if (Ready(i) > now_) {
        const int other = FirstReady(next);
        if (other >= 0) {
          Compute(other);
          continue;
        }
      }
      Compute(i);
    }
    for (const int i : fetches_) Start(i);
    StartExchanges();
    // What is still in flight is waited for at the end, but for what crosses to a later function.
    result_.stalled += std::max(0.0, waited_for_ - now_);
    return std::move(result_);
  }

 private:
  bool IsComm(int i) const { return order_.node(i)->queue == Queue::kComm; }
  bool AllPlaced(const std::vector<int>& nodes) const {
    return std::all_of(nodes.begin(), nodes.end(), [&](int j) { return placed_[j]; });
  }
  double Ready(int i) const {
    double at = 0;
    for (const int j : order_.before(i)) at = std::max(at, end_[j]);
    return at;
  }

  void Place(int i, double end) {
    placed_[i] = true;
    end_[i] = end;
    result_.nodes.push_back(order_.node(i));
  }

  void Compute(int i) {
    const double start = std::max(now_, Ready(i));
    result_.stalled += start - now_;
    result_.compute += seconds_[i];
    now_ = start + seconds_[i];
    Place(i, now_);
  }

  void Start(int i) {
    if (placed_[i]) return;
    result_.communication += seconds_[i];
    queue_free_ = std::max({queue_free_, now_, Ready(i)}) + seconds_[i];
    if (!CrossesFunctions(*order_.node(i))) waited_for_ = queue_free_;
    Place(i, queue_free_);
  }

  // All whose operands are there, in the order of the list; one may make another ready.
  void StartExchanges() {
    size_t kept = 0;
    for (size_t k = 0; k < exchanges_.size(); ++k) {
      const int i = exchanges_[k];
      if (placed_[i]) continue;
      if (AllPlaced(order_.before(i))) {
        Start(i);
      } else {
        exchanges_[kept++] = i;
      }
    }
    exchanges_.resize(kept);
  }

  // What nothing in the function gives: as soon as the queue is free, for this layer and the next.
  void StartFetches(int layer) {
    while (next_fetch_ < fetches_.size() && queue_free_ <= now_) {
      const int i = fetches_[next_fetch_];
      if (!placed_[i]) {
        int first = order_.size();
        for (const int user : order_.after(i)) first = std::min(first, user);
        if (first < order_.size() && layer_[first] > layer + 1) return;
        Start(i);
      }
      ++next_fetch_;
    }
  }

  void StartWhatNeeds(int i) {
    for (const int j : order_.before(i)) {
      if (placed_[j]) continue;
      StartWhatNeeds(j);
      Start(j);
    }
  }

  // The first node behind the one that waits that need not wait.
  int FirstReady(size_t next) const {
    const Node* waiting = order_.node(compute_[next]);
    const size_t end = std::min(compute_.size(), next + kMostLookedAt);
    for (size_t k = next + 1; k < end; ++k) {
      const int j = compute_[k];
      if (layer_[j] > layer_[compute_[next]] + 1 || order_.node(j)->phase != waiting->phase) return -1;
      if (!placed_[j] && AllPlaced(order_.before(j)) && Ready(j) <= now_) return j;
    }
    return -1;
  }

  const NodeOrder& order_;
  const absl::Span<const double> seconds_;
  std::vector<int> compute_, exchanges_, fetches_;  // by place in the list; fetches: exchanges of arguments
  size_t next_fetch_ = 0;
  std::vector<bool> placed_;
  std::vector<double> end_;
  std::vector<int> layer_;  // counted along the list
  double now_ = 0, queue_free_ = 0, waited_for_ = 0;
  TwoQueueOrder result_;
};

}  // namespace

TwoQueueOrder OrderForTwoQueues(const NodeOrder& order, absl::Span<const double> seconds) {
  return Scheduler(order, seconds).Run();
}

}  // namespace moe::passes
