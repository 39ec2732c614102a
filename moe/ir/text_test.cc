#include "moe/ir/text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/ir/diff.h"
#include "moe/ir/verifier.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

// A little of everything that a module can hold.
constexpr char kModule[] = R"(
module @moe_ffn mesh<pp=2, edp=2, x=4, tp=2; dp=edp.x, ep=x> {seed = 7, title = "a \"test\"\n"}
state @layers.0.w1 : f32[64@ep, 32, 128@tp] {kind = "parameter", std = 0.02}
state @"odd name" : f64[] {kind = "accumulator"}
func @fwd(%x: f32[32@dp, 8, 64, 32] {kind = "batch", name = "x"}, %wg: f32[32, 64],
          %w1: f32[64@ep, 32, 128@tp] {kind = "state", name = "layers.0.w1"},
          %mask: f32[32@dp, 8, 64] {kind = "batch", name = "mask"} at "input") {
  %g = math.einsum(%x, %wg) {eq = "b c t h, h e -> b c t e"} place<b=dp> : f32[32@dp, 8, 64, 64] at "layers.0.router"
  %s = nn.softmax(%g) place<b=dp> : f32[32@dp, 8, 64, 64]
  %p, %e = moe.top_k(%s, %mask) {k = 2} place<b=dp> : f32[32@dp, 8, 64, 2], s32[32@dp, 8, 64, 2]
  %slot = moe.slots(%e) {capacity = 3, dropless = true, experts = 64} place<b=dp> : s32[32@dp, 8, 64, 2]
  %d = moe.dispatch(%x, %e, %slot) {dropless = true, experts = 64, slots = 3} place<b=dp> : f32[64, 32@dp, 8, ~3<=128, 32]
  %r = comm.all_to_all(%d) {axes = [ep], steps = "all_to_all x:1>0"} @comm : f32[64@ep, 32@edp, 8, ~3<=128, 32] at "layers.0" by "insert-collectives: batch@dp -> experts@ep, for %d"
backward:
  %h = math.einsum(%r, %w1) {eq = "e b c p h, e h f -> e b c p f"} place<b=edp, e=ep, f=tp> : f32[64@ep, 32@edp, 8, ~3<=128, 128@tp] by "autodiff"
update:
  %c = math.constant() {dtype = "f32", value = -1e-05} : f32[]
  return %h, %c {kind = "report", name = "c"}
}
func @empty() {
  return
}
)";

std::unique_ptr<Module> Parse(absl::string_view text) {
  absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(text);
  EXPECT_TRUE(module.ok()) << module.status();
  return module.ok() ? *std::move(module) : nullptr;
}

void ExpectRoundTrip(const Module& module) {
  const std::string text = PrintModule(module);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> again, ParseModule(text));
  EXPECT_EQ(DiffModules(module, *again), "") << text;
  EXPECT_EQ(PrintModule(*again), text);
}

// A function of one line between two that are right.
std::string WithLine(absl::string_view line) {
  return absl::StrCat("module @m mesh<a=2, b=2; dp=a>\nfunc @f(%x: f32[8, 8], %t: f32[4, 2, 8, 4]) {\n", line,
                      "\n  return %x\n}\n");
}

TEST(Text, RoundTripsEverything) {
  const std::unique_ptr<Module> module = Parse(kModule);
  ASSERT_NE(module, nullptr);
  EXPECT_OK(Verify(*module));
  ExpectRoundTrip(*module);

  const Function* f = module->Find("fwd");
  ASSERT_NE(f, nullptr);
  const std::vector<Node*> nodes = f->Nodes();
  EXPECT_EQ(nodes[5]->queue, Queue::kComm);
  EXPECT_EQ(nodes[5]->scope, "layers.0");
  EXPECT_EQ(nodes[5]->provenance.pass, "insert-collectives");
  EXPECT_EQ(nodes[5]->provenance.reason, "batch@dp -> experts@ep, for %d");
  EXPECT_EQ(nodes[6]->phase, Phase::kBackward);
  EXPECT_EQ(nodes[6]->provenance, (Provenance{"autodiff", ""}));
  EXPECT_EQ(nodes[7]->phase, Phase::kUpdate);
  EXPECT_EQ(f->args()[3]->scope, "input");
  EXPECT_EQ(nodes[4]->type().ragged_bound, 128);
  EXPECT_EQ(PrintNode(*nodes[7]), "%c = math.constant() {dtype = \"f32\", value = -1e-05} : f32[]");
}

