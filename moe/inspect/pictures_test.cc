#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "moe/inspect/buffers.h"
#include "moe/inspect/graph_svg.h"
#include "moe/inspect/stage_view.h"
#include "moe/inspect/timeline.h"
#include "moe/testing/compile_program.h"

namespace moe::inspect {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// With `layers`: so many, all of experts.
Program CompileSmall(const std::string& words, int64_t layers = 0) {
  model::ModelConfig config = *model::LoadModelConfig("testdata/models/small_test.textproto");
  if (layers > 0) {
    config.set_num_layers(layers);
    config.set_first_dense_layers(0);
  }
  const strategy::Strategy strategy = *strategy::ParseStrategy(words);
  return *testing::CompileProgram(config, strategy, {.global_batch = 8 * strategy.microbatches});
}

// Checks the nesting of tags and that text holds no bare '<' or '&': enough to tell a broken writer.
void ExpectWellFormed(const std::string& xml) {
  std::vector<std::string> open;
  size_t at = 0;
  while ((at = xml.find('<', at)) != std::string::npos) {
    const size_t end = xml.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = xml.substr(at + 1, end - at - 1);
    ASSERT_EQ(tag.find('<'), std::string::npos) << tag;
    at = end + 1;
    if (tag[0] == '?' || tag[0] == '!' || tag.back() == '/') continue;
    const std::string name = tag.substr(tag[0] == '/', tag.find_first_of(" \n") - (tag[0] == '/'));
    if (tag[0] == '/') {
      ASSERT_FALSE(open.empty()) << tag;
      ASSERT_EQ(open.back(), name);
      open.pop_back();
    } else {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty());
  for (size_t i = xml.find('&'); i != std::string::npos; i = xml.find('&', i + 1)) {
    EXPECT_LT(xml.find(';', i) - i, 8u) << xml.substr(i, 12);
  }
}

// The values of an attribute, such as width, wherever it stands.
std::vector<std::string> Values(const std::string& svg, absl::string_view attribute) {
  const std::string key = absl::StrCat(" ", attribute, "=\"");
  std::vector<std::string> out;
  for (size_t at = svg.find(key); at != std::string::npos; at = svg.find(key, at + 1)) {
    const size_t from = at + key.size();
    out.push_back(svg.substr(from, svg.find('"', from) - from));
  }
  return out;
}

// What a viewer needs besides tags that nest: numbers, scales that are not zero, references that lead somewhere.
void ExpectDrawable(const std::string& svg) {
  ExpectWellFormed(svg);
  for (const char* attribute :
       {"x", "y", "x1", "y1", "x2", "y2", "width", "height", "rx", "stroke-width", "font-size"}) {
    const bool extent = absl::string_view(attribute) == "width" || absl::string_view(attribute) == "height";
    for (const std::string& text : Values(svg, attribute)) {
      double value = 0;
      if (extent && text == "100%") continue;
      ASSERT_TRUE(absl::SimpleAtod(text, &value) && std::isfinite(value)) << attribute << " = " << text;
      if (extent) {
        EXPECT_GE(value, 0) << attribute;
      }
    }
  }
  for (const std::string& transform : Values(svg, "transform")) {
    const size_t at = transform.find("scale(");
    if (at == std::string::npos) continue;
    const std::string inside = transform.substr(at + 6, transform.find(')', at) - at - 6);
    for (const absl::string_view text : absl::StrSplit(inside, ' ')) {
      double value = 0;
      ASSERT_TRUE(absl::SimpleAtod(text, &value) && std::isfinite(value)) << transform;
      EXPECT_GT(value, 0) << transform;
    }
  }
  const std::vector<std::string> ids = Values(svg, "id");
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), ids.size()) << "an id stands twice";
  for (const std::string& reference : Values(svg, "href")) {
    EXPECT_EQ(std::count(ids.begin(), ids.end(), reference.substr(1)), 1) << reference;
  }
}

// A schedule alone, as a user's table gives it: no functions, no resolved actions.
Program Table(std::vector<std::vector<Schedule::Cell>> table, std::vector<int> chunk_stage,
              int microbatches) {
  Program p;
  p.module = std::make_unique<Module>("table");
  p.schedule.name = "table";
  p.schedule.microbatches = microbatches;
  p.schedule.chunk_stage = std::move(chunk_stage);
  p.schedule.table = std::move(table);
  return p;
}

