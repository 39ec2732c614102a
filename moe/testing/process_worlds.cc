#include "moe/testing/process_worlds.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "moe/base/status.h"
#include "moe/comm/call.h"
#include "nlohmann/json.hpp"

namespace moe::testing {
namespace {

using nlohmann::json;

constexpr char kVariable[] = "SWITCHYARD_TEST_RANK";  // "rank ranks socket task"

bool WriteAll(int socket, const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = send(socket, p, bytes, MSG_NOSIGNAL);
    if (n <= 0) return false;
    p += n;
    bytes -= n;
  }
  return true;
}
bool ReadAll(int socket, void* data, size_t bytes) {
  char* p = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = recv(socket, p, bytes, 0);
    if (n <= 0) return false;
    p += n;
    bytes -= n;
  }
  return true;
}

// A message: its text and a buffer.
bool Write(int socket, const json& text, const void* data = nullptr, size_t bytes = 0) {
  const std::string s = text.dump();
  const uint64_t sizes[2] = {s.size(), bytes};
  return WriteAll(socket, sizes, sizeof(sizes)) && WriteAll(socket, s.data(), s.size()) &&
         WriteAll(socket, data, bytes);
}
bool Read(int socket, json* text, std::vector<char>* data) {
  uint64_t sizes[2];
  if (!ReadAll(socket, sizes, sizeof(sizes))) return false;
  std::string s(sizes[0], '\0');
  data->resize(sizes[1]);
  if (!ReadAll(socket, s.data(), s.size()) || !ReadAll(socket, data->data(), data->size())) return false;
  *text = json::parse(s);
  return true;
}

// Gives the other process one end of a new connection; the other end, or -1.
int OpenConnection(int control) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return -1;
  char byte = 0;
  iovec part = {&byte, 1};
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = space;
  message.msg_controllen = sizeof(space);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &ends[1], sizeof(int));
  const bool sent = sendmsg(control, &message, MSG_NOSIGNAL) == 1;
  close(ends[1]);
  if (sent) return ends[0];
  close(ends[0]);
  return -1;
}
int AcceptConnection(int control) {
  char byte;
  iovec part = {&byte, 1};
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))];
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = space;
  message.msg_controllen = sizeof(space);
  if (recvmsg(control, &message, MSG_CMSG_CLOEXEC) != 1) return -1;
  int socket = -1;
  if (const cmsghdr* const header = CMSG_FIRSTHDR(&message); header != nullptr) {
    std::memcpy(&socket, CMSG_DATA(header), sizeof(int));
  }
  return socket;
}

// A connection to a process that does what is asked, one thing at a time.
class Connection {
 public:
  Connection(int rank, int control) : rank_(rank), socket_(OpenConnection(control)) {}
  ~Connection() {
    if (socket_ >= 0) close(socket_);
  }
  absl::Status Ask(const json& question, const void* in, size_t bytes, json* answer, void* out = nullptr,
                   size_t room = 0) {
    absl::MutexLock lock(&mutex_);
    std::vector<char> data;
    if (socket_ < 0 || !Write(socket_, question, in, bytes) || !Read(socket_, answer, &data)) {
      return absl::UnavailableError(absl::StrCat("the process of rank ", rank_, " is gone"));
    }
    if (data.size() > room) return absl::InternalError("more was answered than was asked for");
    if (!data.empty()) std::memcpy(out, data.data(), data.size());
    return absl::Status(static_cast<absl::StatusCode>(answer->at("code").get<int>()),
                        answer->at("message").get<std::string>());
  }

 private:
  const int rank_;
  absl::Mutex mutex_;
  const int socket_;
};

