// What users get wrong, through the command itself: the exit code is 1, the message names the value and what
// would be legal, and nothing is left behind.

#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "moe/base/file.h"
#include "moe/base/status_matchers.h"
#include "tools/run_tool.h"

namespace moe::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class BadInputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = JoinPath(::testing::TempDir(), "bad_input");
    ASSERT_OK(RemoveTree(folder_));
    ASSERT_OK(MakeFolders(folder_));
    text_ = JoinPath(folder_, "text.txt");
    std::string text;
    for (int i = 0; i < 3000; ++i) absl::StrAppend(&text, "the ", i % 13, " quick brown foxes\n");
    ASSERT_OK(WriteFile(text_, text));
    run_ = JoinPath(folder_, "run");
  }

  static Outcome Run(const std::string& command) { return RunShell(command); }
  static std::string Tool(const std::string& name) { return ToolPath(name); }
  Outcome Train(const std::string& flags) const {
    const bool has_run = absl::StrContains(flags, "--run_dir");
    const bool has_text = absl::StrContains(flags, "--data_path");
    return Run(absl::StrCat(Tool("compile_and_train"), has_run ? "" : " --run_dir=" + run_,
                            has_text ? "" : " --data_path=" + text_, " ", flags));
  }
  // Refused, with all the parts in the message, in few lines, before anything was written.
  void ExpectRefused(const std::string& flags, const std::vector<std::string>& parts) {
    const Outcome o = Train(flags);
    EXPECT_EQ(o.code, 1) << o.output;
    EXPECT_THAT(o.output, HasSubstr("error: "));
    for (const std::string& part : parts) EXPECT_THAT(o.output, HasSubstr(part)) << flags;
    EXPECT_THAT(o.output, Not(HasSubstr("Check failed")));
    EXPECT_FALSE(IsFolder(run_)) << flags;
    EXPECT_FALSE(FileExists(run_)) << flags;
  }

  std::string folder_, text_, run_;
};

TEST_F(BadInputTest, Strategies) {
  ExpectRefused("--expert_model_parallel_size=3",
                {"expert_model_parallel_size = 3", "num_experts = 8", "1, 2, 4, 8"});
  ExpectRefused(
      "--num_attention_heads=6 --num_query_groups=3 --kv_channels=16 --tensor_model_parallel_size=4",
      {"tensor_model_parallel_size = 4", "num_attention_heads = 6"});
  ExpectRefused("--world_size=12", {"12", "world"});
  ExpectRefused("--moe_router_topk=9", {"moe_router_topk = 9", "num_experts = 8"});
  ExpectRefused("--num_layers=1", {"num_layers = 1", "2 pipeline stages"});
  ExpectRefused("--global_batch_size=30", {"global_batch_size = 30"});
  ExpectRefused("--device=tpu", {"device = tpu", "cpu, cuda"});
  ExpectRefused("--device=cpu --target=h100", {"device = cpu", "h100", "cuda"});
  ExpectRefused("--device_timeout=0", {"--device_timeout=0", "seconds above 0"});
  ExpectRefused("--connect_timeout=-1 --spawn=2", {"--connect_timeout=-1", "0 or above"});
}

// Pipelines whose plans cannot run or learn.
TEST_F(BadInputTest, Pipelines) {
  for (const auto& [flags, what, pass] :
       {std::tuple<std::string, std::string, std::string>{"--passes=autodiff", "not cut into chunks",
                                                          "partition-stages"},
        {"--passes=remove-dead-nodes", "nothing updates the parameter @", "autodiff"},
        {"--disable_passes=plan-memory,certify", "no memory is planned", "plan-memory"},
        {"--disable_passes=autodiff", "the parameter @", "update"}}) {
    ASSERT_OK(RemoveTree(run_));
    const Outcome o = Train(flags);
    EXPECT_EQ(o.code, 1) << flags << "\n" << o.output;
    EXPECT_THAT(o.output, HasSubstr("error: ")) << flags;
    EXPECT_THAT(o.output, HasSubstr(what)) << flags;
    EXPECT_THAT(o.output, HasSubstr(pass)) << flags;
  }
}

TEST_F(BadInputTest, AllProblemsOfOneConfigurationAtOnce) {
  ExpectRefused("--expert_model_parallel_size=3 --global_batch_size=30 --moe_router_topk=9 --adam_beta1=2",
                {"5 problems", "expert_model_parallel_size = 3", "global_batch_size = 30",
                 "moe_router_topk = 9", "adam_beta1 = 2"});
}

