// Whole plans on devices that check the order of work (moe/testing/order_check.h): all that a rank's streams
// and threads do with its memory is ordered by events, and would not be without them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/base/status_matchers.h"
#include "moe/comm/device_worlds.h"
#include "moe/device/cuda/cuda.h"
#include "moe/device/device.h"
#include "moe/device/host_device.h"
#include "moe/ir/state.h"
#include "moe/model/config.h"
#include "moe/runtime/executor.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/equivalence.h"
#include "moe/testing/equivalence_lines.h"
#include "moe/testing/order_check.h"
#include "moe/testing/random_inputs.h"
#include "moe/testing/strategy_space.h"

namespace moe::testing {
namespace {

using ::testing::IsEmpty;

constexpr kernels::Backend kGpu = kernels::Backend::kCuda;
constexpr kernels::Backend kHost = kernels::Backend::kCpu;  // on host devices that are used as GPUs would be

struct Plan {
  const char *model, *strategy;
  kernels::Backend backend;
  int devices;
  bool graphs = true;
};

struct Watched {
  OrderCheck check;
  std::unique_ptr<comm::DeviceWorlds> worlds;
};

absl::StatusOr<std::unique_ptr<Watched>> Watch(kernels::Backend backend, int64_t ranks, int devices) {
  auto watched = std::make_unique<Watched>();
  OrderCheck& check = watched->check;
  comm::DeviceWorldsOptions on;
  on.kind = backend == kGpu ? device::DeviceKind::kCuda : device::DeviceKind::kHost;
  on.num_ranks = ranks;
  on.devices = devices;
  on.open = [&check](device::DeviceKind kind,
                     int ordinal) -> absl::StatusOr<std::unique_ptr<device::Device>> {
    if (kind == device::DeviceKind::kHost) return check.Watch(device::NewHostDevice(), ordinal);
    ASSIGN_OR_RETURN(std::unique_ptr<device::Device> device, device::OpenDevice(kind, ordinal));
    return check.Watch(std::move(device), ordinal);
  };
  ASSIGN_OR_RETURN(watched->worlds, comm::DeviceWorlds::Open(on));
  return watched;
}

// In f32.
absl::StatusOr<Program> Compile(const std::string& model_text, const std::string& words, int64_t global_batch,
                                kernels::Backend backend) {
  ASSIGN_OR_RETURN(model::ModelConfig model, model::ParseModelConfig(model_text, "model"));
  model.set_dtype("f32");
  return CompileProgram(model, words, {.global_batch = global_batch, .backend = backend});
}

absl::StatusOr<Program> Compile(const Plan& plan) {
  return Compile(LineModel(plan.model), plan.strategy, /*global_batch=*/8, plan.backend);
}

absl::Status Train(const Program& program, int step, runtime::Executor* executor) {
  RandomInputOptions random;
  random.seed = step;
  ASSIGN_OR_RETURN(const runtime::StepInputs in, RandomInputs(*program.module, random, step));
  return executor->TrainStep(in).status();
}

bool EnoughDevices(const Plan& plan) {
  if (plan.backend != kGpu) return true;
#ifdef MOE_EMULATED
  emulated::SetDevices(4, size_t{4} << 30);
#endif
  return device::CountDevices(device::DeviceKind::kCuda) >= plan.devices;
}

// Kinds of waits some of which must be missed. Between ranks there are others, as they happen to meet.
std::set<std::string> KindsOf(const Plan& plan, const Program& program, const comm::DeviceWorlds& worlds) {
  std::set<std::string> kinds = {"host after compute"};
  if (program.module->mesh().num_ranks() == 1) return kinds;
  kinds.insert({"comm after compute", "compute after comm"});
  if (!worlds.uses_nccl()) {
    kinds.insert(plan.devices > 1 ? "comm after comm of another device" : "comm after comm");
  }
  // The sizes of ragged rows.
  if (absl::string_view(plan.model) == "drop" && absl::StrContains(plan.strategy, " ep=")) {
    kinds.insert("host after comm");
  }
  if (program.module->mesh().num_stages() > 1) {
    kinds.insert({"copy after compute", "compute after copy"});
  }
  return kinds;
}

class StreamOrderTest : public ::testing::TestWithParam<Plan> {};

TEST_P(StreamOrderTest, EventsOrderAllWork) {
  const Plan& plan = GetParam();
  SCOPED_TRACE(plan.strategy);
  if (!EnoughDevices(plan)) GTEST_SKIP() << "needs " << plan.devices << " GPUs";
  ASSERT_OK_AND_ASSIGN(const Program program, Compile(plan));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Watched> watched,
                       Watch(plan.backend, program.module->mesh().num_ranks(), plan.devices));
  const OrderCheck& check = watched->check;
  runtime::ExecutorOptions options;
  options.backend = plan.backend;
  options.worlds = watched->worlds.get();
  options.graphs = plan.graphs;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Executor> executor,
                       runtime::Executor::Create(program, options));
  ASSERT_OK(executor->InitializeState(3));
  // Graphs are recorded when a part runs for the second time.
  const bool graphs = plan.backend == kGpu && plan.graphs;
  int step = 1;
  for (; step <= (graphs ? 3 : 2); ++step) ASSERT_OK(Train(program, step, executor.get()));
  EXPECT_EQ(executor->rank(0).graphs() > 0, graphs);
  for (const auto& state : program.module->states()) {
    const std::string kind = AttrString(state->attributes, "kind");
    if (kind == "parameter") ASSERT_OK(executor->ReadState(state->name).status());
  }
  // A step whose decisions are recorded looks at the device on its way.
  runtime::Decisions decisions;
  executor->RecordDecisions(&decisions);
  ASSERT_OK(Train(program, step, executor.get()));
  EXPECT_THAT(check.Races(), IsEmpty());

