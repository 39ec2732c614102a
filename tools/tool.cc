#include "tools/tool.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <exception>
#include <iostream>
#include <new>
#include <streambuf>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moe::tools {
namespace {

// Standard output, which remembers why it could not be written. What is not flushed is written at the end.
class Output : public std::streambuf {
 public:
  Output() { setp(buffer_, buffer_ + sizeof(buffer_)); }
  int error() const { return error_; }
  bool unread() const { return error_ == EPIPE || error_ == EIO; }
  std::function<void()> gone;

 protected:
  int overflow(int c) override {
    if (sync() != 0) return traits_type::eof();
    if (traits_type::eq_int_type(c, traits_type::eof())) return 0;
    *pptr() = traits_type::to_char_type(c);
    pbump(1);
    return c;
  }
  int sync() override {
    const char* from = pbase();
    while (error_ == 0 && from < pptr()) {
      const ssize_t put = write(STDOUT_FILENO, from, pptr() - from);
      if (put >= 0) from += put;
      if (put < 0 && errno != EINTR) error_ = errno;
    }
    setp(buffer_, buffer_ + sizeof(buffer_));
    if (unread() && gone) std::exchange(gone, nullptr)();
    return error_ == 0 ? 0 : -1;
  }

 private:
  char buffer_[1 << 14];
  int error_ = 0;
};

Output& StandardOutput() {
  static Output* const output = new Output;  // others may print to the last
  return *output;
}

void Print(const std::string& text) {
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) {
    // Nobody is there to read it.
  }
}

// An exception that nobody expects: of the standard library, where the system gives no more of something.
void OnTerminate() {
  std::string why = "an unexpected exception";
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::bad_alloc&) {
    why = "out of memory: the system gives this process no more (see ulimit -v, and the limit of its cgroup)";
  } catch (const std::system_error& e) {
    why = e.code() == std::errc::resource_unavailable_try_again
              ? "cannot start a thread: the system gives this user or cgroup no more (see ulimit -u)"
              : e.what();
  } catch (const std::exception& e) {
    why = e.what();
  } catch (...) {
  }
  Print(absl::StrCat("error: ", why, "\n"));
  _exit(kExitError);
}

// A library that aborts where it gets no memory or threads: under a limit that is the cause nearly always.
void OnAbort(int) {
  const std::pair<__rlimit_resource, const char*> limits[] = {
      {RLIMIT_AS, "error: a library gave up, and the address space of this process is limited (ulimit -v)\n"},
      {RLIMIT_DATA, "error: a library gave up, and the memory of this process is limited (ulimit -d)\n"}};
  for (const auto& [resource, text] : limits) {
    rlimit limit;
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) continue;
    if (write(STDERR_FILENO, text, strlen(text)) < 0) {
      // Nobody is there to read it.
    }
    _exit(kExitError);
  }
  signal(SIGABRT, SIG_DFL);
}

}  // namespace

void BeginTool() {
  setenv("OMP_NUM_THREADS", "1", 0);
  setenv("OPENBLAS_NUM_THREADS", "1", 0);
  signal(SIGXFSZ, SIG_IGN);
  signal(SIGABRT, OnAbort);
  std::set_terminate(OnTerminate);
  std::cout.rdbuf(&StandardOutput());
}

void WhenNobodyReads(std::function<void()> gone) { StandardOutput().gone = std::move(gone); }

int EndTool(const absl::Status& status) {
  const bool stopped = absl::IsCancelled(status);
  if (stopped && !status.message().empty()) std::cout << status.message() << "\n";
  std::cout.flush();
  const bool said = fflush(stdout) == 0 && !ferror(stdout);
  if (!status.ok() && !stopped && !status.message().empty()) {
    Print(absl::StrCat("error: ", status.message(), "\n"));
  }
  const Output& output = StandardOutput();
  if (stopped) return kExitStopped;
  if (!status.ok()) return kExitError;
  if (output.unread() || (said && output.error() == 0)) return kExitDone;
  Print(absl::StrCat("error: cannot write all of the output",
                     output.error() == 0 ? "" : absl::StrCat(": ", strerror(output.error())), "\n"));
  return kExitError;
}

}  // namespace moe::tools