// What is given is meant, also where it is nothing; and it is refused before the first step, not in it.
TEST_F(BadInputTest, ZerosAndNothings) {
  ExpectRefused("--init_method_std=0 --norm_epsilon=0 --max_consecutive_skips=0",
                {"3 problems", "init_std = 0", "norm_eps = 0", "max_consecutive_skips = 0", "1 or more"});
  ExpectRefused("--micro_batch_size=0 --link_microseconds=0",
                {"micro_batch_size = 0", "link_microseconds = 0"});
  ExpectRefused("--data_path=", {"data_path = ''"});
  ExpectRefused("--run_dir=", {"run_dir = ''"});
  ExpectRefused("--tensor_model_parallel_size=", {"tensor_model_parallel_size = ''"});
  ExpectRefused("--config=", {"--config"});
  ExpectRefused("--lr=", {"--lr= is empty"});
  ExpectRefused("--eval_interval=2 --held_out_fraction=0", {"eval_interval = 2", "held_out_fraction = 0"});
  ExpectRefused("--strategy=dp=2,microbatches=3", {"microbatches = 3", "global_batch_size = 32"});
}

TEST_F(BadInputTest, Files) {
  const std::string config = JoinPath(folder_, "c.textproto");
  ASSERT_OK(WriteFile(config, "model { num_layers: 4\n  num_expert: 8 }\n"));
  ExpectRefused("--config=" + config, {"c.textproto:2:13", "num_expert", "num_experts"});
  ExpectRefused("--data_path=/nowhere/text.txt", {"/nowhere/text.txt"});
  const std::string empty = JoinPath(folder_, "empty.txt");
  ASSERT_OK(WriteFile(empty, ""));
  ExpectRefused("--data_path=" + empty, {"empty.txt", "empty"});
  ExpectRefused("--resume=/nowhere/checkpoint", {"/nowhere/checkpoint"});
  const Outcome flag = Train("--expert_paralel=3");
  EXPECT_EQ(flag.code, 1);
  EXPECT_THAT(flag.output, HasSubstr("expert_paralel"));
  ExpectRefused("--passes=autodif", {"unknown pass 'autodif'"});
  ExpectRefused("--eval_only", {"--resume"});
}

