#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/runtime/executor.h"
#include "moe/testing/random_inputs.h"
#include "tools/bench_parts.h"
#include "tools/bench_table.h"

namespace moe::tools {
namespace {

struct Running {
  std::string name;
  CompiledProgram compiled;
  std::unique_ptr<runtime::Executor> executor;
  runtime::StepInputs inputs;
  std::vector<double> wall, cpu;  // of the steps so far

  absl::Status Step() {
    const double wall_begin = WallSeconds(), cpu_begin = ProcessCpuSeconds();
    RETURN_IF_ERROR(executor->TrainStep(inputs).status());
    wall.push_back(WallSeconds() - wall_begin);
    cpu.push_back(ProcessCpuSeconds() - cpu_begin);
    return absl::OkStatus();
  }
  double tokens() const { return static_cast<double>(inputs.tokens.size()); }
};

absl::StatusOr<std::unique_ptr<Running>> Start(const BenchOptions& options,
                                               const strategy::Strategy& strategy, std::string name,
                                               int compute_threads) {
  auto r = std::make_unique<Running>();
  r->name = std::move(name);
  ASSIGN_OR_RETURN(r->compiled, CompileForBench(options.model, strategy, options.global_batch));
  runtime::ExecutorOptions executor;
  executor.compute_threads = compute_threads;
  ASSIGN_OR_RETURN(r->executor, runtime::Executor::Create(r->compiled.program, executor));
  RETURN_IF_ERROR(r->executor->InitializeState(1));
  testing::RandomInputOptions random;
  random.masked = 0;
  random.learning_rate = 1e-3;
  ASSIGN_OR_RETURN(r->inputs, testing::RandomInputs(*r->compiled.program.module, random, 1));
  return r;
}

// Seconds by category over all ranks, of one traced step. CPU time, since wall time of a rank that others
// have pushed aside says nothing; for collectives also the wall time, most of which is waiting for the
// others.
struct Breakdown {
  std::array<double, runtime::kNumCategories> cpu = {}, wall = {};
  double transfers = 0;  // wall time in receives between stages
  struct Op {
    double cpu = 0;
    int64_t count = 0;
    runtime::Category category = runtime::Category::kOther;
  };
  std::map<std::string, Op> ops;
};

absl::StatusOr<runtime::Trace> TraceStep(Running& r) {
  RETURN_IF_ERROR(r.executor->StartTrace(/*steps=*/1));
  const absl::Status status = r.Step();
  r.executor->StopTrace();
  r.wall.pop_back();
  r.cpu.pop_back();
  RETURN_IF_ERROR(status);
  return r.executor->GatherTrace();
}

Breakdown BreakdownOf(const runtime::Trace& trace) {
  Breakdown b;
  for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
    for (const runtime::TraceEvent& e : trace.events(rank)) {
      if (e.detail == nullptr) {
        if (absl::StartsWith(e.name, "recv")) b.transfers += (e.end_ns - e.begin_ns) * 1e-9;
        continue;
      }
      const int category = static_cast<int>(e.category);
      b.cpu[category] += e.cpu_ns * 1e-9;
      b.wall[category] += (e.end_ns - e.begin_ns) * 1e-9;
      Breakdown::Op& op = b.ops[e.name];
      op.cpu += e.cpu_ns * 1e-9;
      op.category = e.category;
      ++op.count;
    }
  }
  return b;
}

absl::StatusOr<Breakdown> MedianBreakdown(Running& r, int repeats) {
  std::vector<Breakdown> all;
  for (int i = 0; i < repeats; ++i) {
    ASSIGN_OR_RETURN(const runtime::Trace trace, TraceStep(r));
    all.push_back(BreakdownOf(trace));
  }
  Breakdown m = all[0];
  const auto median = [&](auto get) {
    std::vector<double> values;
    for (const Breakdown& b : all) values.push_back(get(b));
    return Median(values);
  };
  for (int c = 0; c < runtime::kNumCategories; ++c) {
    m.cpu[c] = median([&](const Breakdown& b) { return b.cpu[c]; });
    m.wall[c] = median([&](const Breakdown& b) { return b.wall[c]; });
  }
  m.transfers = median([](const Breakdown& b) { return b.transfers; });
  for (auto& [name, op] : m.ops) {
    op.cpu = median([&, &name = name](const Breakdown& b) { return b.ops.at(name).cpu; });
  }
  return m;
}

std::string Milliseconds(double seconds) { return absl::StrFormat("%.2f", seconds * 1e3); }
std::string Percent(double share) { return absl::StrFormat("%.1f%%", 100 * share); }

strategy::Strategy OneDevice(const strategy::Strategy& strategy) {
  strategy::Strategy one;
  one.microbatches = strategy.microbatches;
  one.checkpoint = strategy.checkpoint;
  return one;
}

void PrintSteps(const std::string& table_name, const std::vector<Running*>& runs, std::FILE* json) {
  BenchTable table(table_name,
                   {"run", "ranks", "step ms", "best step ms", "tokens/s", "CPU ms", "tokens per CPU s"});
  for (const Running* r : runs) {
    const double wall = Median(r->wall), cpu = Median(r->cpu);
    table.Add({r->name, absl::StrCat(r->executor->num_ranks()), Milliseconds(wall),
               Milliseconds(*std::min_element(r->wall.begin(), r->wall.end())),
               absl::StrFormat("%.0f", r->tokens() / wall), Milliseconds(cpu),
               absl::StrFormat("%.0f", r->tokens() / cpu)});
  }
  table.Print(json);
}

}  // namespace

