// Structural equality of modules: everything that the text form shows, names included, node ids excluded.
//
//   EXPECT_EQ(DiffModules(*before, *after), "");
//
// The answer is empty for equal modules, else one line on the first difference: "@f: node 3 (%y = math.add):
// scope ...". No state; any thread.
#pragma once

#include <string>

#include "moe/ir/graph.h"

namespace moe {

std::string DiffModules(const Module& a, const Module& b);
std::string DiffFunctions(const Function& a, const Function& b);

}  // namespace moe
