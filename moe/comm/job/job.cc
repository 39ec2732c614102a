#include "moe/comm/job/job.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/comm/store/tcp_store.h"

namespace moe::comm {
namespace {

constexpr char kMetKey[] = "met";    // by rank 0: empty, or who is missing
constexpr char kSaidKey[] = "said";  // the error of rank 0
constexpr absl::Duration kSaysWithin = absl::Seconds(3);

struct Way {
  std::vector<SocketAddress> there;
  std::string own;  // the address of this host on the way there
  bool loopback = false;
};

std::string Numeric(const sockaddr* address, socklen_t size) {
  char text[NI_MAXHOST] = "";
  return getnameinfo(address, size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

bool IsLoopback(const std::string& numeric) { return numeric == "::1" || absl::StartsWith(numeric, "127."); }

// Looks a host up, and asks the system which address of its own it would use to reach it; nothing is sent.
absl::StatusOr<Way> Reach(const std::string& host, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("cannot find the host '", host, "': ", gai_strerror(error)));
  }
  Way way;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const int fd = socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_storage own{};
    socklen_t size = sizeof(own);
    if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0) {
      way.there.push_back({Numeric(a->ai_addr, a->ai_addrlen), port});
      if (way.own.empty()) way.own = Numeric(reinterpret_cast<const sockaddr*>(&own), size);
    }
    if (fd >= 0) close(fd);
  }
  freeaddrinfo(found);
  if (way.own.empty())
    return absl::UnavailableError(absl::StrCat("there is no way to the host '", host, "'"));
  way.loopback = IsLoopback(way.there[0].host);
  return way;
}

// A name that means another host on every host, as Debian's own name for itself does.
bool MeansItself(const std::string& host, const Way& way) {
  return way.loopback && host != "localhost" && host != way.there[0].host;
}

}  // namespace

Job::~Job() {
  store_.reset();
  server_.reset();
}

absl::StatusOr<std::unique_ptr<Job>> Job::Join(const ProcessPlace& place, const JobOptions& options) {
  const absl::Duration deadline = RunningTime() + options.connect_timeout;
  std::unique_ptr<Job> job(new Job(place, options));
  RETURN_IF_ERROR(job->ReachRendezvous());
  ASSIGN_OR_RETURN(const bool first, job->store_->SetOnce(absl::StrCat(kMemberKey, place.rank), ""));
  if (!first) {
    return absl::AlreadyExistsError(absl::StrCat("two processes are rank ", place.rank,
                                                 " at the rendezvous at ", job->store_->Describe(),
                                                 ": each has a number of its own"));
  }
  RETURN_IF_ERROR(job->Meet(std::max(deadline - RunningTime(), absl::ZeroDuration())));
  return job;
}

absl::Status Job::ReachRendezvous() {
  if (place_.master_address.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("process ", place_.rank, " of ", place_.count, " (", place_.found_in,
                     ") does not know where to meet the others: set MASTER_ADDR and MASTER_PORT"));
  }
  ASSIGN_OR_RETURN(const Way way, Reach(place_.master_address, place_.master_port));
  if (place_.local_count < place_.count && MeansItself(place_.master_address, way)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "MASTER_ADDR='", place_.master_address, "' is ", way.there[0].host,
        " on this host, where other hosts cannot meet it (see /etc/hosts): set MASTER_ADDR to an address "
        "of the network"));
  }
  address_ = options_.address.empty() ? way.own : options_.address;
  // Jobs of one user at one address are told apart by what the launcher calls them.
  const std::string token = TokenOfJob(options_.token.secret, place_.job);
  if (place_.rank == 0 && !place_.spawned) {
    absl::Status first;
    for (const SocketAddress& address : way.there) {
      absl::StatusOr<std::unique_ptr<StoreServer>> server =
          StoreServer::Start({.address = address,
                              .token = token,
                              .members = place_.count,
                              .max_connections = static_cast<int>(4 * place_.count + 16)});
      first.Update(server.status());
      if (!server.ok()) continue;
      server_ = *std::move(server);
      break;
    }
    if (server_ == nullptr) {
      return absl::Status(first.code(), absl::StrCat(first.message(),
                                                     "; MASTER_ADDR is an address of rank 0's host, and "
                                                     "MASTER_PORT one that no other job uses"));
    }
  }
  absl::StatusOr<std::unique_ptr<TcpStore>> store = TcpStore::Connect(
      way.there, token, options_.connect_timeout, place_.spawned ? "what started the processes" : "rank 0");
  if (absl::IsPermissionDenied(store.status())) {
    return absl::PermissionDeniedError(absl::StrCat(
        store.status().message(), ". This process has the token of ", options_.token.from,
        place_.job.empty() ? "" : absl::StrCat(" in the job ", place_.job),
        ". Where hosts share no home folder, set SWITCHYARD_JOB_TOKEN to the same secret in all processes, "
        "such as the output of 'openssl rand -hex 16'"));
  }
  RETURN_IF_ERROR(store.status());
  store_ = *std::move(store);
  return absl::OkStatus();
}

