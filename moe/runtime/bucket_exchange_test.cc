// A bucket against its parts one by one: the same bits, whatever travels.
#include "moe/runtime/bucket_exchange.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/in_process/in_process.h"
#include "moe/ir/conversion_steps.h"
#include "moe/ir/text.h"
#include "moe/runtime/exchange.h"
#include "moe/runtime/local.h"

namespace moe::runtime {
namespace {

// A bucket of three, whose parts pack and unpack or do not, and end inside a block of 128 values.
struct Case {
  const char* name;
  const char* dtype;
  const char* from[3];
  const char* to[3];
  const char* steps[3];
};
constexpr Case kCases[] = {
    {"all_reduce",
     "f32",
     {"[5, 7] partial(dp)", "[300] partial(dp)", "[] partial(dp)"},
     {"[5, 7]", "[300]", "[]"},
     {"all_reduce dp:sum>-", "all_reduce dp:sum>-", "all_reduce dp:sum>-"}},
    {"reduce_scatter",
     "f32",
     {"[8, 50] partial(dp)", "[6, 12] partial(dp)", "[4, 130] partial(dp)"},
     {"[8@dp, 50]", "[6, 12@dp]", "[4@dp, 130]"},
     {"reduce_scatter dp:sum>0", "reduce_scatter dp:sum>1", "reduce_scatter dp:sum>0"}},
    {"all_gather",
     "bf16",
     {"[8@dp, 50]", "[6, 12@dp]", "[4@dp, 130]"},
     {"[8, 50]", "[6, 12]", "[4, 130]"},
     {"all_gather dp:0>-", "all_gather dp:1>-", "all_gather dp:0>-"}},
    {"reduce_scatter, then all_reduce over the other axis",
     "f64",
     {"[8, 50] partial(dp, tp)", "[6, 12] partial(dp, tp)", "[4, 130] partial(dp, tp)"},
     {"[8@dp, 50]", "[6, 12@dp]", "[4@dp, 130]"},
     {"reduce_scatter dp:sum>0; all_reduce tp:sum>-", "reduce_scatter dp:sum>1; all_reduce tp:sum>-",
      "reduce_scatter dp:sum>0; all_reduce tp:sum>-"}},
};

struct Buffer {
  std::vector<char> bytes;
  kernels::Tensor tensor;
  Buffer(const Type& type, const Mesh& mesh) : bytes(StorageOf(type, mesh).bytes, 0x7b) {
    tensor = LocalTensor(type, mesh, bytes.data(), static_cast<int64_t>(bytes.size()));
  }
};

class BucketTest : public ::testing::TestWithParam<WireFormat> {};

TEST_P(BucketTest, GivesWhatItsPartsGiveAlone) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    std::string text = "module @m mesh<dp=4, tp=2>\nfunc @f(", body, results;
    for (int i = 0; i < 3; ++i) {
      absl::StrAppend(&text, i ? ", " : "", "%x", i, ": ", c.dtype, c.from[i]);
      const char* const axes = absl::StrContains(c.steps[i], "tp") ? "dp, tp" : "dp";
      absl::StrAppend(&body, "  %y", i, " = comm.reshard(%x", i, ") {axes = [", axes, "], steps = \"",
                      c.steps[i], "\"} : ", c.dtype, c.to[i], "\n");
      absl::StrAppend(&results, i ? ", " : "", "%y", i);
    }
    absl::StrAppend(&text, ") {\n", body, "  return ", results, "\n}\n");
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Module> module, ParseModule(text));
    const Mesh& mesh = module->mesh();
    std::vector<ConversionPart> parts;
    for (const auto& n : module->functions()[0]->body()) {
      ASSERT_OK_AND_ASSIGN(const std::vector<ConversionPart> part, ConversionParts(*n, mesh));
      parts.push_back(part[0]);
    }

    comm::InProcessWorld world(mesh.num_ranks(), {.timeout = absl::Seconds(60)});
    const auto run = [&](int64_t rank) -> absl::Status {
      std::vector<Buffer> in, alone, together;
      std::mt19937_64 rng(rank + 1);
      std::normal_distribution<double> normal;
      for (const ConversionPart& p : parts) {
        in.emplace_back(p.from.type(), mesh);
        alone.emplace_back(p.to, mesh);
        together.emplace_back(p.to, mesh);
        const kernels::Tensor& x = in.back().tensor;
        for (int64_t i = 0; i < x.elements(); ++i) kernels::StoreElement(x.dtype, x.data, i, normal(rng));
      }
      for (size_t j = 0; j < parts.size(); ++j) {
        ASSIGN_OR_RETURN(const std::unique_ptr<Exchange> e,
                         Exchange::Create(parts[j].from.type(), parts[j].to, parts[j].steps, mesh, rank,
                                          world.rank(rank), "alone", GetParam()));
        std::vector<char> workspace(e->WorkspaceBytes());
        RETURN_IF_ERROR(e->Run(in[j].tensor, alone[j].tensor, workspace.data(),
                               static_cast<int64_t>(workspace.size()), "alone"));
      }
      ASSIGN_OR_RETURN(const std::unique_ptr<BucketExchange> e,
                       BucketExchange::Create(parts, mesh, rank, world.rank(rank), "together", GetParam()));
      ASSIGN_OR_RETURN(const int64_t bytes, BucketExchange::WorkspaceBytes(parts, mesh, GetParam()));
      std::vector<char> workspace(bytes + 1, 0x55);  // and a guard
      std::vector<kernels::Tensor> x, y;
      for (size_t j = 0; j < parts.size(); ++j) {
        x.push_back(in[j].tensor);
        y.push_back(together[j].tensor);
      }
      RETURN_IF_ERROR(e->Run(x, y, workspace.data(), bytes, "together"));
      EXPECT_EQ(workspace.back(), 0x55);
      for (size_t j = 0; j < parts.size(); ++j) {
        EXPECT_EQ(together[j].bytes, alone[j].bytes) << "part " << j << " on rank " << rank;
      }
      return absl::OkStatus();
    };
    std::vector<absl::Status> statuses(mesh.num_ranks());
    std::vector<std::thread> threads;
    for (int64_t r = 0; r < mesh.num_ranks(); ++r) {
      threads.emplace_back([&, r] {
        statuses[r] = run(r);
        if (!statuses[r].ok()) world.Abort(statuses[r]);
      });
    }
    for (std::thread& t : threads) t.join();
    for (const absl::Status& s : statuses) EXPECT_OK(s);
  }
}

INSTANTIATE_TEST_SUITE_P(Wires, BucketTest,
                         ::testing::Values(WireFormat::kNone, WireFormat::kBF16, WireFormat::kF8));

}  // namespace
}  // namespace moe::runtime
