#include "moe/passes/pass.h"

#include <glog/logging.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "moe/base/status.h"

namespace moe::passes {

std::string PassContext::OptionOr(absl::string_view key, absl::string_view otherwise) const {
  const auto it = options.find(std::string(key));
  return it == options.end() ? std::string(otherwise) : it->second;
}

Pass ForEachFunction(FunctionPass pass) {
  return [pass = std::move(pass)](Program& program, const PassContext& context) -> absl::StatusOr<bool> {
    bool changed = false;
    std::vector<std::string> names;  // the pass may add functions
    for (const auto& function : program.module->functions()) names.push_back(function->name());
    for (const std::string& name : names) {
      Function* function = program.module->Find(name);
      if (function == nullptr) continue;
      const absl::StatusOr<bool> result = pass(*function, context);
      if (!result.ok()) return Annotate(result.status(), absl::StrCat("@", name));
      changed = changed || *result;
    }
    return changed;
  };
}

void PassRegistry::Add(PassDef def) {
  for (const char c : def.name)
    CHECK(absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-') << def.name;
  const std::string name = def.name;
  CHECK(passes_.emplace(name, std::move(def)).second) << "pass '" << name << "' is registered twice";
}

const PassDef* PassRegistry::Find(absl::string_view name) const {
  const auto it = passes_.find(std::string(name));
  return it == passes_.end() ? nullptr : &it->second;
}

std::vector<const PassDef*> PassRegistry::All() const {
  std::vector<const PassDef*> all;
  for (const auto& [name, def] : passes_) all.push_back(&def);
  return all;
}

PassRegistry& RegisteredPasses() {
  static PassRegistry& registry = *new PassRegistry();
  return registry;
}

bool RegisterPass(PassDef def) {
  RegisteredPasses().Add(std::move(def));
  return true;
}

}  // namespace moe::passes