absl::Status BenchStep(const BenchOptions& options) {
  ASSIGN_OR_RETURN(auto run, Start(options, options.strategy, options.strategy.ToString(), 0));
  for (int i = 0; i < options.warm_up; ++i) RETURN_IF_ERROR(run->Step());
  run->wall.clear();
  run->cpu.clear();
  for (int i = 0; i < options.repeats; ++i) RETURN_IF_ERROR(run->Step());
  PrintSteps("step", {run.get()}, options.json);

  ASSIGN_OR_RETURN(const Breakdown b, MedianBreakdown(*run, std::min(options.repeats, 7)));
  double all = 0;
  for (double s : b.cpu) all += s;
  const double process = std::max(Median(run->cpu), all);
  BenchTable shares("step by category", {"category", "CPU ms", "share"});
  for (int c = 0; c < runtime::kNumCategories; ++c) {
    shares.Add({std::string(runtime::CategoryName(static_cast<runtime::Category>(c))), Milliseconds(b.cpu[c]),
                Percent(b.cpu[c] / process)});
  }
  shares.Add({"outside nodes", Milliseconds(process - all), Percent((process - all) / process)});
  shares.Print(options.json);

  std::vector<std::pair<double, std::string>> order;
  for (const auto& [name, op] : b.ops) order.emplace_back(-op.cpu, name);
  std::sort(order.begin(), order.end());
  BenchTable top("step by op", {"op", "category", "runs", "CPU ms", "share"});
  for (size_t i = 0; i < order.size() && i < 16; ++i) {
    const Breakdown::Op& op = b.ops.at(order[i].second);
    top.Add({order[i].second, std::string(runtime::CategoryName(op.category)), absl::StrCat(op.count),
             Milliseconds(op.cpu), Percent(op.cpu / process)});
  }
  top.Print(options.json);
  return absl::OkStatus();
}

absl::Status BenchScaling(const BenchOptions& options) {
  const int64_t ranks = options.strategy.world();
  const std::string many = absl::StrCat(ranks, " virtual devices");
  std::vector<std::unique_ptr<Running>> runs(3);
  ASSIGN_OR_RETURN(runs[0], Start(options, OneDevice(options.strategy), "one device", 1));
  ASSIGN_OR_RETURN(runs[1], Start(options, options.strategy, many + ", one computes at a time", 1));
  ASSIGN_OR_RETURN(runs[2], Start(options, options.strategy, many + ", on all cores", 0));
  for (int i = 0; i < options.warm_up + options.repeats; ++i) {
    for (auto& r : runs) {
      RETURN_IF_ERROR(r->Step());
      if (i >= options.warm_up) continue;
      r->wall.clear();
      r->cpu.clear();
    }
  }
  PrintSteps("scaling", {runs[0].get(), runs[1].get(), runs[2].get()}, options.json);
  // Steps next to each other see the same machine: the median of their ratios.
  BenchTable ratios("scaling ratios", {"run", "tokens/s of one device", "tokens per CPU s of one device"});
  for (int r = 1; r < 3; ++r) {
    std::vector<double> wall, cpu;
    for (int i = 0; i < options.repeats; ++i) {
      wall.push_back(runs[0]->wall[i] / runs[r]->wall[i]);
      cpu.push_back(runs[0]->cpu[i] / runs[r]->cpu[i]);
    }
    ratios.Add({runs[r]->name, Percent(Median(wall)), Percent(Median(cpu))});
  }
  ratios.Print(options.json);

  const int traced = std::min(options.repeats, 7);
  ASSIGN_OR_RETURN(const Breakdown one, MedianBreakdown(*runs[0], traced));
  ASSIGN_OR_RETURN(const Breakdown all, MedianBreakdown(*runs[1], traced));
  const double one_cpu = Median(runs[0]->cpu), all_cpu = Median(runs[1]->cpu);
  BenchTable gap("scaling gap",
                 {"item", "one device CPU ms", many + " CPU ms", "difference ms", "of one device's step"});
  double one_rest = one_cpu, all_rest = all_cpu;
  const auto add = [&](const std::string& item, double a, double b) {
    gap.Add({item, Milliseconds(a), Milliseconds(b), Milliseconds(b - a), Percent((b - a) / one_cpu)});
  };
  for (int c = 0; c < runtime::kNumCategories; ++c) {
    add(std::string(runtime::CategoryName(static_cast<runtime::Category>(c))), one.cpu[c], all.cpu[c]);
    one_rest -= one.cpu[c];
    all_rest -= all.cpu[c];
  }
  add("outside nodes: transfers, waking up, inputs", one_rest, all_rest);
  add("all", one_cpu, all_cpu);
  gap.Print(options.json);
  const int collective = static_cast<int>(runtime::Category::kCollective);
  BenchTable waits("scaling waits", {"waiting, a rank's mean", "ms"});
  waits.Add({"in collectives", Milliseconds((all.wall[collective] - all.cpu[collective]) / ranks)});
  waits.Add({"for other stages", Milliseconds(all.transfers / ranks)});
  waits.Print(options.json);
  return absl::OkStatus();
}