TEST(TimelineTest, OneForwardOneBackward) {
  const Program p = CompileSmall("pp=2 dp=2 microbatches=4");
  const Timeline t = PlanTimeline(p);
  EXPECT_NEAR(t.bubble, 1.0 / 5, 1e-9);  // (p - 1) / (m + p - 1)
  EXPECT_THAT(TimelineText(t), HasSubstr("stage 0  F0|F1|......B0===|F2|B1===|F3|B2===|...B3===|"));
  EXPECT_THAT(TimelineText(t), HasSubstr("stage 1  ...F0|B0===|F1|B1===|F2|B2===|F3|B3===|......"));
  const std::string svg = TimelineSvg(t);
  ExpectDrawable(svg);
  for (const char* label :
       {"bubble 20.0%", ">stage 1<", ">forward<", ">backward<", ">update<", "idle (bubble)"}) {
    EXPECT_THAT(svg, HasSubstr(label));
  }
}

TEST(TimelineTest, SplitBackwardFillsTheBubble) {
  using Cell = Schedule::Cell;
  // Stage 1 is done first with each microbatch; stage 0 puts its weight gradients where it would wait.
  const Program p = Table(
      {{Cell{'F', 0, 0}, Cell{'F', 0, 1}, Cell{'I', 0, 0}, Cell{'W', 0, 0}, Cell{'I', 0, 1}, Cell{'W', 0, 1}},
       {Cell{'F', 1, 0}, Cell{'I', 1, 0}, Cell{'F', 1, 1}, Cell{'I', 1, 1}, Cell{'W', 1, 0},
        Cell{'W', 1, 1}}},
      {0, 1}, 2);
  const Timeline t = PlanTimeline(p);
  ASSERT_EQ(t.spans.size(), 2u);
  EXPECT_EQ(t.spans[0].size(), 6u);
  EXPECT_DOUBLE_EQ(t.end, 7);
  const std::string svg = TimelineSvg(t);
  ExpectDrawable(svg);
  EXPECT_THAT(svg, HasSubstr("weight gradient"));
}

