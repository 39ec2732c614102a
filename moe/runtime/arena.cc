#include "moe/runtime/arena.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::runtime {
namespace {
constexpr int64_t kPage = 4096;
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

int64_t Arena::BytesOf(const StageMemory& memory) { return Arena(memory).reserved_; }

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(const StageMemory& m, device::Device* device,
                                                     int64_t reserve) {
  std::unique_ptr<Arena> a(new Arena(m));
  absl::StatusOr<std::unique_ptr<device::DeviceMemory>> bytes =
      device->Allocate(std::max(a->reserved_, reserve), a->planned_);
  if (!bytes.ok()) {
    return Annotate(bytes.status(),
                    absl::StrCat("the plan needs ", a->planned_, " bytes for a rank (state ", m.state_bytes,
                                 ", input ", m.input_bytes, ", residuals ", m.residual_bytes, ", boundaries ",
                                 m.boundary_bytes, ", futures ", m.future_bytes, ", frame ", m.frame_bytes,
                                 ") and ", m.spill_bytes, " bytes of spill room"));
  }
  a->bytes_ = *std::move(bytes);
  a->base_ = a->bytes_->data();
  return a;
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Share(const StageMemory& m, const Arena& other) {
  std::unique_ptr<Arena> a(new Arena(m));
  if (a->reserved_ > other.bytes_->bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat("a plan of ", a->reserved_,
                                                     " bytes does not fit into the ", other.bytes_->bytes(),
                                                     " bytes reserved for those that share its state"));
  }
  a->bytes_ = other.bytes_;
  a->base_ = other.base_;
  return a;
}

char* Arena::At(Space space, int64_t offset) const {
  return base_ + start_[static_cast<int>(space)] + offset;
}

void Arena::ReleaseSpill() {
  if (spill_used_ == 0) return;
  bytes_->Forget(start_[5], reserved_ - start_[5]);
  spill_used_ = 0;
}

}  // namespace moe::runtime
