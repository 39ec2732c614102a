// Plans of CUDA against the one-device reference: ranks on a GPU, or on the emulated device, several on one,
// with the communicator of ranks in one process.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "moe/base/clock.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/device_worlds.h"
#include "moe/device/cuda/cuda.h"
#include "moe/device/device.h"
#include "moe/ir/state.h"
#include "moe/kernels/cuda/cudnn_api.h"
#include "moe/model/config.h"
#include "moe/runtime/executor.h"
#include "moe/strategy/word.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/equivalence.h"
#include "moe/testing/equivalence_lines.h"
#include "moe/testing/random_inputs.h"

#ifdef MOE_EMULATED
#include "slow_streams.h"
#endif

namespace moe::testing {
namespace {

class CudaEquivalenceTest : public ::testing::TestWithParam<Line> {
 protected:
  void SetUp() override {
    if (device::CountDevices(device::DeviceKind::kCuda) == 0)
      GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
  }
  EquivalenceCase Case() const {
    const Line& line = GetParam();
    EquivalenceCase c = CaseOf(line);
    c.backend = kernels::Backend::kCuda;
    c.twice = line.global_batch > 1 && std::string(line.model) == "cap";
    return c;
  }
};

TEST_P(CudaEquivalenceTest, MatchesTheReference) {
  const EquivalenceCase c = Case();
  ASSERT_OK_AND_ASSIGN(const strategy::Strategy strategy, strategy::ParseStrategy(c.strategy));
  ASSERT_OK_AND_ASSIGN(const EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  if (strategy::Rounds(strategy)) {
    EXPECT_LT(r.worst_loss, 2e-2);
  } else {
    EXPECT_LT(r.worst_gradient, 1e-5);
    EXPECT_LT(r.worst_loss, 1e-4);
  }
  EXPECT_TRUE(r.repeated_bitwise);
  EXPECT_TRUE(r.MemoryIsAsPlanned()) << r.ToString();
  RecordProperty("result", r.ToString());
}

constexpr Line kLines[] = {
    // One rank.
    {"cap", "dp=1", 8, 2},
    {"drop", "dp=1 microbatches=2 checkpoint=selective", 8, 2},
    {"cap", "dp=1 bf16 microbatches=2", 8, 2},
    {"drop tied", "dp=1 bf16", 8, 2},
    {"drop", "dp=2 zero=1 bf16 grads=bf16 microbatches=2", 8, 2},
    {"odd", "dp=1", 1, 1},
    // Several on a device: every kind of exchange, ragged rows, rows beyond their bound, queues side by side,
    // stages, wires.
    {"cap", "tp=2 dp=2 etp=2 ep=2 sp vp", 8, 2},
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2 overlap=on", 8, 2},
    {"drop", "tp=2 dp=2 ep=4 sp vp zero=3 overlap=on", 8, 2},
    {"cap tied", "pp=2 dp=2 ep=2 microbatches=4", 8, 2},
    {"drop", "dp=2 ep=2 bf16 zero=2 microbatches=2 compress_dispatch=f8 compress_grad=bf16", 8, 2},
    {"cap", "dp=1 bf16 fp8_experts", 8, 2},
    {"drop", "tp=2 dp=2 etp=2 ep=2 overload=0.6 microbatches=2 bf16 fp8_experts", 8, 2},
    {"cap", "cp=2 cp_attention=ring cp_order=zigzag", 8, 2},
    {"drop", "pp=2 tp=2 etp=2 schedule=zb-h1 microbatches=4 overlap=on", 8, 2},
};

INSTANTIATE_TEST_SUITE_P(Strategies, CudaEquivalenceTest, ::testing::ValuesIn(kLines));

// A program on CUDA, without the reference.
absl::StatusOr<Program> Compile(const char* model_key, const char* words,
                                const std::set<std::string>& libraries = {}) {
  ASSIGN_OR_RETURN(model::ModelConfig model, model::ParseModelConfig(LineModel(model_key), "model"));
  model.set_dtype("f32");
  return CompileProgram(model, words, {.backend = kernels::Backend::kCuda, .libraries = libraries});
}

absl::StatusOr<std::vector<double>> Losses(const Program& program, const runtime::ExecutorOptions& options,
                                           int64_t* graphs) {
  ASSIGN_OR_RETURN(const std::unique_ptr<runtime::Executor> plan,
                   runtime::Executor::Create(program, options));
  RETURN_IF_ERROR(plan->InitializeState(3));
  std::vector<double> losses;
  for (int step = 1; step <= 4; ++step) {
    RandomInputOptions random;
    random.seed = step;
    ASSIGN_OR_RETURN(const runtime::StepInputs in, RandomInputs(*program.module, random, step));
    ASSIGN_OR_RETURN(const runtime::Reports reports, plan->TrainStep(in));
    losses.push_back(reports.at("lm loss").at(0));
    losses.push_back(reports.at("grad norm").at(0));
  }
  *graphs = plan->rank(0).graphs();
  return losses;
}

TEST(CudaGraphs, GiveTheSameBits) {
  if (device::CountDevices(device::DeviceKind::kCuda) == 0)
    GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
  for (const auto& [model, strategy] :
       {std::pair{"cap", "dp=1 microbatches=2"},
        std::pair{"drop", "pp=2 dp=2 ep=2 zero=1 microbatches=2 overlap=on"}}) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const Program program, Compile(model, strategy));
    runtime::ExecutorOptions options;
    options.backend = kernels::Backend::kCuda;
    options.poison = true;
    int64_t graphs = 0, none = 0;
    ASSERT_OK_AND_ASSIGN(const std::vector<double> with, Losses(program, options, &graphs));
    options.graphs = false;
    ASSERT_OK_AND_ASSIGN(const std::vector<double> without, Losses(program, options, &none));
    EXPECT_EQ(with, without);
    EXPECT_GT(graphs, 0);
    EXPECT_EQ(none, 0);
  }
}

struct CudnnLine {
  const char *model, *strategy;
  int forward, backward;  // nodes by cuDNN, of those on all stages
};
class CudaCudnnTest : public ::testing::TestWithParam<CudnnLine> {};

TEST_P(CudaCudnnTest, MatchesTheReference) {
  if (device::CountDevices(device::DeviceKind::kCuda) == 0)
    GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
  if (const auto cudnn = kernels::LoadCudnn(); !cudnn.ok()) GTEST_SKIP() << cudnn.status();
  const CudnnLine& line = GetParam();
  SCOPED_TRACE(line.strategy);
  ASSERT_OK_AND_ASSIGN(const Program program, Compile(line.model, line.strategy, {"cudnn"}));
  int forward = 0, backward = 0;
  for (const auto& f : program.module->functions()) {
    for (const Node* n : f->NodesOf("nn.attention")) forward += n->Has("library");
    for (const Node* n : f->NodesOf("nn.attention_grad")) backward += n->Has("library");
  }
  EXPECT_EQ(forward, line.forward);
  EXPECT_EQ(backward, line.backward);
  EquivalenceCase c;
  c.name = line.strategy;
  c.model = LineModel(line.model);
  c.strategy = line.strategy;
  c.steps = 2;
  c.backend = kernels::Backend::kCuda;
  c.libraries = {"cudnn"};
  c.twice = true;
  ASSERT_OK_AND_ASSIGN(const EquivalenceResult r, CheckEquivalence(c));
  SCOPED_TRACE(r.ToString());
  EXPECT_LT(r.worst_loss, 2e-2);
  EXPECT_TRUE(r.repeated_bitwise);
  EXPECT_EQ(r.planned_peak, r.measured_peak);
}

// Attention by cuDNN: samples and heads of a rank, computed again, stages, ranks of a ring whose own keys it
// sees, and of a zig-zag, where it sees none.
constexpr CudnnLine kCudnnLines[] = {
    {"cap", "tp=2 dp=2 etp=2 ep=2 bf16 microbatches=2 checkpoint=selective+nn.attention", 4, 2},
    {"drop", "pp=2 dp=2 f16 microbatches=2 checkpoint=full", 4, 2},
    {"drop", "cp=2 cp_attention=ring cp_order=contiguous bf16", 2, 2},
    {"cap", "cp=2 cp_attention=ring cp_order=zigzag bf16", 0, 0},
};

INSTANTIATE_TEST_SUITE_P(Strategies, CudaCudnnTest, ::testing::ValuesIn(kCudnnLines));

// The mask by index is that of positions which ascend; others are refused, and by other plans taken.
TEST(CudaCudnn, PositionsAscend) {
  if (device::CountDevices(device::DeviceKind::kCuda) == 0)
    GTEST_SKIP() << device::OpenDevice(device::DeviceKind::kCuda, 0).status();
  if (const auto cudnn = kernels::LoadCudnn(); !cudnn.ok()) GTEST_SKIP() << cudnn.status();
  runtime::ExecutorOptions options;
  options.backend = kernels::Backend::kCuda;
  for (const bool library : {true, false}) {
    std::set<std::string> libraries;
    if (library) libraries.insert("cudnn");
    ASSERT_OK_AND_ASSIGN(const Program program, Compile("cap", "dp=1 bf16", libraries));
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Executor> plan,
                         runtime::Executor::Create(program, options));
    ASSERT_OK(plan->InitializeState(3));
    ASSERT_OK_AND_ASSIGN(runtime::StepInputs in, RandomInputs(*program.module, {}, 1));
    std::swap(in.positions[4], in.positions[5]);
    if (library) {
      ExpectError(plan->TrainStep(in), absl::StatusCode::kInvalidArgument, "number 5 is 4 after 5");
    } else {
      EXPECT_OK(plan->TrainStep(in));
    }
  }
}

