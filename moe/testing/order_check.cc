#include "moe/testing/order_check.h"

#include <glog/logging.h>

#include <algorithm>
#include <atomic>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::testing {
namespace {

constexpr size_t kKept = 20;  // races

uintptr_t Address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// From the first to the last byte of such rows.
int64_t RowsBytes(const StridedCopy& copy, bool from, int64_t rows, int64_t row, int64_t element) {
  int64_t last = copy.run;
  for (const StridedCopy::Loop& l : copy.loops) last += (l.count - 1) * (from ? l.from_stride : l.to_stride);
  return rows == 0 ? 0 : ((rows - 1) * row + last) * element;
}

int64_t NumberOfThread() {
  static std::atomic<int64_t> threads{0};
  thread_local const int64_t number = threads++;
  return number;
}

}  // namespace

// Goes through the record once.
class OrderCheck::Replay {
 public:
  explicit Replay(const OrderCheck& check, const Site* without)
      : check_(check),
        without_(without),
        most_(without == nullptr ? kKept : 1),
        zero_(check.actors_.size(), 0),
        clocks_(check.actors_.size(), zero_),
        given_(check.actors_.size(), zero_),
        last_(check.actors_.size()),
        pending_(check.actors_.size()),
        recorded_(check.events_) {}

  void Run() {
    for (const Entry& e : check_.entries_) {
      Step(e);
      if (races_.size() >= most_) return;
    }
  }
  std::vector<std::string> races() && { return std::move(races_); }
  const std::map<std::pair<int, int>, Site>& sites() const { return sites_; }

 private:
  using Clock = std::vector<int32_t>;  // per actor, how much of its work is done
  struct Record {
    int stream = -1;
    const Work* last = nullptr;  // of the stream
    Clock clock;
  };
  struct Access {
    int actor = -1;
    int32_t tick = 0;
    const Work* work = nullptr;
  };
  struct Cell {  // of a part of memory
    uintptr_t end = 0;
    Access write;
    absl::InlinedVector<Access, 4> reads;  // since, the last of each actor
  };
  using Cells = std::map<uintptr_t, Cell>;  // by begin

  // True if that was new.
  static bool Join(Clock& into, const Clock& from) {
    bool adds = false;
    for (size_t i = 0; i < into.size(); ++i) {
      adds |= into[i] < from[i];
      into[i] = std::max(into[i], from[i]);
    }
    return adds;
  }

  void Step(const Entry& e) {
    Clock& thread = clocks_[e.thread];
    if (e.kind == Entry::kHostUse || e.kind == Entry::kGiveBack) {
      Touch(e.thread, thread, *e.work);
      if (e.kind == Entry::kGiveBack) {
        const uintptr_t begin = Address(e.work->uses[0].at);
        cells_.erase(cells_.lower_bound(begin), cells_.lower_bound(begin + e.work->uses[0].bytes));
      }
      return;
    }
    Clock& stream = clocks_[e.stream];
    Join(thread, given_[e.stream]);
    given_[e.stream] = thread;
    Join(stream, thread);
    switch (e.kind) {
      case Entry::kWork:
        Touch(e.stream, stream, *e.work);
        last_[e.stream] = e.work.get();
        for (Site* site : pending_[e.stream]) site->next = e.work->what;
        pending_[e.stream].clear();
        break;
      case Entry::kRecord:
        recorded_[e.event] = {e.stream, last_[e.stream], stream};
        break;
      case Entry::kWait: {
        const Record& r = recorded_[e.event];
        if (r.stream >= 0 && IsHeeded(e, r.stream)) {
          Site& site = sites_[{e.stream, e.event}];
          site.adds |= Join(stream, r.clock);
          if (site.waits == 1) {
            site.last = r.last == nullptr ? "" : r.last->what;
            pending_[e.stream].push_back(&site);
          }
        }
        break;
      }
      default:
        if (IsHeeded(e, e.stream)) {
          Site& site = sites_[{e.stream, -1}];
          site.adds |= Join(thread, stream);
          if (site.waits == 1) site.last = last_[e.stream] == nullptr ? "" : last_[e.stream]->what;
          given_[e.stream] = thread;
        }
    }
  }