namespace {

// One of several plans of the same step that are compared.
struct Variant {
  std::string name, words;  // of a strategy, after those of the base
};

// The share of the exchanges' time in which the rank computed, of traced steps; and how many exchanges there
// are.
struct Hidden {
  double share = 0, exchanges = 0;
};
absl::StatusOr<Hidden> HiddenShare(Running& r, int repeats) {
  std::vector<double> shares;
  Hidden out;
  for (int i = 0; i < repeats; ++i) {
    ASSIGN_OR_RETURN(const runtime::Trace trace, TraceStep(r));
    shares.push_back(runtime::CommunicationOf(trace).hidden());
    out.exchanges = 0;
    for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
      for (const runtime::TraceEvent& e : trace.events(rank)) {
        out.exchanges += e.detail != nullptr && e.category == runtime::Category::kCollective;
      }
    }
  }
  out.exchanges /= static_cast<double>(r.executor->num_ranks());
  out.share = Median(shares);
  return out;
}

// Steps of all variants in turn, each against the first: the median of the ratios of neighbours.
absl::Status CompareVariants(const BenchOptions& options, const model::ModelConfig& model,
                             int64_t global_batch, const std::string& base,
                             const std::vector<Variant>& variants, BenchTable* table) {
  BenchOptions of = options;
  of.model = model;
  of.global_batch = global_batch;
  std::vector<std::unique_ptr<Running>> runs;
  std::vector<int64_t> peaks;
  std::vector<double> bytes;
  for (const Variant& v : variants) {
    ASSIGN_OR_RETURN(const strategy::Strategy strategy,
                     strategy::ParseStrategy(absl::StrCat(base, " ", v.words)));
    ASSIGN_OR_RETURN(runs.emplace_back(), Start(of, strategy, v.name, 0));
    const Program& program = runs.back()->compiled.program;
    int64_t peak = 0;
    for (const StageMemory& stage : program.memory.stages) peak = std::max(peak, stage.peak_bytes());
    peaks.push_back(peak);
    bytes.push_back(WireBytesPerStep(program));
  }
  for (int i = 0; i < options.warm_up + options.repeats; ++i) {
    for (auto& r : runs) {
      RETURN_IF_ERROR(r->Step());
      if (i >= options.warm_up) continue;
      r->wall.clear();
      r->cpu.clear();
    }
  }
  for (size_t v = 0; v < runs.size(); ++v) {
    std::vector<double> wall, cpu;
    for (int i = 0; i < options.repeats; ++i) {
      wall.push_back(runs[v]->wall[i] / runs[0]->wall[i]);
      cpu.push_back(runs[v]->cpu[i] / runs[0]->cpu[i]);
    }
    ASSIGN_OR_RETURN(const Hidden hidden, HiddenShare(*runs[v], std::min(options.repeats, 7)));
    table->Add({variants[v].name, Milliseconds(Median(runs[v]->wall)), absl::StrFormat("%.3f", Median(wall)),
                Milliseconds(Median(runs[v]->cpu)), absl::StrFormat("%.3f", Median(cpu)),
                Percent(hidden.share), absl::StrFormat("%.0f", hidden.exchanges),
                absl::StrFormat("%.2f", bytes[v] / 1e6), absl::StrFormat("%.2f", peaks[v] / 1048576.0)});
  }
  return absl::OkStatus();
}

