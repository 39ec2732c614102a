#include "moe/passes/remove_dead_nodes.h"

#include <vector>

namespace moe::passes {

absl::StatusOr<bool> RemoveDeadNodes(Function& f, const PassContext&) {
  bool changed = false;
  const std::vector<Node*> nodes = f.Nodes();
  // Users stand after their operands, so one sweep from the end finds chains of dead nodes whole.
  for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
    if ((*it)->HasUses()) continue;
    f.Erase(*it);
    changed = true;
  }
  return changed;
}

}  // namespace moe::passes
