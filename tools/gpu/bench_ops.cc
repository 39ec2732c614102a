#include "tools/gpu/bench_ops.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/device/stream_timer.h"
#include "tools/bench_table.h"
#include "tools/gpu/bench_graph.h"

namespace moe::tools {
namespace {

using Strings = std::vector<std::string>;

std::string Milliseconds(double seconds) { return absl::StrFormat("%.4f", seconds * 1e3); }
std::string Percent(double share) { return absl::StrFormat("%.1f", 100 * share); }

Attributes Eq(const std::string& eq) { return {{"eq", eq}}; }
Attributes WideEq(const std::string& eq) { return {{"eq", eq}, {"dtype", std::string("f32")}}; }

// A row with the rate and its share of the ceiling; flops or bytes, the other is 0.
Strings Row(const GpuBench& b, const std::string& op, const std::string& shape, double seconds, double flops,
            double bytes) {
  const double rate = (flops > 0 ? flops : bytes) / seconds;
  const double ceiling = flops > 0 ? b.gemm_flops_per_second : b.copy_bytes_per_second;
  return {op,
          shape,
          Milliseconds(seconds),
          flops > 0 ? absl::StrFormat("%.2f", rate * 1e-12) : "",
          flops > 0 ? "" : absl::StrFormat("%.1f", rate * 1e-9),
          ceiling > 0 ? Percent(rate / ceiling) : ""};
}
const Strings kColumns = {"op", "shape", "ms", "TFLOP/s", "GB/s", "% of ceiling"};

absl::StatusOr<double> TimeOne(BenchGraph& g, const GpuBench& b) {
  RETURN_IF_ERROR(g.Prepare());
  ASSIGN_OR_RETURN(const BenchTimes t, g.Time(b.sizes.warm_up, b.sizes.repeats));
  return t.seconds;
}

}  // namespace

GpuBenchSizes GpuBenchSizes::Tiny() {
  GpuBenchSizes s;
  s.copy_bytes = 1 << 16;
  s.gemm = {32};
  s.batch = 1;
  s.sequence = 16;
  s.heads = 2;
  s.kv_heads = 1;
  s.head_dim = 16;
  s.hidden = 32;
  s.vocab = 64;
  s.vocab_blocks = 2;
  s.parameters = 1000;
  s.layers = {{"mixtral-like", 32, 48, 4, 2}, {"fine-grained", 16, 8, 8, 3}};
  s.tokens = {40};
  s.warm_up = 1;
  s.repeats = 2;
  return s;
}

absl::Status BenchCeilings(GpuBench& b) {
  BenchTable table(absl::StrCat("ceilings of ", b.device->description()),
                   {"what", "shape", "ms", "TFLOP/s", "GB/s"});
  ASSIGN_OR_RETURN(const std::unique_ptr<device::Stream> stream, b.device->NewStream("copy"));
  ASSIGN_OR_RETURN(const std::unique_ptr<device::DeviceMemory> from, b.device->Allocate(b.sizes.copy_bytes));
  ASSIGN_OR_RETURN(const std::unique_ptr<device::DeviceMemory> to, b.device->Allocate(b.sizes.copy_bytes));
  device::StreamTimer timer(stream.get());
  RETURN_IF_ERROR(timer.Reserve(2));
  RETURN_IF_ERROR(stream->Fill(from->data(), 1, b.sizes.copy_bytes));
  std::vector<double> seconds;
  for (int i = 0; i < b.sizes.warm_up + b.sizes.repeats; ++i) {
    timer.Clear();
    ASSIGN_OR_RETURN(const int64_t begin, timer.Mark());
    RETURN_IF_ERROR(stream->Copy(to->data(), from->data(), b.sizes.copy_bytes));
    ASSIGN_OR_RETURN(const int64_t end, timer.Mark());
    ASSIGN_OR_RETURN(const double s, timer.Seconds(begin, end));
    if (i >= b.sizes.warm_up) seconds.push_back(s);
  }
  b.copy_bytes_per_second = 2.0 * b.sizes.copy_bytes / Median(seconds);
  table.Add({"copy", absl::StrCat(b.sizes.copy_bytes, " bytes"), Milliseconds(Median(seconds)), "",
             absl::StrFormat("%.1f", b.copy_bytes_per_second * 1e-9)});
  for (const int64_t n : b.sizes.gemm) {
    BenchGraph g(b.device, b.backend);
    const Value x = g.Arg("x", b.dtype, {n, n}), w = g.Arg("w", b.dtype, {n, n});
    RETURN_IF_ERROR(g.Op("math.einsum", {x, w}, Eq("m k, k n -> m n")).status());
    ASSIGN_OR_RETURN(const double s, TimeOne(g, b));
    const double rate = 2.0 * n * n * n / s;
    b.gemm_flops_per_second = std::max(b.gemm_flops_per_second, rate);
    table.Add({absl::StrCat("GEMM ", DTypeName(b.dtype)), absl::StrCat(n, " x ", n, " x ", n),
               Milliseconds(s), absl::StrFormat("%.2f", rate * 1e-12), ""});
  }
  table.Print(b.json);
  return absl::OkStatus();
}

absl::Status BenchOps(const GpuBench& b) {
  const GpuBenchSizes& z = b.sizes;
  BenchTable table("ops", kColumns);
  {
    BenchGraph g(b.device, b.backend);
    const Value q = g.Arg("q", b.dtype, {z.batch, z.sequence, z.heads, z.head_dim});
    const Value k = g.Arg("k", b.dtype, {z.batch, z.sequence, z.kv_heads, z.head_dim});
    const Value v = g.Arg("v", b.dtype, {z.batch, z.sequence, z.kv_heads, z.head_dim});
    const Value positions = g.Arg("positions", DType::kS32, {z.sequence}, BenchFill::kIota);
    const Value d = g.Arg("do", b.dtype, {z.batch, z.sequence, z.heads, z.head_dim});
    ASSIGN_OR_RETURN(Node * o, g.Create("nn.attention", {q, k, v, positions, positions}, {}, "attention"));
    RETURN_IF_ERROR(g.Create("nn.attention_grad",
                             {q, k, v, positions, positions, o->result(0), o->result(1), d}, {}, "gradient")
                        .status());
    RETURN_IF_ERROR(g.Prepare());
    ASSIGN_OR_RETURN(BenchTimes t, g.Time(z.warm_up, z.repeats));
    const double flops = 2.0 * z.batch * z.heads * z.sequence * z.sequence * z.head_dim;
    const std::string shape = absl::StrCat("batch ", z.batch, ", sequence ", z.sequence, ", heads ", z.heads,
                                           "/", z.kv_heads, " x ", z.head_dim, ", causal");
    table.Add(Row(b, "attention", shape, t.node_seconds["attention"], flops, 0));
    table.Add(Row(b, "attention gradient", shape, t.node_seconds["gradient"], 2.5 * flops, 0));
  }
  {
    BenchGraph g(b.device, b.backend);
    const int64_t tokens = z.batch * z.sequence;
    const Value x = g.Arg("x", b.dtype, {z.batch, z.sequence, z.hidden});
    const Value w = g.Arg("w", b.dtype, {z.vocab, z.hidden}, BenchFill::kNormal, 0.02);
    const Value labels =
        g.Arg("labels", DType::kS32, {z.batch, z.sequence}, BenchFill::kBelow, static_cast<double>(z.vocab));
    const Attributes attributes = {{"blocks", z.vocab_blocks}, {"vocab", z.vocab}};
    ASSIGN_OR_RETURN(Node * stats, g.Create("nn.head_stats", {x, w, labels}, attributes, "stats"));
    const Value dsum = g.Arg("dsum", DType::kF32, {z.batch, z.sequence, z.vocab_blocks});
    const Value dlabel = g.Arg("dlabel", DType::kF32, {z.batch, z.sequence});
    RETURN_IF_ERROR(
        g.Create("nn.head_stats_grad", {x, w, labels, stats->result(0), dsum, dlabel}, attributes, "gradient")
            .status());
    RETURN_IF_ERROR(g.Prepare());
    ASSIGN_OR_RETURN(BenchTimes t, g.Time(z.warm_up, z.repeats));
    const double flops = 2.0 * tokens * z.hidden * z.vocab;
    const std::string shape =
        absl::StrCat(tokens, " tokens, hidden ", z.hidden, ", vocabulary ", z.vocab, " in ", z.vocab_blocks);
    table.Add(Row(b, "cross-entropy", shape, t.node_seconds["stats"], flops, 0));
    table.Add(Row(b, "cross-entropy gradient", shape, t.node_seconds["gradient"], 2 * flops, 0));
  }
  {
    BenchGraph g(b.device, b.backend);
    std::vector<Value> operands;
    for (const char* name : {"p", "g", "m", "v"}) {
      // Second moments are not negative: ones.
      operands.push_back(g.Arg(name, DType::kF32, {z.parameters},
                               name[0] == 'v' ? BenchFill::kOnes : BenchFill::kNormal, 0.02));
    }
    for (const char* name : {"factor", "finite", "learning_rate", "bias1", "bias2"}) {
      operands.push_back(g.Arg(name, DType::kF32, {}, BenchFill::kOnes));
    }
    RETURN_IF_ERROR(
        g.Op("optim.adamw", operands, {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-8}, {"weight_decay", 0.1}})
            .status());
    ASSIGN_OR_RETURN(const double seconds, TimeOne(g, b));
    table.Add(Row(b, "AdamW", absl::StrCat(z.parameters, " parameters"), seconds, 0, 28.0 * z.parameters));
  }
  table.Print(b.json);
  return absl::OkStatus();
}

