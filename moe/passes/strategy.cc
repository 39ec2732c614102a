#include "moe/passes/strategy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "moe/base/status.h"
#include "moe/ir/stored_rows.h"
#include "moe/passes/checkpoint_policy.h"

namespace moe::passes {
namespace {

struct IntField {
  const char* name;
  int64_t Strategy::*field;
};
constexpr IntField kDegrees[] = {{"pp", &Strategy::pp}, {"dp", &Strategy::dp}, {"cp", &Strategy::cp},
                                 {"tp", &Strategy::tp}, {"ep", &Strategy::ep}, {"etp", &Strategy::etp}};
constexpr IntField kCounts[] = {{"microbatches", &Strategy::microbatches},
                                {"virtual_chunks", &Strategy::virtual_chunks},
                                {"moe_chunks", &Strategy::moe_chunks}};
constexpr int64_t kMaxExpertSlots = 1 << 20;
// 0: not set.
constexpr IntField kParts[] = {{"zero_dp", &Strategy::zero_dp},
                               {"expert_zero_dp", &Strategy::expert_zero_dp},
                               {"devices_per_node", &Strategy::devices_per_node}};
struct ChoiceField {
  const char* name;
  std::string Strategy::*field;
  std::vector<absl::string_view> values;
};
const std::vector<ChoiceField>& Choices() {
  static const auto& choices =
      *new std::vector<ChoiceField>{{"cp_attention", &Strategy::cp_attention, {"auto", "gather", "ring"}},
                                    {"cp_order", &Strategy::cp_order, {"auto", "contiguous", "zigzag"}},
                                    {"hierarchical", &Strategy::hierarchical, {"auto", "on", "off"}}};
  return choices;
}
constexpr IntField kByteSizes[] = {{"checkpoint_budget", &Strategy::checkpoint_budget},
                                   {"memory_limit", &Strategy::memory_limit}};
constexpr std::pair<absl::string_view, int> kByteUnits[] = {{"GiB", 30}, {"MiB", 20}, {"KiB", 10}};
struct WireField {
  const char* name;
  std::string Strategy::*field;
};
constexpr WireField kWires[] = {{"compress_dispatch", &Strategy::compress_dispatch},
                                {"compress_combine", &Strategy::compress_combine},
                                {"compress_gather", &Strategy::compress_gather},
                                {"compress_grad", &Strategy::compress_grad}};
constexpr int64_t kMaxDegree = int64_t{1} << 24;

std::vector<int64_t> Divisors(int64_t n) {
  std::vector<int64_t> out;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d) continue;
    out.push_back(d);
    if (d * d != n) out.push_back(n / d);
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Degrees of the ranks of one stage, and where they cut the rank number.
struct Degrees {
  int64_t tp = 1, cp = 1, dp = 1, etp = 1, ep = 1, edp = 1;
  int64_t kv_heads = 0;
  int64_t zero_dp = 0, expert_zero_dp = 0;  // 0: all
  std::vector<int64_t> more_cuts;           // of strategies that share the mesh
  int64_t world() const { return tp * cp * dp; }

  // kvh: the part of tp that shards K and V; the other part, kvr, repeats them and is minor.
  int64_t kv_repeats() const { return kv_heads ? tp / std::gcd(tp, kv_heads) : 1; }

  std::vector<int64_t> Cuts(bool edp_inside_ep = false) const {
    std::vector<int64_t> cuts = {
        1, tp, tp * cp, world(), etp, etp * (edp_inside_ep ? edp : ep), etp * ep * edp, kv_repeats()};
    if (zero_dp) cuts.push_back(tp * zero_dp);
    if (expert_zero_dp) cuts.push_back(etp * ep * expert_zero_dp);
    cuts.insert(cuts.end(), more_cuts.begin(), more_cuts.end());
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    return cuts;
  }

