#include "moe/comm/job/token.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/comm/store/handshake.h"

namespace moe::comm {
namespace {

constexpr size_t kShortest = 16, kLongest = 4096;
constexpr char kInstead[] =
    "set SWITCHYARD_JOB_TOKEN to the same secret in all processes, such as the output of 'openssl rand -hex 16'";

absl::StatusOr<std::string> CheckSecret(absl::string_view text, const std::string& from) {
  const absl::string_view secret = absl::StripAsciiWhitespace(text);
  if (secret.size() >= kShortest) return std::string(secret);
  return absl::InvalidArgumentError(absl::StrCat("the token of ", from, " has ", secret.size(),
                                                 " characters; one that "
                                                 "cannot be guessed has ",
                                                 kShortest,
                                                 " or more, such as the output of "
                                                 "'openssl rand -hex 16'"));
}

// The token in a file that only this user may read. NotFound if there is none.
absl::StatusOr<std::string> ReadToken(const std::string& path) {
  struct stat s;
  if (stat(path.c_str(), &s) != 0) {
    if (errno == ENOENT) return absl::NotFoundError(path);
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(s.st_mode) || s.st_uid != geteuid() || (s.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s holds the token of a job, but is not a file of this user that nobody else may read (mode "
        "%04o, owner %d): chmod 600 it, or remove it and let it be made anew",
        path, s.st_mode & 07777, s.st_uid));
  }
  return ReadFile(path, kLongest);
}

// Makes the file, whole or not at all. Another process may be quicker.
absl::Status MakeToken(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash != std::string::npos && slash > 0) RETURN_IF_ERROR(MakeFolders(path.substr(0, slash)));
  const std::string mine = absl::StrCat(path, ".", absl::BytesToHexString(RandomBytes(8)));
  const int fd = open(mine.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  const std::string text = absl::StrCat(RandomToken(), "\n");
  const bool written = fd >= 0 && write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  const bool closed = fd >= 0 && close(fd) == 0;
  const bool there = written && closed && (link(mine.c_str(), path.c_str()) == 0 || errno == EEXIST);
  const int error = errno;
  if (fd >= 0) unlink(mine.c_str());
  if (there) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("cannot make ", path, ": ", std::strerror(error)));
}

absl::StatusOr<std::string> ReadOrMakeToken(const std::string& path) {
  absl::StatusOr<std::string> token = ReadToken(path);
  if (!absl::IsNotFound(token.status())) return token;
  RETURN_IF_ERROR(MakeToken(path));
  return ReadToken(path);
}

std::string OwnFile(const Environment& environment) {
  const auto get = [&](const char* name) -> std::string {
    const char* value = environment(name);
    return value == nullptr ? "" : value;
  };
  std::string folder = get("XDG_CONFIG_HOME");
  if (folder.empty()) {
    std::string home = get("HOME");
    if (const passwd* user = home.empty() ? getpwuid(geteuid()) : nullptr; user != nullptr)
      home = user->pw_dir;
    if (home.empty()) return "";
    folder = JoinPath(home, ".config");
  }
  return JoinPath(folder, "switchyard/job_token");
}

}  // namespace

std::string RandomToken() { return absl::BytesToHexString(RandomBytes(32)); }

std::string TokenOfJob(const std::string& secret, const std::string& job) {
  return absl::StrCat(secret, "\n", job);
}

absl::StatusOr<JobToken> FindToken(const Environment& environment) {
  if (const char* secret = environment("SWITCHYARD_JOB_TOKEN"); secret != nullptr && *secret != '\0') {
    JobToken token = {.from = "SWITCHYARD_JOB_TOKEN"};
    ASSIGN_OR_RETURN(token.secret, CheckSecret(secret, token.from));
    return token;
  }
  const char* named = environment("SWITCHYARD_JOB_TOKEN_FILE");
  const std::string path = named != nullptr && *named != '\0' ? named : OwnFile(environment);
  if (path.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this user has no home folder for the token of a job: ", kInstead));
  }
  JobToken token = {.from = absl::StrCat("the file ", path)};
  const absl::StatusOr<std::string> text = ReadOrMakeToken(path);
  if (!text.ok()) {
    return absl::Status(text.status().code(), absl::StrCat(text.status().message(), "; or ", kInstead));
  }
  ASSIGN_OR_RETURN(token.secret, CheckSecret(*text, token.from));
  return token;
}

}  // namespace moe::comm
