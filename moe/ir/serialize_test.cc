#include "moe/ir/serialize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "moe/base/status_matchers.h"
#include "moe/ir/diff.h"
#include "moe/ir/text.h"

namespace moe {
namespace {

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

constexpr char kModule[] = R"(
module @m mesh<pp=2, a=2, b=4; dp=a, tp=b> {seed = 7}
state @w : f32[16, 32@tp] {kind = "parameter", std = 0.02, decay = true}
func @f(%x: f32[8@dp, 16] {kind = "batch", name = "x"} at "input" by "front", %w: f32[16, 32@tp] {kind = "state", name = "w"},
        %mask: f32[8, 4, 2]) {
  %h = math.einsum(%x, %w) {eq = "b k, k n -> b n"} place<b=dp, n=tp> : f32[8@dp, 32@tp] at "layers.0"
  %g = comm.all_gather(%h) {axes = [tp]} @comm : f32[8@dp, 32] by "insert-collectives: for %h"
backward:
  %c = math.constant() {dtype = "f64", value = -0.0} : f64[]
  %p, %e = moe.top_k(%r, %mask) {k = 2} : f32[8, 4, 2, 2], s32[8, 4, 2, 2]
  %s = moe.slots(%e) {capacity = 3, dropless = true, experts = 6} : s32[8, 4, 2, 2]
update:
  %d = moe.dispatch(%t, %e, %s) {dropless = true, experts = 6, slots = 3} : f32[6, 8, 4, ~3<=4, 5]
  return %h, %c {kind = "report", name = "c"}
}
)";

std::unique_ptr<Module> Parse() {
  std::string text = kModule;
  text.replace(text.find("%mask:"), 6, "%r: f32[8, 4, 2, 6], %t: f32[8, 4, 2, 5], %mask:");
  absl::StatusOr<std::unique_ptr<Module>> module = ParseModule(text);
  EXPECT_TRUE(module.ok()) << module.status();
  return module.ok() ? *std::move(module) : std::make_unique<Module>();
}

TEST(Serialize, RoundTripsThroughBytes) {
  const std::unique_ptr<Module> module = Parse();
  module->mesh() = Mesh(module->mesh().axes(), {{"dp", {1}}, {"tp", {2}}, {"cp", {}}});
  module->attributes()["nan"] = std::nan("");
  module->attributes()["inf"] = std::numeric_limits<double>::infinity();
  module->attributes()["ints"] = std::vector<int64_t>{};
  module->attributes()["strings"] = std::vector<std::string>{};
  module->attributes()["some"] = std::vector<std::string>{"a", ""};
  module->attributes()["axes"] = Axes{};
  module->attributes()["least"] = std::numeric_limits<int64_t>::min();
  ModuleProto proto;
  ASSERT_TRUE(proto.ParseFromString(ToProto(*module).SerializeAsString()));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> again, FromProto(proto));
  EXPECT_EQ(DiffModules(*module, *again), "");
  EXPECT_EQ(PrintModule(*module), PrintModule(*again));
  EXPECT_EQ(module->mesh(), again->mesh());  // aliases for no axes included
}

TEST(Serialize, RefusesWhatIsWrong) {
  const ModuleProto good = ToProto(*Parse());
  const auto edited = [&](auto edit) {
    ModuleProto proto = good;
    edit(&proto, proto.mutable_functions(0));
    return FromProto(proto);
  };
  EXPECT_OK(edited([](ModuleProto*, FunctionProto*) {}));
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(0)->set_op("math.einsun"); }),
              kInvalid, "@f: node 0: unknown op 'math.einsun'", "math.einsum");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(1)->set_operands(0, 99); }),
              kInvalid, "value 99 is used");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(1)->set_operands(0, -1); }),
              kInvalid, "value -1 is used");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(1)->set_operands(0, 6); }),
              kInvalid, "value 6 is used");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(1)->set_names(0, "h"); }),
              kInvalid, "%h is defined twice");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(0)->clear_attributes(); }),
              kInvalid, "'eq' is missing");
  ExpectError(
      edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(0)->mutable_types(0)->set_dims(0, 7); }),
      kInvalid, "node 0");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(0)->add_operands(0); }), kInvalid,
              "node 0");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_nodes(0)->set_phase(9); }), kInvalid,
              "phase 9");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) { f->mutable_results(0)->set_value(1000); }),
              kInvalid, "value 1000");
  ExpectError(edited([](ModuleProto* m, FunctionProto*) { m->mutable_mesh()->mutable_axes(1)->set_size(3); }),
              kInvalid, "not divisible");
  ExpectError(
      edited([](ModuleProto* m, FunctionProto*) { m->mutable_mesh()->mutable_axes(1)->set_size(-3); }),
      kInvalid, "the size -3");
  ExpectError(edited([](ModuleProto* m, FunctionProto*) {
                m->mutable_mesh()->mutable_aliases(0)->mutable_axes()->set_axis(0, 77);
              }),
              kInvalid, "axis 77");
  ExpectError(edited([](ModuleProto* m, FunctionProto*) { *m->add_states() = m->states(0); }), kInvalid,
              "state @w appears twice");
  ExpectError(edited([](ModuleProto* m, FunctionProto*) { *m->add_functions() = m->functions(0); }), kInvalid,
              "@f appears twice");
  ExpectError(
      edited([](ModuleProto* m, FunctionProto*) { m->mutable_states(0)->mutable_type()->set_dtype("f31"); }),
      kInvalid, "state @w: unknown dtype 'f31'");
  ExpectError(edited([](ModuleProto* m, FunctionProto*) { m->add_attributes()->set_name("none"); }), kInvalid,
              "'none' has no value");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) {
                f->mutable_results(0)->mutable_binding()->set_kind("store");
              }),
              kInvalid, "unknown kind of binding 'store'");
  ExpectError(edited([](ModuleProto*, FunctionProto* f) {
                f->mutable_args(0)->mutable_binding()->set_kind("batch");
                f->mutable_args(0)->mutable_binding()->set_peer(1);
              }),
              kInvalid, "a binding to a batch with the peer 1");
}

TEST(Serialize, FlippedBytesNeverCrash) {
  const std::string bytes = ToProto(*Parse()).SerializeAsString();
  const uint32_t seed = 20240608;
  std::mt19937 random(seed);
  for (int i = 0; i < 4000; ++i) {
    std::string mutant = bytes;
    for (int k = 0, n = 1 + random() % 3; k < n; ++k)
      mutant[random() % mutant.size()] = static_cast<char>(random() % 256);
    ModuleProto proto;
    if (!proto.ParseFromString(mutant)) continue;
    const absl::StatusOr<std::unique_ptr<Module>> module = FromProto(proto);
    if (!module.ok()) continue;
    const absl::StatusOr<std::unique_ptr<Module>> again = FromProto(ToProto(**module));
    ASSERT_TRUE(again.ok()) << "seed " << seed << ", mutant " << i << ": " << again.status();
    EXPECT_EQ(DiffModules(**module, **again), "") << "seed " << seed << ", mutant " << i;
  }
}

}  // namespace
}  // namespace moe
