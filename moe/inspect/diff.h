// Two compiled programs side by side: mesh, what the passes said, collectives, memory, schedule.
//
//   std::cout << DiffText({"runs/a", &a.program}, {"runs/b", &b.program});
//
// Equal lines are said once, unequal ones show both values. Plain function; any thread.
#pragma once

#include <string>

#include "moe/ir/program.h"

namespace moe::inspect {

struct DiffSide {
  std::string name;
  const Program* program = nullptr;
};
std::string DiffText(const DiffSide& a, const DiffSide& b);

}  // namespace moe::inspect