TEST(Text, AttributesKeepTheirKind) {
  Module module("kinds");
  module.mesh() = Mesh({{"a", 2}, {"b", 2}}, {{"tp", {1}}, {"cp", {}}});
  constexpr double kInf = std::numeric_limits<double>::infinity();
  module.attributes() = {
      {"axes", Axes{{0, 1}}},
      {"axes_none", Axes{}},
      {"bool", true},
      {"int", int64_t{1}},
      {"int_min", std::numeric_limits<int64_t>::min()},
      {"ints", std::vector<int64_t>{1, -2}},
      {"ints_none", std::vector<int64_t>{}},
      {"odd key", std::string("x")},
      {"real", 1.0},
      {"real_big", 1e300},
      {"real_inf", kInf},
      {"real_minus_inf", -kInf},
      {"real_minus_zero", -0.0},
      {"real_nan", std::nan("")},
      {"real_third", 1.0 / 3},
      {"real_tiny", 5e-324},
      {"string", std::string("quote \" backslash \\ newline \n tab \t zero \0 accent \xc3\xa9", 50)},
      {"string_number", std::string("1")},
      {"strings", std::vector<std::string>{"a", "b c"}},
      {"strings_none", std::vector<std::string>{}},
  };
  std::get<std::string>(module.attributes()["string"]).resize(48);
  ExpectRoundTrip(module);
  EXPECT_THAT(PrintModule(module), HasSubstr("axes = [a, b], axes_none = [], bool = true, int = 1"));
  EXPECT_THAT(PrintModule(module), HasSubstr("real = 1.0"));
}

TEST(Text, OddNamesAreQuoted) {
  Module module("a b");
  Function* f = module.AddFunction("f(\"x\")");
  const Value x = f->AddArg("x, y", Type(DType::kF32, {2}));
  Builder b(f);
  ASSERT_OK_AND_ASSIGN(const Value y, b.Create("math.add", {x, x}, {}, "1 = %2 {"));
  f->AddResult(y, {Binding::kReport, "}"});
  ExpectRoundTrip(module);
}

TEST(Text, EmptyPlacementDiffersFromNone) {
  const std::unique_ptr<Module> module =
      Parse(WithLine("  %y = math.add(%x, %x) place<> : f32[8, 8]\n  %z = math.add(%x, %x) : f32[8, 8]"));
  ASSERT_NE(module, nullptr);
  const std::vector<Node*> nodes = module->Find("f")->Nodes();
  EXPECT_EQ(nodes[0]->assignment.size(), 2);
  EXPECT_EQ(nodes[1]->assignment.size(), 0);
  ExpectRoundTrip(*module);
}

TEST(Text, TypesMayBeLeftOut) {
  const std::unique_ptr<Module> module =
      Parse(WithLine("  %y = math.einsum(%x) {eq = \"i j -> j\"}  // summed\n"));
  ASSERT_NE(module, nullptr);
  EXPECT_EQ(module->Find("f")->Nodes()[0]->type(), Type(DType::kF32, {8}));
}

