// The whole trace of real steps, held to the rules of the Trace Event Format and to the plan that ran.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/runtime/executor.h"
#include "moe/runtime/trace.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/random_inputs.h"

namespace moe::runtime {
namespace {

using Json = nlohmann::json;
using Counts = std::map<std::string, int64_t>;
using Lane = std::pair<int64_t, int64_t>;  // pid, tid

constexpr int kSteps = 2;

int64_t Nanos(const Json& microseconds) { return std::llround(microseconds.get<double>() * 1e3); }

struct Slice {
  int64_t begin, end;
  std::string value;
  int64_t microbatch;
};

// Nests or is disjoint: what the format asks of the slices of a lane. Touching is not overlapping.
void ExpectNested(const Lane& lane, std::vector<Slice> slices) {
  std::stable_sort(slices.begin(), slices.end(), [](const Slice& a, const Slice& b) {
    return std::pair(a.begin, -a.end) < std::pair(b.begin, -b.end);
  });
  std::vector<const Slice*> open;
  for (const Slice& s : slices) {
    ASSERT_LE(s.begin, s.end);
    while (!open.empty() && open.back()->end <= s.begin) open.pop_back();
    if (!open.empty()) {
      EXPECT_LE(s.end, open.back()->end) << "rank " << lane.first << ", lane " << lane.second << ": "
                                         << s.value << " overlaps " << open.back()->value;
    }
    open.push_back(&s);
  }
}

// The slice that a flow event belongs to: the one on its lane that encloses it and began last.
const Slice* Enclosing(const std::vector<Slice>& slices, int64_t at) {
  const Slice* found = nullptr;
  for (const Slice& s : slices) {
    if (s.begin <= at && at <= s.end && (found == nullptr || s.begin >= found->begin)) found = &s;
  }
  return found;
}

// Checks all events; counts arrows by the value that they stand for.
void ReadTrace(const std::string& text, Counts* arrows) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  ASSERT_FALSE(json.is_discarded());
  std::map<Lane, std::vector<Slice>> lanes;
  std::map<std::tuple<std::string, std::string, int64_t>, std::map<std::string, std::vector<Json>>> flows;
  std::set<Lane> named;
  for (const Json& e : json["traceEvents"]) {
    const std::string phase = e["ph"];
    const Lane lane(e["pid"], e.value("tid", -1));
    if (phase == "M") {
      named.insert(lane);
    } else if (phase == "X") {
      const int64_t begin = Nanos(e["ts"]);
      lanes[lane].push_back(
          {begin, begin + Nanos(e["dur"]), e["args"].value("value", e["name"]), e["args"]["microbatch"]});
    } else {
      ASSERT_TRUE(phase == "s" || phase == "f") << phase;
      flows[{e["cat"], e["name"], e["id"]}][phase].push_back(e);
    }
  }
  for (const auto& [lane, slices] : lanes) {
    EXPECT_TRUE(named.count(lane)) << lane.second;
    ExpectNested(lane, slices);
  }
  for (const auto& [id, ends] : flows) {
    const std::string what = absl::StrCat(std::get<1>(id), " ", std::get<2>(id));
    ASSERT_EQ(ends.count("s"), 1u) << what;
    ASSERT_EQ(ends.count("f"), 1u) << what;
    ASSERT_EQ(ends.at("s").size(), 1u) << what;
    ASSERT_EQ(ends.at("f").size(), 1u) << what;
    const Json &from = ends.at("s")[0], &to = ends.at("f")[0];
    EXPECT_NE(from["pid"], to["pid"]) << what;
    EXPECT_EQ(to["bp"], "e") << what;
    EXPECT_LE(Nanos(from["ts"]), Nanos(to["ts"])) << what;
    const Slice* const first = Enclosing(lanes[{from["pid"], from["tid"]}], Nanos(from["ts"]));
    const Slice* const second = Enclosing(lanes[{to["pid"], to["tid"]}], Nanos(to["ts"]));
    ASSERT_NE(first, nullptr) << what;
    ASSERT_NE(second, nullptr) << what;
    EXPECT_EQ(first->value, second->value) << what;
    EXPECT_EQ(first->microbatch, second->microbatch) << what;
    ++(*arrows)[first->value];
  }
}

// How many ranks meet in a run of a collective.
int64_t GroupSize(const Node& n, const Mesh& mesh) {
  if (n.Is("comm.stage_reduce")) return static_cast<int64_t>(n.Ints("stages").size());
  std::set<AxisId> axes;
  const absl::StatusOr<std::vector<ConversionPart>> parts = ConversionParts(n, mesh);
  EXPECT_TRUE(parts.ok()) << parts.status();
  for (const ConversionPart& part : *parts) {
    for (const ConversionStep& step : part.steps) {
      if (IsLocal(step.kind)) continue;
      for (const AxisId axis : step.axes()) axes.insert(axis);
    }
  }
  return mesh.Size(AxisList(axes.begin(), axes.end()));
}

// Arrows of one step: from each sender to its receiver, and from one rank of each group to all others.
Counts ArrowsOf(const Program& program) {
  const Mesh& mesh = program.module->mesh();
  const int64_t ranks = mesh.ranks_per_stage();
  Counts arrows;
  const auto add = [&](const std::string& value, int64_t count) {
    if (count > 0) arrows[value] += count;
  };
  const std::vector<std::vector<Action>>& stages = program.schedule.actions.at("train_step");
  for (size_t s = 0; s < stages.size(); ++s) {
    std::map<const Function*, int64_t> left;  // runs that are still to come
    for (const Action& a : stages[s]) ++left[FunctionOf(*program.module, a, static_cast<int>(s))];
    for (const Action& a : stages[s]) {
      if (a.kind == Action::kSend) add(a.boundary, ranks);
      const Function* f = FunctionOf(*program.module, a, static_cast<int>(s));
      if (f == nullptr) continue;
      const bool last = --left[f] == 0;
      for (const auto& n : f->body()) {
        if (!n->op().Has(kCollective) || (n->BoolOr("last", false) && !last)) continue;
        const int64_t size = GroupSize(*n, mesh);
        if (!n->Is("comm.stage_reduce")) {
          add(n->result_name(), ranks / size * (size - 1));
        } else if (n->Ints("stages")[0] == static_cast<int64_t>(s)) {
          add(n->result_name(), ranks * (size - 1));
        }
      }
    }
  }
  return arrows;
}

class TraceFormatTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TraceFormatTest, HoldsOfRealSteps) {
  ASSERT_OK_AND_ASSIGN(
      const model::ModelConfig model,
      model::ParseModelConfig(R"(num_layers: 4 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2
                          vocab_size: 64 seq_length: 16 num_experts: 4 moe_router_topk: 2
                          moe_ffn_hidden_size: 32 norm_topk_prob: true aux_loss_coeff: 0.01
                          z_loss_coeff: 0.001 capacity_factor: 1.25)",
                              "model"));
  ASSERT_OK_AND_ASSIGN(const strategy::Strategy strategy, strategy::ParseStrategy(GetParam()));
  ASSERT_OK_AND_ASSIGN(const Program program,
                       testing::CompileProgram(model, strategy, {.global_batch = 4 * strategy.microbatches}));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Executor> executor, Executor::Create(program, {}));
  ASSERT_OK(executor->InitializeState(1));
  ASSERT_OK_AND_ASSIGN(const StepInputs inputs, testing::RandomInputs(*program.module, {}, 1));
  ASSERT_OK(executor->StartTrace(kSteps));
  for (int i = 0; i < kSteps; ++i) ASSERT_OK(executor->TrainStep(inputs).status());
  ASSERT_OK_AND_ASSIGN(const Trace trace, executor->GatherTrace());

  Counts wanted = ArrowsOf(program), drawn;
  for (auto& [value, count] : wanted) count *= kSteps;
  EXPECT_GT(wanted.size(), 10u);
  ASSERT_NO_FATAL_FAILURE(ReadTrace(ChromeTrace(trace), &drawn));
  EXPECT_EQ(drawn, wanted);
}

INSTANTIATE_TEST_SUITE_P(Strategies, TraceFormatTest,
                         ::testing::Values("pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=4",
                                           "pp=2 dp=2 tp=2 ep=4 zero=1 microbatches=4 overlap=on",
                                           "dp=4 tp=2 ep=4 zero=3 microbatches=2 overlap=on"),
                         [](const auto& info) { return absl::StrCat(info.index); });

}  // namespace
}  // namespace moe::runtime
