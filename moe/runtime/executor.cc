#include "moe/runtime/executor.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "moe/base/clock.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/ir/runnable.h"
#include "moe/ir/state.h"
#include "moe/ir/state_layout.h"
#include "moe/runtime/init.h"

namespace moe::runtime {

struct Executor::Crew {
  std::mutex mutex;
  std::condition_variable start, done;
  int64_t generation = 0, running = 0, failing = 0;
  bool stop = false;
  std::string job;
  StepInputs inputs;  // a copy: a rank that is left behind may still look at it
  std::vector<absl::Status> statuses;
};

namespace {

// A library's attention is (nn.attention in moe/ir/ops/nn.cc).
bool MasksByIndex(const Module& module) {
  for (const auto& function : module.functions()) {
    for (const auto& node : function->body()) {
      if (node->Has("library")) return true;
    }
  }
  return false;
}

}  // namespace

Executor::Executor(const Program& program)
    : program_(program), masks_by_index_(MasksByIndex(*program.module)), crew_(std::make_shared<Crew>()) {}

absl::StatusOr<std::unique_ptr<Executor>> Executor::Create(const Program& program,
                                                           const ExecutorOptions& options) {
  RETURN_IF_ERROR(CheckRunnable(program));
  std::unique_ptr<Executor> e(new Executor(program));
  if (options.memory_of != nullptr) RETURN_IF_ERROR(CheckSameState(options.memory_of->program_, program));
  const int cores = options.compute_threads > 0 ? options.compute_threads
                                                : std::max(1u, std::thread::hardware_concurrency());
  e->gate_ = std::make_unique<comm::ComputeGate>(cores);
  e->host_ = options.host;
  e->timeout_ = options.timeout;
  e->options_stop_ = options.stop;
  const int64_t n = program.module->mesh().num_ranks();
  e->meeting_ = options.worlds;
  if (e->meeting_ == nullptr && options.memory_of != nullptr) e->meeting_ = options.memory_of->meeting_;
  if (e->meeting_ == nullptr) {
    comm::DeviceWorldsOptions wanted;
    wanted.kind =
        options.backend == kernels::Backend::kCuda ? device::DeviceKind::kCuda : device::DeviceKind::kHost;
    wanted.num_ranks = n;
    wanted.timeout = options.timeout;
    ASSIGN_OR_RETURN(e->own_, comm::DeviceWorlds::Open(wanted));
    e->meeting_ = e->own_.get();
  }
  RankOptions rank_options;
  rank_options.graphs = options.graphs;
  rank_options.tf32 = options.tf32;
  rank_options.backend = options.backend;
  rank_options.gate = e->gate_.get();
  rank_options.poison = options.poison;
  for (int64_t local = 0; local < e->meeting_->size(); ++local) {
    comm::World* const world = e->meeting_->world(local);
    if (world->num_ranks() != n) {
      return absl::FailedPreconditionError(
          absl::StrCat("the plan has ", n, " ranks, the world ", world->num_ranks()));
    }
    e->worlds_.push_back(std::make_unique<comm::RecordedWorld>(world));
    if (options.memory_of != nullptr) {
      rank_options.memory_of = &options.memory_of->ranks_[local]->arena();
      e->devices_.push_back(options.memory_of->devices_[local]);
    } else {
      e->devices_.push_back(std::make_shared<RankDevice>(e->meeting_->device(local)));
    }
    rank_options.device = e->devices_.back().get();
    rank_options.reserve_bytes = 0;
    for (const Program* other : options.room_for) {
      const StageMemory& memory = other->memory.stages[other->module->mesh().Stage(world->rank())];
      rank_options.reserve_bytes = std::max(rank_options.reserve_bytes, Arena::BytesOf(memory));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<RankExecutor> rank,
                     RankExecutor::Create(program, world->rank(), e->worlds_.back().get(), rank_options));
    e->ranks_.push_back(std::move(rank));
  }
  for (auto& rank : e->ranks_) rank->decisions = e.get();
  e->crew_->statuses.resize(e->ranks_.size());
  for (size_t i = 0; i < e->ranks_.size(); ++i) {
    e->threads_.emplace_back(&RankLoop, e->crew_, e->ranks_[i].get(), e->worlds_[i].get(), e->gate_.get(), i);
  }
  return e;
}

Executor::~Executor() {
  bool hangs;
  {
    std::lock_guard<std::mutex> lock(crew_->mutex);
    crew_->stop = true;
    hangs = crew_->running > 0;
  }
  crew_->start.notify_all();
  if (hangs) {  // nothing ends a thread that does not come back: all that it may use stays
    for (std::thread& t : threads_) t.detach();
    for (auto& rank : ranks_) rank.release();
    for (auto& world : worlds_) world.release();
    gate_.release();
    own_.release();
    new std::vector<std::shared_ptr<RankDevice>>(devices_);
    return;
  }
  for (std::thread& t : threads_) t.join();
  if (!failed_.ok()) {  // lets send queues end
    for (auto& world : worlds_) world->Abort(failed_);
  }
}

void Executor::RankLoop(std::shared_ptr<Crew> crew, RankExecutor* rank, comm::World* world,
                        comm::ComputeGate* gate, size_t at) {
  int64_t seen = 0;
  std::unique_lock<std::mutex> lock(crew->mutex);
  for (;;) {
    crew->start.wait(lock, [&] { return crew->stop || crew->generation > seen; });
    if (crew->stop) return;
    seen = crew->generation;
    lock.unlock();
    absl::Status status;
    {
      comm::ComputeGate::Scope computing(gate);
      status = rank->Run(crew->job, crew->inputs);
    }
    if (!status.ok()) {
      status = Annotate(status, absl::StrCat("rank ", rank->rank(), " (stage ", rank->stage(), ")"));
      world->Abort(status);
    }
    lock.lock();
    if (!status.ok()) ++crew->failing;
    crew->statuses[at] = std::move(status);
    if (--crew->running == 0 || crew->failing > 0) crew->done.notify_all();
  }
}

absl::Status Executor::RunRanks(const std::string& name, const StepInputs& inputs) {
  std::unique_lock<std::mutex> lock(crew_->mutex);
  crew_->job = name;
  crew_->inputs = inputs;
  crew_->running = num_local_ranks();
  crew_->failing = 0;
  crew_->statuses.assign(ranks_.size(), absl::OkStatus());
  ++crew_->generation;
  crew_->start.notify_all();
  const auto over = [&] { return crew_->running == 0 || crew_->failing > 0; };
  absl::Status ended;  // by another process, which a rank that hangs does not see
  while (!crew_->done.wait_for(lock, std::chrono::seconds(1), over)) {
    if (!ended.ok()) return ended;  // told a second ago, and no rank has come back
    for (auto& world : worlds_) ended.Update(world->Ended());
  }
  // After a failure the others are woken from whatever they wait in. One that does not come back then, hangs.
  const absl::Duration until = RunningTime() + std::min(timeout_, absl::Seconds(10));
  while (crew_->running > 0 && RunningTime() < until)
    crew_->done.wait_for(lock, std::chrono::milliseconds(100));
  // The first cause, not what followed from it: a rank that was aborted only repeats it.
  const absl::Status* cause = nullptr;
  for (const absl::Status& s : crew_->statuses) {
    if (!s.ok() &&
        (cause == nullptr || (cause->code() == absl::StatusCode::kAborted && s.code() != cause->code()))) {
      cause = &s;
    }
  }
  return cause == nullptr ? absl::OkStatus() : *cause;
}

absl::StatusOr<Reports> Executor::RunProgram(const std::string& name, const StepInputs& inputs) {
  if (!failed_.ok()) return Annotate(failed_, "an earlier step failed");
  const Module& m = *program_.module;
  const size_t rows = AttrInt(m.attributes(), "global_batch"), seq = AttrInt(m.attributes(), "seq_length");
  if (inputs.tokens.size() != rows * seq || inputs.labels.size() != rows * seq ||
      inputs.mask.size() != rows * seq || inputs.positions.size() != seq) {
    return absl::InvalidArgumentError(absl::StrCat("a step takes ", rows, " x ", seq,
                                                   " tokens, labels and mask and ", seq, " positions; got ",
                                                   inputs.tokens.size(), ", ", inputs.labels.size(), ", ",
                                                   inputs.mask.size(), ", ", inputs.positions.size()));
  }
  for (size_t i = 1; masks_by_index_ && i < seq; ++i) {
    if (inputs.positions[i] > inputs.positions[i - 1]) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "positions must ascend where attention is masked by index, as a library does here; number ", i,
        " is ", inputs.positions[i], " after ", inputs.positions[i - 1]));
  }
  failed_ = RunRanks(name, inputs);
  if (!failed_.ok()) return failed_;
  absl::StatusOr<std::map<int64_t, StageReports>> gathered = GatherReports(name);
  if (!gathered.ok()) {
    failed_ = gathered.status();
    for (auto& world : worlds_) world->Abort(failed_);
    return failed_;
  }
  Reports reports;
  for (const auto& [rank, stage] : *gathered) {
    for (const auto& [key, values] : stage.summed) {
      std::vector<double>& out = reports[key];
      out.resize(std::max(out.size(), values.size()), 0.0);
      for (size_t i = 0; i < values.size(); ++i) out[i] += values[i];
    }
    for (const auto& [key, values] : stage.common) reports.emplace(key, values);
  }
  return reports;
}

