#include "moe/comm/store/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"

namespace moe::comm {
namespace {

constexpr char kMagic[kMagicBytes + 1] = "SWYARD\x01\n";  // the byte before the last is the version
constexpr size_t kProofBytes = 32;

// The token's proof that a side has seen both random numbers. The first byte keeps the proofs of the sides apart.
std::string Proof(const Secret& secret, char side, absl::string_view challenge,
                  absl::string_view signed_part) {
  const std::string text =
      absl::StrCat(std::string(1, side), secret.purpose.size(), ":", secret.purpose, challenge, signed_part);
  std::string proof(EVP_MAX_MD_SIZE, '\0');
  unsigned int bytes = 0;
  CHECK(HMAC(EVP_sha256(), secret.token.data(), static_cast<int>(secret.token.size()),
             reinterpret_cast<const unsigned char*>(text.data()), text.size(),
             reinterpret_cast<unsigned char*>(proof.data()), &bytes) != nullptr &&
        bytes == kProofBytes);
  proof.resize(kProofBytes);
  return proof;
}

// Takes the same time wherever they differ.
bool Same(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

absl::string_view SignedPart(absl::string_view answer) {
  return answer.substr(0, kAnswerBytes - kProofBytes);
}

}  // namespace

std::string RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  for (size_t done = 0; done < count;) {
    const ssize_t n = getrandom(bytes.data() + done, count - done, 0);
    if (n > 0) done += static_cast<size_t>(n);  // else interrupted by a signal
  }
  return bytes;
}

std::string MakeChallenge() { return absl::StrCat(kMagic, RandomBytes(kChallengeBytes - kMagicBytes)); }

absl::Status CheckChallenge(absl::string_view challenge) {
  if (challenge.size() == kChallengeBytes && challenge.substr(0, kMagicBytes) == kMagic)
    return absl::OkStatus();
  const bool ours =
      challenge.substr(0, kMagicBytes - 2) == absl::string_view(kMagic).substr(0, kMagicBytes - 2);
  return absl::FailedPreconditionError(ours ? "another version of this program answers"
                                            : "what answers is not a rendezvous of this program");
}

std::string MakeAnswer(const Secret& secret, absl::string_view challenge, uint64_t who) {
  std::string answer = absl::StrCat(kMagic, RandomBytes(32));
  for (int i = 0; i < 8; ++i) answer += static_cast<char>(who >> (8 * i));
  return answer + Proof(secret, 'c', challenge, answer);
}

bool BeginsAnswer(absl::string_view begin) { return begin == kMagic; }

absl::StatusOr<uint64_t> CheckAnswer(const Secret& secret, absl::string_view challenge,
                                     absl::string_view answer) {
  if (answer.size() != kAnswerBytes || !BeginsAnswer(answer.substr(0, kMagicBytes)) ||
      !Same(answer.substr(kAnswerBytes - kProofBytes), Proof(secret, 'c', challenge, SignedPart(answer)))) {
    return absl::PermissionDeniedError("the token does not match");
  }
  uint64_t who = 0;
  for (int i = 0; i < 8; ++i) {
    who |= uint64_t{static_cast<unsigned char>(answer[kMagicBytes + 32 + i])} << (8 * i);
  }
  return who;
}

std::string MakeVerdict(const Secret& secret, absl::string_view challenge, absl::string_view answer,
                        Admission admission) {
  return absl::StrCat(std::string(1, static_cast<char>(admission)),
                      admission == Admission::kAdmitted ? Proof(secret, 's', challenge, SignedPart(answer))
                                                        : std::string(kProofBytes, '\0'));
}

absl::Status CheckVerdict(const Secret& secret, absl::string_view challenge, absl::string_view answer,
                          absl::string_view verdict) {
  if (verdict.size() == kVerdictBytes && verdict[0] == static_cast<char>(Admission::kFull)) {
    return absl::ResourceExhaustedError("as many are connected as may be");
  }
  if (verdict.size() != kVerdictBytes || verdict[0] != static_cast<char>(Admission::kAdmitted) ||
      !Same(verdict.substr(1), Proof(secret, 's', challenge, SignedPart(answer)))) {
    return absl::PermissionDeniedError("it is another job's, or has another token");
  }
  return absl::OkStatus();
}

}  // namespace moe::comm
