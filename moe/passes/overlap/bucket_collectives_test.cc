#include "moe/passes/overlap/bucket_collectives.h"

#include <gtest/gtest.h>

#include "moe/testing/pass_test.h"

namespace moe::passes {
namespace {

class BucketCollectivesTest : public testing::PassTest {
 protected:
  static PassContext Limit(int64_t bytes) {
    PassContext context;
    context.strategy.bucket = bytes;
    return context;
  }
};

// Gradients of two tensors in the update, and the norm that needs both: the scalar cannot join them.
constexpr char kUpdate[] = R"(
    module @m mesh<dp=2, tp=2>
    func @update0(%x: f32[8, 4] partial(dp), %y: f32[6] partial(dp), %z: f32[512] partial(dp)) {
      // CHECK: %a, %b = comm.bucket(%x, %y) {axes = [dp]}
      // CHECK: %p = math.sum_squares(%a)
      // CHECK: %c = comm.all_reduce(%z)
      // CHECK: return %a,
      update:
      %a = comm.all_reduce(%x) {axes = [dp]} @comm : f32[8, 4]
      %p = math.sum_squares(%a) : f32[]
      %b = comm.all_reduce(%y) {axes = [dp]} @comm : f32[6]
      %c = comm.all_reduce(%z) {axes = [dp]} @comm : f32[512]
      return %a, %b, %c, %p
    })";

TEST_F(BucketCollectivesTest, LeavesAloneWhatIsLarge) {
  ExpectRewrite(BucketCollectives, kUpdate, Limit(1024));
}

TEST_F(BucketCollectivesTest, NoBytesNoBuckets) { ExpectUnchanged(BucketCollectives, kUpdate, Limit(0)); }

// What travels in one format travels together; %c, which nothing narrows, goes alone.
TEST_F(BucketCollectivesTest, OneWireFormatInABucket) {
  ExpectRewrite(BucketCollectives, R"(
    module @m mesh<dp=2>
    func @update0(%x: f32[8, 4] partial(dp), %y: f32[6] partial(dp), %z: f32[6] partial(dp),
                  %v: f32[40] partial(dp)) {
      // CHECK: %c = comm.all_reduce(%z)
      // CHECK: %a, %b = comm.bucket(%x, %y) {axes = [dp], wire = "f8e4m3"}
      // CHECK: %d = comm.all_reduce(%v) {axes = [dp], wire = "bf16"}
      update:
      %a = comm.all_reduce(%x) {axes = [dp], wire = "f8e4m3"} @comm : f32[8, 4]
      %c = comm.all_reduce(%z) {axes = [dp]} @comm : f32[6]
      %b = comm.all_reduce(%y) {axes = [dp], wire = "f8e4m3"} @comm : f32[6]
      %d = comm.all_reduce(%v) {axes = [dp], wire = "bf16"} @comm : f32[40]
      return %a, %b, %c, %d
    })",
                Limit(1024));
}

// What a member needs cannot come from its own bucket: %n depends on %a, so it is in another one.
TEST_F(BucketCollectivesTest, MembersDoNotDependOnEachOther) {
  ExpectRewrite(BucketCollectives, R"(
    module @m mesh<dp=2>
    func @update0(%x: f32[] partial(dp), %y: f32[] partial(dp), %z: f32[] partial(dp)) {
      // CHECK: %a = comm.all_reduce(%x)
      // CHECK: %s = math.mul(%a, %z)
      // CHECK: %n, %b = comm.bucket(%s, %y)
      update:
      %a = comm.all_reduce(%x) {axes = [dp]} @comm : f32[]
      %s = math.mul(%a, %z) : f32[] partial(dp)
      %n = comm.all_reduce(%s) {axes = [dp]} @comm : f32[]
      %b = comm.all_reduce(%y) {axes = [dp]} @comm : f32[]
      return %n, %b
    })",
                Limit(1024));
}

