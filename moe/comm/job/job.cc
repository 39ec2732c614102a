#include "moe/comm/job/job.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/running_time.h"
#include "moe/base/status.h"
#include "moe/comm/store/directory_store.h"

namespace moe::comm {
namespace {

constexpr char kLoopback[] = "127.0.0.1";
constexpr char kSaidKey[] = "said";  // the error of rank 0
constexpr absl::Duration kSaysWithin = absl::Seconds(3);

struct Endpoint {
  std::string numeric;  // of the peer
  bool loopback = false;
  std::string own;  // the address of this host on the way there
};

// Looks a host up, and asks the system which address of its own it would use to reach it; nothing is sent.
absl::StatusOr<Endpoint> Reach(const std::string& host, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("cannot find the host '", host, "': ", gai_strerror(error)));
  }
  Endpoint e;
  char text[INET_ADDRSTRLEN] = "";
  const auto* to = reinterpret_cast<const sockaddr_in*>(found->ai_addr);
  inet_ntop(AF_INET, &to->sin_addr, text, sizeof(text));
  e.numeric = text;
  e.loopback = (ntohl(to->sin_addr.s_addr) >> 24) == 127;
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in own{};
  socklen_t size = sizeof(own);
  if (fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0 &&
      getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0) {
    inet_ntop(AF_INET, &own.sin_addr, text, sizeof(text));
    e.own = text;
  }
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  if (e.own.empty()) return absl::UnavailableError(absl::StrCat("there is no way to the host '", host, "'"));
  return e;
}

}  // namespace

Job::~Job() {
  store_.reset();
  server_.reset();
}

absl::StatusOr<std::unique_ptr<Job>> Job::Join(const ProcessPlace& place, const JobOptions& options) {
  std::unique_ptr<Job> job(new Job(place, options));
  job->address_ = options.address.empty() ? kLoopback : options.address;
  if (!options.rendezvous.empty()) {
    ASSIGN_OR_RETURN(job->store_, DirectoryStore::Open(options.rendezvous));
  } else {
    if (place.master_address.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "process ", place.rank, " of ", place.count, " (", place.found_in,
          ") does not know where to meet the others: set MASTER_ADDR and MASTER_PORT, or --rendezvous"));
    }
    ASSIGN_OR_RETURN(const Endpoint way, Reach(place.master_address, place.master_port));
    if (options.address.empty()) job->address_ = way.own;
    if (!way.loopback && place.token.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the rendezvous at ", way.numeric,
                       " can be reached by others: set SWITCHYARD_JOB_TOKEN to the same secret "
                       "in all processes"));
    }
    const std::string address = absl::StrCat(way.numeric, ":", place.master_port);
    if (place.rank == 0 && !place.spawned) {
      ASSIGN_OR_RETURN(job->server_,
                       StoreServer::Start({.address = address,
                                           .token = place.token,
                                           .max_connections = static_cast<int>(4 * place.count + 16)}));
    }
    ASSIGN_OR_RETURN(job->store_,
                     GrpcStore::Connect(address, place.token, options.connect_timeout,
                                        place.spawned ? "what started the processes" : "rank 0"));
  }
  ASSIGN_OR_RETURN(const bool first, job->store_->SetOnce(absl::StrCat("joined/", place.rank), ""));
  if (!first) {
    return absl::AlreadyExistsError(
        absl::StrCat("rank ", place.rank, " has come to the rendezvous at ", job->store_->Describe(),
                     " before: two processes have this rank, or an earlier run used it; take a fresh one"));
  }
  return job;
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
