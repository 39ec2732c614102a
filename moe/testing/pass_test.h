// PassTest: the fixture for the shape of a pass. IR text in, CHECK lines out (check_lines.h).
//
//   class RemoveDeadNodesTest : public PassTest {};
//   TEST_F(RemoveDeadNodesTest, Chain) {
//     ExpectRewrite("remove-dead-nodes", R"(
//       module @m
//       func @f(%x: f32[8]) {
//         // CHECK-NOT: math.silu
//         // CHECK: return %x
//         %a = math.silu(%x) : f32[8]
//         return %x
//       })");
//   }
//
// Every call parses and verifies the text, prints and parses it again, runs the pass (as the pipeline does,
// so nodes that become dead are removed), verifies the result, prints and parses that, too, and then matches
// the CHECK lines. A pass that says it changed nothing must have changed nothing. What the pass changed is
// run before and after on virtual devices, as many as the mesh has ranks, on the same random values, and must
// give the same (validate_passes.h).
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "moe/passes/pass.h"
#include "moe/passes/pipeline.h"

namespace moe::testing {

class PassTest : public ::testing::Test {
 protected:
  void ExpectRewrite(const passes::Pass& pass, absl::string_view text,
                     const passes::PassContext& context = {});
  // A pipeline of passes that were added with RegisterPass: by the library under test, by the test itself, or
  // all built-in ones if the test calls Passes() first.
  void ExpectRewrite(absl::string_view pipeline, absl::string_view text,
                     const passes::PassContext& context = {});

  // The pass finds nothing to do.
  void ExpectUnchanged(const passes::Pass& pass, absl::string_view text,
                       const passes::PassContext& context = {});
  // The pass refuses the module; the message has all the parts.
  void ExpectPassError(const passes::Pass& pass, absl::string_view text, absl::StatusCode code,
                       const std::vector<std::string>& parts, const passes::PassContext& context = {});

  // False where the text is not a program that runs; say why.
  bool runs_ = true;
  // The program of the last call, for further questions. Its text is printed.
  Program program_;
  std::vector<passes::PassResult> results_;

 private:
  // Parses, verifies and round-trips `text` into program_; false if the test has failed.
  bool Load(absl::string_view text);
  void Run(const passes::PassRegistry& registry, absl::string_view pipeline, absl::string_view text,
           const passes::PassContext& context);
};

}  // namespace moe::testing
