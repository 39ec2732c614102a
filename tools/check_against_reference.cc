#include "tools/check_against_reference.h"

#include <cmath>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/model/config.h"
#include "moe/testing/equivalence.h"
#include "moe/train/config/validate.h"
#include "moe/train/run/summary.h"

namespace moe::tools {

absl::Status CheckAgainstReference(const train::RunConfig& config, const std::string& passes,
                                   std::ostream& out) {
  RETURN_IF_ERROR(train::ValidateRunConfig(config));
  const bool f32 = config.model().dtype() == "f32";
  // Rounding of f32 grows over steps; f64 has none to speak of.
  const bool narrow = strategy::Rounds(train::StrategyOf(config));
  const double gradient_bound = narrow ? 0.2
                                : f32  ? 1e-4
                                       : 1e-9,
               loss_bound = narrow ? 2e-2
                            : f32  ? 1e-4
                                   : 1e-9;
  out << train::SummaryLine("model", model::DescribeModel(config.model()))
      << train::SummaryLine("mesh", train::DescribeStrategy(config)) << std::flush;
  testing::EquivalenceCase c;
  c.name = config.model().name();
  c.global_batch = config.train().global_batch_size();
  c.f32 = f32;
  c.passes = passes;
  ASSIGN_OR_RETURN(const testing::EquivalenceResult r,
                   testing::CheckEquivalence(config.model(), train::StrategyOf(config), c));
  std::string table = absl::StrFormat("%4s  %18s  %18s  %10s", "step", "reference, 1 rank",
                                      absl::StrCat("plan, ", r.ranks, " ranks"), "difference");
  for (size_t i = 0; i < r.losses.size(); ++i) {
    const double want = r.reference_losses[i];
    absl::StrAppendFormat(&table, "\n%4d  %18.12f  %18.12f  %10.1e", i + 1, want, r.losses[i],
                          std::abs(r.losses[i] - want) / std::abs(want));
  }
  out << train::SummaryLine("losses", table);
  const bool gradients = r.worst_gradient < gradient_bound, losses = r.worst_loss < loss_bound;
  out << train::SummaryLine(
      "result", absl::StrFormat("gradients %.1e of their norm at worst, in %s (bound %.0e)\n"
                                "losses %.1e at worst (bound %.0e)\n%s",
                                r.worst_gradient, r.worst_gradient_name, gradient_bound, r.worst_loss,
                                loss_bound, train::PeakMemoryText(r.planned_peak, r.measured_peak)));
  if (!gradients || !losses) {
    return absl::OutOfRangeError(absl::StrCat(
        "this plan does not compute what one device computes: ", gradients ? "losses" : "gradients",
        " differ beyond the bound"));
  }
  return absl::OkStatus();
}

}  // namespace moe::tools
