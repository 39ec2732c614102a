#include "moe/kernels/ops_page.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace moe::kernels {
namespace {

TEST(OpsPageTest, IsNotStale) {
  std::ifstream file("docs/ops.md");
  ASSERT_TRUE(file.good()) << "docs/ops.md is missing";
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_TRUE(page.str() == OpsPage(Ops(), Kernels()))
      << "stale; run: bazel run //tools:gen_ops_doc > docs/ops.md";
}

}  // namespace
}  // namespace moe::kernels