  // What is wrong, or nothing.
  std::optional<std::string> Problem(bool edp_inside_ep = false) const {
    if (etp * ep * edp != world()) {
      return absl::StrCat("etp x ep = ", etp * ep, " does not divide tp x cp x dp = ", world(),
                          " (the ranks of a stage, shared by attention and experts)");
    }
    if (kv_heads && kv_heads % tp && tp % kv_heads) {
      return absl::StrCat("tp = ", tp, " and ", kv_heads, " key-value heads: neither divides the other");
    }
    if (zero_dp && (dp * cp) % zero_dp) {
      return absl::StrCat("zero_dp = ", zero_dp, " does not divide dp x cp = ", dp * cp,
                          ", the ranks over which dense state can be sharded");
    }
    if (expert_zero_dp && edp % expert_zero_dp) {
      return absl::StrCat("expert_zero_dp = ", expert_zero_dp, " does not divide edp = ", edp,
                          ", the ranks over which expert state can be sharded");
    }
    const std::vector<int64_t> cuts = Cuts(edp_inside_ep);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (cuts[i + 1] % cuts[i]) {
        return absl::StrCat("attention and experts cut the ranks at {", absl::StrJoin(cuts, ", "), "}, and ",
                            cuts[i], " does not divide ", cuts[i + 1]);
      }
    }
    return std::nullopt;
  }
};

Degrees DegreesOf(const Strategy& s, int64_t kv_heads) {
  Degrees d;
  d.tp = s.tp, d.cp = s.cp, d.dp = s.dp, d.etp = s.etp, d.ep = s.ep;
  d.edp = std::max<int64_t>(1, d.world() / (d.etp * d.ep));
  d.kv_heads = s.kv_axis ? kv_heads : 0;
  d.zero_dp = s.zero_dp;
  d.expert_zero_dp = s.expert_zero_dp;
  return d;
}

// Nodes begin at multiples of devices_per_node, stages at multiples of their ranks: what is inside a node
// everywhere begins at multiples of both. The largest such cut that keeps the chain, so that the axes below
// it are inside.
int64_t NodeCut(const Strategy& s, const std::vector<int64_t>& cuts) {
  const int64_t stage = cuts.back(), inside = std::gcd(s.devices_per_node, stage);
  const std::vector<int64_t> candidates = Divisors(inside);
  for (auto c = candidates.rbegin(); c != candidates.rend(); ++c) {
    if (std::all_of(cuts.begin(), cuts.end(), [&](int64_t cut) { return cut % *c == 0 || *c % cut == 0; }))
      return *c;
  }
  return 1;
}

std::string Nearest(const Degrees& wanted) {
  Degrees best;
  bool found = false;
  double best_distance = std::numeric_limits<double>::infinity();
  const auto log_ratio = [](int64_t a, int64_t b) {
    return std::abs(std::log(static_cast<double>(a) / static_cast<double>(b)));
  };
  const std::vector<int64_t> divisors = Divisors(wanted.world());
  Degrees d = wanted;
  for (int64_t tp : divisors) {
    for (int64_t cp : divisors) {
      if (wanted.world() % (tp * cp)) continue;
      for (int64_t etp : divisors) {
        for (int64_t ep : divisors) {
          if (wanted.world() % (etp * ep)) continue;
          d.tp = tp, d.cp = cp, d.dp = wanted.world() / (tp * cp);
          d.etp = etp, d.ep = ep, d.edp = wanted.world() / (etp * ep);
          if (d.Problem()) continue;
          const double distance = log_ratio(tp, wanted.tp) + log_ratio(cp, wanted.cp) +
                                  log_ratio(etp, wanted.etp) + log_ratio(ep, wanted.ep);
          if (distance < best_distance - 1e-9) best_distance = distance, best = d, found = true;
        }
      }
    }
  }
  if (!found) {  // it is the parts of the data ranks that never fit
    d = wanted;
    d.zero_dp = d.expert_zero_dp = 0;
    return absl::StrCat(Nearest(d), " without zero_dp and expert_zero_dp");
  }
  return absl::StrFormat("tp=%d cp=%d dp=%d etp=%d ep=%d (edp=%d)", best.tp, best.cp, best.dp, best.etp,
                         best.ep, best.edp);
}

// Hybrid sharding of what is not sharded at all.
std::string ShardProblem(const Strategy& s) {
  const bool expert = s.expert_zero_dp > 0 && s.expert_zero_stage() == 0;
  if (!expert && (s.zero_dp == 0 || s.zero > 0)) return "";
  return expert
             ? absl::StrCat("expert_zero_dp = ", s.expert_zero_dp,
                            " says over how many ranks ZeRO shards expert state, which it does with "
                            "expert_zero = 1, 2 or 3")
             : absl::StrCat(
                   "zero_dp = ", s.zero_dp,
                   " says over how many ranks ZeRO shards dense state, which it does with zero = 1, 2 or 3");
}

}  // namespace

