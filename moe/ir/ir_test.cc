#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"
#include "moe/ir/builder.h"
#include "moe/ir/graph.h"
#include "moe/ir/registry.h"
#include "moe/ir/scope.h"

namespace moe {
namespace {

Mesh TestMesh() { return Mesh({{"b", 4}, {"a", 2}}, {{"dp", {0}}, {"tp", {1}}, {"all", {0, 1}}}); }

TEST(Mesh, RanksAreRowMajor) {
  const Mesh m = TestMesh();
  EXPECT_EQ(m.num_ranks(), 8);
  EXPECT_EQ(m.Coordinate(5, 0), 2);
  EXPECT_EQ(m.Coordinate(5, 1), 1);
  EXPECT_EQ(m.Group(5, AxisList{0}), (std::vector<int64_t>{1, 3, 5, 7}));
  EXPECT_EQ(m.Group(5, AxisList{1, 0}), (std::vector<int64_t>{0, 2, 4, 6, 1, 3, 5, 7}));
  for (int64_t r : m.Group(5, AxisList{1, 0}))
    EXPECT_EQ(m.Group(5, AxisList{1, 0})[m.Index(r, AxisList{1, 0})], r);
  EXPECT_EQ(m.Show(AxisList{1}), "tp");
  EXPECT_EQ(m.Show(AxisList{1, 0}), "a.b");
  ExpectError(m.ParseAxes("dp.x"), absl::StatusCode::kInvalidArgument, "'x'", "dp, tp");
}

TEST(ScopeTest, NamesAPartOfTheModel) {
  const Scope moe = ParseScope("layers.12.moe.experts");
  EXPECT_EQ(moe.kind, Scope::kLayer);
  EXPECT_EQ(moe.layer, 12);
  EXPECT_EQ(moe.layer_text, "layers.12");
  EXPECT_EQ(moe.part, "moe.experts");
  const Scope layer = ParseScope("layers.3");
  EXPECT_EQ(layer.kind, Scope::kLayer);
  EXPECT_EQ(layer.layer_text, "layers.3");
  EXPECT_EQ(layer.part, "");
  EXPECT_EQ(ParseScope("embedding.words").kind, Scope::kEmbedding);
  EXPECT_EQ(ParseScope("head").kind, Scope::kHead);
  for (const char* other :
       {"", "header", "layers.", "layers.x.moe", "layers.-1", "layers.9999999999", "optimizer"}) {
    const Scope scope = ParseScope(other);
    EXPECT_EQ(scope.kind, Scope::kOther) << other;
    EXPECT_EQ(scope.layer, -1) << other;
    EXPECT_EQ(scope.layer_text, other);
    EXPECT_EQ(scope.part, other);
  }
}

TEST(Types, LocalShapeAndText) {
  const Mesh m = TestMesh();
  Type t(DType::kBF16, {32, 8, 64});
  t.placement.dims[0] = {0};
  t.placement.dims[2] = {1};
  EXPECT_EQ(t.LocalDims(m), (Dims{8, 8, 32}));
  EXPECT_EQ(TypeToString(t, m), "bf16[32@dp, 8, 64@tp]");
  EXPECT_EQ(StorageOf(t, m).bytes, 8 * 8 * 32 * 2);
}

TEST(Types, RaggedStorageIsBoundedByGroupsNotCells) {
  const Mesh m = TestMesh();
  Type t(DType::kF32, {8, 4, 2, 5, 16});  // 8 experts, 4 x 2 groups, 5 expected rows per cell
  t.ragged = 3;
  t.ragged_bound = 20;
  t.placement.dims[0] = {1};
  const LocalStorage worst = StorageOf(t, m);
  EXPECT_EQ(worst.cells, 4 * 4 * 2);
  EXPECT_EQ(worst.rows, 4 * 2 * 20);
  EXPECT_EQ(worst.spill_bytes, 0);
  const LocalStorage tight = StorageOf(t, m, 0.5);
  EXPECT_EQ(tight.rows, 80);
  EXPECT_EQ(tight.spill_bytes, 160 * 16 * 4);
}

TEST(Rule, ParsesProductsAndFixedFactors) {
  ASSERT_OK_AND_ASSIGN(ShardingRule r,
                       ShardingRule::Parse("b s (k g) d!, b t! k d! -> b s (k g) d!, b s (k g)"));
  EXPECT_EQ(r.ToString(), "b s (k g) d!, b t! k d! -> b s (k g) d!, b s (k g)");
  EXPECT_TRUE(r.fixed[r.Find("t")]);
  EXPECT_FALSE(r.fixed[r.Find("g")]);
  ExpectError(ShardingRule::Parse("a -> (b"), absl::StatusCode::kInvalidArgument, "missing ')'");
}

TEST(Builder, InfersTypesAndExplainsErrors) {
  Module module;
  Function* f = module.AddFunction("f");
  const Value x = f->AddArg("x", Type(DType::kF32, {4, 6, 8}));
  const Value w = f->AddArg("w", Type(DType::kF32, {8, 2, 5}));
  Builder b(f);
  ASSERT_OK_AND_ASSIGN(Value y, b.Create("math.einsum", {x, w}, {{"eq", "b s h, h n d -> b s n d"}}));
  EXPECT_EQ(y.type().dims, (Dims{4, 6, 2, 5}));
  ExpectError(b.Create("math.einsum", {x, x}, {{"eq", "b s h, h n d -> b s n d"}}),
              absl::StatusCode::kInvalidArgument, "factor h is 8", "operand 1 dim 0 has 4");
  ExpectError(b.Create("math.einsun", {x}), absl::StatusCode::kInvalidArgument, "nearest: math.einsum");
  ExpectError(b.Create("math.scale", {x}), absl::StatusCode::kInvalidArgument, "'by'");
  ExpectError(b.Create("math.add", {x}), absl::StatusCode::kInvalidArgument, "takes 2 operands");
  EXPECT_EQ(f->num_nodes(), 1);
  ASSERT_OK_AND_ASSIGN(
      Value split, b.Create("math.reshape", {x},
                            {{"eq", "b (c t) h -> b c t h"}, {"extents", std::vector<std::string>{"c=3"}}}));
  EXPECT_EQ(split.type().dims, (Dims{4, 3, 2, 8}));
}

TEST(Builder, DroplessDispatchIsRagged) {
  Module module;
  Function* f = module.AddFunction("f");
  const Value x = f->AddArg("x", Type(DType::kF32, {2, 1, 6, 8}));
  const Value e = f->AddArg("e", Type(DType::kS32, {2, 1, 6, 2}));
  Builder b(f);
  ASSERT_OK_AND_ASSIGN(
      Value d, b.Create("moe.dispatch", {x, e, e}, {{"experts", 4}, {"slots", 3}, {"dropless", true}}));
  EXPECT_EQ(d.type().dims, (Dims{4, 2, 1, 3, 8}));
  EXPECT_EQ(d.type().ragged, 3);
  EXPECT_EQ(d.type().ragged_bound, 12);
  const Value w = f->AddArg("w", Type(DType::kF32, {4, 8, 5}));
  ASSERT_OK_AND_ASSIGN(Value h, b.Create("math.einsum", {d, w}, {{"eq", "e b c p h, e h f -> e b c p f"}}));
  EXPECT_EQ(h.type().ragged, 3);
  ASSERT_OK_AND_ASSIGN(Value g, b.Create("math.einsum", {d, h}, {{"eq", "e b c p h, e b c p f -> e h f"}}));
  EXPECT_EQ(g.type().ragged, -1);
}

TEST(Registry, EveryBlockIsInTheDocumentedOrder) {
  for (const OpDef* op : Ops().All()) {
    for (size_t i = 1; i < op->declared.size(); ++i) {
      EXPECT_LE(op->declared[i - 1], op->declared[i])
          << op->name << " declares its " << OpPartName(op->declared[i]) << " after its "
          << OpPartName(op->declared[i - 1]);
    }
  }
}

TEST(Registry, EveryDeclarationFitsTogether) {
  for (const OpDef* op : Ops().All()) EXPECT_OK(op->declaration);
}

TEST(Registry, WrongDeclarationsAreErrorsOfTheirUsers) {
  const auto expect = [](const OpDef& def, absl::string_view problem) {
    OpRegistry registry;
    registry.Add(def);
    Module module;
    Function* f = module.AddFunction("f");
    const Value x = f->AddArg("x", Type(DType::kF32, {4, 8}));
    Builder b(f, registry);
    ExpectError(b.CreateNode("my.op", {x}), absl::StatusCode::kInvalidArgument, "my.op", problem);
    EXPECT_EQ(f->num_nodes(), 0);
  };
  const OpDef def = OpDef("my.op").Operands({"x"}).Results({"y"}).Attr("n", AttrKind::kInt, false);
  expect(def, "the op has no sharding rule");
  expect(OpDef(def).Rule("a (b -> a"), "missing ')'");
  expect(OpDef(def).Rule("a b, a -> a b"), "is for 2 operands, the op has 1 (x)");
  expect(OpDef(def).Rule("a b -> a, b"), "is for 2 results, the op has 1 (y)");
  expect(OpDef(def).Rule("a b c -> a"), "operand 0 has 2 dims");
  expect(OpDef(def).Rule("a b -> a c"), "nothing gives the extent of factor c");
  expect(OpDef(def).Rule("a b -> a b").FactorFrom("c", "n"), "has no factor c");
  expect(OpDef(def).Rule("a b -> a c").FactorFrom("c", "m"), "'m', which is not an int attribute");
  expect(OpDef(def).Rule("a b -> a b").Routes("e"), "has no factor e");
  expect(OpDef(def).Rule("a b -> a b").Ragged("a"), "has no factor t");
  expect(OpDef(def).Rule("a b -> a b").LinearIn({1}), "operand 1 is named; the op has 1 operands");
  expect(OpDef(def).ResultDTypes({SameAs(1)}).Rule("a b -> a b"), "operand 1 is named");
  expect(OpDef(def).ResultDTypes({FromAttribute("n")}).Rule("a b -> a b"), "'n', which is not a string");
  expect(OpDef(def).Rule("a b -> a b").InPlace({{1, 0}}), "result 1 is in place");
  expect(OpDef(def).RuleFrom([](const Node&) { return "a b -> a, b"; }), "has 1 results; inference gives 2");
}

TEST(Placement, ReductionsLeavePartials) {
  const Mesh m = TestMesh();
  Module module;
  Function* f = module.AddFunction("f");
  const Value x = f->AddArg("x", Type(DType::kF32, {4, 8}));
  const Value w = f->AddArg("w", Type(DType::kF32, {8, 6}));
  Builder b(f);
  ASSERT_OK_AND_ASSIGN(Value y, b.Create("math.einsum", {x, w}, {{"eq", "s h, h f -> s f"}}));
  ASSERT_OK_AND_ASSIGN(const ShardingRule* rule, y.node->Rule());
  ASSERT_OK_AND_ASSIGN(std::vector<int64_t> extents, FactorExtents(*y.node));
  FactorAssignment assignment(3);
  assignment[rule->Find("s")] = {0};
  assignment[rule->Find("h")] = {1};
  ASSERT_OK_AND_ASSIGN(NodePlacements p, PlaceNode(*y.node, *rule, extents, assignment, {}, m));
  EXPECT_EQ(PlacementToString(p.operands[0], m), "[dp, tp]");
  EXPECT_EQ(PlacementToString(p.operands[1], m), "[tp, -]");
  EXPECT_EQ(PlacementToString(p.results[0], m), "[dp, -] partial(a)");
}

TEST(Graph, UsesAndNamesFollowRewrites) {
  Module module;
  Function* f = module.AddFunction("f");
  const Value x = f->AddArg("x", Type(DType::kF32, {4}));
  Builder b(f);
  ASSERT_OK_AND_ASSIGN(Value y, b.Create("math.silu", {x}, {}, "y"));
  ASSERT_OK_AND_ASSIGN(Value z, b.Create("math.add", {y, y}, {}, "y"));
  f->AddResult(z);
  EXPECT_EQ(z.name(), "y_1");
  EXPECT_EQ(y.node->uses().size(), 2u);
  f->ReplaceAllUses(y, x);
  EXPECT_FALSE(y.node->HasUses());
  f->Erase(y.node);
  EXPECT_EQ(x.node->uses().size(), 2u);
  EXPECT_TRUE(f->ComesBefore(x.node, z.node));
  EXPECT_TRUE(f->ComesBefore(z.node, f->return_node()));
}

TEST(Mesh, ShowsSetsOfAxesByTheirAliases) {
  const Mesh mesh({{"pp", 2}, {"c", 2}, {"b", 4}, {"a", 2}},
                  {{"dp", {1, 2}}, {"tp", {3}}, {"ep", {2}}, {"edp", {1}}, {"etp", {3}}, {"cp", {}}});
  EXPECT_EQ(mesh.ShowSet(AxisList{1, 2}), "dp");
  EXPECT_EQ(mesh.ShowSet(AxisList{2, 1}), "dp");
  EXPECT_EQ(mesh.ShowSet(AxisList{2}), "ep");
  EXPECT_EQ(mesh.ShowSet(AxisList{3, 2, 1}), "dp.tp");
  EXPECT_EQ(mesh.ShowSet(AxisList{3, 2}), "ep.tp");
  EXPECT_EQ(mesh.ShowSet(AxisList{0, 3}), "pp.tp");
  EXPECT_EQ(mesh.ShowSet(AxisList{}), "");
}

}  // namespace
}  // namespace moe
