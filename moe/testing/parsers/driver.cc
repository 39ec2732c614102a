// What runs a fuzz target without libFuzzer, in an ordinary test: every file of the corpus, and then for some seconds what comes
// of changing and joining them at random. An input that crashes, or takes too long, is written to a file, whose path is
// printed; run the target on that file to see it again.
//
//   ir_text_fuzz [--seconds=1] [--seed=1] FILE_OR_FOLDER...
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "moe/base/clock.h"
#include "moe/base/file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr size_t kMostBytes = 1 << 16;
constexpr unsigned kSeconds = 20;  // that one input may take

// The input that runs, for the handler of signals; `path` is where it goes.
const std::string* running = nullptr;
std::string* path = nullptr;

void WriteInput(int signal) {
  const int fd = ::open(path->c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0 && running != nullptr) {
    (void)!::write(fd, running->data(), running->size());
    ::close(fd);
    (void)!::write(2, "\nthe input is in ", 17);
    (void)!::write(2, path->data(), path->size());
    (void)!::write(2, "\n", 1);
  }
  ::signal(signal == SIGALRM ? SIGABRT : signal, SIG_DFL);
  ::raise(signal == SIGALRM ? SIGABRT : signal);
}

void RunOne(const std::string& input) {
  running = &input;
  ::alarm(kSeconds);
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  ::alarm(0);
}

class Mutator {
 public:
  Mutator(std::vector<std::string> corpus, uint64_t seed) : corpus_(std::move(corpus)), random_(seed) {}

  std::string Next() {
    std::string text = Any();
    for (uint64_t times = 1 + Below(6); times > 0; --times) Change(&text);
    if (text.size() > kMostBytes) text.resize(kMostBytes);
    return text;
  }

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }
  const std::string& Any() { return corpus_[Below(corpus_.size())]; }
  // A piece of a text, mostly short.
  std::string Piece(const std::string& text) {
    if (text.empty()) return "";
    return text.substr(Below(text.size()), 1 + Below(Below(4) == 0 ? 512 : 16));
  }

  void Change(std::string* text) {
    static const char* const kWords[] = {"-1",
                                         "0",
                                         "9223372036854775807",
                                         "-9223372036854775808",
                                         "1e308",
                                         "nan",
                                         "4294967296",
                                         "[",
                                         "]",
                                         "{",
                                         "}",
                                         "(",
                                         ")",
                                         "<",
                                         ">",
                                         "\"",
                                         ",",
                                         "\n",
                                         "\\",
                                         "%",
                                         "@",
                                         "#",
                                         "//",
                                         "\xff",
                                         "\x80"};
    const size_t at = Below(text->size() + 1);
    switch (Below(8)) {
      case 0:
        if (!text->empty()) (*text)[at % text->size()] ^= static_cast<char>(1 << Below(8));
        break;
      case 1:
        if (!text->empty()) (*text)[at % text->size()] = static_cast<char>(Below(256));
        break;
      case 2:
        text->erase(at, 1 + Below(Below(4) == 0 ? 256 : 8));
        break;
      case 3:
        text->insert(at, kWords[Below(std::size(kWords))]);
        break;
      case 4:  // in place of the number or the word that stands there
        for (size_t end = at; end <= text->size(); ++end) {
          if (end < text->size() && std::isalnum(static_cast<unsigned char>((*text)[end]))) continue;
          text->replace(at, end - at, kWords[Below(std::size(kWords))]);
          break;
        }
        break;
      case 5: {  // the same again and again: lists and depth
        const std::string piece = Piece(*text);
        for (uint64_t times = 1 + Below(Below(8) == 0 ? 4096 : 8); times > 0 && text->size() < kMostBytes;
             --times) {
          text->insert(at, piece);
        }
        break;
      }
      case 6:
        text->insert(at, Piece(Any()));
        break;
      default: {  // the beginning of one and the end of another
        const std::string& other = Any();
        text->replace(at, std::string::npos, other, Below(other.size() + 1), std::string::npos);
      }
    }
  }

  std::vector<std::string> corpus_;
  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  double seconds = 1;
  uint64_t seed = 1;
  std::vector<std::string> corpus;
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (absl::ConsumePrefix(&arg, "--seconds=")) {
      if (!absl::SimpleAtod(arg, &seconds)) return 2;
    } else if (absl::ConsumePrefix(&arg, "--seed=")) {
      if (!absl::SimpleAtoi(arg, &seed)) return 2;
    } else {
      std::vector<std::string> files = {std::string(arg)};
      if (moe::IsFolder(files[0])) {
        files = moe::ListFolder(files[0]).value();
        for (std::string& file : files) file = moe::JoinPath(arg, file);
      }
      for (const std::string& file : files) corpus.push_back(moe::ReadFile(file).value());
    }
  }
  if (corpus.empty()) {
    std::cerr << "there is no corpus: name files or folders\n";
    return 2;
  }
  const char* outputs = std::getenv("TEST_UNDECLARED_OUTPUTS_DIR");
  path =
      new std::string(moe::JoinPath(outputs == nullptr ? "." : outputs, absl::StrCat("crash-", ::getpid())));
  for (const int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM}) {
    // On a stack of its own: what crashes may have used up the other.
    struct sigaction action = {};
    static char stack[1 << 16];
    const stack_t own = {stack, 0, sizeof(stack)};
    ::sigaltstack(&own, nullptr);
    action.sa_handler = WriteInput;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    ::sigaction(s, &action, nullptr);
  }
  for (const std::string& input : corpus) RunOne(input);
  Mutator mutator(corpus, seed);
  const int64_t end = moe::NowNanos() + static_cast<int64_t>(seconds * 1e9);
  int64_t runs = 0;
  for (; moe::NowNanos() < end; ++runs) RunOne(mutator.Next());
  std::cout << corpus.size() << " files of the corpus and " << runs << " inputs made of them, seed " << seed
            << "\n";
  return 0;
}
