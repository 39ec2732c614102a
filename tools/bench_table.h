// Tables of the benchmarks: aligned text to read, and the same rows as JSON lines to compare by program.
//
//   BenchTable t("gemm", {"op", "ours GFLOP/s"});
//   t.Add({"layers.0.moe", absl::StrFormat("%.1f", gflops)});
//   t.Print(json);   // json: null or a file
//
// Plain data; one thread at a time.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace moe::tools {

class BenchTable {
 public:
  BenchTable(std::string name, std::vector<std::string> columns)
      : name_(std::move(name)), columns_(std::move(columns)) {}
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }  // one cell per column
  // To stdout as a markdown table, and to `json`, if there is one, a line {"table": ..., column: cell, ...}
  // per row.
  void Print(std::FILE* json) const;

 private:
  std::string name_;
  std::vector<std::string> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// The middle of the values; the mean of the two middle ones. 0 for none.
double Median(std::vector<double> values);

double WallSeconds();
double ThreadCpuSeconds();   // CPU time of the calling thread
double ProcessCpuSeconds();  // of all threads, user and system

}  // namespace moe::tools
