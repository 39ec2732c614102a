// Two compiled programs side by side: mesh, what the passes said, collectives, memory, schedule.
//
//   std::cout << DiffText({"runs/a", &a.program, a.target}, {"runs/b", &b.program, b.target});
//
// Equal lines are said once, unequal ones show both values. Plain function; any thread.
#pragma once

#include <string>

#include "moe/cost/target.h"
#include "moe/ir/program.h"

namespace moe::inspect {

struct DiffSide {
  std::string name;
  const Program* program = nullptr;
  cost::Target target;  // that it was compiled for
};
std::string DiffText(const DiffSide& a, const DiffSide& b);

}  // namespace moe::inspect
