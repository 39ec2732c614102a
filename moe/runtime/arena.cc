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

Arena::Arena(const StageMemory& m) {
  const std::pair<Space, int64_t> regions[] = {
      {Space::kState, m.state_bytes},       {Space::kInput, m.input_bytes},
      {Space::kResidual, m.residual_bytes}, {Space::kBoundary, m.boundary_bytes},
      {Space::kFuture, m.future_bytes},     {Space::kFrame, m.frame_bytes}};
  int64_t at = 0;
  for (const auto& [space, bytes] : regions) {
    start_[static_cast<int>(space)] = at;
    at += bytes;
  }
  planned_ = at;
  start_[static_cast<int>(Space::kWeightResidual)] = start_[static_cast<int>(Space::kResidual)];
  // The spill region starts on a page of its own, so that it can be given back.
  start_[5] = (at + kPage - 1) / kPage * kPage;
  reserved_ = std::max<int64_t>(kPage, start_[5] + m.spill_bytes);
}

Arena::Mapping::~Mapping() {
  if (base != nullptr) munmap(base, bytes);
}

int64_t Arena::BytesOf(const StageMemory& memory) { return Arena(memory).reserved_; }

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(const StageMemory& m, int64_t reserve) {
  std::unique_ptr<Arena> a(new Arena(m));
  const int64_t bytes = std::max(a->reserved_, reserve) + kHugePage;  // to start at a multiple of a huge page
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot reserve ", a->planned_, " bytes for a rank (state ", m.state_bytes, ", input ", m.input_bytes,
        ", residuals ", m.residual_bytes, ", boundaries ", m.boundary_bytes, ", futures ", m.future_bytes,
        ", frame ", m.frame_bytes, ") and ", m.spill_bytes, " bytes of spill room: ", std::strerror(errno)));
  }
  a->mapping_ = std::make_shared<Mapping>();
  a->mapping_->base = p;
  a->mapping_->bytes = bytes;
  const uintptr_t start = reinterpret_cast<uintptr_t>(p);
  a->base_ = static_cast<char*>(p) + ((start + kHugePage - 1) / kHugePage * kHugePage - start);
  // Ranks take turns on a core, and their arenas together have far more small pages than a core keeps
  // addresses of. Only what the plan fills is asked for; it is a hint.
  if (a->planned_ >= kHugePage) madvise(a->base_, a->planned_ / kHugePage * kHugePage, MADV_HUGEPAGE);
  return a;
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Share(const StageMemory& m, const Arena& other) {
  std::unique_ptr<Arena> a(new Arena(m));
  if (a->reserved_ > other.mapping_->bytes - kHugePage) {
    return absl::ResourceExhaustedError(absl::StrCat("a plan of ", a->reserved_,
                                                     " bytes does not fit into the ", other.mapping_->bytes - kHugePage,
                                                     " bytes reserved for those that share its state"));
  }
  a->mapping_ = other.mapping_;
  a->base_ = other.base_;
  return a;
}

char* Arena::At(Space space, int64_t offset) const {
  return base_ + start_[static_cast<int>(space)] + offset;
}

void Arena::ReleaseSpill() {
  if (spill_used_ == 0) return;
  madvise(base_ + start_[5], reserved_ - start_[5], MADV_DONTNEED);
  spill_used_ = 0;
}

}  // namespace moe