  // Counts a wait for what was given to the stream `after`.
  bool IsHeeded(const Entry& e, int after) {
    if (without_ != nullptr && without_->stream == e.stream && without_->event == e.event) return false;
    Site& site = sites_[{e.stream, e.event}];
    if (site.waits++ == 0) {
      const Actor &mine = check_.actors_[e.stream], &other = check_.actors_[after];
      const bool host = e.event < 0;
      site.stream = e.stream, site.event = e.event;
      site.what = absl::StrCat(host ? "host" : mine.name, " after ", other.name);
      site.kind = absl::StrCat(host ? "host" : mine.kind, " after ", other.kind,
                               mine.device == other.device ? "" : " of another device");
    }
    return true;
  }

  // So that a cell begins there, if one reaches across.
  void Split(uintptr_t at) {
    const Cells::iterator next = cells_.upper_bound(at);
    if (next == cells_.begin()) return;
    const Cells::iterator c = std::prev(next);
    if (c->first == at || c->second.end <= at) return;
    cells_.emplace_hint(next, at, c->second);
    c->second.end = at;
  }

  void Touch(int actor, Clock& clock, const Work& work) {
    const bool by_thread = check_.actors_[actor].is_thread;
    const Access access = {actor, ++clock[actor], &work};
    const auto follows = [&](const Access& a) {
      return a.actor < 0 || clock[a.actor] >= a.tick || (by_thread && check_.actors_[a.actor].is_thread);
    };
    for (const device::MemoryUse& use : work.uses) {
      const uintptr_t begin = Address(use.at), end = begin + use.bytes;
      Split(begin);
      Split(end);
      Cells::iterator c = cells_.lower_bound(begin);
      const bool in_one = c != cells_.end() && c->first == begin && c->second.end == end;
      for (uintptr_t at = begin; at < end; at = c++->second.end) {
        if (c == cells_.end() || c->first > at) {  // nothing is known of it yet
          const uintptr_t until = c == cells_.end() ? end : std::min(end, c->first);
          c = cells_.emplace_hint(c, at, Cell{until, {}, {}});
        }
        Cell& cell = c->second;
        if (!follows(cell.write)) Report(cell.write, true, access, use);
        if (use.writes) {
          for (const Access& read : cell.reads) {
            if (!follows(read)) Report(read, false, access, use);
          }
          cell.write = access;
          cell.reads.clear();
        } else {
          auto mine = std::find_if(cell.reads.begin(), cell.reads.end(),
                                   [&](const Access& a) { return a.actor == actor; });
          if (mine == cell.reads.end()) {
            cell.reads.push_back(access);
          } else {
            *mine = access;
          }
        }
      }
      if (!use.writes || in_one) continue;
      const Cells::iterator first = cells_.find(begin);  // written as one, one from now on
      first->second.end = end;
      cells_.erase(std::next(first), cells_.lower_bound(end));
    }
  }

  void Report(const Access& before, bool wrote, const Access& now, const device::MemoryUse& use) {
    if (races_.size() >= most_) return;
    const auto name = [&](const Access& a) {
      return absl::StrCat(check_.actors_[a.actor].name, " (", a.work->what, ")");
    };
    std::string race = absl::StrCat(name(now), use.writes ? " writes" : " reads", " what ", name(before),
                                    wrote ? " writes" : " reads", ", and nothing orders them");
    if (std::find(races_.begin(), races_.end(), race) == races_.end()) races_.push_back(std::move(race));
  }

  const OrderCheck& check_;
  const Site* const without_;
  const size_t most_;
  const Clock zero_;
  // Of a stream: what is done when its next work begins; of a thread: what it knows to be done.
  std::vector<Clock> clocks_;
  std::vector<Clock> given_;                 // by stream: what the thread knew that used it last
  std::vector<const Work*> last_;            // by stream
  std::vector<std::vector<Site*>> pending_;  // by stream: sites whose `next` is to come
  std::vector<Record> recorded_;             // by event
  std::map<std::pair<int, int>, Site> sites_;
  Cells cells_;
  std::vector<std::string> races_;
};

