// What a run says on the terminal: lines of "word  text", the table of passes, shares of a step's time.
//
//   std::cout << SummaryLine("model", model::DescribeModel(model));
//   std::cout << PassTable(compiled.passes, compiled.milliseconds);
//
// Plain functions over values; thread-safe.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "moe/ir/program.h"
#include "moe/passes/pipeline.h"
#include "moe/runtime/trace.h"

namespace moe::train {

// "model     text\n": the word in a column of its own, also before each further line of the text.
std::string SummaryLine(absl::string_view word, absl::string_view text);

// What each pass changed and said, with its time; long notes go on in further rows.
std::string PassTable(const std::vector<passes::PassResult>& passes, double total_milliseconds);

// Where the time of traced steps went, as shares of what the cores, or the ranks' GPUs, had to give.
struct StepShares {
  // By Category. Collectives are what the others leave: transfers, waiting for peers, the executor itself.
  std::array<double, runtime::kNumCategories> share = {};
  double seconds = 0;  // from the first event to the last
  runtime::CommunicationTime communication;
};
// `cores`: ranks that compute at once.
StepShares SharesOf(const runtime::Trace& trace, int cores);
std::string SharesText(const StepShares& shares);

// "peak memory 4.62 MiB per rank, as planned", or stage by stage where plan and run differ.
std::string PeakMemoryText(const std::vector<int64_t>& planned, const std::vector<int64_t>& measured);

}  // namespace moe::train
