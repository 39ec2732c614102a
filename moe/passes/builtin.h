// The built-in passes: one sorted table. Linking //moe/passes:builtin also gives Passes(), DefaultPipeline()
// and RunPipeline() of pass.h, which need all of them.
//
//   PassRegistry registry;
//   RegisterBuiltinPasses(&registry);
#pragma once

#include "moe/passes/pass.h"

namespace moe::passes {

void RegisterBuiltinPasses(PassRegistry* registry);

}  // namespace moe::passes