// The example of the docs: types, no placements.
TEST(Text, PlacementMayBeLeftOut) {
  const std::unique_ptr<Module> module = Parse(R"(
    module @moe_ffn mesh<edp=2, ep=4, tp=2; dp=edp.ep>
    func @fwd(%x: f32[32@dp,8,64,1024], %wg: f32[1024,64], %mask: f32[32@dp,8,64], %q: f32[8, 16, 8@tp, 4],
              %w1: f32[64@ep,1024,4096@tp], %w2: f32[64@ep,4096@tp,1024]) {
      %l = math.einsum(%x, %wg) {eq = "b c t h, h e -> b c t e"} : f32[32@dp,8,64,64]
      %g = nn.softmax(%l) : f32[32@dp,8,64,64]
      %p, %e = moe.top_k(%g, %mask) {k = 2} : f32[32@dp,8,64,2], s32[32@dp,8,64,2]
      %s = moe.slots(%e) {capacity = 3, experts = 64} : s32[32@dp,8,64,2]
      %d = moe.dispatch(%x, %e, %s) {experts = 64, slots = 3} : f32[64,32@dp,8,3,1024]
      %r = comm.all_to_all(%d) {axes = [ep]} : f32[64@ep,32@edp,8,3,1024]
      %h = math.einsum(%r, %w1) {eq = "e b c p h, e h f -> e b c p f"} : f32[64@ep,32@edp,8,3,4096@tp]
      %a = math.silu(%h) : f32[64@ep,32@edp,8,3,4096@tp]
      %o = math.einsum(%a, %w2) {eq = "e b c p f, e f h -> e b c p h"} : f32[64@ep,32@edp,8,3,1024] partial(tp)
      %t = comm.all_reduce(%o) {axes = [tp]} : f32[64@ep,32@edp,8,3,1024]
      %b = comm.all_to_all(%t) {axes = [ep]} : f32[64,32@dp,8,3,1024]
      %y = moe.combine(%b, %p, %e, %s) : f32[32@dp,8,64,1024]
      %z = math.reshape(%q) {eq = "b s (k g) d -> b s k g d", extents = ["k=2"]} : f32[8, 16, 2@tp, 4, 4]
      return %y
    })");
  ASSERT_NE(module, nullptr);
  EXPECT_OK(Verify(*module));
  EXPECT_THAT(PrintNode(*module->Find("fwd")->Nodes()[8]), HasSubstr("place<e=ep, b=edp, f=tp>"));
  ExpectRoundTrip(*module);
}

TEST(Text, BindingsAndRoles) {
  const std::unique_ptr<Module> module = Parse(R"(
module @m
state @w : f32[8]
func @forward1(%w: f32[8] {kind = "state", name = "w"},
               %x: f32[8] {kind = "boundary", name = "act.0", peer = 0, tag = "residual_stream"}) {
  return %x {kind = "boundary", name = "act.1", peer = 2}, %w {kind = "state", name = "w"}
}
func @update() {
  return
}
func @update3() {
  return
}
func @forward01() {
  return
}
)");
  ASSERT_NE(module, nullptr);
  const Function* f = module->Find({FunctionKind::kForward, 1});
  ASSERT_NE(f, nullptr);
  EXPECT_EQ(f->name(), "forward1");
  EXPECT_EQ(f->args()[0]->binding, Binding(Binding::kState, "w"));
  EXPECT_EQ(f->args()[1]->binding, Binding(Binding::kBoundary, "act.0", 0));
  EXPECT_EQ(f->args()[1]->String("tag"), "residual_stream");
  EXPECT_EQ(f->result_binding(0), Binding(Binding::kBoundary, "act.1", 2));
  EXPECT_EQ(module->Find(FunctionKind::kUpdate), module->Find("update"));
  EXPECT_EQ(module->Find({FunctionKind::kUpdate, 3}), module->Find("update3"));
  EXPECT_EQ(module->Find("forward01")->role(), FunctionRole());
  EXPECT_EQ(module->Find(FunctionKind::kStep), nullptr);
  ExpectRoundTrip(*module);
}

TEST(Text, CloneHasTheSameText) {
  const std::unique_ptr<Module> module = Parse(kModule);
  module->Find("fwd")->args()[0]->provenance = {"front-end", "tokens"};
  EXPECT_EQ(PrintModule(*CloneModule(*module)), PrintModule(*module));
}

