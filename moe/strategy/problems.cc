#include "moe/strategy/problems.h"

#include "moe/strategy/needs.h"

namespace moe::strategy {

void Report::AddPart(absl::string_view flag, int64_t part, absl::string_view ranks, int64_t all,
                     bool sharded) {
  if (part == 0) return;
  if (all % part != 0) {
    Add(flag, " = ", part, " does not divide ", ranks, " = ", all).legal =
        absl::StrCat(ShowNear(Divisors(all), part), ", or 0 for all of them");
  } else if (!sharded) {
    Add(flag, " = ", part, ", but this state is not sharded").legal = "0, or a ZeRO stage of 1, 2 or 3";
  }
}

int64_t MicrobatchesOf(const Strategy& s, const Facts& f) {
  int64_t samples = 0;
  if (f.global_batch < 1 || f.micro_batch < 1 || s.dp < 1 ||
      __builtin_mul_overflow(f.micro_batch, s.dp, &samples)) {
    return 0;
  }
  return f.global_batch % samples == 0 ? f.global_batch / samples : 0;
}

std::vector<Problem> Problems(Strategy s, const Facts& f) {
  Resolve(f.experts > 0, s);
  Report out;
  // Numbers of a strategy that no text was read for.
  for (const Word& w : Words()) {
    if (w.least > w.most) continue;
    Strategy read;
    out.SetWord(&w);
    if (w.Set(w.Value(s), read)) out.Add(w.label(), " = ", w.Value(s)).legal = w.legal;
  }
  std::vector<Problem> problems = out.Take();
  if (!problems.empty()) return problems;
  if (static_cast<double>(s.pp) * s.dp * s.cp * s.tp > kMaxRanks ||
      static_cast<double>(s.ep) * s.etp > kMaxRanks) {
    return {{FindWord("dp"), "more than a thousand million ranks", "smaller sizes", ""}};
  }
  for (const Word& w : Words()) {
    out.SetWord(&w);
    if (w.needs != nullptr) w.needs(s, f, out);
  }
  return out.Take();
}

}  // namespace moe::strategy