std::string Strategy::ToString() const {
  const Strategy defaults;
  std::vector<std::string> words;
  for (const IntField& f : kDegrees) {
    if (this->*f.field != 1) words.push_back(absl::StrCat(f.name, "=", this->*f.field));
  }
  if (sequence_parallel) words.push_back("sp");
  if (vocab_parallel) words.push_back("vp");
  if (zero != 0) words.push_back(absl::StrCat("zero=", zero));
  if (expert_zero >= 0) words.push_back(absl::StrCat("expert_zero=", expert_zero));
  for (const IntField& f : kCounts) {
    if (this->*f.field != 1) words.push_back(absl::StrCat(f.name, "=", this->*f.field));
  }
  if (schedule != defaults.schedule) words.push_back(absl::StrCat("schedule=", schedule));
  if (checkpoint != defaults.checkpoint) words.push_back(absl::StrCat("checkpoint=", checkpoint));
  for (const IntField& f : kByteSizes) {
    if (this->*f.field != 0) words.push_back(absl::StrCat(f.name, "=", ByteSizeToString(this->*f.field)));
  }
  if (dispatcher != defaults.dispatcher) words.push_back(absl::StrCat("dispatcher=", dispatcher));
  if (!precision.empty()) words.push_back(precision);
  if (!grads.empty()) words.push_back(absl::StrCat("grads=", grads));
  if (fp8_experts) words.push_back("fp8_experts");
  for (const WireField& f : kWires) {
    if (!(this->*f.field).empty()) words.push_back(absl::StrCat(f.name, "=", this->*f.field));
  }
  if (overload != 0) words.push_back(absl::StrFormat("overload=%.17g", overload));
  if (!ep_order.empty()) words.push_back(absl::StrCat("ep_order=", ep_order));
  if (bucket >= 0) words.push_back(absl::StrCat("bucket=", bucket));
  if (!overlap.empty()) words.push_back(absl::StrCat("overlap=", overlap));
  if (!kv_axis) words.push_back("no_kv_axis");
  if (expert_slots != 0) words.push_back(absl::StrCat("expert_slots=", expert_slots));
  if (!expert_map.empty()) words.push_back(absl::StrCat("expert_map=", absl::StrJoin(expert_map, ":")));
  for (const IntField& f : kParts) {
    if (this->*f.field != 0) words.push_back(absl::StrCat(f.name, "=", this->*f.field));
  }
  for (const ChoiceField& f : Choices()) {
    if (this->*f.field != "auto") words.push_back(absl::StrCat(f.name, "=", this->*f.field));
  }
  if (words.empty()) words.push_back("dp=1");
  return absl::StrJoin(words, " ");
}

absl::StatusOr<int64_t> ParseByteSize(absl::string_view text) {
  int shift = 0;
  absl::string_view number = text;
  for (const auto& [unit, bits] : kByteUnits) {
    if (absl::ConsumeSuffix(&number, unit)) shift = bits;
  }
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !(value > 0) || std::ldexp(value, shift) >= std::ldexp(1.0, 62)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is no number of bytes; legal is 1048576, 512KiB, 38.5MiB, 80GiB"));
  }
  return static_cast<int64_t>(std::ldexp(value, shift));
}