TEST(Text, DiffNamesWhatDiffers) {
  const std::unique_ptr<Module> a = Parse(kModule);
  const auto diff = [&](absl::string_view from, absl::string_view to) {
    const std::unique_ptr<Module> b = Parse(absl::StrReplaceAll(kModule, {{from, to}}));
    return b == nullptr ? "" : DiffModules(*a, *b);
  };
  EXPECT_THAT(diff("layers.0.router", "layers.1"), HasSubstr("@fwd: node 0 (%g = math.einsum): scope"));
  EXPECT_THAT(diff("autodiff", "other"), HasSubstr("pass is 'autodiff' and 'other'"));
  EXPECT_THAT(diff("@comm", "@copy"), HasSubstr("queue"));
  EXPECT_THAT(diff("update:", ""), HasSubstr("phase is 'update' and 'backward'"));
  EXPECT_THAT(diff("seed = 7", "seed = 7.0"), HasSubstr("'seed' differs"));
  EXPECT_THAT(diff("return %h, %c", "return %c, %c"), HasSubstr("return: operand 0 differs"));
  EXPECT_THAT(diff("std = 0.02", "std = 0.03"), HasSubstr("state @layers.0.w1: attribute 'std'"));
}

TEST(Text, ErrorsSayWhereAndWhatIsLegal) {
  const auto error = [](absl::string_view line, auto... parts) {
    ExpectError(ParseModule(WithLine(line)), kInvalid, parts...);
  };
  error("  %y = math.ad(%x, %x) : f32[8, 8]", "3:8", "unknown op 'math.ad'", "math.add");
  error("  %y = arg() : f32[8, 8]", "3:8", "unknown op 'arg'");
  error("  %y = math.add(%x) : f32[8, 8]", "3:8", "math.add takes 2 operands (x, y), not 1");
  error("  %y = math.einsum() {eq = \"->\"} : f32[]", "3:8", "one or more");
  error("  %y, %z = math.add(%x, %x) : f32[8, 8]", "3:3", "math.add has 1 results (z), not 2");
  error("  %y = math.add(%x, %x) : s32[8, 8]", "3:8", "%y must be f32[8, 8], not s32[8, 8]");
  error("  %y = math.add(%x, %x) : f32[8, 9]", "3:8", "%y must be f32[8, 8], not f32[8, 9]");
  error("  %y = math.add(%x, %x) : f33[8, 8]", "3:27", "unknown dtype 'f33'", "f64");
  error("  %y = math.add(%x, %q) : f32[8, 8]", "3:21", "%q is not defined in @f");
  error("  %y = math.add(%x, %z)\n  %w, %z = math.add(%y, %y)", "3:21",
        "%z is used before its definition at 4:7", "cycle");
  error("  %y = math.add(%x, %y)", "3:21", "no cycles");
  error("  %x = math.add(%x, %x)", "3:4", "%x is defined twice");
  error("  %y = math.add(%x, %x) {bias = 1}", "3:26", "math.add has no attribute 'bias'");
  error("  %y = math.scale(%x)", "3:8", "needs the attribute 'by' of kind float");
  error("  %y = math.scale(%x) {by = \"2\"}", "3:29", "'by' of math.scale must be of kind float, not string");
  error("  %y = math.scale(%x) {by = 2, by = 3}", "3:32", "appears twice");
  error("  %y = math.scale(%x) {by = 2..5}", "3:29", "not a number");
  error("  %y = math.add(%x, %x) place<q=a>", "3:31", "'q' is not a factor", "a0 a1, a0 a1 -> a0 a1");
  error("  %y = math.add(%x, %x) place<a0=c>", "3:34", "'c' names no axes of the mesh; it has a, b, dp");
  error("  %y = math.add(%x, %x) @gpu", "3:26", "unknown queue 'gpu'; legal are compute, comm, copy");
  error("  %y = math.add(%x, %x) : f32[8@a, 8@a]", "3:27", "axis 'a' appears twice");
  error("  %y = math.add(%x, %x) : f32[8, 8] partial(a, max:a)", "3:48", "axis 'a' appears twice");
  error("  %y = math.add(%x, %x) : f32[0, 8]", "3:31",
        "a dim must be an integer from 1 to 1099511627776, not 0");
  error("  %y = math.add(%x, %x) : f32[8, 99999999999999999999]", "3:34", "a dim must be");
  error("  %y = math.add(%x, %x) : f32[1099511627776, 1099511627776]", "3:27", "elements");
  error("  %y = math.einsum(%x) {eq = \"a b -> b\", extents = [\"a=0\"]}", "3:8", "extents");
  error("  %y = math.einsum(%x) {eq = \"a b\"}", "3:8", "->");
  error("  %y = math.reshape(%x) {eq = \"(a c) b -> a c b\", extents = [\"a=1099511627776\"]}", "3:8",
        "not a product");
  error(
      "  %y = math.broadcast(%x) {eq = \"a b -> (a b c d)\", extents = [\"c=1099511627776\", "
      "\"d=1099511627776\"]}",
      "3:8", "exceeds");
  error("  %s = moe.top_k_grad(%t, %t) {experts = -4}", "3:8", "-4", "legal are 1 to");
  error("  %i = math.cast(%x) {dtype = \"s32\"}\n  %y = math.add(%x, %i)", "4:8",
        "operand 1 (y) is s32, operand 0 is f32; math.cast converts");
  error("  %y = nn.embed(%x, %x)", "3:8", "operand 0 (ids) must be s32, not f32");
  error("  forward", "4:3", "expected ':'");
  error("  %y = math.scale(%x) {by = \x01}", "3:29", "byte 0x01");
  error("  %y = math.scale(%x) {tag = \"\xff\"}", "3:31", "not UTF-8");
  error("  %y = math.scale(%x) {tag = \"no end", "3:30", "no closing quote");
  error("  ) ) )", "3:3", "expected a node");
  error("  return %x {kind = \"store\", name = \"x\"}", "3:13",
        "unknown kind of binding 'store'; legal are batch");
  error("  return %x {kind = 1}", "3:13", "unknown kind of binding; legal are batch");
  error("  return %x {name = \"x\"}", "3:13", "a binding without a kind");
  error("  return %x {kind = \"state\", name = \"x\", peer = 1}", "3:13", "only a boundary has one");
  error("  return %x {kind = \"boundary\", name = \"x\", peer = -1}", "3:13", "the number of a chunk");
  error("  return %x {kind = \"state\", name = 1}", "3:13", "a string");
  error("  return %x {kind = \"state\", name = \"x\", tag = \"t\"}", "3:13", "not 'tag'");
}

