#include "tools/bench_table.h"

#include <time.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace moe::tools {
namespace {

double Clock(clockid_t id) {
  timespec t;
  clock_gettime(id, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

std::string JsonCell(const std::string& cell) {
  double number;
  if (absl::SimpleAtod(cell, &number)) return cell;
  std::string out = "\"";
  for (char c : cell) absl::StrAppend(&out, c == '"' || c == '\\' ? "\\" : "", std::string(1, c));
  return out + "\"";
}

}  // namespace

void BenchTable::Print(std::FILE* json) const {
  std::vector<size_t> width;
  for (const std::string& c : columns_) width.push_back(c.size());
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  const auto print = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < row.size(); ++i)
      std::printf("| %-*s ", static_cast<int>(width[i]), row[i].c_str());
    std::printf("|\n");
  };
  std::printf("\n### %s\n\n", name_.c_str());
  print(columns_);
  for (size_t w : width) std::printf("|%s", std::string(w + 2, '-').c_str());
  std::printf("|\n");
  for (const auto& row : rows_) print(row);
  std::fflush(stdout);
  if (json == nullptr) return;
  for (const auto& row : rows_) {
    std::string line = absl::StrCat("{\"table\":\"", name_, "\"");
    for (size_t i = 0; i < row.size(); ++i)
      absl::StrAppend(&line, ",\"", columns_[i], "\":", JsonCell(row[i]));
    std::fprintf(json, "%s}\n", line.c_str());
  }
  std::fflush(json);
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

double WallSeconds() { return Clock(CLOCK_MONOTONIC); }
double ThreadCpuSeconds() { return Clock(CLOCK_THREAD_CPUTIME_ID); }
double ProcessCpuSeconds() { return Clock(CLOCK_PROCESS_CPUTIME_ID); }

}  // namespace moe::tools
