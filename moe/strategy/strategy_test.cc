#include "moe/strategy/strategy.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "moe/base/status_matchers.h"
#include "moe/strategy/word.h"

namespace moe::strategy {
namespace {

Strategy S(absl::string_view text) { return ParseStrategy(text).value(); }

TEST(Strategy, TextRoundTrips) {
  Strategy s;
  EXPECT_EQ(s.ToString(), "dp=1");
  s.pp = 2, s.dp = 4, s.tp = 8, s.ep = 16, s.etp = 2, s.cp = 3;
  s.sequence_parallel = s.vocab_parallel = true;
  s.zero = 3, s.expert_zero = 1, s.microbatches = 8, s.virtual_chunks = 2;
  s.schedule = {ScheduleKind::kFile, "a.txt"}, s.checkpoint = {CheckpointMode::kSelective, {}};
  s.overload = 1.25, s.ep_order = EpOrder::kReversed, s.kv_axis = false;
  s.zero_dp = 2, s.expert_zero_dp = 1, s.devices_per_node = 8;
  s.cp_attention = CpAttention::kRing, s.cp_order = CpOrder::kContiguous, s.hierarchical = Toggle::kOn;
  EXPECT_EQ(S(s.ToString()).ToString(), s.ToString());
  EXPECT_EQ(S(s.ToString()).cp_attention, CpAttention::kRing);
  EXPECT_EQ(S(s.ToString()).overload, 1.25);
  EXPECT_EQ(S(s.ToString()).schedule.path, "a.txt");
  s.checkpoint = {CheckpointMode::kSelective, {"nn.attention"}};
  s.checkpoint_budget = 3 << 19, s.memory_limit = 1000001;
  s.dispatcher = Dispatcher::kAllGather;
  s.expert_slots = 4, s.expert_map = {1, -1, 0, 1};
  EXPECT_EQ(S(s.ToString()).ToString(), s.ToString());
  EXPECT_EQ(S("checkpoint_budget=1.5MiB").checkpoint_budget, 3 << 19);
  EXPECT_EQ(S("memory_limit=80GiB").ToString(), "memory_limit=80GiB");
  EXPECT_EQ(S("dp=2, tp=4 sp").ToString(), "dp=2 tp=4 sp");
  EXPECT_EQ(S("expert_map=0:1:-1:0").expert_map, (std::vector<int64_t>{0, 1, -1, 0}));
}

// What plan files, scripts and pages have.
TEST(Strategy, TextStaysReadable) {
  for (const char* text :
       {"pp=2 dp=2 tp=2 ep=4 sp vp zero=1", "pp=2 dp=2 tp=2 ep=2 etp=2 microbatches=4 checkpoint=selective",
        "pp=2 microbatches=8 virtual_chunks=2 schedule=zb-v", "dp=2 bf16 grads=bf16 fp8_experts",
        "dp=2 f16 compress_grad=f8", "tp=4 no_kv_axis", "dp=4 overlap=on bucket=4KiB moe_chunks=2",
        "dp=4 overload=0.1", "checkpoint=nn.rms_norm+nn.attention", "schedule=file:a/b.csv", "expert_zero=0",
        "bucket=0", "dp=2 ep_order=reversed"}) {
    EXPECT_EQ(S(text).ToString(), text);
  }
  EXPECT_EQ(S("bucket=4096").bucket, 4096);
  EXPECT_EQ(S("grads=f32 ep_order=fold zero_dp=0 bucket=-1").ToString(), "ep_order=fold");
  EXPECT_EQ(S("sp no_sp bf16 no_bf16 f16").ToString(), "f16");
  EXPECT_EQ(S("f16 no_bf16").ToString(), "f16");
  EXPECT_EQ(S("pp=2 pp=4").ToString(), "pp=4");  // the last counts
}

TEST(Strategy, BadWords) {
  const auto refused = [](absl::string_view text, auto... parts) {
    ExpectError(ParseStrategy(text), absl::StatusCode::kInvalidArgument, parts...);
  };
  refused("expert_map=0:x", "'x' is not an expert");
  refused("expert_slots=-1", "expert_slots=-1", "1 to");
  refused("pp=0", "pp=0", "1 to 1048576");
  refused("dp=-1", "dp=-1", "0 to 1048576");
  refused("pp=9223372036854775807", "1 to 1048576");
  refused("pp=99999999999999999999", "1 to 1048576");
  refused("zero=4", "zero=4", "0, 1, 2, 3");
  refused("cp_attention=rings", "auto, gather, ring");
  refused("dispatcher=flex", "auto, alltoall, allgather");
  refused("schedule=zigzag", "1f1b, gpipe, interleaved, zb-h1, zb-v, dualpipe, file:PATH");
  refused("schedule=file:", "file:PATH");
  refused("overload=-1", "0 or a positive number");
  refused("memory_limit=4GB", "memory_limit", "4GB", "MiB");
  refused("checkpoint_budget=-1", "-1", "512KiB");
  refused("checkpoint=some", "'some'", "selective", "nearest op");
  refused("checkpoint=nn.rms_nrm", "nn.rms_norm");
  refused("checkpoint=full+selective", "two policies");
  refused("checkpoint=auto+nn.rms_norm", "auto alone");
  refused("checkpoint=full+moe.top_k", "moe.top_k is never recomputed", "decid");
  refused("dq=2", "unknown word 'dq=2'", "known: pp= dp=", " sp vp ", " bf16 f16 ");
  refused("bf16 f16", "bf16 and f16 at once");
  refused("sp=maybe", "true or false");
  refused("dp=x zero=9 spp", "dp=x", "zero=9", "'spp'");  // all at once
}

TEST(Strategy, Resolves) {
  Strategy s = S("pp=2 tp=4 dp=0 etp=0 ep=2 world_size=32");
  Resolve(/*experts=*/true, s);
  EXPECT_EQ(s.ToString(), "pp=2 dp=4 tp=4 ep=2 etp=4 world_size=32");
  s = S("tp=4 dp=0 etp=0 ep=2");
  Resolve(/*experts=*/false, s);
  EXPECT_EQ(s.ToString(), "tp=4");
}

// The rows agree with each other, and what they say can be written can be read.
TEST(Words, AreOneTable) {
  std::set<std::string> names, flags;
  const Strategy defaults;
  for (const Word& w : Words()) {
    SCOPED_TRACE(w.name);
    EXPECT_TRUE(names.insert(w.name).second);
    for (const Word::FlagOf& f : w.flags) EXPECT_TRUE(flags.insert(f.name).second) << f.name;
    EXPECT_NE(w.help, "");
    EXPECT_NE(w.legal, "");
    EXPECT_EQ(FindWord(w.name), &w);
    // The default can be written, and makes no difference.
    EXPECT_EQ(S(w.Spell(w.Value(defaults))).ToString(), "dp=1");
    for (const std::string& tried : w.tried) {
      const Strategy s = S(tried);
      EXPECT_EQ(S(s.ToString()).ToString(), s.ToString());
      EXPECT_NE(s.ToString(), "dp=1") << tried;
    }
    EXPECT_TRUE(w.wants.empty() || FindWord(w.wants) != nullptr) << w.wants;
    for (const Word::FeatureOf& f : w.features) EXPECT_FALSE(w.HasFeature(f, defaults)) << f.name;
  }
}

TEST(Words, HaveFlags) {
  EXPECT_EQ(FindWord("zero")->FlagFor(S("zero=2")), "--zero_stage=2");
  EXPECT_EQ(FindWord("sp")->FlagFor(S("sp")), "--sequence_parallel");
  EXPECT_EQ(FindWord("sp")->FlagFor(S("")), "--nosequence_parallel");
  EXPECT_EQ(FindWord("precision")->FlagFor(S("f16")), "--fp16");
  EXPECT_EQ(FindWord("precision")->FlagFor(S("")), "--nobf16 --nofp16");
  EXPECT_EQ(FindWord("expert_map")->FlagFor(S("")), "--expert_map=");
}

TEST(Words, Rounding) {
  EXPECT_TRUE(Rounds(S("bf16")));
  EXPECT_TRUE(Rounds(S("compress_grad=f8")));
  EXPECT_FALSE(Rounds(S("dp=2 zero=3 overlap=on")));
}

}  // namespace
}  // namespace moe::strategy
