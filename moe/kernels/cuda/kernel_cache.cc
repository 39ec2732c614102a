#include "moe/kernels/cuda/kernel_cache.h"

#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace moe::kernels {
namespace {

constexpr char kMagic[8] = {'m', 'o', 'e', 'k', 'e', 'r', 'n', '1'};

std::string Header(const std::string& binary) {
  const uint64_t sum = XXH64(binary.data(), binary.size(), 0), size = binary.size();
  std::string header(kMagic, sizeof(kMagic));
  header.append(reinterpret_cast<const char*>(&size), sizeof(size));
  header.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  return header;
}

}  // namespace

std::string DefaultKernelCachePath() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string base =
      cache != nullptr && *cache ? cache : absl::StrCat(home != nullptr ? home : "", "/.cache");
  return absl::StrCat(base, "/switchyard/kernels");
}

std::string KernelCache::Key(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) absl::StrAppend(&all, part.size(), ":", part);
  const XXH128_hash_t hash = XXH3_128bits(all.data(), all.size());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

std::string KernelCache::PathOf(const std::string& key) const {
  return absl::StrCat(folder_, "/", key, ".cubin");
}

std::optional<std::string> KernelCache::Get(const std::string& key) const {
  std::ifstream in(PathOf(key), std::ios::binary);
  if (!in) return std::nullopt;
  std::stringstream content;
  content << in.rdbuf();
  const std::string all = content.str();
  const size_t header = sizeof(kMagic) + 16;
  if (all.size() < header) return std::nullopt;
  std::string binary = all.substr(header);
  if (all.compare(0, header, Header(binary)) != 0) return std::nullopt;
  return binary;
}

bool KernelCache::Put(const std::string& key, const std::string& binary) const {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) return false;
  static std::atomic<int> next{0};
  const std::string path = PathOf(key), part = absl::StrCat(path, ".", getpid(), ".", next++);
  {
    std::ofstream out(part, std::ios::binary | std::ios::trunc);
    out << Header(binary) << binary;
    out.close();
    if (!out) {
      std::remove(part.c_str());
      return false;
    }
  }
  if (std::rename(part.c_str(), path.c_str()) == 0) return true;
  std::remove(part.c_str());
  return false;
}

}  // namespace moe::kernels