TEST(Text, ModuleLevelErrors) {
  const auto error = [](absl::string_view text, auto... parts) {
    ExpectError(ParseModule(text), kInvalid, parts...);
  };
  error("", "1:1", "'module @name'", "end of the text");
  error("module @m mesh<a=2, a=2>", "1:21", "'a' appears twice");
  error("module @m mesh<a=0>", "1:18", "the size of an axis");
  error("module @m mesh<a=16777216, b=16777216>", "ranks");
  error("module @m mesh<a=2, pp=2>", "'pp' must be the first");
  error("module @m mesh<a=2, b=2; a=b>", "has the name of an axis");
  error("module @m mesh<a=2; x=a.c>", "'c', which is not an axis");
  error("module @m mesh<pp=2>\nstate @w : f32[2@pp]", "2:12", "'pp'");
  error("module @m mesh<a=3>\nstate @w : f32[8@a]", "2:12",
        "dim 0 of 8 is not divisible by the 3 ranks of a");
  error("module @m\nstate @w : f32[8]\nstate @w : f32[8]", "3:8", "@w appears twice");
  error("module @m\nfunc @f() {\n  return\n}\nfunc @f() {\n  return\n}", "5:7", "@f appears twice");
  error("module @m\nfunc @f(%x: f32[8], %x: f32[8]) {\n", "2:22", "%x is defined twice");
  error("module @m\nfunc @f(%x: f32[8]) {\n", "3:1", "end of the text");
  error("module @m\nfunc @f(%x: f32[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]) {\n", "at most 16 dims");
  error(absl::StrCat("module @", std::string(300, 'n')), "1:9", "at most 256");
  error("module @m trailing", "1:11", "'state', 'func' or the end");
  error(std::string(size_t{(64 << 20) + 1}, ' '), "67108865 bytes");
}

