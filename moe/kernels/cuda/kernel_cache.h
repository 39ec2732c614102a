// Compiled kernels on disk, by what they were made from: files named by a hash of source, options and
// compiler.
//
//   KernelCache cache(DefaultKernelCachePath());
//   const std::string key = KernelCache::Key({source, "sm_90", "nvrtc 13.0"});
//   if (auto binary = cache.Get(key)) return *binary;
//   cache.Put(key, binary);
//
// A file holds a checksum of its content: a file that is damaged or cut short counts as missing and is
// written again. Files appear whole, by renaming, so that several processes may share a folder. A folder that
// cannot be written makes every Get a miss, not an error. Thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace moe::kernels {

// $XDG_CACHE_HOME/switchyard/kernels, with ~/.cache where that is not set.
std::string DefaultKernelCachePath();

class KernelCache {
 public:
  explicit KernelCache(std::string folder) : folder_(std::move(folder)) {}

  // 32 hexadecimal digits.
  static std::string Key(const std::vector<std::string>& parts);
  std::optional<std::string> Get(const std::string& key) const;
  bool Put(const std::string& key, const std::string& binary) const;  // false: not kept
  std::string PathOf(const std::string& key) const;

 private:
  std::string folder_;
};

}  // namespace moe::kernels
