#include "moe/ir/state.h"

namespace moe {
namespace {
template <typename T>
const T* Find(const Attributes& attributes, absl::string_view key) {
  auto it = attributes.find(key);
  return it == attributes.end() ? nullptr : std::get_if<T>(&it->second);
}
}  // namespace

absl::string_view BindingKind(const Attributes& attributes) {
  const std::string* s = Find<std::string>(attributes, "kind");
  return s ? absl::string_view(*s) : absl::string_view();
}
absl::string_view BindingName(const Attributes& attributes) {
  const std::string* s = Find<std::string>(attributes, "name");
  return s ? absl::string_view(*s) : absl::string_view();
}
Attributes Bind(absl::string_view kind, absl::string_view name) {
  return {{"kind", std::string(kind)}, {"name", std::string(name)}};
}
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
Node* FindArg(const Function& f, absl::string_view kind, absl::string_view name) {
  for (Node* a : f.args()) {
    if (BindingKind(a->attributes()) == kind && BindingName(a->attributes()) == name) return a;
  }
  return nullptr;
}
}  // namespace moe