std::string ByteSizeToString(int64_t bytes) {
  for (const auto& [unit, bits] : kByteUnits) {
    if (bytes != 0 && bytes % (int64_t{1} << bits) == 0) return absl::StrCat(bytes >> bits, unit);
  }
  return absl::StrCat(bytes);
}

absl::StatusOr<Strategy> ParseStrategy(absl::string_view text) {
  Strategy s;
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" ,\t\n"), absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> kv = absl::StrSplit(word, absl::MaxSplits('=', 1));
    const auto& [key, value] = kv;
    const auto bad = [w = word](absl::string_view legal) {
      return absl::InvalidArgumentError(absl::StrCat("strategy: '", w, "': legal is ", legal));
    };
    if (word == "sp") {
      s.sequence_parallel = true;
    } else if (word == "vp") {
      s.vocab_parallel = true;
    } else if (word == "no_kv_axis") {
      s.kv_axis = false;
    } else if (word == "fp8_experts") {
      s.fp8_experts = true;
    } else if (word == "bf16" || word == "f16") {
      if (!s.precision.empty() && s.precision != word) return bad("one of bf16 and f16");
      s.precision = std::string(word);
    } else if (key == "grads") {
      if (value != "f32" && value != "bf16" && value != "f16") return bad("f32, bf16 or f16");
      s.grads = value == "f32" ? "" : std::string(value);
    } else if (key == "zero" || key == "expert_zero") {
      int stage;
      if (!absl::SimpleAtoi(value, &stage) || stage < 0 || stage > 3) return bad("0, 1, 2 or 3");
      (key == "zero" ? s.zero : s.expert_zero) = stage;
    } else if (key == "schedule" && !value.empty()) {
      s.schedule = std::string(value);
    } else if (key == "checkpoint") {
      const absl::StatusOr<CheckpointPolicy> policy = ParseCheckpointPolicy(value);
      if (!policy.ok()) return Annotate(policy.status(), "strategy");
      s.checkpoint = std::string(value);
    } else if (key == "dispatcher") {
      if (value != "alltoall" && value != "allgather" && value != "auto")
        return bad("alltoall, allgather or auto");
      s.dispatcher = std::string(value);
    } else if (key == kByteSizes[0].name || key == kByteSizes[1].name) {
      const absl::StatusOr<int64_t> bytes = ParseByteSize(value);
      if (!bytes.ok()) return Annotate(bytes.status(), absl::StrCat("strategy: ", key));
      s.*(key == kByteSizes[0].name ? kByteSizes[0] : kByteSizes[1]).field = *bytes;
    } else if (key == "overload") {
      if (!absl::SimpleAtod(value, &s.overload) || !std::isfinite(s.overload)) return bad("a number");
    } else if (key == "bucket") {
      if (!absl::SimpleAtoi(value, &s.bucket) || s.bucket < 0) return bad("a number of bytes; 0: no buckets");
    } else if (key == "overlap") {
      if (value != "on" && value != "off") return bad("on or off");
      s.overlap = std::string(value);
    } else if (key == "ep_order") {
      if (value != "fold" && value != "reversed") return bad("fold or reversed");
      s.ep_order = std::string(value);
    } else if (key == "expert_slots") {
      if (!absl::SimpleAtoi(value, &s.expert_slots) || s.expert_slots < 1 ||
          s.expert_slots > kMaxExpertSlots) {
        return bad(absl::StrCat("1 to ", kMaxExpertSlots));
      }
    } else if (key == "expert_map") {
      absl::StatusOr<std::vector<int64_t>> map = ParseExpertMap(value);
      if (!map.ok()) return absl::InvalidArgumentError(absl::StrCat("strategy: ", map.status().message()));
      s.expert_map = *std::move(map);
    } else if (const auto c = std::find_if(Choices().begin(), Choices().end(),
                                           [k = key](const ChoiceField& f) { return k == f.name; });
               c != Choices().end()) {
      if (std::find(c->values.begin(), c->values.end(), value) == c->values.end()) {
        return bad(absl::StrJoin(c->values, ", "));
      }
      s.*(c->field) = std::string(value);
    } else if (const auto* wire = std::find_if(std::begin(kWires), std::end(kWires),
                                               [k = key](const WireField& f) { return k == f.name; });
               wire != std::end(kWires)) {
      if (value != "bf16" && value != "f8") return bad("bf16 or f8");
      s.*wire->field = std::string(value);
    } else {
      int64_t Strategy::*field = nullptr;
      for (const IntField& f : kDegrees) field = key == f.name ? f.field : field;
      for (const IntField& f : kCounts) field = key == f.name ? f.field : field;
      for (const IntField& f : kParts) field = key == f.name ? f.field : field;
      if (field == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(
            "strategy: unknown word '", word,
            "'; known: pp= dp= cp= tp= ep= etp= sp vp zero= expert_zero= microbatches= virtual_chunks= "
            "moe_chunks= schedule= checkpoint= checkpoint_budget= memory_limit= dispatcher= overload= "
            "ep_order= "
            "bucket= overlap= bf16 f16 grads= fp8_experts compress_dispatch= compress_combine= "
            "compress_gather= "
            "compress_grad= "
            "no_kv_axis expert_slots= expert_map= zero_dp= expert_zero_dp= cp_attention= cp_order= "
            "devices_per_node= hierarchical="));
      }
      if (!absl::SimpleAtoi(value, &(s.*field)) || s.*field < 1 || s.*field > kMaxDegree) {
        return bad("a positive number");
      }
    }
  }
  if (s.fp8_experts && s.precision != "bf16") {
    return absl::InvalidArgumentError("strategy: 'fp8_experts' is legal with bf16 only, which it rounds");
  }
  return s;
}

