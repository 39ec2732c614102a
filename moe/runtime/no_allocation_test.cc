// The step loop allocates nothing: a counting operator new watches the rank threads of a running cluster.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string>

#include "moe/base/status_matchers.h"
#include "moe/runtime/executor.h"
#include "moe/testing/compile_program.h"
#include "moe/testing/random_inputs.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};
thread_local bool is_host = false;  // the thread that calls TrainStep; it may allocate

void* Allocate(size_t size, size_t alignment) {
  if (counting.load(std::memory_order_relaxed) && !is_host)
    allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = alignment == 0 ? std::malloc(size == 0 ? 1 : size)
                           : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) std::abort();
  return p;
}

}  // namespace

void* operator new(size_t size) { return Allocate(size, 0); }
void* operator new[](size_t size) { return Allocate(size, 0); }
void* operator new(size_t size, std::align_val_t a) { return Allocate(size, static_cast<size_t>(a)); }
void* operator new[](size_t size, std::align_val_t a) { return Allocate(size, static_cast<size_t>(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace moe::runtime {
namespace {

class NoAllocationTest : public ::testing::TestWithParam<bool> {};

TEST_P(NoAllocationTest, StepsAllocateNothing) {
  is_host = true;
  const bool dropless = GetParam();
  const std::string text = R"(num_layers: 2 hidden_size: 32 num_attention_heads: 4 num_key_value_heads: 2
                              vocab_size: 64 seq_length: 16 num_experts: 4 moe_router_topk: 2
                              moe_ffn_hidden_size: 32 norm_topk_prob: true aux_loss_coeff: 0.01
                              z_loss_coeff: 0.001 )";
  ASSERT_OK_AND_ASSIGN(const model::ModelConfig model,
                       model::ParseModelConfig(text + (dropless ? "" : "capacity_factor: 1.25"), "model"));
  ASSERT_OK_AND_ASSIGN(
      const Program program,
      testing::CompileProgram(model, "pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=4 checkpoint=selective",
                              {.global_batch = 16}));
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<Executor> executor, Executor::Create(program, {}));
  ASSERT_OK(executor->InitializeState(1));
  ASSERT_OK_AND_ASSIGN(const StepInputs inputs, testing::RandomInputs(*program.module, {}, 1));
  // Threads, locks and libraries set themselves up at their first steps, in whatever order the threads meet.
  for (int i = 0; i < 5; ++i) ASSERT_OK(executor->TrainStep(inputs).status());
  for (const bool traced : {false, true}) {
    if (traced) ASSERT_OK(executor->StartTrace(5));
    allocations = 0;
    counting = true;
    for (int i = 0; i < 5; ++i) ASSERT_OK(executor->TrainStep(inputs).status());
    counting = false;
    EXPECT_EQ(allocations.load(), 0) << "allocations in 5 steps of 8 ranks" << (traced ? ", traced" : "");
  }
}

INSTANTIATE_TEST_SUITE_P(Routing, NoAllocationTest, ::testing::Bool(), [](const auto& info) {
  return info.param ? std::string("Dropless") : std::string("Capacity");
});

}  // namespace
}  // namespace moe::runtime
