// Text form of modules. parse(print(m)) == m, always; printer and parser are generic over the registry.
//
//   module @moe_ffn mesh<edp=2, ep=4; dp=edp.ep> {seed = 1}
//   state @wg : f32[1024,8] {kind = "parameter"}
//   func @fwd(%x: bf16[32@dp,64,1024] {kind = "batch", name = "x"}, %wg: f32[1024,8]) {
//     %g = math.einsum(%x, %wg) {eq = "b t h, h e -> b t e"} place<b=dp> : f32[32@dp,64,8] at "layers.0.moe"
//   backward:
//     ...
//     return %g {kind = "report", name = "g"}
//   }
//
// A hand-written node may leave out its result types (then they are inferred, replicated) and its placement
// (then it is what the types of operands and results show); the printer leaves out neither.
//
// The parser is for hostile input: limits on size, depth and extents; every error carries line:column and
// what would have been legal.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/ir/graph.h"
#include "moe/ir/registry.h"

namespace moe {

absl::StatusOr<std::unique_ptr<Module>> ParseModule(absl::string_view text,
                                                    const OpRegistry& registry = Ops());
std::string PrintModule(const Module& module);
std::string PrintFunction(const Function& function);
std::string PrintNode(const Node& node);  // one line, for messages

}  // namespace moe