// Module files, through the tool that reads them: where, what, and what would be legal, in few lines.
TEST_F(BadInputTest, ModuleFiles) {
  const std::string head = "module @m mesh<a=2, b=4; dp=a>\nfunc @f(%x: f32[8, 8], %i: s32[8, 8]) {\n";
  const std::string tail = "  return %x\n}\n";
  const auto in_body = [&](const std::string& line) { return absl::StrCat(head, "  ", line, "\n", tail); };
  const std::string deep(10000, '('), brackets(10000, '[');
  struct Case {
    std::string text;
    std::vector<std::string> parts;
  };
  const Case cases[] = {
      {head + "  %y = math.add(%x, ", {"bad.moe:3:21", "end of the text"}},
      {head.substr(0, 40), {"bad.moe:2"}},
      {"", {"bad.moe:1:1", "module @name"}},
      {in_body("%y = math.ad(%x, %x)"), {"bad.moe:3:8", "unknown op 'math.ad'", "math.add"}},
      {in_body("%y = math.add(%x)"), {"bad.moe:3:8", "math.add takes 2 operands (x, y), not 1"}},
      {in_body("%y, %z = math.add(%x, %x)"), {"bad.moe:3:3", "math.add has 1 results"}},
      {in_body("%y = math.add(%x, %i)"), {"bad.moe:3:8", "operand 1 (y) is s32, operand 0 is f32"}},
      {in_body("%y = math.add(%x, %x) : f33[8, 8]"), {"bad.moe:3:27", "unknown dtype 'f33'", "f64"}},
      {in_body("%y = math.add(%x, %x) : s32[8, 8]"), {"bad.moe:3:8", "%y must be f32[8, 8], not s32[8, 8]"}},
      {in_body("%y = math.add(%x, %y)"), {"bad.moe:3:21", "a graph has no cycles"}},
      {in_body("%y = math.add(%x, %z)\n  %z = math.add(%y, %y)"), {"bad.moe:3:21", "4:3", "cycle"}},
      {in_body("%x = math.add(%x, %x)"), {"bad.moe:3:4", "%x is defined twice"}},
      {in_body("%y = math.silu(%x)") + "func @f() {\n  return\n}\n", {"bad.moe:6:7", "@f appears twice"}},
      {"module @m mesh<a=2, a=2>\n", {"bad.moe:1:21", "'a' appears twice"}},
      {"module @m\nfunc @f(%x: f32[99999999999999999999]) {\n", {"bad.moe:2:17", "1099511627776"}},
      {"module @m\nfunc @f(%x: f32[1099511627776, 1099511627776]) {\n", {"bad.moe:2", "elements"}},
      {"module @m\nfunc @f(%x: f32[-8]) {\n", {"bad.moe:2:17", "a dim must be an integer"}},
      {"module @m mesh<a=16777216, b=16777216>\n", {"bad.moe:1", "ranks"}},
      {"module @m\nfunc @f" + deep, {"bad.moe:2:9"}},
      {in_body("%y = math.add" + deep), {"bad.moe:3:17"}},
      {in_body("%y = math.add(%x, %x) : f32" + brackets), {"bad.moe:3:31"}},
      {in_body("%y = math.einsum(%x) {eq = \"" + deep + "\"}"), {"bad.moe:3:8"}},
      {in_body("%y = math.add(%x, %x) : f32[8@a, 8@a]"), {"bad.moe:3", "'a' appears twice"}},
      {in_body("%y = math.add(%x, %x) : f32[8@q, 8]"), {"bad.moe:3", "'q'"}},
      {std::string("\x7f"
                   "ELF\0\1\2",
                   7),
       {"bad.moe:1:1"}},
  };
  const std::string file = JoinPath(folder_, "bad.moe"), out = JoinPath(folder_, "out.moe");
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text.substr(0, 200));
    ASSERT_OK(WriteFile(file, c.text));
    const Outcome o = Run(absl::StrCat(Tool("opt"), " --passes=remove-dead-nodes --output=", out, " ", file));
    EXPECT_EQ(o.code, 1) << o.output;
    EXPECT_THAT(o.output, HasSubstr("error: "));
    for (const std::string& part : c.parts) EXPECT_THAT(o.output, HasSubstr(part));
    EXPECT_LT(o.output.size(), 2000) << "a message, not an echo of the file";
    EXPECT_FALSE(FileExists(out));
  }
  ASSERT_OK(WriteFile(file, in_body("%y = math.silu(%x)")));
  const Outcome good = Run(absl::StrCat(Tool("opt"), " --output=", out, " ", file));
  EXPECT_EQ(good.code, 0) << good.output;
  EXPECT_TRUE(FileExists(out));
  for (const auto& [flags, part] :
       {std::pair<std::string, std::string>{"--passes=fuze " + file, "unknown pass 'fuze'"},
        {"--passes=fuse{only=x " + file, "pipeline"},
        {"/nowhere/a.moe", "/nowhere/a.moe"},
        {folder_, folder_},
        {"--strategy=tp=zwei " + file, "--strategy"},
        {"--output=/nowhere/out.moe " + file, "/nowhere/out.moe"}}) {
    const Outcome o = Run(absl::StrCat(Tool("opt"), " ", flags));
    EXPECT_EQ(o.code, 1) << o.output;
    EXPECT_THAT(o.output, HasSubstr(part));
  }
}

// Plans are files, too.
TEST_F(BadInputTest, PlanFiles) {
  const std::string file = JoinPath(folder_, "plan.pb");
  for (const std::string& text : {std::string(), std::string("not a plan"), std::string(5000, '\xff')}) {
    ASSERT_OK(WriteFile(file, text));
    const Outcome o = Run(absl::StrCat(Tool("inspect"), " --plan=", file));
    EXPECT_EQ(o.code, 1) << o.output;
    EXPECT_THAT(o.output, HasSubstr("plan.pb"));
    EXPECT_LT(o.output.size(), 2000);
  }
  const Outcome o = Run(absl::StrCat(Tool("inspect"), " --run=/nowhere/run"));
  EXPECT_EQ(o.code, 1) << o.output;
  EXPECT_THAT(o.output, HasSubstr("/nowhere/run"));
}

TEST_F(BadInputTest, RunDirectories) {
  const std::string file = JoinPath(folder_, "a_file");
  ASSERT_OK(WriteFile(file, "keep"));
  ExpectRefused(absl::StrCat("--run_dir=", file, "/run"), {"a_file", "--run_dir"});
  ExpectRefused(absl::StrCat("--run_dir=", file), {"a_file", "--run_dir"});
  ASSERT_OK_AND_ASSIGN(const std::string kept, ReadFile(file));
  EXPECT_EQ(kept, "keep");
  if (geteuid() != 0) {  // root writes anywhere
    const std::string locked = JoinPath(folder_, "locked");
    ASSERT_OK(MakeFolders(locked));
    ASSERT_EQ(chmod(locked.c_str(), 0555), 0);
    ExpectRefused(absl::StrCat("--run_dir=", locked, "/run"), {"locked", "--run_dir"});
  }
}