// Rank 0 waits for each of the others, and tells them that all are there, or who is not.
absl::Status Job::Meet(absl::Duration timeout) {
  if (place_.rank != 0) {
    // Rank 0 is the first to give up, as it knows who is missing.
    const absl::StatusOr<std::string> met = store_->Get(kMetKey, timeout + kSaysWithin);
    if (absl::IsDeadlineExceeded(met.status())) {
      return absl::DeadlineExceededError(absl::StrCat("rank 0 did not come to the rendezvous at ",
                                                      store_->Describe(), " within ",
                                                      absl::FormatDuration(options_.connect_timeout)));
    }
    RETURN_IF_ERROR(met.status());
    return met->empty() ? absl::OkStatus() : absl::DeadlineExceededError(*met);
  }
  const absl::Duration deadline = RunningTime() + timeout;
  std::vector<int64_t> missing;
  for (int64_t p = 1; p < place_.count; ++p) {
    const absl::Duration left =
        missing.empty() ? std::max(deadline - RunningTime(), absl::ZeroDuration()) : absl::ZeroDuration();
    const absl::Status came = store_->Get(absl::StrCat(kMemberKey, p), left).status();
    if (absl::IsDeadlineExceeded(came)) {
      missing.push_back(p);
    } else {
      RETURN_IF_ERROR(came);
    }
  }
  std::string text;
  if (!missing.empty()) {
    text = absl::StrCat("rank 0 waited ", absl::FormatDuration(options_.connect_timeout), " for ",
                        place_.count, " processes to meet at ", store_->Describe(),
                        "; missing: ", absl::StrJoin(missing, ", "));
    if (const int64_t refused = serves() ? server_->refused() : 0; refused > 0) {
      absl::StrAppend(
          &text, ". ", refused, refused == 1 ? " connection was" : " connections were",
          " refused for another token: set SWITCHYARD_JOB_TOKEN to the same secret in all processes");
    }
  }
  RETURN_IF_ERROR(store_->Set(kMetKey, text));
  return text.empty() ? absl::OkStatus() : absl::DeadlineExceededError(text);
}

absl::StatusOr<std::string> Job::Await(const std::string& key, const std::string& of_whom) {
  absl::StatusOr<std::string> value = GetUnlessAborted(store_.get(), key, options_.timeout);
  if (!absl::IsDeadlineExceeded(value.status())) return value;
  return absl::DeadlineExceededError(absl::StrCat(of_whom, " did not come to the rendezvous at ",
                                                  store_->Describe(), " within ",
                                                  absl::FormatDuration(options_.timeout)));
}

absl::StatusOr<std::string> Job::Agree(const std::string& what, const std::string& mine) {
  const std::string key = absl::StrCat("agreed/", what);
  if (place_.rank != 0) return Await(key, "rank 0");
  RETURN_IF_ERROR(store_->Set(key, mine));
  return mine;
}

absl::StatusOr<std::vector<std::string>> Job::Gather(const std::string& what, const std::string& mine) {
  const auto key = [&](int64_t process) { return absl::StrCat("gathered/", what, "/", process); };
  std::vector<std::string> all;
  if (place_.rank != 0) {
    RETURN_IF_ERROR(store_->Set(key(place_.rank), mine));
    return all;
  }
  all.push_back(mine);
  for (int64_t p = 1; p < place_.count; ++p) {
    ASSIGN_OR_RETURN(all.emplace_back(), Await(key(p), absl::StrCat("rank ", p)));
  }
  return all;
}

void Job::GiveUp(const absl::Status& reason) { AnnounceAbort(store_.get(), place_.rank, reason); }

bool Job::RankZeroSays(absl::string_view error) {
  error = error.substr(0, kMaxStoreValue);
  const auto heard = [](int64_t process) { return absl::StrCat("heard/", process); };
  if (place_.rank != 0) {
    const absl::StatusOr<std::string> said = store_->Get(kSaidKey, kSaysWithin);
    store_->Set(heard(place_.rank), "").IgnoreError();
    return said.ok() && absl::EndsWith(*said, error);  // also as "rank 3 ended the run: ..."
  }
  store_->Set(kSaidKey, error).IgnoreError();
  // Who runs the rendezvous stays until the others have heard.
  const absl::Duration deadline = RunningTime() + kSaysWithin;
  for (int64_t p = 1; serves() && p < place_.count; ++p) {
    store_->Get(heard(p), std::max(deadline - RunningTime(), absl::ZeroDuration())).status().IgnoreError();
  }
  return false;
}

absl::Status Job::Finish() {
  RETURN_IF_ERROR(store_->Set(absl::StrCat("done/", place_.rank), ""));
  for (int64_t p = 0; p < place_.count; ++p) {
    RETURN_IF_ERROR(Await(absl::StrCat("done/", p), absl::StrCat("rank ", p)).status());
  }
  // The server outlives the last question of its clients.
  RETURN_IF_ERROR(store_->Set(absl::StrCat("left/", place_.rank), ""));
  if (server_ == nullptr) return absl::OkStatus();
  for (int64_t p = 0; p < place_.count; ++p) {
    RETURN_IF_ERROR(Await(absl::StrCat("left/", p), absl::StrCat("rank ", p)).status());
  }
  return absl::OkStatus();
}

}  // namespace moe::comm
