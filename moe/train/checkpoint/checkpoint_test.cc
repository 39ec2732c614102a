#include "moe/train/checkpoint/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "moe/base/status_matchers.h"
#include "nlohmann/json.hpp"

namespace moe::train {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kModel[] =
    "name: 'm' num_layers: 2 hidden_size: 16 num_attention_heads: 4 vocab_size: 32 seq_length: 8";

LogicalTensor Iota(const std::string& name, std::vector<int64_t> dims, float first) {
  return {name, DType::kF32, dims, [first](absl::Span<char> out) {
            for (size_t i = 0; i * 4 < out.size(); ++i) {
              const float value = first + static_cast<float>(i);
              std::memcpy(out.data() + 4 * i, &value, 4);
            }
            return absl::OkStatus();
          }};
}

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "checkpoint_test.XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    dir_ = JoinPath(root_, CheckpointName(300));
  }
  void TearDown() override { EXPECT_OK(RemoveTree(root_)); }

  CheckpointMeta Meta() const {
    return {.model_config = kModel,
            .run_config = "train { lr: 0.1 }",
            .step = 300,
            .consumed_samples = 9600,
            .skipped_steps = 2,
            .nan_steps = 1,
            .consecutive_skips = 1,
            .loss_scale = {4096, 17, 2},
            .seed = ~uint64_t{0},
            .data_fingerprint = "ab12"};
  }
  // Two small shards: "a" and "b" in the first, "c" in the second.
  void Save() {
    ASSERT_OK(WriteCheckpoint(dir_, Meta(), {Iota("c", {4, 6}, 100), Iota("a", {}, 7), Iota("b", {2, 3}, 0)},
                              /*max_shard_bytes=*/40));
  }
  std::string Path(absl::string_view name) const { return JoinPath(dir_, name); }
  void Edit(const std::string& path, absl::string_view from, absl::string_view to) {
    ASSERT_OK_AND_ASSIGN(std::string text, ReadFile(path));
    const std::string edited = absl::StrReplaceAll(text, {{from, to}});
    ASSERT_NE(edited, text);
    ASSERT_OK(WriteFile(path, edited));
  }
  std::string root_, dir_;
};

std::vector<float> ReadFloats(Checkpoint& c, absl::string_view name, std::vector<int64_t> offsets,
                              std::vector<int64_t> extents) {
  int64_t n = 1;
  for (int64_t e : extents) n *= e;
  std::vector<float> values(n);
  EXPECT_OK(c.Read(name, offsets, extents, absl::MakeSpan(reinterpret_cast<char*>(values.data()), n * 4)));
  return values;
}

TEST_F(CheckpointTest, RoundTrips) {
  Save();
  ASSERT_OK_AND_ASSIGN(std::vector<std::string> names, ListFolder(dir_));
  EXPECT_THAT(names, ElementsAre("manifest.json", "model-00001-of-00002.safetensors",
                                 "model-00002-of-00002.safetensors"));
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(dir_));
  const CheckpointMeta& meta = checkpoint->meta();
  EXPECT_EQ(meta.model_config, kModel);
  EXPECT_EQ(meta.run_config, "train { lr: 0.1 }");
  EXPECT_EQ(meta.step, 300);
  EXPECT_EQ(meta.consumed_samples, 9600);
  EXPECT_EQ(meta.skipped_steps, 2);
  EXPECT_EQ(meta.nan_steps, 1);
  EXPECT_EQ(meta.consecutive_skips, 1);
  EXPECT_EQ(meta.loss_scale, (LossScale::State{4096, 17, 2}));
  EXPECT_EQ(meta.seed, ~uint64_t{0});
  EXPECT_EQ(meta.data_fingerprint, "ab12");
  ASSERT_EQ(checkpoint->tensors().size(), 3u);
  EXPECT_EQ(checkpoint->tensors()[1], (TensorSpec{"b", DType::kF32, {2, 3}}));
  EXPECT_OK(checkpoint->Verify());
  EXPECT_THAT(ReadFloats(*checkpoint, "a", {}, {}), ElementsAre(7));
  EXPECT_THAT(ReadFloats(*checkpoint, "b", {0, 0}, {2, 3}), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(ReadFloats(*checkpoint, "c", {1, 4}, {2, 2}), ElementsAre(110, 111, 116, 117));
  char none[4];
  ExpectError(checkpoint->ReadAll("zzz", none), absl::StatusCode::kNotFound, "zzz");
}

