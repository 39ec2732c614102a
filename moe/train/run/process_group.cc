#include "moe/train/run/process_group.h"

#include <xxhash.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"

namespace moe::train {
namespace {

constexpr absl::Duration kReportEvery = absl::Seconds(1);
constexpr absl::Duration kAnswerWithin = absl::Seconds(3);
constexpr char kBetween = '\x1e';  // records of one process; no JSON text has it

std::string LiveKey(int64_t process) { return absl::StrCat("flight/live/", process); }
std::string FinalKey(int64_t process) { return absl::StrCat("flight/final/", process); }

// When it was said, and the records.
std::string Pack(const std::vector<runtime::FlightRecord>& records) {
  std::string text = absl::StrCat(absl::ToUnixMillis(absl::Now()));
  for (const runtime::FlightRecord& r : records)
    absl::StrAppend(&text, std::string(1, kBetween), runtime::FlightJson(r));
  return text.size() <= comm::kMaxStoreValue ? text : "";
}

std::vector<runtime::FlightRecord> Unpack(const std::string& text, double* age) {
  std::vector<runtime::FlightRecord> records;
  const std::vector<absl::string_view> parts = absl::StrSplit(text, kBetween);
  int64_t said = 0;
  if (!absl::SimpleAtoi(parts[0], &said)) return records;
  *age = std::max(0.0, absl::ToDoubleSeconds(absl::Now() - absl::FromUnixMillis(said)));
  for (size_t i = 1; i < parts.size(); ++i) {
    absl::StatusOr<runtime::FlightRecord> r = runtime::ParseFlight(parts[i]);
    if (r.ok()) records.push_back(*std::move(r));
  }
  return records;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessGroup>> ProcessGroup::Connect(comm::Job* job, int64_t num_ranks,
                                                                    absl::Duration timeout,
                                                                    absl::Duration connect_timeout) {
  // Writing to a process that has died is an error of the call, not the end of this one.
  std::signal(SIGPIPE, SIG_IGN);
  if (num_ranks % job->count() != 0) {
    std::vector<int64_t> legal;
    for (int64_t p = 1; p <= num_ranks; ++p) {
      if (num_ranks % p == 0) legal.push_back(p);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(job->count(), " processes cannot share the ", num_ranks,
                     " ranks of this strategy evenly; legal here: ", absl::StrJoin(legal, ", ")));
  }
  std::unique_ptr<ProcessGroup> g(new ProcessGroup(job, num_ranks));
  g->per_process_ = num_ranks / job->count();
  g->pulse_ = std::make_unique<comm::Pulse>(job->store(), job->rank(), job->count());
  g->worlds_.resize(g->per_process_);
  // Ranks connect to each other, also those of one process: at the same time.
  std::vector<absl::Status> statuses(g->per_process_);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < g->per_process_; ++i) {
    threads.emplace_back([&, i] {
      comm::GlooOptions options;
      options.address = job->address();
      options.timeout = timeout;
      options.connect_timeout = connect_timeout;
      options.pulse = g->pulse_.get();
      auto world =
          comm::GlooWorld::Connect(job->rank() * g->per_process_ + i, num_ranks, job->store(), options);
      if (world.ok()) {
        g->worlds_[i] = *std::move(world);
      } else {
        statuses[i] = world.status();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (const absl::Status& s : statuses) RETURN_IF_ERROR(s);
  for (const auto& world : g->worlds_) g->local_.push_back(world.get());
  g->pulse_->SetDeathCheck([world = g->worlds_[0].get()] { return world->LostSome(); });
  std::vector<int64_t> first_ranks;
  for (int64_t p = 0; p < job->count(); ++p) first_ranks.push_back(p * g->per_process_);
  ASSIGN_OR_RETURN(g->host_, g->worlds_[0]->Group(first_ranks, "host"));
  return g;
}

ProcessGroup::~ProcessGroup() {
  StopReporting();
  pulse_->SetDeathCheck(nullptr);
}

void ProcessGroup::StopReporting() {
  stop_.Cancel();
  if (reporter_.joinable()) reporter_.join();
}

absl::Status ProcessGroup::CheckSame(const std::string& what, const std::string& text) {
  const uint64_t mine = XXH64(text.data(), text.size(), 0);
  std::vector<uint64_t> all(job_->count());
  RETURN_IF_ERROR(host_->AllGather(&mine, all.data(), 1, DType::kS64, what));
  for (size_t p = 1; p < all.size(); ++p) {
    if (all[p] != all[0]) {
      return absl::FailedPreconditionError(absl::StrCat("process ", p, " has another ", what,
                                                        " than process 0; all must be started with the same "
                                                        "flags, files and build"));
    }
  }
  return absl::OkStatus();
}

absl::Status ProcessGroup::Agree(const absl::Status& mine) {
  constexpr char kWhat[] = "whether all can begin";
  const size_t n = job_->count();
  const std::string text(mine.message());
  const int64_t own[2] = {static_cast<int64_t>(mine.code()), static_cast<int64_t>(text.size())};
  std::vector<int64_t> all(2 * n), counts(n);
  RETURN_IF_ERROR(host_->AllGather(own, all.data(), 2, DType::kS64, kWhat));
  int64_t total = 0;
  for (size_t p = 0; p < n; ++p) total += counts[p] = all[2 * p + 1];
  std::string texts(total, '\0');
  RETURN_IF_ERROR(host_->AllGatherV(text.data(), own[1], texts.data(), counts, DType::kPred, kWhat));
  absl::string_view rest = texts;
  absl::Status first;
  std::vector<size_t> same;
  for (size_t p = 0; p < n; ++p) {
    const absl::Status theirs(static_cast<absl::StatusCode>(all[2 * p]), rest.substr(0, counts[p]));
    rest.remove_prefix(counts[p]);
    if (theirs.ok()) continue;
    first.Update(theirs);
    if (theirs == first) same.push_back(p);
  }
  // Nobody ends before all know why.
  if (!first.ok()) host_->Barrier(kWhat).IgnoreError();
  if (first.ok() || same.size() == n) return first;
  return Annotate(first, absl::StrCat(same.size() == 1 ? "process " : "processes ", absl::StrJoin(same, ", "),
                                      " of ", n));
}

absl::StatusOr<std::vector<int64_t>> ProcessGroup::Max(std::vector<int64_t> values, const std::string& what) {
  RETURN_IF_ERROR(host_->AllReduce(values.data(), values.data(), static_cast<int64_t>(values.size()),
                                   DType::kS64, Reduction::kMax, what));
  return values;
}

void ProcessGroup::StartReporting(std::function<std::vector<runtime::FlightRecord>()> records) {
  records_ = std::move(records);
  reporter_ = std::thread([this] { Report(); });
}

void ProcessGroup::Report() {
  do {
    job_->store()->Set(LiveKey(job_->rank()), Pack(records_())).IgnoreError();
  } while (!stop_.SleepFor(kReportEvery));
}

std::vector<runtime::FlightRecord> ProcessGroup::CollectFlight(const std::vector<runtime::FlightRecord>& mine,
                                                               const Mesh& mesh) {
  stop_.Cancel();
  if (!job_->store()->Set(FinalKey(job_->rank()), Pack(mine)).ok()) return mine;
  std::vector<runtime::FlightRecord> all;
  const absl::Duration deadline = RunningTime() + kAnswerWithin;
  for (int64_t p = 0; p < job_->count(); ++p) {
    std::vector<runtime::FlightRecord> theirs;
    double age = 0;
    if (p == job_->rank()) {
      theirs = mine;
    } else {
      absl::StatusOr<std::string> text =
          job_->store()->Get(FinalKey(p), std::max(deadline - RunningTime(), absl::ZeroDuration()));
      const bool answers = text.ok();
      if (!answers) text = job_->store()->Get(LiveKey(p), absl::ZeroDuration());
      if (text.ok()) theirs = Unpack(*text, &age);
      for (runtime::FlightRecord& r : theirs) {
        r.stale = !answers;
        r.silent = answers ? 0 : age;
      }
    }
    for (int64_t i = 0; i < per_process_; ++i) {
      const int64_t rank = p * per_process_ + i;
      const auto it = std::find_if(theirs.begin(), theirs.end(),
                                   [&](const runtime::FlightRecord& r) { return r.rank == rank; });
      if (it != theirs.end()) {
        all.push_back(*it);
        continue;
      }
      runtime::FlightRecord unknown;
      unknown.rank = rank;
      unknown.place = runtime::CoordinatesText(mesh, rank);
      unknown.unknown = true;
      all.push_back(unknown);
    }
  }
  // Who runs the rendezvous stays until those who answered have read all this.
  job_->store()->Set(absl::StrCat("flight/read/", job_->rank()), "").IgnoreError();
  for (int64_t p = 0; job_->serves() && p < job_->count(); ++p) {
    const runtime::FlightRecord& r = all[p * per_process_];
    if (r.stale || r.unknown) continue;
    job_->store()->Get(absl::StrCat("flight/read/", p), 2 * kAnswerWithin).status().IgnoreError();
  }
  return all;
}

}  // namespace moe::train