// One short run, and what may happen to its checkpoint before somebody resumes.
TEST_F(BadInputTest, Checkpoints) {
  const std::string small =
      " --num_layers=2 --hidden_size=32 --num_attention_heads=4 --num_query_groups=2 --moe_ffn_hidden_size=32"
      " --seq_length=32 --strategy=\"dp=2 ep=2\" --global_batch_size=4 --micro_batch_size=2";
  const std::string saved = JoinPath(folder_, "saved");
  const Outcome trained = Train(absl::StrCat("--quiet --train_iters=3 --run_dir=", saved, small));
  ASSERT_EQ(trained.code, 0) << trained.output;
  const std::string dir = JoinPath(saved, "checkpoint/step_00000003");
  const std::string resume = absl::StrCat("--train_iters=4 --run_dir=", run_, " --resume=", dir, small);
  ExpectRefused(resume + " --num_experts=4", {"num_experts", "8", "4"});
  ExpectRefused(resume + " --hidden_size=64", {"hidden_size", "32", "64"});
  ExpectRefused(resume + " --num_layers=3", {"num_layers", "2", "3"});
  ExpectRefused(absl::StrCat("--run_dir=", saved, small, " --resume="), {"--resume=" + saved});

  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> files, ListFolder(dir));
  std::string shard;
  for (const std::string& f : files) {
    if (absl::EndsWith(f, ".safetensors")) shard = JoinPath(dir, f);
  }
  ASSERT_FALSE(shard.empty());
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(shard));
  std::string bad = good;
  bad[bad.size() - 100] ^= 1;
  ASSERT_OK(WriteFile(shard, bad));
  ExpectRefused(resume, {dir});
  ASSERT_OK(WriteFile(shard, good.substr(0, good.size() / 2)));
  ExpectRefused(resume, {dir});
  bad = good;
  bad[1] = '\xff';  // the header's length
  bad[4] = '\xff';
  ASSERT_OK(WriteFile(shard, bad));
  ExpectRefused(resume, {dir});
  // A header that lies about a tensor: larger than its bytes, beyond the file, of another dtype.
  const size_t shape = good.find("\"shape\":["), offsets = good.find("\"data_offsets\":["),
               end = good.find(']', offsets);
  ASSERT_NE(shape, std::string::npos);
  ASSERT_NE(end, std::string::npos);
  for (const auto& [at, text] :
       {std::pair<size_t, std::string>{shape + 9, "9"}, {end - 1, "9"}, {good.find("\"F32\"") + 1, "F64"}}) {
    bad = good;
    ASSERT_LT(at, bad.size());
    bad.replace(at, text.size(), text);
    ASSERT_NE(bad, good);
    ASSERT_OK(WriteFile(shard, bad));
    ExpectRefused(resume, {dir});
  }
  ASSERT_OK(WriteFile(shard, good));
  // Without its manifest, or with half of it, a folder is not a checkpoint.
  for (const std::string& f : files) {
    const std::string path = JoinPath(dir, f);
    if (path == shard) continue;
    ASSERT_OK_AND_ASSIGN(const std::string kept, ReadFile(path));
    ASSERT_OK(WriteFile(path, kept.substr(0, kept.size() / 2)));
    ExpectRefused(resume, {dir});
    ASSERT_EQ(unlink(path.c_str()), 0);
    ExpectRefused(resume, {dir});
    ASSERT_OK(WriteFile(path, kept));
  }
  bad = good;
  bad[1] = '\xff';
  bad[4] = '\xff';
  ASSERT_OK(WriteFile(shard, bad));
  const Outcome generated =
      Run(absl::StrCat(Tool("generate"), " --checkpoint=", dir, " --prompt=the --tokens=5"));
  EXPECT_EQ(generated.code, 1) << generated.output;
  ASSERT_OK(WriteFile(shard, good));
  const Outcome again = Train("--quiet " + resume);
  EXPECT_EQ(again.code, 0) << again.output;
  const Outcome text =
      Run(absl::StrCat(Tool("generate"), " --checkpoint=", saved, " --prompt=the --tokens=5"));
  EXPECT_EQ(text.code, 0) << text.output;
  EXPECT_EQ(text.output.substr(0, 3), "the");
}

}  // namespace
}  // namespace moe::tools
