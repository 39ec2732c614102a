// What an Executor exchanges with those of other processes: reports, states and traces. Within one process
// nothing is sent.

#include <xxhash.h>

#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "moe/base/clock.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/runtime/executor.h"

namespace moe::runtime {
namespace {

// A message of numbers and names, for processes of the same build.
class Packer {
 public:
  void Int(int64_t v) { bytes_.append(reinterpret_cast<const char*>(&v), sizeof(v)); }
  void Text(const std::string& s) {
    Int(static_cast<int64_t>(s.size()));
    bytes_ += s;
  }
  void Values(const Reports& reports) {
    Int(static_cast<int64_t>(reports.size()));
    for (const auto& [name, values] : reports) {
      Text(name);
      Int(static_cast<int64_t>(values.size()));
      bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
    }
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class Unpacker {
 public:
  explicit Unpacker(absl::string_view bytes) : bytes_(bytes) {}
  int64_t Int() {
    int64_t v = 0;
    Take(&v, sizeof(v));
    return v;
  }
  std::string Text() {
    std::string s(Count(1), '\0');
    Take(s.data(), s.size());
    return s;
  }
  Reports Values() {
    Reports reports;
    const int64_t n = Int();
    for (int64_t i = 0; i < n && ok_; ++i) {
      const std::string name = Text();
      std::vector<double>& values = reports[name];
      values.resize(Count(sizeof(double)));
      Take(values.data(), values.size() * sizeof(double));
    }
    return reports;
  }
  void Fail() { ok_ = false; }
  bool empty() const { return bytes_.empty(); }
  bool ok() const { return ok_; }

 private:
  size_t Count(size_t element) {
    const int64_t n = Int();
    ok_ = ok_ && n >= 0 && static_cast<size_t>(n) <= bytes_.size() / element;
    return ok_ ? static_cast<size_t>(n) : 0;
  }
  void Take(void* to, size_t n) {
    ok_ = ok_ && n <= bytes_.size();
    if (!ok_) return;
    if (n > 0) std::memcpy(to, bytes_.data(), n);
    bytes_.remove_prefix(n);
  }
  absl::string_view bytes_;
  bool ok_ = true;
};

// Events of one rank, and a name once: where it is used again, its number.
class EventPacker {
 public:
  explicit EventPacker(Packer* packer) : packer_(packer) {}
  void Event(const TraceEvent& e) {
    Name(e.name);
    Name(e.detail != nullptr ? *e.detail : "");
    for (const int64_t v :
         {e.begin_ns, e.end_ns, static_cast<int64_t>(e.microbatch), static_cast<int64_t>(e.lane),
          static_cast<int64_t>(e.category), e.bytes, e.cpu_ns, e.group}) {
      packer_->Int(v);
    }
  }

 private:
  void Name(const std::string& name) {
    const auto [it, fresh] = numbers_.try_emplace(name, static_cast<int64_t>(numbers_.size()));
    packer_->Int(it->second);
    if (fresh) packer_->Text(name);
  }
  Packer* const packer_;
  std::map<std::string, int64_t> numbers_;
};

// Adds events of EventPacker to `trace`, in the time of a clock that `ahead` ns are taken from.
void UnpackEvents(Unpacker* in, int64_t rank, int64_t ahead, Trace* trace) {
  std::vector<std::unique_ptr<std::string>> names;
  const auto name = [&]() -> const std::string* {
    const size_t number = static_cast<size_t>(in->Int());
    if (number == names.size()) names.push_back(std::make_unique<std::string>(in->Text()));
    return number < names.size() ? names[number].get() : nullptr;
  };
  for (int64_t left = in->Int(); left > 0 && in->ok(); --left) {
    const std::string *op = name(), *detail = name();
    int64_t v[8];
    for (int64_t& field : v) field = in->Int();
    if (op == nullptr || detail == nullptr || !in->ok()) return in->Fail();
    trace->Add(rank, {op->c_str(), detail->empty() ? nullptr : detail, v[0] - ahead, v[1] - ahead,
                      static_cast<int32_t>(v[2]), static_cast<int32_t>(v[3]), static_cast<Category>(v[4]),
                      v[5], v[6], v[7]});
  }
}

// The same for all processes that share a monotonic clock.
uint64_t BootOfThisMachine() {
  const std::string id = ReadFile("/proc/sys/kernel/random/boot_id").value_or("");
  return XXH64(id.data(), id.size(), 0);
}

}  // namespace

bool Executor::Holds(int64_t rank, const std::string& name) const {
  return program_.memory.stages[program_.module->mesh().Stage(rank)].states.count(name) > 0;
}

absl::StatusOr<std::map<int64_t, Executor::StageReports>> Executor::GatherReports(const std::string& name) {
  std::map<int64_t, StageReports> reports;
  const int64_t per_stage = program_.module->mesh().ranks_per_stage();
  for (const auto& rank : ranks_) {
    if (rank->rank() % per_stage != 0) continue;
    StageReports& mine = reports[rank->rank()];
    mine.summed = rank->summed_reports();
    if (name == "train_step") mine.common = rank->common_reports();
  }
  if (host_ == nullptr) return reports;
  Packer packer;
  packer.Int(options_stop_ != nullptr && options_stop_->load() ? 1 : 0);
  for (const auto& [rank, mine] : reports) {
    packer.Int(rank);
    packer.Values(mine.summed);
    packer.Values(mine.common);
  }
  const int n = host_->size();
  std::vector<int64_t> counts(n);
  const int64_t bytes = static_cast<int64_t>(packer.bytes().size());
  RETURN_IF_ERROR(host_->AllGather(&bytes, counts.data(), 1, DType::kS64, "size of the reports"));
  int64_t total = 0;
  for (int64_t c : counts) total += c;
  std::string all(total, '\0');
  RETURN_IF_ERROR(
      host_->AllGatherV(packer.bytes().data(), bytes, all.data(), counts, DType::kPred, "reports"));
  absl::string_view rest = all;
  bool stop = false;
  for (int p = 0; p < n; ++p) {
    Unpacker unpacker(rest.substr(0, counts[p]));
    rest.remove_prefix(counts[p]);
    stop = unpacker.Int() != 0 || stop;
    while (!unpacker.empty() && unpacker.ok()) {
      StageReports& theirs = reports[unpacker.Int()];
      theirs.summed = unpacker.Values();
      theirs.common = unpacker.Values();
    }
    if (!unpacker.ok()) {
      return absl::DataLossError(absl::StrCat("the reports of process ", p, " cannot be read"));
    }
  }
  agreed_stop_ = stop;
  return reports;
}

absl::StatusOr<std::map<int64_t, Executor::Held>> Executor::GatherState(
    const std::string& name, const Type& type, const std::set<int64_t>& speakers,
    std::list<std::vector<char>>* memory) {
  const Mesh& mesh = program_.module->mesh();
  int64_t bytes = ByteSize(type.dtype);
  for (int64_t d : type.LocalDims(mesh)) bytes *= d;
  const auto hash = [&](const void* data) { return XXH64(data, static_cast<size_t>(bytes), 0); };
  std::map<int64_t, Held> held;
  for (const auto& rank : ranks_) {
    kernels::Tensor* t = rank->FindState(name);
    if (t == nullptr) continue;
    ASSIGN_OR_RETURN(const char* const data, rank->ReadTensor(*t, &memory->emplace_back()));
    held[rank->rank()] = {data, hash(data)};
  }
  if (host_ == nullptr) return held;
  // Each process gives its ranks in order: the bytes of one that speaks, the hash of one that repeats them.
  const auto size_of = [&](int64_t r) -> int64_t {
    if (!Holds(r, name)) return 0;
    return speakers.count(r) > 0 ? bytes : static_cast<int64_t>(sizeof(uint64_t));
  };
  std::vector<int64_t> counts(host_->size(), 0);
  for (int64_t r = 0; r < num_ranks(); ++r) counts[r / num_local_ranks()] += size_of(r);
  std::vector<char> mine;
  for (const auto& rank : ranks_) {
    const int64_t n = size_of(rank->rank());
    if (n == 0) continue;
    const Held& h = held.at(rank->rank());
    const char* from = speakers.count(rank->rank()) > 0 ? h.data : reinterpret_cast<const char*>(&h.hash);
    mine.insert(mine.end(), from, from + n);
  }
  int64_t total = 0;
  for (int64_t c : counts) total += c;
  std::vector<char>& all = memory->emplace_back(total);
  RETURN_IF_ERROR(host_->AllGatherV(mine.data(), static_cast<int64_t>(mine.size()), all.data(), counts,
                                    DType::kPred, absl::StrCat("state ", name)));
  const char* at = all.data();
  for (int64_t r = 0; r < num_ranks(); ++r) {
    const int64_t n = size_of(r);
    if (n == 0) continue;
    Held& h = held[r];
    if (speakers.count(r) > 0) {
      h = {at, hash(at)};
    } else {
      std::memcpy(&h.hash, at, sizeof(h.hash));
    }
    at += n;
  }
  return held;
}

absl::StatusOr<std::vector<int64_t>> Executor::CompareClocks() {
  constexpr int kBarriers = 8;
  std::vector<int64_t> mine = {static_cast<int64_t>(BootOfThisMachine())};
  for (int i = 0; i < kBarriers; ++i) {
    mine.push_back(NowNanos());
    RETURN_IF_ERROR(host_->Barrier("clocks"));
    mine.push_back(NowNanos());
  }
  std::vector<int64_t> all(mine.size() * host_->size());
  RETURN_IF_ERROR(
      host_->AllGather(mine.data(), all.data(), static_cast<int64_t>(mine.size()), DType::kS64, "clocks"));
  std::vector<ClockSamples> processes(host_->size());
  for (size_t p = 0; p < processes.size(); ++p) {
    const int64_t* const theirs = all.data() + p * mine.size();
    processes[p].boot = static_cast<uint64_t>(theirs[0]);
    for (int i = 0; i < kBarriers; ++i) {
      processes[p].entered.push_back(theirs[1 + 2 * i]);
      processes[p].left.push_back(theirs[2 + 2 * i]);
    }
  }
  return ClockOffsets(processes);
}

absl::StatusOr<Trace> Executor::GatherTrace() {
  Trace trace(num_ranks());
  for (size_t i = 0; i < ranks_.size(); ++i) {
    for (const TraceEvent& e : ranks_[i]->trace()) trace.Add(ranks_[i]->rank(), e);
  }
  if (host_ == nullptr || host_->size() == 1) return trace;
  ASSIGN_OR_RETURN(const std::vector<int64_t> ahead, CompareClocks());
  if (host_->rank() != 0) {
    Packer packer;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      EventPacker events(&packer);
      packer.Int(ranks_[i]->rank());
      packer.Int(static_cast<int64_t>(ranks_[i]->trace().size()));
      for (const TraceEvent& e : ranks_[i]->trace()) events.Event(e);
    }
    const int64_t bytes = static_cast<int64_t>(packer.bytes().size());
    RETURN_IF_ERROR(host_->Send(&bytes, sizeof(bytes), 0, 0, "size of a trace"));
    RETURN_IF_ERROR(host_->Send(packer.bytes().data(), bytes, 0, 1, "trace"));
    return trace;
  }
  for (int p = 1; p < host_->size(); ++p) {
    int64_t bytes = 0;
    RETURN_IF_ERROR(host_->Recv(&bytes, sizeof(bytes), p, 0, "size of a trace"));
    std::string theirs(bytes, '\0');
    RETURN_IF_ERROR(host_->Recv(theirs.data(), bytes, p, 1, "trace"));
    Unpacker unpacker(theirs);
    while (!unpacker.empty() && unpacker.ok()) {
      const int64_t rank = unpacker.Int();
      if (rank < 0 || rank >= trace.ranks()) {
        unpacker.Fail();
      } else {
        UnpackEvents(&unpacker, rank, ahead[p], &trace);
      }
    }
    if (!unpacker.ok())
      return absl::DataLossError(absl::StrCat("the trace of process ", p, " cannot be read"));
  }
  return trace;
}

}  // namespace moe::runtime