absl::StatusOr<std::vector<int64_t>> ParseExpertMap(absl::string_view text) {
  std::vector<int64_t> map;
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(",:"))) {
    int64_t expert;
    if (!absl::SimpleAtoi(word, &expert) || expert < -1) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert_map '", text, "': '", word,
                       "' is not an expert; legal are numbers from 0 on, and -1 for an "
                       "empty slot"));
    }
    map.push_back(expert);
    if (static_cast<int64_t>(map.size()) > kMaxExpertSlots) {
      return absl::InvalidArgumentError(absl::StrCat("expert_map has more than ", kMaxExpertSlots, " slots"));
    }
  }
  return map;
}

absl::StatusOr<std::vector<int64_t>> ExpertMapOf(const Strategy& s, int64_t experts) {
  std::vector<int64_t> map = s.expert_map;
  const int64_t slots = s.expert_slots > 0 ? s.expert_slots
                        : map.empty()      ? experts
                                           : static_cast<int64_t>(map.size());
  if (slots < experts || slots > kMaxExpertSlots) {
    return absl::InvalidArgumentError(absl::StrCat(slots, " expert slots for ", experts,
                                                   " experts; legal are ", experts, " to ", kMaxExpertSlots,
                                                   ", in multiples of ep = ", s.ep));
  }
  if (slots % s.ep != 0) {
    return absl::InvalidArgumentError(absl::StrCat(slots, " expert slots do not divide over ep = ", s.ep,
                                                   "; the next that do: ", (slots + s.ep - 1) / s.ep * s.ep));
  }
  if (map.empty()) {
    map.assign(slots, -1);
    for (int64_t e = 0; e < experts; ++e) map[e * slots / experts] = e;
  }
  if (static_cast<int64_t>(map.size()) != slots) {
    return absl::InvalidArgumentError(absl::StrCat("expert_map has ", map.size(), " entries for ", slots,
                                                   " expert slots; it needs one each"));
  }
  const std::string problem = ExpertMapProblem(map, experts);
  if (!problem.empty()) return absl::InvalidArgumentError(absl::StrCat("expert_map: ", problem));
  return map;
}

