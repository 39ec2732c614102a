// Handshake: how the two ends of a new connection show each other that they hold the same token, before anything
// else is read. Three messages of fixed sizes; pure functions, for any socket and for fuzzing.
//
//   const Secret secret = {.token = token, .purpose = "store"};            // the same at both ends
//   const std::string challenge = MakeChallenge();                         // who listens sends first
//   const std::string answer = MakeAnswer(secret, challenge, /*who=*/3);   // who connects
//   ASSIGN_OR_RETURN(const uint64_t who, CheckAnswer(secret, challenge, answer));
//   const std::string verdict = MakeVerdict(secret, challenge, answer, Admission::kAdmitted);
//   RETURN_IF_ERROR(CheckVerdict(secret, challenge, answer, verdict));     // who connects
//
// The proofs are HMAC-SHA256 (RFC 2104) under the token, over the purpose of the connection, a random number of each
// side, and the number by which the connecting side calls itself. So a recorded handshake is of no use, a proof for
// one port is none for another, and a listener without the token learns nothing but what it takes to guess a weak
// one. What follows a handshake is neither encrypted nor signed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace moe::comm {

inline constexpr size_t kMagicBytes = 8;
inline constexpr size_t kChallengeBytes = kMagicBytes + 32;        // and a random number
inline constexpr size_t kAnswerBytes = kMagicBytes + 32 + 8 + 32;  // and a random number, who, proof
inline constexpr size_t kVerdictBytes = 1 + 32;                    // Admission, proof

struct Secret {
  std::string token;
  std::string purpose;
};

enum class Admission : uint8_t {
  kAdmitted = 1,
  kWrongToken = 2,
  kFull = 3,  // as many are connected as may be
};

// From the system's source of randomness.
std::string RandomBytes(size_t count);

std::string MakeChallenge();
// FailedPrecondition if this is the challenge of another program, or of another version of this one.
absl::Status CheckChallenge(absl::string_view challenge);
std::string MakeAnswer(const Secret& secret, absl::string_view challenge, uint64_t who);
// Whether an answer that begins like this can be one: of its first kMagicBytes.
bool BeginsAnswer(absl::string_view begin);
// Who it is. PermissionDenied for what was not made with this secret and for this challenge.
absl::StatusOr<uint64_t> CheckAnswer(const Secret& secret, absl::string_view challenge,
                                     absl::string_view answer);
std::string MakeVerdict(const Secret& secret, absl::string_view challenge, absl::string_view answer,
                        Admission admission);
// PermissionDenied if either end has another token, ResourceExhausted if the other is full.
absl::Status CheckVerdict(const Secret& secret, absl::string_view challenge, absl::string_view answer,
                          absl::string_view verdict);

}  // namespace moe::comm