class WatchedMemory : public device::DeviceMemory {
 public:
  WatchedMemory(OrderCheck* check, std::unique_ptr<device::DeviceMemory> inner)
      : check_(check), inner_(std::move(inner)) {
    check_->Gave(*inner_);
  }
  ~WatchedMemory() override { check_->TakesBack(*inner_); }
  char* data() const override { return inner_->data(); }
  int64_t bytes() const override { return inner_->bytes(); }
  void Forget(int64_t begin, int64_t bytes) override {
    check_->Add(OrderCheck::Entry::kHostUse, -1, -1,
                check_->Known("forgets it", {{inner_->data() + begin, bytes, true}}));
    inner_->Forget(begin, bytes);
  }

 private:
  OrderCheck* const check_;
  const std::unique_ptr<device::DeviceMemory> inner_;
};

struct WatchedEvent : device::Event {
  std::unique_ptr<device::Event> inner;
  int number = 0;
};

class WatchedDevice : public device::Device {
 public:
  WatchedDevice(OrderCheck* check, std::unique_ptr<device::Device> inner, int ordinal)
      : check_(check), inner_(std::move(inner)), ordinal_(ordinal) {}
  device::DeviceKind kind() const override { return inner_->kind(); }
  int ordinal() const override { return ordinal_; }
  std::string description() const override { return inner_->description(); }
  bool host_accessible() const override { return false; }
  bool has_graphs() const override { return inner_->has_graphs(); }
  bool checks_order() const override { return true; }
  absl::Status Use() override { return inner_->Use(); }
  absl::StatusOr<std::unique_ptr<device::DeviceMemory>> Allocate(int64_t bytes, int64_t filled) override {
    ASSIGN_OR_RETURN(std::unique_ptr<device::DeviceMemory> memory, inner_->Allocate(bytes, filled));
    return std::make_unique<WatchedMemory>(check_, std::move(memory));
  }
  absl::StatusOr<std::unique_ptr<device::DeviceMemory>> AllocateStaging(int64_t bytes) override {
    ASSIGN_OR_RETURN(std::unique_ptr<device::DeviceMemory> memory, inner_->AllocateStaging(bytes));
    return std::make_unique<WatchedMemory>(check_, std::move(memory));
  }
  absl::StatusOr<std::unique_ptr<device::Stream>> NewStream(absl::string_view name) override;
  absl::StatusOr<std::unique_ptr<device::Event>> NewEvent() override { return Watched(inner_->NewEvent()); }
  absl::StatusOr<std::unique_ptr<device::Event>> NewTimedEvent() override {
    return Watched(inner_->NewTimedEvent());
  }
  absl::StatusOr<double> SecondsBetween(const device::Event& from, const device::Event& to) override {
    return inner_->SecondsBetween(*static_cast<const WatchedEvent&>(from).inner,
                                  *static_cast<const WatchedEvent&>(to).inner);
  }
  void HostUses(absl::string_view what, absl::Span<const device::MemoryUse> uses) override {
    check_->Add(OrderCheck::Entry::kHostUse, -1, -1, check_->Known(std::string(what), uses));
  }

 private:
  absl::StatusOr<std::unique_ptr<device::Event>> Watched(
      absl::StatusOr<std::unique_ptr<device::Event>> inner) {
    RETURN_IF_ERROR(inner.status());
    auto event = std::make_unique<WatchedEvent>();
    event->inner = *std::move(inner);
    event->number = check_->NewEvent();
    return event;
  }

  OrderCheck* const check_;
  const std::unique_ptr<device::Device> inner_;
  const int ordinal_;
};

class WatchedStream : public device::Stream {
 public:
  WatchedStream(OrderCheck* check, WatchedDevice* device, std::unique_ptr<device::Stream> inner,
                absl::string_view name)
      : check_(check),
        device_(device),
        inner_(std::move(inner)),
        number_(check->NewStream(name, device->ordinal())) {}
  device::DeviceKind kind() const override { return inner_->kind(); }
  device::Device* device() const override { return device_; }
  void* native() const override { return inner_->native(); }