TEST_F(CheckpointTest, SameContentsSameBytes) {
  Save();
  ASSERT_OK_AND_ASSIGN(const std::string first, ReadFile(Path("manifest.json")));
  Save();
  ASSERT_OK_AND_ASSIGN(const std::string second, ReadFile(Path("manifest.json")));
  EXPECT_EQ(first, second);
}

TEST_F(CheckpointTest, RefusesDamage) {
  const std::string shard = "model-00002-of-00002.safetensors";
  Save();
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(Path(shard)));

  ASSERT_OK(WriteFile(Path(shard), good.substr(0, good.size() - 1)));
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, shard, "truncated");

  std::string flipped = good;
  flipped[flipped.size() - 5] ^= 1;
  ASSERT_OK(WriteFile(Path(shard), flipped));
  {
    ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(dir_));
    ExpectError(checkpoint->Verify(), absl::StatusCode::kDataLoss, shard, "\"c\"", "damaged");
    char out[4];
    // Also for a slice whose own bytes are good: the tensor is not what was saved.
    ExpectError(checkpoint->Read("c", {0, 0}, {1, 1}, out), absl::StatusCode::kDataLoss, "\"c\"");
    EXPECT_OK(checkpoint->Read("a", {}, {}, out));
  }
  ASSERT_OK(WriteFile(Path(shard), good));

  Edit(Path(shard), "[4,6]", "[6,4]");  // lies about its shape, with the right size
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, shard, "header");
  ASSERT_OK(WriteFile(Path(shard), good));
  Edit(Path(shard), "[0,96]", "[0,95]");  // lies about its size
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kInvalidArgument, shard, "\"c\"", "96 bytes");
  ASSERT_OK(WriteFile(Path(shard), good));

  ASSERT_OK(RemoveTree(Path(shard)));
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, shard, "missing");
  ASSERT_OK(WriteFile(JoinPath(root_, "elsewhere"), good));
  ASSERT_EQ(::symlink(JoinPath(root_, "elsewhere").c_str(), Path(shard).c_str()), 0);
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, "not a regular file");
}

TEST_F(CheckpointTest, EveryFlippedByteIsFound) {
  Save();
  for (const char* name : {"manifest.json", "model-00001-of-00002.safetensors"}) {
    ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(Path(name)));
    for (size_t i = 0; i < good.size(); ++i) {
      std::string bad = good;
      bad[i] ^= 0x11;
      ASSERT_OK_AND_ASSIGN(FileWriter writer, FileWriter::Create(Path(name)));
      ASSERT_OK(writer.Append(bad));
      ASSERT_OK(writer.Close(/*sync=*/false));
      auto checkpoint = Checkpoint::Open(dir_);
      // White space between JSON tokens carries nothing; a flip that leaves it white space is no damage.
      const bool harmless = (good[i] == ' ' || good[i] == '\n') && (bad[i] == ' ' || bad[i] == '\n');
      EXPECT_TRUE(harmless || !checkpoint.ok() || !(*checkpoint)->Verify().ok()) << name << " byte " << i;
    }
    ASSERT_OK(WriteFile(Path(name), good));
  }
}

TEST_F(CheckpointTest, RefusesEditedManifests) {
  Save();
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(Path("manifest.json")));
  Edit(Path("manifest.json"), "\"step\": 300", "\"step\": 301");
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, "checksum");
  ASSERT_OK(WriteFile(Path("manifest.json"), good));
  Edit(Path("manifest.json"), "\"format_version\": 1", "\"format_version\": 9");
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kFailedPrecondition, "format_version 9", "newer");
  ASSERT_OK(WriteFile(Path("manifest.json"), good.substr(0, good.size() / 2)));
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, "truncated");
  ASSERT_OK(WriteFile(Path("manifest.json"), "[1]"));
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, "not a JSON object");
  ExpectError(Checkpoint::Open(root_), absl::StatusCode::kNotFound, "not a checkpoint");
}