absl::Status Executor::InitializeState(uint64_t seed) {
  for (const auto& s : program_.module->states()) {
    const Initializer init(module(), *s, seed);
    struct Holder {
      RankExecutor* rank;
      kernels::Tensor* tensor;
    };
    struct Replicas {
      Block block;
      std::vector<Holder> holders;
    };
    std::map<std::pair<Dims, Dims>, Replicas> blocks;  // replicas are computed once
    for (auto& rank : ranks_) {
      kernels::Tensor* t = rank->FindState(s->name);
      if (t == nullptr) continue;
      const Block block = LocalBlock(s->type, program_.module->mesh(), rank->rank());
      Replicas& replicas = blocks[{block.begin, block.extent}];
      replicas.block = block;
      replicas.holders.push_back({rank.get(), t});
    }
    for (const auto& [_, replicas] : blocks) {
      const auto& [block, holders] = replicas;
      const DType dtype = holders[0].tensor->dtype;
      std::vector<char> shared;
      if (holders.size() > 1 && !init.AllZero()) {
        shared.resize(block.elements() * ByteSize(dtype));
        InitializeBlock(init, block, dtype, shared.data());
      }
      for (const Holder& h : holders) {
        RETURN_IF_ERROR(h.rank->WriteTensor(*h.tensor, [&](char* bytes) {
          if (shared.empty()) {
            InitializeBlock(init, block, dtype, bytes);
          } else {
            std::memcpy(bytes, shared.data(), shared.size());
          }
        }));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> Executor::ReadStored(const State& state) {
  const std::string& name = state.name;
  const Type& type = state.type;
  const Mesh& mesh = program_.module->mesh();
  std::vector<double> out(type.num_elements(), 0.0);
  // Over axes that the type does not name, ranks hold the same bits; the first of them speaks. Over partial
  // axes they hold summands. Stages that share a parameter hold replicas of it, but each its own part of the
  // gradient and of what is accumulated.
  const std::string kind = AttrString(state.attributes, "kind");
  const bool stages_add = kind == "gradient" || kind == "accumulator";
  AxisList replicated;
  for (AxisId a : mesh.SpmdAxes()) {
    if (type.placement.Role(a) == Placement::kNone) replicated.push_back(a);
  }
  std::map<int64_t, int64_t> speakers;  // by what they speak for
  std::map<int64_t, int64_t> speaker_of;
  std::set<int64_t> speaking;
  for (int64_t r = 0; r < num_ranks(); ++r) {
    if (!Holds(r, name)) continue;
    const int64_t leader = mesh.Group(r, replicated)[0];
    speaker_of[r] = speakers.emplace(stages_add ? leader : leader % mesh.ranks_per_stage(), r).first->second;
    speaking.insert(speaker_of[r]);
  }
  std::list<std::vector<char>> memory;
  std::map<int64_t, Held> held;
  ASSIGN_OR_RETURN(held, GatherState(name, type, speaking, &memory));
  kernels::Tensor t;
  t.dtype = type.dtype;
  t.dims = type.LocalDims(mesh);
  for (const auto& [r, bytes] : held) {
    if (speaker_of[r] != r) {
      if (bytes.hash != held[speaker_of[r]].hash) {
        return absl::InternalError(
            absl::StrCat("state ", name, ": replicas differ on ranks ", speaker_of[r], " and ", r));
      }
      continue;
    }
    t.data = const_cast<char*>(bytes.data);
    ForEachRun(LocalBlock(type, mesh, r), [&](int64_t to, int64_t from, int64_t n) {
      for (int64_t i = 0; i < n; ++i) out[to + i] += kernels::LoadElement(t.dtype, t.data, from + i);
    });
  }
  if (speakers.empty()) return absl::NotFoundError(absl::StrCat("no rank holds state ", name));
  return out;
}

absl::Status Executor::WriteStored(const State& state, absl::Span<const double> values) {
  const std::string& name = state.name;
  const Type& type = state.type;
  if (!type.placement.partial.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("state ", name, " is a partial sum and cannot be written"));
  }
  for (auto& rank : ranks_) {
    kernels::Tensor* t = rank->FindState(name);
    if (t == nullptr) continue;
    RETURN_IF_ERROR(rank->WriteTensor(*t, [&](char* bytes) {
      ForEachRun(LocalBlock(type, program_.module->mesh(), rank->rank()),
                 [&](int64_t from, int64_t to, int64_t n) {
                   for (int64_t i = 0; i < n; ++i)
                     kernels::StoreElement(t->dtype, bytes, to + i, values[from + i]);
                 });
    }));
  }
  return absl::OkStatus();
}

bool Executor::OnDecision(const std::string& name, int microbatch, const Block& block, int32_t* experts) {
  if (replay_ != nullptr) {
    auto it = replay_->find({name, microbatch});
    if (it == replay_->end()) return false;
    ForEachRun(block, [&](int64_t from, int64_t to, int64_t n) {
      std::copy_n(it->second.begin() + from, n, experts + to);
    });
    return true;
  }
  if (record_ != nullptr) {
    std::lock_guard<std::mutex> lock(decision_mutex_);
    std::vector<int32_t>& out = (*record_)[{name, microbatch}];
    int64_t n = 1;
    for (int64_t d : block.global) n *= d;
    out.resize(n);
    ForEachRun(block, [&](int64_t to, int64_t from, int64_t count) {
      std::copy_n(experts + from, count, out.begin() + to);
    });
  }
  return false;
}

std::vector<int64_t> Executor::MeasuredPeakPerStage() const {
  std::vector<int64_t> out(program_.module->mesh().num_stages(), 0);
  for (const auto& r : ranks_) out[r->stage()] = std::max(out[r->stage()], r->arena().used_bytes());
  return out;
}

absl::Status Executor::StartTrace(int64_t steps) {
  for (auto& r : ranks_) RETURN_IF_ERROR(r->StartTrace(steps));
  return absl::OkStatus();
}

void Executor::StopTrace() {
  for (auto& r : ranks_) r->StopTrace();
}

std::vector<FlightRecord> Executor::Flight() const {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  std::vector<FlightRecord> records;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    FlightRecord r;
    r.rank = ranks_[i]->rank();
    r.place = CoordinatesText(program_.module->mesh(), r.rank);
    r.host = host;
    r.pid = getpid();
    r.step = step_;
    {
      std::lock_guard<std::mutex> lock(crew_->mutex);
      r.program = crew_->job;
      if (!crew_->statuses[i].ok()) r.error = crew_->statuses[i].ToString();
    }
    const ActionLog& log = ranks_[i]->log();
    if (log.node() != nullptr) r.node = *log.node();
    const int64_t now = NowNanos();
    for (const ActionLog::Entry& a : log.Last()) {
      r.actions.push_back({*a.name, static_cast<double>(now - a.begin_ns) / 1e9});
    }
    r.calls = worlds_[i]->Calls();
    records.push_back(std::move(r));
  }
  return records;
}

}  // namespace moe::runtime
