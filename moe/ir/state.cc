#include "moe/ir/state.h"

namespace moe {
namespace {
template <typename T>
const T* Find(const Attributes& attributes, absl::string_view key) {
  auto it = attributes.find(key);
  return it == attributes.end() ? nullptr : std::get_if<T>(&it->second);
}
}  // namespace

std::string AttrString(const Attributes& a, absl::string_view key, absl::string_view otherwise) {
  const std::string* s = Find<std::string>(a, key);
  return s ? *s : std::string(otherwise);
}
int64_t AttrInt(const Attributes& a, absl::string_view key, int64_t otherwise) {
  const int64_t* v = Find<int64_t>(a, key);
  return v ? *v : otherwise;
}
double AttrFloat(const Attributes& a, absl::string_view key, double otherwise) {
  const double* v = Find<double>(a, key);
  return v ? *v : otherwise;
}
bool AttrBool(const Attributes& a, absl::string_view key, bool otherwise) {
  const bool* v = Find<bool>(a, key);
  return v ? *v : otherwise;
}
Node* FindArg(const Function& f, Binding::Kind kind, absl::string_view name) {
  for (Node* a : f.args()) {
    if (a->binding.kind == kind && a->binding.name == name) return a;
  }
  return nullptr;
}
}  // namespace moe