// Manifests whose checksum is right, and which say what no run can have done.
TEST_F(CheckpointTest, RefusesValuesThatNoRunHas) {
  const auto save = [&](auto change) {
    CheckpointMeta meta = Meta();
    change(meta);
    EXPECT_OK(WriteCheckpoint(dir_, meta, {Iota("a", {}, 7)}));
    return Checkpoint::Open(dir_).status();
  };
  EXPECT_OK(save([](CheckpointMeta& m) { m.skipped_steps = m.step; }));
  for (const int64_t bad : {int64_t{-1}, kMaxSteps + 1, std::numeric_limits<int64_t>::max()}) {
    ExpectError(save([&](CheckpointMeta& m) { m.step = bad; }), absl::StatusCode::kDataLoss,
                "manifest.json: byte ", "not an integer from 0 to 1099511627776, in \"step\"");
  }
  ExpectError(save([](CheckpointMeta& m) { m.consumed_samples = std::numeric_limits<int64_t>::max() - 7; }),
              absl::StatusCode::kDataLoss, "in \"consumed_samples\"");
  ExpectError(save([](CheckpointMeta& m) { m.skipped_steps = 301; }), absl::StatusCode::kDataLoss,
              "\"skipped_steps\" = 301 is above \"step\" = 300");
  ExpectError(save([](CheckpointMeta& m) { m.nan_steps = 301; }), absl::StatusCode::kDataLoss,
              "\"nan_steps\" = 301");
  ExpectError(save([](CheckpointMeta& m) { m.consecutive_skips = -1; }), absl::StatusCode::kDataLoss,
              "in \"consecutive_skips\"");
  ExpectError(save([](CheckpointMeta& m) { m.loss_scale.value = -1; }), absl::StatusCode::kDataLoss,
              "in \"loss_scale\"");
}

TEST_F(CheckpointTest, ManifestsHaveLimits) {
  Save();
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(Path("manifest.json")));
  Edit(Path("manifest.json"), "\"format_version\": 1", "\"format_version\": -1");
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, "in \"format_version\"");
  for (const std::string& bad : {std::string(60'000, '['), absl::StrCat("{\"a\":", std::string(60'000, '[')),
                                 absl::StrCat("{\"tensors\":[", std::string(60'000, '{'))}) {
    ASSERT_OK(WriteFile(Path("manifest.json"), bad));
    ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kDataLoss, "manifest.json");
  }
  // Larger than a manifest may be: refused by its size, not read.
  ASSERT_OK(WriteFile(Path("manifest.json"), good));
  ASSERT_EQ(::truncate(Path("manifest.json").c_str(), kManifestLimits.bytes + 1), 0);
  ExpectError(Checkpoint::Open(dir_), absl::StatusCode::kInvalidArgument, "larger than the 67108864 bytes");
}

// The checksum stands for what is said, not for how it is set.
TEST_F(CheckpointTest, ChecksumsIgnoreWhiteSpace) {
  Save();
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(Path("manifest.json")));
  ASSERT_OK(WriteFile(Path("manifest.json"), nlohmann::json::parse(text).dump()));
  EXPECT_OK(Checkpoint::Open(dir_));
  ASSERT_OK(WriteFile(Path("manifest.json"), nlohmann::json::parse(text).dump(7)));
  EXPECT_OK(Checkpoint::Open(dir_));
  nlohmann::ordered_json last = nlohmann::ordered_json::parse(text);
  const std::string checksum = last["checksum"];
  last.erase("checksum");
  last["checksum"] = checksum;
  ASSERT_OK(WriteFile(Path("manifest.json"), last.dump(1)));
  EXPECT_OK(Checkpoint::Open(dir_));
}

TEST_F(CheckpointTest, AFailedWriteLeavesTheOldOne) {
  Save();
  std::vector<LogicalTensor> tensors = {Iota("a", {4}, 0)};
  tensors.push_back(
      {"b", DType::kF32, {2}, [](absl::Span<char>) { return absl::AbortedError("rank 3 died"); }});
  ExpectError(WriteCheckpoint(dir_, Meta(), tensors), absl::StatusCode::kAborted, "\"b\"", "rank 3 died");
  ASSERT_OK_AND_ASSIGN(std::vector<std::string> names, ListFolder(root_));
  EXPECT_THAT(names, ElementsAre(CheckpointName(300)));
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(dir_));
  EXPECT_OK(checkpoint->Verify());
  EXPECT_EQ(checkpoint->tensors().size(), 3u);

  ASSERT_OK(WriteFile(JoinPath(root_, "file"), ""));
  ExpectError(WriteCheckpoint(JoinPath(root_, "file/ckpt"), Meta(), {}),
              absl::StatusCode::kFailedPrecondition, "cannot write a checkpoint", "file");
  ExpectError(WriteCheckpoint(dir_, Meta(), {Iota("a", {1}, 0), Iota("a", {1}, 0)}),
              absl::StatusCode::kInvalidArgument, "two tensors called \"a\"");
}