// In a backward, gradients that are only accumulated; scattered by different dims. The activation goes alone.
TEST_F(BucketCollectivesTest, GradientsOfABackward) {
  ExpectRewrite(BucketCollectives, R"(
    module @m mesh<dp=2>
    state @grad.w : f32[8@dp, 4] {kind = "gradient"}
    state @grad.v : f32[4, 8@dp] {kind = "gradient"}
    func @backward0(%x: f32[8, 4] partial(dp), %y: f32[4, 8] partial(dp), %h: f32[8, 4] partial(dp),
                    %gw: f32[8@dp, 4] {kind = "state", name = "grad.w"},
                    %gv: f32[4, 8@dp] {kind = "state", name = "grad.v"}) {
      // CHECK: %d = comm.all_reduce(%h)
      // CHECK: %a, %b = comm.bucket(%x, %y) {axes = [dp]}
      // CHECK: %aw = optim.accumulate(%gw, %a)
      // CHECK: %av = optim.accumulate(%gv, %b)
      backward:
      %a = comm.reduce_scatter(%x) {axes = [dp]} @comm : f32[8@dp, 4]
      %aw = optim.accumulate(%gw, %a) : f32[8@dp, 4]
      %d = comm.all_reduce(%h) {axes = [dp]} @comm : f32[8, 4]
      %b = comm.reduce_scatter(%y) {axes = [dp]} @comm : f32[4, 8@dp]
      %av = optim.accumulate(%gv, %b) : f32[4, 8@dp]
      return %d, %aw {kind = "state", name = "grad.w"}, %av {kind = "state", name = "grad.v"}
    })",
                Limit(4096));
}

// Gathers of one layer go with the first of them; those of the next layer stay with it.
TEST_F(BucketCollectivesTest, GathersOfALayer) {
  ExpectRewrite(BucketCollectives, R"(
    module @m mesh<dp=2>
    state @a : f32[8@dp] {kind = "parameter"}
    state @b : f32[8@dp] {kind = "parameter"}
    state @c : f32[8@dp] {kind = "parameter"}
    func @forward0(%x: f32[2, 1, 8], %a: f32[8@dp] {kind = "state", name = "a"},
                   %b: f32[8@dp] {kind = "state", name = "b"}, %c: f32[8@dp] {kind = "state", name = "c"}) {
      // CHECK: %ga, %gb = comm.bucket(%a, %b)
      // CHECK: %h = nn.rms_norm(%x, %ga)
      // CHECK: %gc = comm.all_gather(%c)
      %ga = comm.all_gather(%a) {axes = [dp]} @comm : f32[8] at "layers.0.attn"
      %h = nn.rms_norm(%x, %ga) {eps = 1e-05} : f32[2, 1, 8] at "layers.0.attn"
      %gb = comm.all_gather(%b) {axes = [dp]} @comm : f32[8] at "layers.0.mlp"
      %i = nn.rms_norm(%h, %gb) {eps = 1e-05} : f32[2, 1, 8] at "layers.0.mlp"
      %gc = comm.all_gather(%c) {axes = [dp]} @comm : f32[8] at "layers.1.attn"
      %j = nn.rms_norm(%i, %gc) {eps = 1e-05} : f32[2, 1, 8] at "layers.1.attn"
      return %j
    })",
                Limit(4096));
}

// In mixed precision what is gathered is the cast.
TEST_F(BucketCollectivesTest, GathersOfCasts) {
  ExpectRewrite(BucketCollectives, R"(
    module @m mesh<dp=2>
    state @a : f32[8@dp] {kind = "parameter"}
    state @b : f32[8@dp] {kind = "parameter"}
    func @forward0(%x: f64[2, 1, 8], %a: f32[8@dp] {kind = "state", name = "a"},
                   %b: f32[8@dp] {kind = "state", name = "b"}) {
      // CHECK: %na = math.cast(%a)
      // CHECK: %nb = math.cast(%b)
      // CHECK: %ga, %gb = comm.bucket(%na, %nb)
      // CHECK: %h = nn.rms_norm(%x, %ga)
      %na = math.cast(%a) {dtype = "f64"} : f64[8@dp] at "layers.0.attn"
      %ga = comm.all_gather(%na) {axes = [dp]} @comm : f64[8] at "layers.0.attn"
      %h = nn.rms_norm(%x, %ga) {eps = 1e-05} : f64[2, 1, 8] at "layers.0.attn"
      %nb = math.cast(%b) {dtype = "f64"} : f64[8@dp] at "layers.0.mlp"
      %gb = comm.all_gather(%nb) {axes = [dp]} @comm : f64[8] at "layers.0.mlp"
      %i = nn.rms_norm(%h, %gb) {eps = 1e-05} : f64[2, 1, 8] at "layers.0.mlp"
      return %i
    })",
                Limit(4096));
}

}  // namespace
}  // namespace moe::passes