class RemoteCommunicator : public comm::Communicator {
 public:
  RemoteCommunicator(int rank, int control) : connection_(rank, control) {}
  absl::Status Connect(absl::Span<const int64_t> ranks, absl::string_view channel) {
    json answer;
    RETURN_IF_ERROR(connection_.Ask({{"do", "group"},
                                     {"ranks", std::vector<int64_t>(ranks.begin(), ranks.end())},
                                     {"channel", std::string(channel)}},
                                    nullptr, 0, &answer));
    ranks_.assign(ranks.begin(), ranks.end());
    rank_ = answer.at("rank").get<int>();
    return absl::OkStatus();
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  void Abort(absl::Status) override {}  // worlds are aborted here, not groups

  absl::Status Run(const comm::Call& call) override {
    RETURN_IF_ERROR(comm::CheckCall(call, ranks_, rank_));
    const auto [in, out] = comm::CallExtents(call, rank_, size());
    const auto list = [](absl::Span<const int64_t> x) { return std::vector<int64_t>(x.begin(), x.end()); };
    json answer;
    return connection_.Ask({{"do", "call"},
                            {"op", static_cast<int>(call.op)},
                            {"dtype", static_cast<int>(call.dtype)},
                            {"kind", static_cast<int>(call.kind)},
                            {"count", call.count},
                            {"peer", call.peer},
                            {"tag", call.tag},
                            {"counts", list(call.counts)},
                            {"receive_counts", list(call.receive_counts)},
                            {"in_place", call.in == call.out},
                            {"what", std::string(call.what)}},
                           call.in, in * ByteSize(call.dtype), &answer, call.out, out * ByteSize(call.dtype));
  }

 private:
  Connection connection_;
  std::vector<int64_t> ranks_;
  int rank_ = 0;
};

class RemoteWorld : public comm::World {
 public:
  RemoteWorld(int rank, int num_ranks, int control)
      : rank_(rank), num_ranks_(num_ranks), control_(control), own_(rank, control) {}
  int64_t rank() const override { return rank_; }
  int64_t num_ranks() const override { return num_ranks_; }
  absl::StatusOr<comm::Communicator*> Group(absl::Span<const int64_t> ranks, absl::string_view channel,
                                            device::Stream*) override {
    absl::MutexLock lock(&mutex_);
    std::unique_ptr<RemoteCommunicator>& group =
        groups_[{std::vector<int64_t>(ranks.begin(), ranks.end()), std::string(channel)}];
    if (group == nullptr) {
      auto made = std::make_unique<RemoteCommunicator>(rank_, control_);
      RETURN_IF_ERROR(made->Connect(ranks, channel));
      group = std::move(made);
    }
    return group.get();
  }
  absl::Status Failure() override {
    json answer;
    return own_.Ask({{"do", "failure"}}, nullptr, 0, &answer);
  }
  void Abort(absl::Status reason) override {
    json answer;
    own_.Ask({{"do", "abort"},
              {"code", static_cast<int>(reason.code())},
              {"message", std::string(reason.message())}},
             nullptr, 0, &answer)
        .IgnoreError();
  }

 private:
  const int rank_, num_ranks_, control_;
  Connection own_;
  absl::Mutex mutex_;
  std::map<std::pair<std::vector<int64_t>, std::string>, std::unique_ptr<RemoteCommunicator>> groups_
      ABSL_GUARDED_BY(mutex_);
};

class RemoteWorlds : public WorldSet {
 public:
  ~RemoteWorlds() override {
    worlds_.clear();
    for (const int control : controls_) close(control);
    for (const pid_t process : processes_) waitpid(process, nullptr, 0);
  }
  absl::Status Start(int num_ranks, const std::string& task, const std::vector<std::string>& variables) {
    for (int r = 0; r < num_ranks; ++r) {
      int ends[2];
      if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        return absl::ResourceExhaustedError("no socket for a worker");
      }
      // All that the child needs, made before: other threads may hold locks when it begins.
      std::vector<std::string> environment = {
          absl::StrCat(kVariable, "=", r, " ", num_ranks, " ", ends[1], " ", task)};
      for (const std::string& v : variables) {
        environment.push_back(absl::StrReplaceAll(v, {{"%r", absl::StrCat(r)}}));
      }
      std::vector<char*> pointers;
      for (std::string& v : environment) pointers.push_back(v.data());
      for (char** v = environ; *v != nullptr; ++v) {
        // Files in which the tests of the parent are listed are not the worker's.
        if (strncmp(*v, "XML_OUTPUT_FILE", 15) != 0 && strncmp(*v, "TEST_", 5) != 0 &&
            strncmp(*v, "GTEST_", 6) != 0) {
          pointers.push_back(*v);
        }
      }
      pointers.push_back(nullptr);
      char name[] = "/proc/self/exe", filter[] = "--gtest_filter=Worker.Serves", brief[] = "--gtest_brief=1";
      char* const arguments[] = {name, filter, brief, nullptr};
      const pid_t process = fork();
      if (process == 0) {
        fcntl(ends[1], F_SETFD, 0);
        execve(name, arguments, pointers.data());
        _exit(127);
      }
      close(ends[1]);
      controls_.push_back(ends[0]);
      if (process < 0) return absl::ResourceExhaustedError("no process for a worker");
      processes_.push_back(process);
      worlds_.push_back(std::make_unique<RemoteWorld>(r, num_ranks, ends[0]));
    }
    return absl::OkStatus();
  }
  comm::World* rank(int rank) override { return worlds_[rank].get(); }