  absl::Status Copy(void* to, const void* from, int64_t bytes) override {
    Works("copy", {{from, bytes, false}, {to, bytes, true}});
    return inner_->Copy(to, from, bytes);
  }
  absl::Status Fill(void* to, unsigned char byte, int64_t bytes) override {
    Works("fill", {{to, bytes, true}});
    return inner_->Fill(to, byte, bytes);
  }
  absl::Status CopyRows(const StridedCopy& copy, int64_t rows, const void* from, int64_t from_row, void* to,
                        int64_t to_row, int64_t element) override {
    Works("copy of rows", {{from, RowsBytes(copy, true, rows, from_row, element), false},
                           {to, RowsBytes(copy, false, rows, to_row, element), true}});
    return inner_->CopyRows(copy, rows, from, from_row, to, to_row, element);
  }
  absl::Status Reduce(absl::Span<const void* const> from, void* to, int64_t count, DType dtype,
                      Reduction kind) override {
    std::vector<device::MemoryUse> uses;
    for (const void* p : from) uses.push_back({p, count * ByteSize(dtype), false});
    uses.push_back({to, count * ByteSize(dtype), true});
    Works("reduction", uses);
    return inner_->Reduce(from, to, count, dtype, kind);
  }
  absl::Status Encode(WireFormat wire, DType dtype, const void* from, int64_t n, char* to) override {
    Works("encoding", {{from, n * ByteSize(dtype), false}, {to, WireBytes(wire, dtype, n), true}});
    return inner_->Encode(wire, dtype, from, n, to);
  }
  absl::Status Decode(WireFormat wire, absl::Span<const char* const> from, int64_t n, Reduction kind,
                      DType dtype, void* to) override {
    std::vector<device::MemoryUse> uses;
    for (const char* p : from) uses.push_back({p, WireBytes(wire, dtype, n), false});
    uses.push_back({to, n * ByteSize(dtype), true});
    Works("decoding", uses);
    return inner_->Decode(wire, from, n, kind, dtype, to);
  }
  void Uses(absl::string_view what, absl::Span<const device::MemoryUse> uses) override {
    if (!what.empty()) what_ = std::string(what);
    Give(check_->Known(what_, uses));
  }

  absl::Status Record(device::Event* event) override {
    auto* const e = static_cast<WatchedEvent*>(event);
    check_->Add(OrderCheck::Entry::kRecord, number_, e->number, nullptr);
    return inner_->Record(e->inner.get());
  }
  absl::Status Wait(const device::Event* event) override {
    const auto* const e = static_cast<const WatchedEvent*>(event);
    check_->Add(OrderCheck::Entry::kWait, number_, e->number, nullptr);
    return inner_->Wait(e->inner.get());
  }
  absl::Status Synchronize() override {
    RETURN_IF_ERROR(inner_->Synchronize());
    check_->Add(OrderCheck::Entry::kSynchronize, number_, -1, nullptr);
    return absl::OkStatus();
  }