TEST(TimelineTest, MeasuredFromATrace) {
  std::string events;
  const auto add = [&](int rank, int lane, const char* name, int begin, int end) {
    absl::StrAppend(&events, events.empty() ? "" : ",", R"({"ph":"X","pid":)", rank, R"(,"tid":)", lane,
                    R"(,"name":")", name, R"(","cat":"x","ts":)", begin, R"(,"dur":)", end - begin, "}");
  };
  for (int step = 0; step < 2; ++step) {
    const int at = 1000 + step * 100;
    for (int rank = 0; rank < 2; ++rank) {
      add(rank, 2, "reset", at, at + 1);
      add(rank, 2, "F0.0", at + 1, at + 11 + 10 * step);
      add(rank, 1, "comm.all_reduce", at + 3, at + 5);
      add(rank, 2, "B0.0", at + 40, at + 60);
      add(rank, 2, "update", at + 60, at + 70);
    }
  }
  add(0, 2, "reset", 1200, 1201);  // a step cut short
  const std::string trace =
      absl::StrCat(R"({"traceEvents":[{"ph":"M","pid":0,"name":"process_name"},)", events, "]}");
  ASSERT_OK_AND_ASSIGN(const Timeline t, MeasuredTimeline(trace, Mesh({{"a", 2}})));
  EXPECT_TRUE(t.seconds);
  ASSERT_EQ(t.rows.size(), 2u);
  EXPECT_NEAR(t.bubble, 1 - 40.0 / 59, 1e-9);  // forward 20 and backward 20 of 59 us in the second step
  EXPECT_THAT(TimelineSvg(t), HasSubstr("collective"));
  ASSERT_OK_AND_ASSIGN(const Timeline first, MeasuredTimeline(trace, Mesh({{"a", 2}}), {.step = 0}));
  EXPECT_NEAR(first.bubble, 1 - 30.0 / 59, 1e-9);

  ExpectError(MeasuredTimeline(trace, Mesh({{"a", 2}}), {.step = 9}), absl::StatusCode::kNotFound,
              "2 whole steps");
  ExpectError(MeasuredTimeline("{", Mesh()), absl::StatusCode::kInvalidArgument, "byte 1");
  ExpectError(MeasuredTimeline("{\"traceEvents\":[{\"ph\":\"X\"}]}", Mesh()),
              absl::StatusCode::kInvalidArgument, "without");
  ExpectError(MeasuredTimeline("{\"traceEvents\":[3, {\"ph\":7}]}", Mesh()),
              absl::StatusCode::kInvalidArgument, "byte 16: not a JSON object");
  ExpectError(MeasuredTimeline("{\"traceEvents\":[]}", Mesh()), absl::StatusCode::kInvalidArgument,
              "no events");
  // A rank that the plan has not, and brackets without end.
  ExpectError(MeasuredTimeline(absl::StrReplaceAll(trace, {{"\"pid\":1", "\"pid\":2"}}), Mesh({{"a", 2}})),
              absl::StatusCode::kInvalidArgument, "rank 2", "2 ranks");
  ExpectError(MeasuredTimeline(absl::StrCat("{\"traceEvents\":", std::string(100'000, '[')), Mesh()),
              absl::StatusCode::kInvalidArgument, "byte 16: not a JSON object");
  ExpectError(MeasuredTimeline(absl::StrCat("{\"other\":", std::string(100'000, '[')), Mesh()),
              absl::StatusCode::kInvalidArgument, "nested more than 8 deep");
}

TEST(BuffersTest, PictureShowsSlotsAndSpaces) {
  const Program p = CompileSmall("pp=2 dp=2 tp=2 ep=2 microbatches=4");
  ASSERT_OK_AND_ASSIGN(const std::string svg, BuffersSvg(p, 0));
  ExpectDrawable(svg);
  for (const char* label :
       {"parameters", "optimizer", "residuals of microbatch 3", "F0.0", "update", "residual: "}) {
    EXPECT_THAT(svg, HasSubstr(label));
  }
  ExpectError(BuffersSvg(p, 5), absl::StatusCode::kNotFound, "no stage 5");
  const std::vector<BufferUse> largest = LargestBuffers(p, 0, 5);
  ASSERT_EQ(largest.size(), 5u);
  for (size_t i = 0; i + 1 < 5; ++i) EXPECT_GE(largest[i].bytes, largest[i + 1].bytes);
  for (const BufferUse& u : largest) EXPECT_LE(u.address + u.bytes, p.memory.stages[0].peak_bytes());
}

TEST(BuffersTest, NarrowColumnsAndEmptyFunctionsAreDrawable) {
  const Program p = CompileSmall("pp=2 dp=2 microbatches=256");
  for (int s = 0; s < 2; ++s) {
    ASSERT_OK_AND_ASSIGN(const std::string svg, BuffersSvg(p, s));
    ExpectDrawable(svg);
  }
}

TEST(BuffersTest, PictureShowsExchangesInFlight) {
  const Program p = CompileSmall("dp=4 zero=1 microbatches=2 overlap=on");
  const StageMemory& memory = p.memory.stages[0];
  ASSERT_GT(memory.future_bytes, 0);
  ASSERT_OK_AND_ASSIGN(const std::string svg, BuffersSvg(p, 0));
  ExpectDrawable(svg);
  for (const auto& [name, ref] : memory.futures) {
    if (name.find("scratch of") != std::string::npos) continue;
    EXPECT_THAT(svg, HasSubstr(absl::StrCat("in flight: ", name, ", ")));
  }
}

TEST(GraphTest, BoxesStandForEveryCollective) {
  const Program p = CompileSmall("pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=2");
  for (int s = 0; s < 2; ++s) {
    ASSERT_OK_AND_ASSIGN(const GraphOutline outline, OutlineGraph(p, {.stage = s, .collapse_layers = false}));
    size_t drawn = 0, there = 0;
    for (const GraphBox& b : outline.boxes) drawn += b.kind == GraphBox::kCollective;
    for (const CollectiveUse& use : CollectivesOf(p, ViewStage(p, s))) there += use.phase == Phase::kForward;
    EXPECT_EQ(drawn, there);
  }
  ASSERT_OK_AND_ASSIGN(const GraphOutline all, OutlineGraph(p, {}));
  const std::string dot = GraphDot(all);
  for (const char* label :
       {"stage 0", "stage 1", "mixture of experts", "send act.0", "all_reduce", "labels"}) {
    EXPECT_THAT(dot, HasSubstr(label));
  }
  EXPECT_THAT(dot, HasSubstr("send act.0 to stage 1"));
  EXPECT_THAT(dot, HasSubstr("receive act.0 from stage 0"));
  // No line leads from one stage to another.
  for (const GraphEdge& e : all.edges) EXPECT_EQ(all.boxes[e.from].stage, all.boxes[e.to].stage);
  ExpectError(OutlineGraph(p, {.layer = 99}), absl::StatusCode::kNotFound, "no layer 99");
}

TEST(GraphTest, EqualLayersAreDrawnOnce) {
  const Program p = CompileSmall("dp=2", 5);
  ASSERT_OK_AND_ASSIGN(const GraphOutline whole, OutlineGraph(p, {.collapse_layers = false}));
  ASSERT_OK_AND_ASSIGN(const GraphOutline small, OutlineGraph(p, {}));
  int64_t layers = 0;
  for (const GraphLayerRun& run : small.runs) layers += run.count;
  EXPECT_EQ(layers, 5);
  EXPECT_EQ(whole.runs.size(), 5u);
  EXPECT_LT(small.runs.size(), 5u);
  // Nothing hangs in the air where layers were left out: every residual add still has two inputs or more.
  for (size_t i = 0; i < small.boxes.size(); ++i) {
    const GraphBox& b = small.boxes[i];
    if (b.title != "x" || b.op != "add") continue;
    int inputs = 0;
    for (const GraphEdge& e : small.edges) inputs += e.to == static_cast<int>(i);
    EXPECT_GE(inputs, 2) << b.part << " of layer " << b.layer;
  }
}

// Where a text of Graphviz' stands: <text ... x="76.5" ...>stage 0</text>.
double LeftOf(const std::string& svg, const std::string& text) {
  const size_t at = svg.find(absl::StrCat(">", text, "</text>"));
  EXPECT_NE(at, std::string::npos) << text;
  if (at == std::string::npos) return 0;
  const std::vector<std::string> x = Values(svg.substr(svg.rfind("<text", at), 200), "x");
  double left = 0;
  EXPECT_TRUE(!x.empty() && absl::SimpleAtod(x[0], &left));
  return left;
}

TEST(GraphTest, DrawsThroughGraphvizOrSaysWhatToInstall) {
  const Program p = CompileSmall("dp=2 tp=2");
  const std::string path = JoinPath(::testing::TempDir(), "graph.svg");
  const absl::Status status = WriteGraphSvg(p, {}, path);
  if (status.ok()) {
    ASSERT_OK_AND_ASSIGN(const std::string svg, ReadFile(path));
    ExpectWellFormed(svg);
    EXPECT_THAT(svg, HasSubstr("all_reduce tp"));
    // Stages stand from left to right, whichever way the data goes.
    const Program staged = CompileSmall("pp=2 dp=2 microbatches=2", 4);
    for (const Phase phase : {Phase::kForward, Phase::kBackward}) {
      ASSERT_OK(WriteGraphSvg(staged, {.phase = phase}, path));
      ASSERT_OK_AND_ASSIGN(const std::string picture, ReadFile(path));
      EXPECT_LT(LeftOf(picture, "stage 0"), LeftOf(picture, "stage 1")) << PhaseName(phase);
    }
  }
  const std::string old_path = std::getenv("PATH") == nullptr ? "" : std::getenv("PATH");
  setenv("PATH", "/nowhere", 1);
  const absl::Status without = WriteGraphSvg(p, {}, path);
  setenv("PATH", old_path.c_str(), 1);
  ExpectError(without, absl::StatusCode::kFailedPrecondition, "install the package graphviz", "graph.dot");
  EXPECT_TRUE(FileExists(JoinPath(::testing::TempDir(), "graph.dot")));
}

}  // namespace
}  // namespace moe::inspect
