#include "moe/runtime/executor.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/ir/state_layout.h"
#include "moe/runtime/init.h"

namespace moe {
namespace {

double Get(const Tensor& t, int64_t i) {
  return t.dtype == DType::kF64   ? t.As<double>()[i]
         : t.dtype == DType::kF32 ? t.As<float>()[i]
                                  : t.As<int32_t>()[i];
}
void Put(const Tensor& t, int64_t i, double v) {
  if (t.dtype == DType::kF64) {
    t.As<double>()[i] = v;
  } else if (t.dtype == DType::kF32) {
    t.As<float>()[i] = static_cast<float>(v);
  } else {
    t.As<int32_t>()[i] = static_cast<int32_t>(v);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> Executor::Create(const Program& program,
                                                           const ExecutorOptions& options) {
  std::unique_ptr<Executor> e(new Executor(program));
  if (options.memory_of != nullptr) RETURN_IF_ERROR(CheckSameState(options.memory_of->program_, program));
  const int cores = options.compute_threads > 0 ? options.compute_threads
                                                : std::max(1u, std::thread::hardware_concurrency());
  e->gate_ = std::make_unique<ComputeGate>(cores);
  InProcessOptions comm;
  comm.timeout = options.timeout;
  const int64_t n = program.module->mesh().num_ranks();
  e->world_ = std::make_unique<InProcessWorld>(n, comm);
  RankOptions rank_options;
  rank_options.backend = options.backend;
  rank_options.gate = e->gate_.get();
  rank_options.poison = options.poison;
  for (int64_t r = 0; r < n; ++r) {
    if (options.memory_of != nullptr) rank_options.memory_of = &options.memory_of->ranks_[r]->arena();
    rank_options.reserve_bytes = 0;
    for (const Program* other : options.room_for) {
      const StageMemory& memory = other->memory.stages[other->module->mesh().Stage(r)];
      rank_options.reserve_bytes = std::max(rank_options.reserve_bytes, Arena::BytesOf(memory));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<RankExecutor> rank,
                     RankExecutor::Create(program, r, e->world_->rank(r), rank_options));
    e->ranks_.push_back(std::move(rank));
    e->recorders_.push_back(std::make_unique<TraceRecorder>());
  }
  for (auto& rank : e->ranks_) rank->decisions = e.get();
  e->statuses_.resize(n);
  for (int64_t r = 0; r < n; ++r) e->threads_.emplace_back([p = e.get(), r] { p->RankLoop(r); });
  return e;
}

Executor::~Executor() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& t : threads_) t.join();
  if (!failed_.ok() && world_ != nullptr) world_->Abort(failed_);  // lets send queues end
}

void Executor::RankLoop(int64_t rank) {
  int64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    start_.wait(lock, [&] { return stop_ || generation_ > seen; });
    if (stop_) return;
    seen = generation_;
    lock.unlock();
    absl::Status status;
    {
      ComputeGate::Scope computing(gate_.get());
      status = ranks_[rank]->Run(job_, *inputs_);
    }
    if (!status.ok()) {
      status = Annotate(status, absl::StrCat("rank ", rank, " (stage ", ranks_[rank]->stage(), ")"));
      world_->Abort(status);
    }
    lock.lock();
    statuses_[rank] = std::move(status);
    if (--running_ == 0) done_.notify_all();
  }
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
  {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = name;
    inputs_ = &inputs;
    running_ = num_ranks();
    ++generation_;
    start_.notify_all();
    done_.wait(lock, [&] { return running_ == 0; });
  }
  // The first cause, not what followed from it: a rank that was aborted only repeats it.
  const absl::Status* cause = nullptr;
  for (const absl::Status& s : statuses_) {
    if (!s.ok() &&
        (cause == nullptr || (cause->code() == absl::StatusCode::kAborted && s.code() != cause->code()))) {
      cause = &s;
    }
  }
  if (cause != nullptr) {
    failed_ = *cause;
    return failed_;
  }
  Reports reports;
  const int64_t per_stage = m.mesh().ranks_per_stage();
  for (int64_t r = 0; r < num_ranks(); r += per_stage) {
    for (const auto& [key, values] : ranks_[r]->summed_reports()) {
      std::vector<double>& out = reports[key];
      out.resize(std::max(out.size(), values.size()), 0.0);
      for (size_t i = 0; i < values.size(); ++i) out[i] += values[i];
    }
    if (name != "train_step") continue;
    for (const auto& [key, values] : ranks_[r]->common_reports()) reports.emplace(key, values);
  }
  return reports;
}

std::vector<std::string> Executor::StateNames() const {
  std::vector<std::string> out;
  for (const auto& s : program_.module->states()) out.push_back(s->name);
  return out;
}

absl::StatusOr<Type> Executor::StateType(const std::string& name) const {
  const State* s = program_.module->FindState(name);
  if (s == nullptr) return absl::NotFoundError(absl::StrCat("no state ", name));
  return s->type;
}

absl::Status Executor::InitializeState(uint64_t seed) {
  for (const auto& s : program_.module->states()) {
    const bool parameter = AttrString(s->attributes, "kind") == "parameter";
    const Initializer init(*s, seed);
    for (auto& rank : ranks_) {
      Tensor* t = rank->FindState(s->name);
      if (t == nullptr) continue;
      if (!parameter) {
        std::memset(t->data, 0, t->elements() * ByteSize(t->dtype));
        continue;
      }
      ForEachRun(LocalBlock(s->type, program_.module->mesh(), rank->rank()),
                 [&](int64_t from, int64_t to, int64_t n) {
                   for (int64_t i = 0; i < n; ++i) Put(*t, to + i, init(from + i));
                 });
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> Executor::ReadState(const std::string& name) {
  ASSIGN_OR_RETURN(const Type type, StateType(name));
  const Mesh& mesh = program_.module->mesh();
  std::vector<double> out(type.num_elements(), 0.0);
  // Over axes that the type does not name, ranks hold the same bits; the first of them speaks. Over partial
  // axes they hold summands. Stages that share a parameter hold replicas of it, but each its own part of the
  // gradient and of what is accumulated.
  const State* state = program_.module->FindState(name);
  const std::string kind = AttrString(state->attributes, "kind");
  const bool stages_add = kind == "gradient" || kind == "accumulator";
  AxisList replicated;
  for (AxisId a : mesh.SpmdAxes()) {
    if (type.placement.Role(a) == Placement::kNone) replicated.push_back(a);
  }
  std::map<int64_t, RankExecutor*> speakers;
  for (auto& rank : ranks_) {
    Tensor* t = rank->FindState(name);
    if (t == nullptr) continue;
    const int64_t leader = mesh.Group(rank->rank(), replicated)[0];
    auto [it, first] = speakers.emplace(stages_add ? leader : leader % mesh.ranks_per_stage(), rank.get());
    if (!first) {
      if (std::memcmp(it->second->FindState(name)->data, t->data, t->elements() * ByteSize(t->dtype)) != 0) {
        return absl::InternalError(absl::StrCat("state ", name, ": replicas differ on ranks ",
                                                it->second->rank(), " and ", rank->rank()));
      }
      continue;
    }
    ForEachRun(LocalBlock(type, mesh, rank->rank()), [&](int64_t to, int64_t from, int64_t n) {
      for (int64_t i = 0; i < n; ++i) out[to + i] += Get(*t, from + i);
    });
  }
  if (speakers.empty()) return absl::NotFoundError(absl::StrCat("no rank holds state ", name));
  return out;
}

absl::Status Executor::WriteState(const std::string& name, absl::Span<const double> values) {
  ASSIGN_OR_RETURN(const Type type, StateType(name));
  if (static_cast<int64_t>(values.size()) != type.num_elements()) {
    return absl::InvalidArgumentError(
        absl::StrCat("state ", name, " has ", type.num_elements(), " elements, not ", values.size()));
  }
  if (!type.placement.partial.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("state ", name, " is a partial sum and cannot be written"));
  }
  for (auto& rank : ranks_) {
    Tensor* t = rank->FindState(name);
    if (t == nullptr) continue;
    ForEachRun(LocalBlock(type, program_.module->mesh(), rank->rank()),
               [&](int64_t from, int64_t to, int64_t n) {
                 for (int64_t i = 0; i < n; ++i) Put(*t, to + i, values[from + i]);
               });
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

void Executor::StartTrace(int64_t events_per_rank) {
  for (int64_t r = 0; r < num_ranks(); ++r) {
    recorders_[r]->Clear();
    recorders_[r]->Reserve(events_per_rank);
    ranks_[r]->recorder = recorders_[r].get();
  }
}

void Executor::StopTrace() {
  for (auto& r : ranks_) r->recorder = nullptr;
}

std::vector<const TraceRecorder*> Executor::trace() const {
  std::vector<const TraceRecorder*> out;
  for (const auto& r : recorders_) out.push_back(r.get());
  return out;
}

}  // namespace moe