  // Each wait of the first streams is left out in turn. Not every one is missed: some give an order that
  // nobody needs in this plan, or that a later wait gives before anybody does.
  constexpr int kTried = 40;  // of each kind
  struct Count {
    int sites = 0, tried = 0, missed = 0;
  };
  std::map<std::string, Count> kinds;
  for (const OrderCheck::Site& site : check.Sites()) {
    Count& kind = kinds[site.kind];
    ++kind.sites;
    if (!site.adds || kind.tried == kTried) continue;
    ++kind.tried;
    kind.missed += !check.Races(&site).empty();
  }
  for (const std::string& kind : KindsOf(plan, program, *watched->worlds)) {
    EXPECT_GT(kinds[kind].missed, 0) << kind;
  }
  std::string result = absl::StrCat(watched->worlds->Describe(), ": ", check.size(), " entries");
  for (const auto& [kind, n] : kinds) {
    absl::StrAppend(&result, "; ", kind, ": ", n.sites, " sites, ", n.missed, " of ", n.tried, " missed");
  }
  RecordProperty("result", result);
}

constexpr Plan kPlans[] = {
    {"drop", "dp=1 microbatches=2 checkpoint=selective", kGpu, 1},
    // All ranks on one device.
    {"cap", "tp=2 dp=2 etp=2 ep=2 sp vp microbatches=2 overlap=on", kHost, 1},
    {"cap", "dp=2 zero=2 microbatches=4 overlap=on", kHost, 1},
    {"cap tied", "pp=2 dp=2 ep=2 microbatches=4", kGpu, 1},
    // Two each on two devices.
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2 overlap=on", kGpu, 2},
    // A device each, whose memory the others read.
    {"drop", "dp=4 ep=4 overload=0.6 microbatches=2 zero=1 overlap=on", kHost, 4},
    {"cap", "dp=4 zero=3 microbatches=2 overlap=on bucket=4096", kHost, 4},
    {"drop", "dp=2 ep=2 bf16 fp8_experts zero=2 microbatches=2 compress_dispatch=f8 compress_grad=bf16",
     kHost, 2},
    {"cap", "cp=2 cp_attention=ring cp_order=zigzag", kHost, 2},
    // Sums of gradients are left out but for the last micro-batch; what else is gathered goes on.
    {"cap", "cp=2 dp=2 zero=1 microbatches=2 overlap=on", kHost, 4},
    {"drop", "pp=2 tp=2 etp=2 schedule=zb-h1 microbatches=4 overlap=on", kHost, 4},
    // A device each, by NCCL.
    {"drop", "tp=2 dp=2 ep=4 sp vp zero=3 overlap=on", kGpu, 4},
    {"drop", "pp=2 dp=2 ep=2 zero=1 microbatches=2 overlap=on checkpoint=full", kGpu, 4},
    {"cap", "pp=2 dp=2 ep=2 zero=1 microbatches=2 overlap=on", kGpu, 4, false},
};