const std::vector<std::string>& VariantColumns() {
  static const auto& columns = *new std::vector<std::string>{"words",
                                                             "step ms",
                                                             "step, of the first",
                                                             "CPU ms",
                                                             "CPU, of the first",
                                                             "exchanges hidden",
                                                             "per rank and step",
                                                             "MB per rank",
                                                             "peak MiB"};
  return columns;
}

}  // namespace

absl::Status BenchOverlap(const BenchOptions& options) {
  const std::vector<Variant> variants = {
      {"none", "bucket=0 overlap=off"},
      {"none, once more", "bucket=0 overlap=off"},
      {"bucket=16384", "bucket=16384 overlap=off"},
      {"bucket=65536", "bucket=65536 overlap=off"},
      {"bucket=1048576", "bucket=1048576 overlap=off"},
      {"overlap=on", "bucket=0 overlap=on"},
      {"overlap=on bucket=65536", "overlap=on bucket=65536"},
      {"moe_chunks=2", "bucket=0 overlap=off moe_chunks=2"},
      {"overlap=on bucket=65536 moe_chunks=2", "overlap=on bucket=65536 moe_chunks=2"},
  };
  for (const std::string& base :
       {options.strategy.ToString(), std::string("dp=4 ep=4 zero=3 dispatcher=alltoall microbatches=2")}) {
    BenchTable table(absl::StrCat("overlap: ", base), VariantColumns());
    RETURN_IF_ERROR(CompareVariants(options, options.model, options.global_batch, base, variants, &table));
    table.Print(options.json);
  }
  return absl::OkStatus();
}

absl::Status BenchContext(const BenchOptions& options) {
  for (const int64_t length : {512, 2048}) {
    model::ModelConfig model = options.model;
    model.set_seq_length(length);
    const std::string base = "cp=4 microbatches=1";
    BenchTable table(absl::StrCat("context: ", base, ", sequences of ", length), VariantColumns());
    RETURN_IF_ERROR(CompareVariants(options, model, /*global_batch=*/1, base,
                                    {{"gather", "cp_attention=gather overlap=off"},
                                     {"ring", "cp_attention=ring overlap=off"},
                                     {"gather overlap=on", "cp_attention=gather overlap=on"},
                                     {"ring overlap=on", "cp_attention=ring overlap=on"}},
                                    &table));
    table.Print(options.json);
  }
  return absl::OkStatus();
}

namespace {

int64_t StatusBytes(const std::string& key) {  // a line of /proc/self/status, in bytes
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word != key + ":") continue;
    int64_t kilobytes = 0;
    status >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

}  // namespace

absl::Status BenchMemory(const BenchOptions& options) {
  BenchTable table("memory", {"run", "ranks", "plan, all ranks MiB", "arenas in use MiB",
                              "resident growth MiB", "peak resident MiB", "growth of plan"});
  const auto mib = [](int64_t bytes) { return absl::StrFormat("%.2f", bytes / 1048576.0); };
  for (const bool one_device : {false, true}) {
    const strategy::Strategy strategy = one_device ? OneDevice(options.strategy) : options.strategy;
    {  // what the libraries allocate once is there before
      ASSIGN_OR_RETURN(auto first, Start(options, strategy, "", 0));
      RETURN_IF_ERROR(first->Step());
    }
    ASSIGN_OR_RETURN(const CompiledProgram compiled,
                     CompileForBench(options.model, strategy, options.global_batch));
    std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts anew
    const int64_t before = StatusBytes("VmRSS");
    ASSIGN_OR_RETURN(auto e, runtime::Executor::Create(compiled.program, {}));
    RETURN_IF_ERROR(e->InitializeState(1));
    ASSIGN_OR_RETURN(const runtime::StepInputs inputs,
                     testing::RandomInputs(*compiled.program.module, {}, 1));
    for (int i = 0; i < 3; ++i) RETURN_IF_ERROR(e->TrainStep(inputs).status());
    const int64_t peak = StatusBytes("VmHWM");
    int64_t planned = 0, used = 0;
    for (int64_t r = 0; r < e->num_ranks(); ++r) {
      planned += compiled.program.memory.stages[e->rank(r).stage()].peak_bytes();
      used += e->rank(r).arena().used_bytes();
    }
    table.Add({strategy.ToString(), absl::StrCat(e->num_ranks()), mib(planned), mib(used), mib(peak - before),
               mib(peak), Percent(static_cast<double>(peak - before) / planned)});
  }
  table.Print(options.json);
  return absl::OkStatus();
}

}  // namespace moe::tools
