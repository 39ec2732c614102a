#include "moe/ir/verifier.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/ir/registry.h"
#include "moe/ir/text.h"

namespace moe {
namespace {

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

std::unique_ptr<Module> Parse(absl::string_view text) {
  absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(text);
  EXPECT_TRUE(module.ok()) << module.status() << "\n" << text;
  return module.ok() ? *std::move(module) : nullptr;
}

// The lines of a function over a few arguments, on a mesh of two axes.
std::string Body(absl::string_view lines) {
  return absl::StrCat(R"(
module @m mesh<pp=2, a=2, b=2; dp=a, tp=b>
func @f(%x: f32[8@dp, 16], %w: f32[16, 32@tp], %y: f32[8, 16] partial(a), %s: f32[8@dp, 16@tp], %z: f32[8, 16], %m: f32[8, 16] partial(max:b)) {
)",
                      lines, "\n  return\n}\n");
}

template <typename... Parts>
void ExpectProblem(absl::string_view lines, Parts... parts) {
  const std::unique_ptr<Module> module = Parse(Body(lines));
  if (module != nullptr) ExpectError(Verify(*module), kInvalid, parts...);
}

void ExpectLegal(absl::string_view lines) {
  const std::unique_ptr<Module> module = Parse(Body(lines));
  if (module != nullptr) EXPECT_OK(Verify(*module));
}

TEST(Verifier, FollowsPlacementsThroughRules) {
  ExpectLegal(R"(
    %h = math.einsum(%x, %w) {eq = "b k, k n -> b n"} place<b=dp, n=tp> : f32[8@dp, 32@tp]
    %r = math.einsum(%h, %w) {eq = "b n, k n -> b k"} place<b=dp, n=tp> : f32[8@dp, 16] partial(tp)
    %t = math.scale(%r) {by = 2.0} place<a0=dp> : f32[8@dp, 16] partial(tp)
    %u = math.add(%t, %r) place<a0=dp> : f32[8@dp, 16] partial(tp)
    %v = comm.all_reduce(%u) {axes = [tp]} : f32[8@dp, 16])");
  // A sharded factor that is reduced leaves a partial.
  ExpectProblem(R"(%h = math.einsum(%s) {eq = "b k -> b"} place<b=dp, k=tp> : f32[8@dp])",
                "@f: %h = math.einsum",
                "result %h is [dp], the placement of the factors gives [dp] partial(b)");
  ExpectProblem(R"(%h = math.einsum(%x, %w) {eq = "b k, k n -> b n"} place<n=tp> : f32[8, 32@tp])",
                "operand 0 (%x) is [dp, -], the placement of the factors requires [-, -]");
  ExpectProblem("%h = math.silu(%x) place<a1=tp> : f32[8, 16@tp]", "operand 0 (%x) is [dp, -]",
                "requires [-, tp]");
  const std::unique_ptr<Module> module = Parse(Body("%h = math.silu(%x) : f32[8@dp, 16]"));
  ASSERT_NE(module, nullptr);
  module->Find("f")->Nodes()[0]->assignment.clear();
  ExpectError(Verify(*module), kInvalid, "its factors are not", "rule a0 a1 -> a0 a1");
}

TEST(Verifier, PartialsPassOnlyLinearOps) {
  ExpectLegal("%h = math.mul(%y, %z) place<> : f32[8, 16] partial(a)");
  ExpectProblem("%h = math.silu(%y) place<> : f32[8, 16] partial(a)", "operand 0 (%y) is partial over 'a'",
                "not linear");
  ExpectProblem("%h = math.mul(%y, %y) place<> : f32[8, 16] partial(a)", "one operand at a time");
  ExpectProblem("%h = math.add(%y, %z) place<> : f32[8, 16] partial(a)", "operand 1 (%z) is [-, -]",
                "requires [-, -] partial(a)");
  ExpectProblem("%h = math.scale(%m) {by = 1} place<> : f32[8, 16] partial(max:b)", "max-partial");
  ExpectProblem("%h = math.scale(%y) {by = 1} place<a0=a> : f32[8@a, 16]",
                "another factor or a partial operand uses");
}

TEST(Verifier, AssignmentsAreLegal) {
  ExpectProblem("%h = math.silu(%z) place<a0=pp> : f32[8, 16]", "placed on 'pp'");
  ExpectProblem("%h = math.silu(%z) place<a0=a, a1=a> : f32[8@a, 16]", "another factor");
  ExpectProblem(R"(%h = math.einsum(%z) {eq = "b k! -> b k!"} place<k=a> : f32[8, 16])",
                "factor k may not be sharded");
  ExpectProblem(
      R"(%h = math.reshape(%z) {eq = "b (k g) -> b k g", extents = ["g=2"]} place<g=tp> : f32[8, 8, 2@tp])",
      "majors are exhausted");
  ExpectProblem(
      R"(%h = math.reshape(%z) {eq = "(k b) g -> k b g", extents = ["b=1"]} place<b=tp> : f32[8, 1, 16])",
      "does not divide");
}

TEST(Verifier, Conversions) {
  ExpectLegal(R"(
    %1 = comm.all_gather(%x) {axes = [dp]} : f32[8, 16]
    %2 = comm.slice(%1) {axes = [dp]} : f32[8, 16@dp]
    %3 = comm.all_to_all(%x) {axes = [dp]} : f32[8, 16@dp]
    %4 = comm.reduce_scatter(%y) {axes = [dp]} : f32[8@dp, 16]
    %5 = comm.all_reduce(%m) {axes = [tp]} : f32[8, 16]
    %6 = comm.zero(%z) {axes = [dp]} : f32[8, 16] partial(dp)
    %7 = comm.reshard(%s) {axes = [dp, tp], steps = "all_gather a:0>-; all_to_all b:1>0; slice a:->0"} : f32[8@b.a, 16]
    %8 = comm.permute(%7) {axes = [dp, tp]} : f32[8@a.b, 16]
    %9 = comm.rotate(%8) {axes = [dp]} : f32[8@a.b, 16]
    %10 = comm.slice(%1) {axes = [dp], dim = 1} : f32[8, 16@dp])");
  ExpectProblem("%h = comm.all_gather(%x) {axes = [dp]} : f32[8@tp, 16]", "axis 'b' changes", "not in axes");
  ExpectProblem("%h = comm.all_gather(%y) {axes = [dp]} : f32[8, 16]", "does not take axis 'a'");
  ExpectProblem("%h = comm.convert(%x) {axes = [dp]} : f32[8, 16] partial(dp)", "does not take axis 'a'");
  ExpectProblem("%h = comm.convert(%m) {axes = [tp]} : f32[8, 16] partial(tp)", "does not take axis 'b'");
  ExpectProblem("%h = comm.slice(%z) {axes = [dp], dim = 0} : f32[8, 16@dp]", "has dim = 0");
}

// What a conversion does is told by its types or by its steps, and by one step if by its types.
TEST(Verifier, StepsOfConversions) {
  ExpectProblem("%h = comm.all_reduce(%y) {axes = [dp, tp]} : f32[8, 16]",
                "no step takes axis 'b' from replicated to replicated");
  ExpectProblem("%h = comm.permute(%x) {axes = [dp]} : f32[8@dp, 16]", "its types are those of comm.rotate");
  ExpectProblem("%h = comm.reshard(%s) {axes = [dp, tp]} : f32[8, 16@a]", "do not move alike", "`steps`");
  ExpectProblem(R"(%h = comm.all_reduce(%y) {axes = [dp], steps = "all_reduce b:sum>-"} : f32[8, 16])",
                "its steps move other axes (all_reduce b:sum>-) than [dp]");
  ExpectProblem(R"(%h = comm.all_reduce(%y) {axes = [dp], steps = "all_reduce"} : f32[8, 16])",
                "moves no axis");
}

TEST(Verifier, InPlaceResultsKeepTheType) {
  ExpectLegal("%h = optim.accumulate(%y, %y) place<> : f32[8, 16] partial(a)");
  ExpectProblem("%h = optim.accumulate(%y, %z) place<> : f32[8, 16]", "optim.accumulate");
}

TEST(Verifier, PhasesAreInOrder) {
  ExpectLegal(
      "forward:\n backward:\n %h = math.silu(%z) : f32[8, 16]\n update:\n %i = math.silu(%z) : f32[8, 16]");
  ExpectProblem("backward:\n %h = math.silu(%z) : f32[8, 16]\n forward:\n %i = math.silu(%z) : f32[8, 16]",
                "%i = math.silu: a forward node stands after the backward phase has begun");
}

TEST(Verifier, Bindings) {
  const auto verify = [](absl::string_view arg, absl::string_view result) {
    const std::unique_ptr<Module> module =
        Parse(absl::StrCat("module @m mesh<a=2>\nstate @w : f32[8@a]\nstate @v : f32[8]\nfunc @f(%x: ", arg,
                           ", %y: f32[8@a]) {\n  return ", result, "\n}\n"));
    return module == nullptr ? absl::InternalError("no module") : Verify(*module);
  };
  EXPECT_OK(verify(R"(f32[8@a] {kind = "state", name = "w"})", R"(%y {kind = "state", name = "w"})"));
  EXPECT_OK(verify("f32[8]", "%x, %y"));
  ExpectError(verify(R"(f32[8] {kind = "state", name = "w"})", "%x"), kInvalid,
              "@f: argument %x is f32[8], its state @w is f32[8@a]");
  ExpectError(verify(R"(f32[8] {kind = "state", name = "u"})", "%x"), kInvalid,
              "the state @u, which the module does not have");
  ExpectError(verify("f32[8]", R"(%y {kind = "state", name = "v"})"), kInvalid,
              "result %y is f32[8@a], its state @v is f32[8]");
  ExpectError(verify("f32[8]", R"(%y {kind = "state", name = "w"}, %y {kind = "state", name = "w"})"),
              kInvalid, "two results are bound to state 'w'");
  ExpectError(verify(R"(f32[8] {kind = "report", name = "r"})", "%x"), kInvalid,
              "bound to a report; legal are batch, boundary");
  ExpectError(verify(R"(f32[8] {kind = "batch"})", "%x"), kInvalid, "without a name");
}

TEST(Verifier, SeesThroughHandmadeGraphs) {
  Module module("m");
  module.mesh() = Mesh({{"a", 3}});
  Function* f = module.AddFunction("f");
  Function* g = module.AddFunction("g");
  const Value x = f->AddArg("x", Type(DType::kF32, {8}));
  const Value other = g->AddArg("x", Type(DType::kF32, {8}));
  const OpDef* add = Ops().Find("math.add");
  Node* first = f->Insert(nullptr, add, {x, x}, {x.type()}, {});
  Node* second = f->Insert(nullptr, add, {first->result(), x}, {x.type()}, {});
  EXPECT_OK(Verify(module));

  f->MoveBefore(second, first);
  ExpectError(Verify(module), kInvalid, "1 problem in module @m", "is used before its definition");
  f->MoveBefore(first, second);
  first->SetOperand(0, other);
  ExpectError(Verify(*f), kInvalid, "operand 0, %x, is a value of another function");
  first->SetOperand(0, Value{});
  ExpectError(Verify(*f), kInvalid, "operand 0 is missing");
}

TEST(Verifier, NamesTheUsersOfWhatWasErased) {
  Module module("m");
  Function* f = module.AddFunction("f");
  const Value x = f->AddArg("x", Type(DType::kF32, {8})), y = f->AddArg("y", x.type());
  const OpDef* add = Ops().Find("math.add");
  Node* first = f->Insert(nullptr, add, {x, x}, {x.type()}, {}, {"first"});
  Node* second = f->Insert(nullptr, add, {first->result(), y}, {x.type()}, {}, {"second"});
  f->Erase(first);
  f->EraseArg(y.node);
  ExpectError(Verify(module), kInvalid,
              "%second = math.add: operand 0, %first, is a value of a node that was erased",
              "operand 1, %y, is a value of a node that was erased");
  EXPECT_EQ(PrintNode(*second), "%second = math.add(%first, %y) : f32[8]");
  f->ReplaceAllUses(first->result(), x);
  f->ReplaceAllUses(y, x);
  EXPECT_OK(Verify(module));
}

TEST(Verifier, AllProblemsAtOnceUpToALimit) {
  Module module("m");
  module.mesh() = Mesh({{"a", 3}});
  Function* f = module.AddFunction("f");
  Type type(DType::kF32, {8});
  type.placement.dims[0] = {0};
  const Value x = f->AddArg("x", type);
  const OpDef* scale = Ops().Find("math.scale");
  f->Insert(nullptr, scale, {x}, {Type(DType::kS32, {8})}, {{"by", 1.0}}, {"dtype"});
  f->Insert(nullptr, scale, {x}, {Type(DType::kF32, {9})}, {{"by", 1.0}}, {"shape"});
  f->Insert(nullptr, scale, {x}, {Type(DType::kF32, {8})}, {{"by", int64_t{1}}}, {"kind"});
  f->Insert(nullptr, scale, {x}, {Type(DType::kF32, {8})}, {{"by", 1.0}, {"of", true}}, {"unknown"});
  f->Insert(nullptr, scale, {x}, {Type(DType::kF32, {8})}, {}, {"missing"});
  f->Insert(nullptr, scale, {x, x}, {Type(DType::kF32, {8})}, {{"by", 1.0}}, {"arity"});
  ExpectError(Verify(module), kInvalid, "7 problems in module @m",
              "%x = arg: dim 0 of 8 is not divisible by the 3 ranks of a",
              "%dtype = math.scale: result %dtype must be f32[8], not s32[8]",
              "%shape = math.scale: result %shape must be f32[8]",
              "%kind = math.scale: attribute 'by' must be of kind float, not int",
              "%unknown = math.scale: unknown attribute 'of'",
              "%missing = math.scale: the attribute 'by' is missing",
              "%arity = math.scale: takes 1 operands (x), not 2");
  for (int i = 0; i < 60; ++i) f->Insert(nullptr, scale, {x}, {Type(DType::kF32, {8})}, {}, {"missing"});
  ExpectError(Verify(module), kInvalid, "67 problems", "and 17 more");
}

TEST(Verifier, Types) {
  const Mesh mesh({{"pp", 2}, {"a", 2}, {"b", 4}});
  const auto type = [&](auto edit) {
    Type t(DType::kF32, {8, 4, 2, 6, 16});
    edit(t);
    return VerifyType(t, mesh);
  };
  EXPECT_OK(type([](Type& t) { t.placement.dims[0] = {1, 2}; }));
  EXPECT_OK(type([](Type& t) { t.ragged = 3, t.ragged_bound = 12; }));
  ExpectError(type([](Type& t) { t.placement.dims[0] = {0}; }), kInvalid, "names 'pp'");
  ExpectError(type([](Type& t) { t.placement.dims[0] = {3}; }), kInvalid, "axis 3 does not exist");
  ExpectError(type([](Type& t) { t.placement.dims[0] = {1}, t.placement.AddPartial({1}); }), kInvalid,
              "'a' appears twice");
  ExpectError(type([](Type& t) { t.placement.dims[2] = {2}; }), kInvalid,
              "dim 2 of 2 is not divisible by the 4 ranks of b");
  ExpectError(type([](Type& t) { t.placement.dims.pop_back(); }), kInvalid, "placement of 4");
  ExpectError(type([](Type& t) { t.dims[1] = 0; }), kInvalid, "dim 1 is 0");
  ExpectError(type([](Type& t) { t.ragged = 3; }), kInvalid, "ragged bound of 0");
  ExpectError(type([](Type& t) { t.ragged_bound = 3; }), kInvalid, "without a ragged dim");
  ExpectError(type([](Type& t) { t.ragged = 5, t.ragged_bound = 1; }), kInvalid, "does not exist");
  ExpectError(type([](Type& t) { t.ragged = 3, t.ragged_bound = 12, t.placement.dims[3] = {1}; }), kInvalid,
              "ragged dim 3 is sharded");
  ExpectError(type([](Type& t) { t.ragged = 3, t.ragged_bound = int64_t{1} << 50; }), kInvalid,
              "ragged bound");
}

TEST(Verifier, Meshes) {
  EXPECT_OK(VerifyMesh(Mesh({{"pp", 2}, {"a", 4}}, {{"tp", {1}}, {"cp", {}}})));
  ExpectError(VerifyMesh(Mesh({{"a", 2}, {"pp", 4}})), kInvalid, "'pp' is not the first");
  ExpectError(VerifyMesh(Mesh({{"a", 2}, {"a", 4}})), kInvalid, "'a' appears twice");
  ExpectError(VerifyMesh(Mesh({{"a.b", 2}})), kInvalid, "'a.b' is not the name of a mesh axis");
  ExpectError(VerifyMesh(Mesh({{"a", 0}})), kInvalid, "the size 0");
  ExpectError(VerifyMesh(Mesh({{"a", 2}}, {{"tp", {1}}})), kInvalid,
              "names an axis that the mesh does not have");
  ExpectError(VerifyMesh(Mesh({{"a", 2}, {"b", 2}}, {{"a", {1}}})), kInvalid, "means something else");
}

}  // namespace
}  // namespace moe
