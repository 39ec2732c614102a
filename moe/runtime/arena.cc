#include "moe/runtime/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace moe {
namespace {
constexpr int64_t kPage = 4096, kHugePage = 2 << 20;
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(const StageMemory& m) {
  std::unique_ptr<Arena> a(new Arena);
  const std::pair<Space, int64_t> regions[] = {
      {Space::kState, m.state_bytes},       {Space::kInput, m.input_bytes},
      {Space::kResidual, m.residual_bytes}, {Space::kBoundary, m.boundary_bytes},
      {Space::kFuture, m.future_bytes},     {Space::kFrame, m.frame_bytes}};
  int64_t at = 0;
  for (const auto& [space, bytes] : regions) {
    a->start_[static_cast<int>(space)] = at;
    at += bytes;
  }
  a->planned_ = at;
  a->start_[static_cast<int>(Space::kWeightResidual)] = a->start_[static_cast<int>(Space::kResidual)];
  // The spill region starts on a page of its own, so that it can be given back.
  a->start_[5] = (at + kPage - 1) / kPage * kPage;
  // One more huge page, to start at a multiple of it.
  a->reserved_ = std::max<int64_t>(kPage, a->start_[5] + m.spill_bytes) + kHugePage;
  void* p =
      mmap(nullptr, a->reserved_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    a->reserved_ = 0;
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot reserve ", at, " bytes for a rank (state ", m.state_bytes, ", input ", m.input_bytes,
        ", residuals ", m.residual_bytes, ", boundaries ", m.boundary_bytes, ", futures ", m.future_bytes,
        ", frame ", m.frame_bytes, ") and ", m.spill_bytes, " bytes of spill room: ", std::strerror(errno)));
  }
  a->map_ = p;
  const uintptr_t start = reinterpret_cast<uintptr_t>(p);
  a->base_ = static_cast<char*>(p) + ((start + kHugePage - 1) / kHugePage * kHugePage - start);
  // Ranks take turns on a core, and their arenas together have far more small pages than a core keeps
  // addresses of. Only what the plan fills is asked for; it is a hint.
  if (at >= kHugePage) madvise(a->base_, at / kHugePage * kHugePage, MADV_HUGEPAGE);
  return a;
}

Arena::~Arena() {
  if (map_ != nullptr) munmap(map_, reserved_);
}

char* Arena::At(Space space, int64_t offset) const {
  return base_ + start_[static_cast<int>(space)] + offset;
}

void Arena::ReleaseSpill() {
  if (spill_used_ == 0) return;
  madvise(base_ + start_[5], static_cast<char*>(map_) + reserved_ - (base_ + start_[5]), MADV_DONTNEED);
  spill_used_ = 0;
}

}  // namespace moe
