// A program for Google's Model Explorer (https://github.com/google-ai-edge/model-explorer): one graph a
// function, nodes in namespaces stage/phase/layer/part, edges with their values' types.
//
//   WriteFile("program.json", ModelExplorerJson(program));   // model-explorer program.json
//
// Plain function; any thread.
#pragma once

#include <string>

#include "moe/ir/program.h"

namespace moe::inspect {

std::string ModelExplorerJson(const Program& program);

}  // namespace moe::inspect