  absl::Status BeginGraph() override {
    RETURN_IF_ERROR(inner_->BeginGraph());
    graph_ = std::make_unique<WatchedGraph>();
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<device::WorkGraph>> EndGraph() override {
    std::unique_ptr<WatchedGraph> graph = std::move(graph_);
    ASSIGN_OR_RETURN(graph->inner, inner_->EndGraph());
    return graph;
  }
  absl::Status Launch(device::WorkGraph* graph) override {
    auto* const g = static_cast<WatchedGraph*>(graph);
    for (const auto& work : g->work) Give(work);
    return inner_->Launch(g->inner.get());
  }

 private:
  // What its work touches, in order.
  struct WatchedGraph : device::WorkGraph {
    int64_t nodes() const override { return inner->nodes(); }
    std::unique_ptr<device::WorkGraph> inner;
    std::vector<std::shared_ptr<const OrderCheck::Work>> work;
  };

  void Works(absl::string_view what, absl::Span<const device::MemoryUse> uses) {
    Give(check_->Known(what_.empty() ? std::string(what) : absl::StrCat(what_, ", ", what), uses));
  }
  void Give(std::shared_ptr<const OrderCheck::Work> work) {
    if (graph_ != nullptr) {
      graph_->work.push_back(std::move(work));
    } else {
      check_->Add(OrderCheck::Entry::kWork, number_, -1, std::move(work));
    }
  }

  OrderCheck* const check_;
  WatchedDevice* const device_;
  const std::unique_ptr<device::Stream> inner_;
  const int number_;
  std::string what_;                     // of the last Uses
  std::unique_ptr<WatchedGraph> graph_;  // that is recorded now
};

absl::StatusOr<std::unique_ptr<device::Stream>> WatchedDevice::NewStream(absl::string_view name) {
  ASSIGN_OR_RETURN(std::unique_ptr<device::Stream> inner, inner_->NewStream(name));
  return std::make_unique<WatchedStream>(check_, this, std::move(inner), name);
}

OrderCheck::OrderCheck() = default;
OrderCheck::~OrderCheck() = default;

std::unique_ptr<device::Device> OrderCheck::Watch(std::unique_ptr<device::Device> inner, int ordinal) {
  return std::make_unique<WatchedDevice>(this, std::move(inner), ordinal);
}

std::vector<std::string> OrderCheck::Races(const Site* without) const {
  std::lock_guard<std::mutex> lock(mutex_);
  Replay replay(*this, without);
  replay.Run();
  return std::move(replay).races();
}

std::vector<OrderCheck::Site> OrderCheck::Sites() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Replay replay(*this, nullptr);
  replay.Run();
  std::vector<Site> all;
  for (const auto& [_, site] : replay.sites()) all.push_back(site);
  return all;
}

int64_t OrderCheck::size() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(entries_.size());
}

int OrderCheck::NewStream(absl::string_view name, int device) {
  std::lock_guard<std::mutex> lock(mutex_);
  actors_.push_back({absl::StrCat(name, " ", named_[std::string(name)]++, " of device ", device),
                     std::string(name), false, device});
  return static_cast<int>(actors_.size()) - 1;
}

int OrderCheck::NewEvent() {
  std::lock_guard<std::mutex> lock(mutex_);
  return events_++;
}

int OrderCheck::ThreadLocked() {
  const auto [it, first] = threads_.emplace(NumberOfThread(), static_cast<int>(actors_.size()));
  if (first) actors_.push_back({absl::StrCat("thread ", threads_.size() - 1), "host", true, 0});
  return it->second;
}

void OrderCheck::Add(Entry::Kind kind, int stream, int event, std::shared_ptr<const Work> work) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (work != nullptr && work->uses.empty()) return;
  entries_.push_back({kind, ThreadLocked(), stream, event, std::move(work)});
}

std::shared_ptr<const OrderCheck::Work> OrderCheck::Known(std::string what,
                                                          absl::Span<const device::MemoryUse> uses) {
  auto work = std::make_shared<Work>();
  work->what = std::move(what);
  std::lock_guard<std::mutex> lock(mutex_);
  for (const device::MemoryUse& use : uses) {
    const uintptr_t begin = Address(use.at);
    const auto next = blocks_.upper_bound(begin);
    if (use.bytes <= 0 || next == blocks_.begin() || std::prev(next)->second <= begin) continue;
    CHECK_LE(begin + use.bytes, std::prev(next)->second) << work->what << " goes beyond its memory";
    work->uses.push_back(use);
  }
  return work;
}

void OrderCheck::Gave(const device::DeviceMemory& memory) {
  if (memory.bytes() == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_[Address(memory.data())] = Address(memory.data()) + memory.bytes();
}

void OrderCheck::TakesBack(const device::DeviceMemory& memory) {
  if (memory.bytes() == 0) return;
  Add(Entry::kGiveBack, -1, -1, Known("gives it back", {{memory.data(), memory.bytes(), true}}));
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_.erase(Address(memory.data()));
}

}  // namespace moe::testing