INSTANTIATE_TEST_SUITE_P(Plans, StreamOrderTest, ::testing::ValuesIn(kPlans));

constexpr int kSlices = 4;

class StreamOrderOfTheMatrix : public ::testing::TestWithParam<int> {};

// Every fourth point of the covering array: in turn with a device for each rank and with one for all.
TEST_P(StreamOrderOfTheMatrix, EventsOrderAllWork) {
  const std::vector<Point>& points = MatrixPoints();
  for (size_t i = 4 * GetParam(); i < points.size(); i += 4 * kSlices) {
    const EquivalenceCase c = MatrixSpace().Case(points[i]);
    SCOPED_TRACE(c.strategy);
    ASSERT_OK_AND_ASSIGN(const Program program, Compile(c.model, c.strategy, c.global_batch, kHost));
    const int64_t ranks = program.module->mesh().num_ranks();
    const int devices = i / (4 * kSlices) % 2 == 0 ? static_cast<int>(ranks) : 1;
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Watched> watched, Watch(kHost, ranks, devices));
    runtime::ExecutorOptions options;
    options.worlds = watched->worlds.get();
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Executor> executor,
                         runtime::Executor::Create(program, options));
    ASSERT_OK(executor->InitializeState(3));
    for (int step = 1; step <= 2; ++step) ASSERT_OK(Train(program, step, executor.get()));
    EXPECT_THAT(watched->check.Races(), IsEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(Points, StreamOrderOfTheMatrix, ::testing::Range(0, kSlices));

// Plans that share state, memory and streams, one after the other.
TEST(StreamOrder, OfPlansInTheSameMemory) {
  const Plan one = {"drop", "dp=4 ep=4 microbatches=2 overlap=on", kGpu, 4};
  const Plan other = {"drop", "dp=4 ep=4 overlap=on checkpoint=full", kGpu, 4};
  if (!EnoughDevices(one)) GTEST_SKIP() << "needs " << one.devices << " GPUs";
  ASSERT_OK_AND_ASSIGN(const Program program, Compile(one));
  ASSERT_OK_AND_ASSIGN(const Program next, Compile(other));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Watched> watched, Watch(kGpu, 4, one.devices));
  runtime::ExecutorOptions options;
  options.backend = kGpu;
  options.worlds = watched->worlds.get();
  options.room_for = {&next};
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Executor> executor,
                       runtime::Executor::Create(program, options));
  options.room_for.clear();
  options.memory_of = executor.get();
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<runtime::Executor> second,
                       runtime::Executor::Create(next, options));
  ASSERT_OK(executor->InitializeState(3));
  for (int step = 1; step <= 4; step += 2) {
    ASSERT_OK(Train(program, step, executor.get()));
    ASSERT_OK(Train(next, step + 1, second.get()));
  }
  EXPECT_THAT(watched->check.Races(), IsEmpty());
}

}  // namespace
}  // namespace moe::testing