TEST_F(CheckpointTest, NamesEveryTensorThatDoesNotFit) {
  Save();
  ASSERT_OK_AND_ASSIGN(auto checkpoint, Checkpoint::Open(dir_));
  EXPECT_OK(checkpoint->CheckTensors(
      {{"a", DType::kF32, {}}, {"b", DType::kF32, {2, 3}}, {"c", DType::kF32, {4, 6}}}));
  EXPECT_OK(checkpoint->CheckTensors({{"a", DType::kF32, {}}, {"b", DType::kF32, {2, 3}}}, {"c"}));
  ExpectError(
      checkpoint->CheckTensors({{"a", DType::kF64, {}}, {"b", DType::kF32, {3, 2}}, {"d", DType::kF32, {1}}}),
      absl::StatusCode::kFailedPrecondition, "another model", "a: saved as F32[], this model needs F64[]",
      "b: saved as F32[2, 3], this model needs F32[3, 2]", "d: missing", "c: not a tensor of this model");
}

TEST(CheckSameModelTest, NamesWhatDiffers) {
  model::ModelConfig config;
  config.set_name("other name");
  config.set_num_layers(2);
  config.set_hidden_size(16);
  config.set_num_attention_heads(4);
  config.set_num_key_value_heads(4);  // what 0 stands for
  config.set_vocab_size(32);
  config.set_seq_length(64);  // another length is the same model
  EXPECT_OK(CheckSameModel(kModel, config));
  config.set_hidden_size(32);
  config.set_num_experts(8);
  ExpectError(CheckSameModel(kModel, config), absl::StatusCode::kFailedPrecondition,
              "hidden_size: checkpoint 16, this run 32", "num_experts: checkpoint 0, this run 8");
  ExpectError(CheckSameModel("what", config), absl::StatusCode::kDataLoss, "does not parse");
}

TEST_F(CheckpointTest, FindsTheLatest) {
  ExpectError(FindLatestCheckpoint(root_), absl::StatusCode::kNotFound, root_);
  ExpectError(FindLatestCheckpoint(JoinPath(root_, "none")), absl::StatusCode::kNotFound, "none");
  Save();
  dir_ = JoinPath(root_, CheckpointName(20));
  Save();
  ASSERT_OK(MakeFolders(JoinPath(root_, "step_00000500.tmp.AbCdEf")));  // a write that was cut off
  ASSERT_OK(WriteFile(JoinPath(root_, CheckpointName(600)), "a file"));
  ASSERT_OK_AND_ASSIGN(std::string latest, FindLatestCheckpoint(root_));
  EXPECT_EQ(latest, JoinPath(root_, CheckpointName(300)));
  EXPECT_THAT(ListCheckpoints(root_), ::testing::ElementsAre(20, 300));
  ASSERT_OK_AND_ASSIGN(latest, FindLatestCheckpoint(dir_));
  EXPECT_EQ(latest, dir_);
}

TEST_F(CheckpointTest, OfADamagedOneTheNewestWholeOneIsNamed) {
  Save();  // step 300
  EXPECT_OK(OpenWhole(dir_));
  const std::string whole = dir_;
  for (const int64_t step : {20, 400, 500, 600}) {
    dir_ = JoinPath(root_, CheckpointName(step));
    Save();
  }
  const auto damage = [&](int64_t step, const std::string& file) {
    const std::string path = JoinPath(JoinPath(root_, CheckpointName(step)), file);
    ASSERT_OK_AND_ASSIGN(std::string bytes, ReadFile(path));
    bytes[bytes.size() - 3] ^= 1;
    ASSERT_OK(WriteFile(path, bytes));
  };
  damage(600, "manifest.json");
  damage(500, "model-00002-of-00002.safetensors");
  ASSERT_OK(RemoveTree(JoinPath(JoinPath(root_, CheckpointName(400)), "manifest.json")));
  for (const int64_t step : {400, 500, 600}) {
    ExpectError(OpenWhole(JoinPath(root_, CheckpointName(step))),
                step == 400 ? absl::StatusCode::kNotFound : absl::StatusCode::kDataLoss, CheckpointName(step),
                "is damaged", absl::StrCat("step 300: --resume=", whole));
  }
  damage(300, "manifest.json");
  damage(20, "manifest.json");
  ExpectError(OpenWhole(JoinPath(root_, CheckpointName(600))), absl::StatusCode::kDataLoss,
              "there is no whole one");
}

}  // namespace
}  // namespace moe::train