// As a run with a GPU for each rank: the communicators of NCCL, here among threads of one process.
TEST(CudaNccl, RanksWithAGpuEachTrainAsThoseThatShareOne) {
#ifdef MOE_EMULATED
  emulated::SetDevices(4, size_t{4} << 30);
#endif
  if (device::CountDevices(device::DeviceKind::kCuda) < 4) GTEST_SKIP() << "needs 4 GPUs";
  for (const auto& [model, strategy] :
       {std::pair{"cap", "tp=2 dp=2 etp=2 ep=2 sp"}, std::pair{"drop", "dp=4 ep=4 zero=3"},
        std::pair{"drop", "pp=2 dp=2 ep=2 zero=1 microbatches=2 overlap=on"}}) {
    SCOPED_TRACE(strategy);
    ASSERT_OK_AND_ASSIGN(const Program program, Compile(model, strategy));
    comm::DeviceWorldsOptions worlds;
    worlds.kind = device::DeviceKind::kCuda;
    worlds.num_ranks = 4;
    worlds.canonical_order = true;
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<comm::DeviceWorlds> nccl, comm::DeviceWorlds::Open(worlds));
    ASSERT_TRUE(nccl->uses_nccl()) << nccl->Describe();
    worlds.devices = 2;
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<comm::DeviceWorlds> in_process,
                         comm::DeviceWorlds::Open(worlds));
    ASSERT_FALSE(in_process->uses_nccl()) << in_process->Describe();
    runtime::ExecutorOptions options;
    options.backend = kernels::Backend::kCuda;
    options.worlds = in_process.get();
    int64_t graphs = 0;
    ASSERT_OK_AND_ASSIGN(const std::vector<double> shared, Losses(program, options, &graphs));
    options.worlds = nccl.get();
    ASSERT_OK_AND_ASSIGN(const std::vector<double> apart, Losses(program, options, &graphs));
    EXPECT_EQ(apart, shared);
  }
}

