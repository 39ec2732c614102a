// Writes docs/ops.md to standard output:  bazel run //tools:gen_ops_doc > docs/ops.md
#include <iostream>

#include "moe/kernels/kernel.h"
#include "moe/kernels/ops_page.h"
#include "tools/tool.h"

int main() {
  moe::tools::BeginTool();
  std::cout << moe::kernels::OpsPage(moe::Ops(), moe::kernels::Kernels());
  return moe::tools::EndTool(absl::OkStatus());
}