namespace {

struct LayerResult {
  BenchTimes times;
  double load = 0;  // largest over mean
  int64_t bytes = 0;
};

absl::StatusOr<LayerResult> RunLayer(const GpuBench& b, const MoeLayerShape& l, int64_t tokens, bool skewed) {
  BenchGraph g(b.device, b.backend);
  const int64_t groups = std::max<int64_t>(1, tokens / 4096), t = tokens / groups;
  const int64_t slots = (t * l.top_k + l.experts - 1) / l.experts;
  const Attributes routed = {{"experts", l.experts}, {"slots", slots}, {"dropless", true}};
  const Value x = g.Arg("x", b.dtype, {groups, 1, t, l.hidden});
  const Value dy = g.Arg("dy", b.dtype, {groups, 1, t, l.hidden});
  const Value mask = g.Arg("mask", DType::kF32, {groups, 1, t}, BenchFill::kOnes);
  const Value router =
      g.Arg("router", b.dtype, {l.hidden, l.experts}, skewed ? BenchFill::kSkewed : BenchFill::kNormal, 0.02);
  const Value w_gate = g.Arg("w_gate", b.dtype, {l.experts, l.hidden, l.ffn}, BenchFill::kNormal, 0.02);
  const Value w_up = g.Arg("w_up", b.dtype, {l.experts, l.hidden, l.ffn}, BenchFill::kNormal, 0.02);
  const Value w_down = g.Arg("w_down", b.dtype, {l.experts, l.ffn, l.hidden}, BenchFill::kNormal, 0.02);

  ASSIGN_OR_RETURN(Value logits,
                   g.Op("math.einsum", {x, router}, WideEq("b c t h, h e -> b c t e"), "router product"));
  ASSIGN_OR_RETURN(Node * top, g.Create("moe.router", {logits, mask}, {{"k", l.top_k}}, "router"));
  const Value probability = top->result(0), chosen = top->result(1), expert = top->result(2);
  ASSIGN_OR_RETURN(Value weight, g.Op("moe.normalize", {chosen}, {}, "normalize"));
  ASSIGN_OR_RETURN(Value slot,
                   g.Op("moe.slots", {expert},
                        {{"experts", l.experts}, {"capacity", slots}, {"dropless", true}}, "slots"));
  ASSIGN_OR_RETURN(Value d, g.Op("moe.dispatch", {x, expert, slot}, routed, "dispatch"));
  const char* const project = "e b c p h, e h f -> e b c p f";
  ASSIGN_OR_RETURN(Value gate, g.Op("math.einsum", {d, w_gate}, Eq(project), "gate"));
  ASSIGN_OR_RETURN(Value up, g.Op("math.einsum", {d, w_up}, Eq(project), "up"));
  ASSIGN_OR_RETURN(Value a, g.Op("nn.swiglu", {gate, up}, {}, "swiglu"));
  ASSIGN_OR_RETURN(Value o, g.Op("math.einsum", {a, w_down}, Eq("e b c p f, e f h -> e b c p h"), "down"));
  const Attributes dropless = {{"dropless", true}};
  RETURN_IF_ERROR(g.Op("moe.combine", {o, weight, expert, slot}, dropless, "combine").status());

  ASSIGN_OR_RETURN(Value d_o,
                   g.Op("moe.combine_do", {dy, weight, expert, slot}, routed, "combine d(output)"));
  ASSIGN_OR_RETURN(Value d_weight,
                   g.Op("moe.combine_dp", {o, dy, expert, slot}, dropless, "combine d(probability)"));
  ASSIGN_OR_RETURN(Value da,
                   g.Op("math.einsum", {d_o, w_down}, Eq("e b c p h, e f h -> e b c p f"), "down dx"));
  RETURN_IF_ERROR(g.Op("math.einsum", {a, d_o}, WideEq("e b c p f, e b c p h -> e f h"), "down dw").status());
  ASSIGN_OR_RETURN(Node * dswiglu, g.Create("nn.swiglu_grad", {gate, up, da}, {}, "swiglu gradient"));
  const Value d_gate = dswiglu->result(0), d_up = dswiglu->result(1);
  RETURN_IF_ERROR(
      g.Op("math.einsum", {d, d_gate}, WideEq("e b c p h, e b c p f -> e h f"), "gate dw").status());
  RETURN_IF_ERROR(g.Op("math.einsum", {d, d_up}, WideEq("e b c p h, e b c p f -> e h f"), "up dw").status());
  const char* const back = "e b c p f, e h f -> e b c p h";
  ASSIGN_OR_RETURN(Value dd_gate, g.Op("math.einsum", {d_gate, w_gate}, Eq(back), "gate dx"));
  ASSIGN_OR_RETURN(Value dd_up, g.Op("math.einsum", {d_up, w_up}, Eq(back), "up dx"));
  ASSIGN_OR_RETURN(Value dd, g.Op("math.add", {dd_gate, dd_up}, {}, "add dx"));
  ASSIGN_OR_RETURN(Value dx, g.Op("moe.undispatch", {dd, expert, slot}, dropless, "undispatch"));
  ASSIGN_OR_RETURN(Value d_chosen, g.Op("moe.normalize_grad", {chosen, d_weight}, {}, "normalize gradient"));
  ASSIGN_OR_RETURN(Value d_probability,
                   g.Op("moe.top_k_grad", {expert, d_chosen}, {{"experts", l.experts}}, "top-k gradient"));
  ASSIGN_OR_RETURN(Value d_logits,
                   g.Op("nn.softmax_grad", {probability, d_probability}, {}, "softmax gradient"));
  ASSIGN_OR_RETURN(Value d_narrow,
                   g.Op("math.cast", {d_logits}, {{"dtype", std::string(DTypeName(b.dtype))}}, "narrow"));
  RETURN_IF_ERROR(
      g.Op("math.einsum", {x, d_narrow}, WideEq("b c t h, b c t e -> h e"), "router dw").status());
  ASSIGN_OR_RETURN(Value dx_router,
                   g.Op("math.einsum", {d_narrow, router}, Eq("b c t e, h e -> b c t h"), "router dx"));
  RETURN_IF_ERROR(g.Op("math.add", {dx, dx_router}, {}, "add router dx").status());

  RETURN_IF_ERROR(g.Prepare());
  LayerResult r;
  r.bytes = g.bytes();
  ASSIGN_OR_RETURN(r.times, g.Time(b.sizes.warm_up, b.sizes.repeats));
  ASSIGN_OR_RETURN(const std::vector<int32_t> experts, g.ReadIntegers(expert));
  std::vector<int64_t> load(l.experts);
  for (const int32_t e : experts) {
    if (e >= 0 && e < l.experts) ++load[e];
  }
  r.load = static_cast<double>(*std::max_element(load.begin(), load.end())) * l.experts /
           std::max<int64_t>(1, std::accumulate(load.begin(), load.end(), int64_t{0}));
  return r;
}

}  // namespace

