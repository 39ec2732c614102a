#include "moe/kernels/cuda/kernel_cache.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

namespace moe::kernels {
namespace {

std::string Folder(const std::string& name) { return ::testing::TempDir() + "/kernel_cache_" + name; }

TEST(KernelCacheTest, GivesBackWhatItKeeps) {
  const KernelCache cache(Folder("keeps") + "/not/there/yet");
  const std::string key = KernelCache::Key({"source", "sm_90"}), binary("\0cubin\xff", 7);
  EXPECT_EQ(key.size(), 32u);
  EXPECT_EQ(cache.Get(key), std::nullopt);
  ASSERT_TRUE(cache.Put(key, binary));
  EXPECT_EQ(cache.Get(key), binary);
  ASSERT_TRUE(cache.Put(key, ""));
  EXPECT_EQ(cache.Get(key), "");
}

TEST(KernelCacheTest, KeysTellPartsApart) {
  EXPECT_NE(KernelCache::Key({"ab", "c"}), KernelCache::Key({"a", "bc"}));
  EXPECT_NE(KernelCache::Key({"a", "sm_90"}), KernelCache::Key({"a", "sm_80"}));
  EXPECT_EQ(KernelCache::Key({"a", "b"}), KernelCache::Key({"a", "b"}));
}

TEST(KernelCacheTest, DamagedFilesAreMissing) {
  const KernelCache cache(Folder("damaged"));
  const std::string key = KernelCache::Key({"x"}), binary(1000, 'k');
  ASSERT_TRUE(cache.Put(key, binary));
  const auto size = std::filesystem::file_size(cache.PathOf(key));
  for (const auto left : {size - 1, size / 2, decltype(size){5}, decltype(size){0}}) {
    ASSERT_TRUE(cache.Put(key, binary));
    std::filesystem::resize_file(cache.PathOf(key), left);
    EXPECT_EQ(cache.Get(key), std::nullopt) << left;
  }
  ASSERT_TRUE(cache.Put(key, binary));
  {
    std::fstream file(cache.PathOf(key), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(100);
    file.put('?');
  }
  EXPECT_EQ(cache.Get(key), std::nullopt);
  ASSERT_TRUE(cache.Put(key, binary));
  EXPECT_EQ(cache.Get(key), binary);
}

TEST(KernelCacheTest, AFolderThatCannotBeIsNoError) {
  const std::string file = Folder("file");
  std::ofstream(file) << "not a folder";
  const KernelCache cache(file + "/below");
  EXPECT_FALSE(cache.Put("key", "binary"));
  EXPECT_EQ(cache.Get("key"), std::nullopt);
}

TEST(KernelCacheTest, WritersOfOneKeyDoNotMix) {
  const KernelCache cache(Folder("writers"));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 50; ++round) {
        EXPECT_TRUE(cache.Put("key", std::string(10000, static_cast<char>('a' + i))));
        const auto got = cache.Get("key");
        ASSERT_TRUE(got.has_value());
        EXPECT_EQ(*got, std::string(10000, (*got)[0]));
      }
    });
  }
  for (std::thread& t : threads) t.join();
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(Folder("writers"))) ++files;
  EXPECT_EQ(files, 1);
}

}  // namespace
}  // namespace moe::kernels
