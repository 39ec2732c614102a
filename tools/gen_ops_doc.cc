// Writes docs/ops.md to standard output:  bazel run //tools:gen_ops_doc > docs/ops.md
#include <cstdio>
#include <string>

#include "moe/kernels/kernel.h"
#include "moe/kernels/ops_page.h"

int main() {
  const std::string page = moe::kernels::OpsPage(moe::Ops(), moe::kernels::Kernels());
  return std::fwrite(page.data(), 1, page.size(), stdout) == page.size() ? 0 : 1;
}
