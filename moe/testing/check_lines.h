// CHECK lines: expectations on printed IR, written as comments of the input, as LLVM's FileCheck has them.
//
//   // CHECK: %[[S:.*]] = comm.all_reduce(%x) {axes = [tp]      some line from here on contains this
//   // CHECK-NEXT: return %[[S]]                                the line right after the last match contains this
//   // CHECK-NOT: comm.all_gather                               no line before the next match (or the end) does
//
// A pattern is plain text, where a run of blanks matches any run of blanks. [[NAME:regex]] matches the
// regular expression and remembers what it matched, [[NAME]] is what NAME matched, {{regex}} only matches.
// Each line of the output is matched by at most one CHECK or CHECK-NEXT. No state; any thread.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace moe::testing {

// `expectations` is any text with such lines; other lines are ignored. Errors: FailedPrecondition for the
// first expectation that `output` does not meet, with both; InvalidArgument for a malformed expectation, or
// if there is none.
absl::Status CheckLines(absl::string_view expectations, absl::string_view output);

}  // namespace moe::testing