#ifdef MOE_EMULATED
// On a device whose streams take much longer than the host takes to give them work: spans are the device's.
TEST(CudaTraces, ShowWhenTheDeviceWorked) {
  constexpr int64_t kEach = 500 * 1000;  // ns; kernels of this model take less in emulation
  emulated::SetDevices(1, size_t{4} << 30);
  ASSERT_OK_AND_ASSIGN(const Program program,
                       Compile("cap", "pp=2 dp=2 ep=2 zero=1 microbatches=2 overlap=on"));
  runtime::ExecutorOptions options;
  options.backend = kernels::Backend::kCuda;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Executor> plan,
                       runtime::Executor::Create(program, options));
  ASSERT_OK(plan->InitializeState(3));
  ASSERT_OK_AND_ASSIGN(const runtime::StepInputs in, RandomInputs(*program.module, {}, 1));
  ASSERT_OK(plan->TrainStep(in).status());
  emulated::SetSlowness(std::chrono::nanoseconds(kEach));
  ASSERT_OK(plan->StartTrace(1));
  const int64_t before = NowNanos();
  const absl::Status ran = plan->TrainStep(in).status();
  const int64_t after = NowNanos();
  emulated::SetSlowness(std::chrono::nanoseconds(0));
  plan->StopTrace();
  ASSERT_OK(ran);
  ASSERT_OK_AND_ASSIGN(const runtime::Trace trace, plan->GatherTrace());

  // What makes a value, through futures, where its name says so.
  std::map<std::string, std::set<std::string>> operands;
  std::map<std::string, int> made;
  for (const auto& f : program.module->functions()) {
    for (const auto& n : f->body()) {
      ++made[n->result_name()];
      for (const Value& v : n->operands()) {
        const Node* from = v.node;
        if (from->Is("comm.done")) from = from->operand(0).node;
        operands[n->result_name()].insert(from->result_name());
      }
    }
  }
  constexpr int64_t kExact = 100;  // ns: between events of one device
  int64_t waits = 0, products = 0, messages = 0;
  std::map<std::string, int64_t> sent;  // by message, of stage 0: when
  for (const bool receivers : {false, true}) {
    for (int64_t rank = 0; rank < trace.ranks(); ++rank) {
      std::map<int, std::vector<std::pair<int64_t, int64_t>>> lanes;
      std::map<std::pair<std::string, int>, const runtime::TraceEvent*> of;
      for (const runtime::TraceEvent& e : trace.events(rank)) {
        EXPECT_GE(e.begin_ns, before) << e.name;
        EXPECT_LE(e.end_ns, after) << e.name;
        lanes[e.lane].push_back({e.begin_ns, e.end_ns});
        if (e.detail != nullptr) of[{*e.detail, e.microbatch}] = &e;
        absl::string_view name = e.name;  // "send act.0 mb0 -> stage 1"
        const bool sends = absl::ConsumePrefix(&name, "send "),
                   receives = absl::ConsumePrefix(&name, "recv ");
        const std::string message = absl::StrCat(name.substr(0, name.find(" mb") + 4), " of ", rank % 2);
        if (!receivers && sends) sent[message] = e.begin_ns;
        if (receivers && receives) {
          ASSERT_TRUE(sent.count(message)) << message;
          EXPECT_GE(e.end_ns, sent[message]) << message;
          ++messages;
        }
      }
      if (receivers) continue;
      for (auto& [lane, spans] : lanes) {  // of one stream, in order
        if (lane == 2) continue;
        std::sort(spans.begin(), spans.end());
        for (size_t i = 1; i < spans.size(); ++i) EXPECT_GE(spans[i].first, spans[i - 1].second - kExact);
      }
      for (const auto& [key, e] : of) {
        if (e->category == runtime::Category::kGemm) {
          EXPECT_GE(e->end_ns - e->begin_ns, kEach - kExact) << *e->detail;
          ++products;
        }
        for (const std::string& operand : operands[key.first]) {
          const auto producer = of.find({operand, key.second});
          if (made[key.first] > 1 || made[operand] > 1 || producer == of.end()) continue;
          EXPECT_GE(e->begin_ns, producer->second->end_ns - kExact) << *e->detail << " of " << operand;
          ++waits;
        }
      }
    }
  }
  EXPECT_GT(waits, 100);
  EXPECT_GT(products, 50);
  EXPECT_GT(messages, 7);
  // Queues work beside each other, as the plan wants it.
  EXPECT_GT(runtime::CommunicationOf(trace).hidden_seconds, 0);
}

TEST(CudaMemory, TooLittleIsRefusedWithThePlansNumbers) {
  ASSERT_OK_AND_ASSIGN(const Program program, Compile("cap", "dp=1"));
  runtime::ExecutorOptions options;
  options.backend = kernels::Backend::kCuda;
  emulated::SetDevices(1, 100000);
  ExpectError(runtime::Executor::Create(program, options), absl::StatusCode::kResourceExhausted,
              absl::StrCat("the plan needs ", program.memory.stages[0].peak_bytes(), " bytes"), "frame ",
              "CUDA device 0", "100000 are free");
  emulated::SetDevices(0, 0);
  ExpectError(runtime::Executor::Create(program, options), absl::StatusCode::kUnavailable, "no CUDA device");
  emulated::SetDevices(2, size_t{4} << 30);
}
#endif

}  // namespace
}  // namespace moe::testing