 private:
  std::vector<int> controls_;
  std::vector<pid_t> processes_;
  std::vector<std::unique_ptr<RemoteWorld>> worlds_;
};

bool Answer(int socket, const absl::Status& status, json answer = json::object(),
            const std::vector<char>& out = {}) {
  answer["code"] = static_cast<int>(status.code());
  answer["message"] = std::string(status.message());
  return Write(socket, answer, out.data(), out.size());
}

absl::Status DoCall(comm::Communicator* c, const json& q, std::vector<char>& in, std::vector<char>& out) {
  const std::vector<int64_t> counts = q.at("counts"), receive_counts = q.at("receive_counts");
  const std::string what = q.at("what");
  comm::Call call;
  call.op = static_cast<comm::Call::Op>(q.at("op").get<int>());
  call.dtype = static_cast<DType>(q.at("dtype").get<int>());
  call.kind = static_cast<Reduction>(q.at("kind").get<int>());
  call.count = q.at("count");
  call.peer = q.at("peer");
  call.tag = q.at("tag");
  call.counts = counts;
  call.receive_counts = receive_counts;
  call.what = what;
  const bool in_place = q.at("in_place").get<bool>();
  if (in_place) out = in;
  out.resize(comm::CallExtents(call, c->rank(), c->size()).second * ByteSize(call.dtype));
  call.in = in_place ? out.data() : in.data();
  call.out = out.data();
  return c->Run(call);
}

// One connection: of a group, or of the world.
void ServeConnection(int socket, comm::World* world) {
  comm::Communicator* c = nullptr;
  json q;
  std::vector<char> in;
  while (Read(socket, &q, &in)) {
    const std::string what = q.at("do");
    std::vector<char> out;
    if (what == "group") {
      const std::vector<int64_t> ranks = q.at("ranks");
      const auto group = world->Group(ranks, q.at("channel").get<std::string>());
      if (group.ok()) c = *group;
      Answer(socket, group.status(), {{"rank", c == nullptr ? 0 : c->rank()}});
    } else if (what == "call") {
      const absl::Status status = DoCall(c, q, in, out);
      Answer(socket, status, json::object(), out);
    } else if (what == "failure") {
      Answer(socket, world->Failure());
    } else {
      world->Abort(absl::Status(static_cast<absl::StatusCode>(q.at("code").get<int>()),
                                q.at("message").get<std::string>()));
      Answer(socket, absl::OkStatus());
    }
  }
  close(socket);
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorldSet>> StartRanks(int num_ranks, const std::string& task,
                                                     const std::vector<std::string>& variables) {
  auto set = std::make_unique<RemoteWorlds>();
  RETURN_IF_ERROR(set->Start(num_ranks, task, variables));
  return set;
}

std::optional<WorkerRank> ThisWorker() {
  const char* const text = std::getenv(kVariable);
  if (text == nullptr) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits(' ', 3));
  return WorkerRank{std::atoi(parts[0].c_str()), std::atoi(parts[1].c_str()), parts[3],
                    std::atoi(parts[2].c_str())};
}

absl::Status ServeRank(const WorkerRank& worker, comm::World* world) {
  std::vector<std::thread> threads;
  for (int socket; (socket = AcceptConnection(worker.socket)) >= 0;) {
    threads.emplace_back(ServeConnection, socket, world);
  }
  for (std::thread& t : threads) t.join();
  return absl::OkStatus();
}

}  // namespace moe::testing
