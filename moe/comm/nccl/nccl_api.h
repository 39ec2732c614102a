// NcclApi: the functions of NCCL that the project uses, found when the program runs. A binary starts without
// libnccl.so.2, and says what is missing when it first needs the library.
//
//   ASSIGN_OR_RETURN(const NcclApi* nccl, LoadNccl());
//   nccl->AllReduce(in, out, n, ncclFloat32, ncclSum, comm, stream);
//
// The library is looked for as the dynamic linker does it (LD_LIBRARY_PATH, the rpath, the system's folders),
// is loaded once and never unloaded. Thread-safe.
#pragma once

#include <nccl.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace moe::comm {

#define MOE_NCCL_FUNCTIONS(X) \
  X(GetVersion)               \
  X(GetUniqueId)              \
  X(CommInitRankConfig)       \
  X(CommAbort)                \
  X(CommGetAsyncError)        \
  X(GetErrorString)           \
  X(GetLastError)             \
  X(GroupStart) X(GroupEnd) X(AllReduce) X(ReduceScatter) X(AllGather) X(Broadcast) X(Send) X(Recv)

struct NcclApi {
#define MOE_NCCL_MEMBER(name) decltype(&::nccl##name) name = nullptr;
  MOE_NCCL_FUNCTIONS(MOE_NCCL_MEMBER)
#undef MOE_NCCL_MEMBER
  int version = 0;      // 22809 is 2.28.9
  std::string library;  // what was loaded
};

// The oldest that has what is used: communicators that do not block, with a configuration. An older one than
// that of the headers is fine otherwise.
inline constexpr int kOldestNccl = NCCL_VERSION(2, 18, 0);

std::string NcclVersionName(int version);  // "2.28.9"
// FailedPrecondition if that is too old, saying what is there and what is needed.
absl::Status CheckNcclVersion(int version, const std::string& library);

// The first of these that loads. Errors: Unavailable, with what the linker says of each; FailedPrecondition
// for one that is too old or lacks a function.
absl::StatusOr<NcclApi> LoadNcclFrom(absl::Span<const char* const> libraries);
// Once for the process; the same answer ever after.
absl::StatusOr<const NcclApi*> LoadNccl();

}  // namespace moe::comm
