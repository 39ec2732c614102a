// The token of a job: the secret that its processes show each other before they say anything else.
//
//   ASSIGN_OR_RETURN(const JobToken token, FindToken(SystemEnvironment()));
//
//   SWITCHYARD_JOB_TOKEN        the secret itself, of at least 16 characters
//   SWITCHYARD_JOB_TOKEN_FILE   a file that holds it
//   neither                     the user's own file, ~/.config/switchyard/job_token ($XDG_CONFIG_HOME)
//
// A file that is not there is made, with a random token: of many processes that try at once, all get the same one, also
// over NFS. It belongs to this user and nobody else may read it, or it is refused. So where processes share a home
// folder nobody has to do anything. Plain functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "moe/comm/job/environment.h"

namespace moe::comm {

struct JobToken {
  std::string secret;
  std::string from;  // "SWITCHYARD_JOB_TOKEN", "the file /home/me/.config/switchyard/job_token"; for messages
};

// InvalidArgument for a secret that is too short; FailedPrecondition for a file that others may read or that cannot be
// made, with what to do instead.
absl::StatusOr<JobToken> FindToken(const Environment& environment);

// A new one: 64 random hexadecimal digits.
std::string RandomToken();

// What the processes of one job of this user show each other. `job`: what the launcher calls it, or "".
std::string TokenOfJob(const std::string& secret, const std::string& job);

}  // namespace moe::comm