std::string FoldProblem(const Strategy& s, int64_t kv_heads) {
  for (const IntField& f : kDegrees) {
    if (s.*f.field < 1 || s.*f.field > kMaxDegree)
      return absl::StrCat(f.name, " = ", s.*f.field, " is not positive");
  }
  if (const std::string problem = ShardProblem(s); !problem.empty()) return problem;
  return DegreesOf(s, kv_heads).Problem().value_or("");
}

absl::StatusOr<Mesh> FoldMesh(const Strategy& s, int64_t kv_heads, absl::Span<const Strategy> alongside) {
  for (const IntField& f : kDegrees) {
    if (s.*f.field < 1 || s.*f.field > kMaxDegree) {
      return absl::InvalidArgumentError(
          absl::StrCat("strategy: ", f.name, " = ", s.*f.field, " is not positive"));
    }
  }
  if (const std::string problem = ShardProblem(s); !problem.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("strategy: ", problem));
  }
  Degrees d = DegreesOf(s, kv_heads);
  for (const Strategy& other : alongside) {
    if (other.pp != s.pp || other.world() != s.world()) {
      return absl::InvalidArgumentError(
          absl::StrCat("strategies '", s.ToString(), "' and '", other.ToString(),
                       "' cannot share state: they must have the same world and the "
                       "same number of stages"));
    }
    const std::vector<int64_t> cuts = DegreesOf(other, kv_heads).Cuts();
    d.more_cuts.insert(d.more_cuts.end(), cuts.begin(), cuts.end());
  }
  if (const std::optional<std::string> problem = d.Problem()) {
    std::string message = absl::StrCat("strategy: ", *problem, "; nearest legal: ", Nearest(d));
    // The chain is stricter than necessary: the same degrees may fit with edp inside ep.
    if (d.etp * d.ep * d.edp == d.world() && !d.Problem(/*edp_inside_ep=*/true)) {
      absl::StrAppend(&message,
                      "; these degrees would fit in the order (etp, edp, ep), minor first, instead of "
                      "(etp, ep, edp), which is not supported");
    }
    return absl::InvalidArgumentError(message);
  }

  std::vector<int64_t> cuts = d.Cuts();
  const int64_t node = s.devices_per_node > 0 && s.devices_per_node < s.world() ? NodeCut(s, cuts) : 0;
  if (node && std::find(cuts.begin(), cuts.end(), node) == cuts.end()) {
    cuts.insert(std::upper_bound(cuts.begin(), cuts.end(), node), node);
  }
  const int atoms = static_cast<int>(cuts.size()) - 1;
  std::vector<MeshAxis> axes;
  if (s.pp > 1) axes.push_back({"pp", s.pp});
  const int first = static_cast<int>(axes.size());
  for (int i = atoms - 1; i >= 0; --i) axes.push_back({std::string(1, 'a' + i), cuts[i + 1] / cuts[i]});
  const auto span = [&](int64_t low, int64_t high) {
    AxisList list;
    for (int i = atoms - 1; i >= 0; --i) {
      if (low <= cuts[i] && cuts[i] < high) list.push_back(static_cast<AxisId>(first + atoms - 1 - i));
    }
    return list;
  };
  std::map<std::string, AxisList> aliases = {
      {"tp", span(1, d.tp)},
      {"cp", span(d.tp, d.tp * d.cp)},
      {"dp", span(d.tp * d.cp, d.world())},
      {"etp", span(1, d.etp)},
      {"ep", span(d.etp, d.etp * d.ep)},
      {"edp", span(d.etp * d.ep, d.world())},
      {"kvh", span(d.kv_repeats(), d.tp)},
  };
  if (d.zero_dp) aliases["shard"] = span(d.tp, d.tp * d.zero_dp);
  if (d.expert_zero_dp) aliases["expert_shard"] = span(d.etp * d.ep, d.etp * d.ep * d.expert_zero_dp);
  if (node) aliases["node"] = span(1, node);
  return Mesh(std::move(axes), aliases);
}

}  // namespace moe::passes