absl::Status BenchMoeLayers(const GpuBench& b) {
  BenchTable layers("MoE layer, forward and backward", {"layer", "tokens", "routing", "load max/mean", "ms",
                                                        "TFLOP/s", "% of GEMM", "tokens/s", "GiB"});
  for (const MoeLayerShape& l : b.sizes.layers) {
    for (const int64_t tokens : b.sizes.tokens) {
      for (const bool skewed : {false, true}) {
        const std::string regime = skewed ? "skewed" : "uniform";
        absl::StatusOr<LayerResult> r = RunLayer(b, l, tokens, skewed);
        if (absl::IsResourceExhausted(r.status())) {
          std::printf("\n%s, %lld tokens, %s: left out: %s\n", l.name.c_str(), static_cast<long long>(tokens),
                      regime.c_str(), std::string(r.status().message()).c_str());
          continue;
        }
        RETURN_IF_ERROR(r.status());
        const double rows = static_cast<double>(tokens) * l.top_k, n = static_cast<double>(tokens);
        const double product = 2 * rows * l.hidden * l.ffn;
        const double flops = 9 * product + 6 * n * l.hidden * l.experts, rate = flops / r->times.seconds;
        layers.Add({l.name, absl::StrCat(tokens), regime, absl::StrFormat("%.2f", r->load),
                    Milliseconds(r->times.seconds), absl::StrFormat("%.2f", rate * 1e-12),
                    b.gemm_flops_per_second > 0 ? Percent(rate / b.gemm_flops_per_second) : "",
                    absl::StrFormat("%.0f", n / r->times.seconds),
                    absl::StrFormat("%.1f", static_cast<double>(r->bytes) / (int64_t{1} << 30))});
        if (tokens != b.sizes.tokens.back()) continue;
        BenchTable parts(absl::StrCat("parts of ", l.name, ", ", tokens, " tokens, ", regime, " routing"),
                         kColumns);
        const double s = static_cast<double>(ByteSize(b.dtype));
        const std::string shape =
            absl::StrCat("hidden ", l.hidden, ", ffn ", l.ffn, ", ", l.experts, " experts, top ", l.top_k);
        for (const auto& [name, seconds] : r->times.node_seconds) {
          const auto any = [&, &name = name](std::initializer_list<const char*> names) {
            return std::find(names.begin(), names.end(), name) != names.end();
          };
          double work = 0, bytes = 0;
          if (any({"gate", "up", "down", "gate dx", "up dx", "down dx", "gate dw", "up dw", "down dw"})) {
            work = product;
          } else if (any({"router product", "router dw", "router dx"})) {
            work = 2 * n * l.hidden * l.experts;
          } else if (any({"dispatch", "combine", "undispatch", "combine d(output)",
                          "combine d(probability)"})) {
            bytes = (n + rows) * l.hidden * s;
          } else if (any({"swiglu", "swiglu gradient"})) {
            bytes = (name == "swiglu" ? 3 : 5) * rows * l.ffn * s;
          } else if (any({"add dx"})) {
            bytes = 3 * rows * l.hidden * s;
          } else {
            parts.Add({name, shape, Milliseconds(seconds), "", "", ""});
            continue;
          }
          parts.Add(Row(b, name, shape, seconds, work, bytes));
        }
        parts.Print(b.json);
      }
    }
  }
  layers.Print(b.json);
  return absl::OkStatus();
}

}  // namespace moe::tools