TEST(Text, DeepNestingAndTruncation) {
  const std::string deep(10000, '(');
  EXPECT_FALSE(ParseModule(absl::StrCat("module @m\nfunc @f", deep)).ok());
  EXPECT_FALSE(ParseModule(WithLine(absl::StrCat("%y = math.add", deep))).ok());
  EXPECT_FALSE(
      ParseModule(WithLine(absl::StrCat("%y = math.add(%x, %x) : f32", std::string(10000, '[')))).ok());
  EXPECT_FALSE(ParseModule(WithLine(absl::StrCat("%y = math.einsum(%x) {eq = \"", deep, "\"}"))).ok());
  std::string futures;
  for (int i = 0; i < 20'000; ++i) futures += "future<";
  ExpectError(ParseModule(absl::StrCat("module @m\nfunc @f(%x: ", futures)),
              absl::StatusCode::kInvalidArgument, "2:20", "a future of a future");
  const std::string text = kModule;
  for (size_t n = 0; n + 30 < text.size(); ++n) {
    const absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(text.substr(0, n));
    if (module.ok()) ExpectRoundTrip(**module);  // cut between two functions
  }
}

// Bytes and words replaced at random: an error with its place, or a module that prints and parses again.
TEST(Text, MutationsNeverCrash) {
  const std::string text = kModule;
  const char* const kWords[] = {"%x",
                                "%h",
                                "f32[8]",
                                "place<",
                                "@",
                                "{",
                                "}",
                                "(",
                                ")",
                                "[]",
                                ",",
                                "=",
                                "9999999999999999999",
                                "-1",
                                "0",
                                "\"",
                                "~3<=",
                                "eq",
                                "pp",
                                "nan",
                                ":",
                                "//",
                                "return",
                                "backward:",
                                "math.add",
                                "1e999",
                                "partial(max:tp)",
                                "\\x",
                                "func",
                                "state",
                                "module"};
  const uint32_t seed = 20240607;
  std::mt19937 random(seed);
  int accepted = 0;
  for (int i = 0; i < 6000; ++i) {
    std::string mutant = text;
    const int edits = 1 + random() % 3;
    for (int k = 0; k < edits; ++k) {
      const size_t at = random() % mutant.size();
      switch (random() % 4) {
        case 0:
          mutant[at] = static_cast<char>(random() % 256);
          break;
        case 1:
          mutant.erase(at, 1 + random() % 12);
          break;
        case 2:
          mutant.insert(at, kWords[random() % std::size(kWords)]);
          break;
        default: {  // one piece of the text over another
          const size_t from = random() % mutant.size(), length = 1 + random() % 24;
          const std::string piece = mutant.substr(from, length);
          mutant.replace(at, piece.size(), piece);
        }
      }
    }
    const absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(mutant);
    if (!module.ok()) {
      const std::string message(module.status().message());
      EXPECT_TRUE(!message.empty() && message[0] >= '1' && message[0] <= '9') << message;
      continue;
    }
    ++accepted;
    const absl::Status verified = Verify(**module);
    (void)verified;
    const std::string printed = PrintModule(**module);
    const absl::StatusOr<std::unique_ptr<Module>> again = ParseModule(printed);
    ASSERT_TRUE(again.ok()) << "seed " << seed << ", mutant " << i << ": " << again.status() << "\n"
                            << printed;
    EXPECT_EQ(DiffModules(**module, **again), "") << "seed " << seed << ", mutant " << i << "\n" << mutant;
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace moe
