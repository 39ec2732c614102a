// Passes: free functions that rewrite a Program. True if something changed.
//
//   absl::StatusOr<bool> RemoveDeadNodes(Function& f, const PassContext&);
//   registry.Add({"remove-dead-nodes", "Removes nodes without uses.", ForEachFunction(RemoveDeadNodes)});
//
// pipeline.h runs passes of a registry in order; builtin.h has the registry of this project's own. A pass
// outside moe/passes registers itself through RegisterPass before main runs the pipeline
// (docs/writing_a_pass.md).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "moe/cost/target.h"
#include "moe/ir/program.h"
#include "moe/passes/facts.h"
#include "moe/strategy/strategy.h"

namespace moe {
struct StateLayout;  // moe/ir/state_layout.h
}

namespace moe::passes {

struct PassContext {
  strategy::Strategy strategy;
  cost::Target target;                         // what the kernels can do, as data
  std::map<std::string, std::string> options;  // of this pass: fuse{only=adamw}
  // Scratch bytes that a placed node's kernel or exchange needs on one rank; set by the program that links
  // them. Null: none.
  std::function<int64_t(const Node&, const Mesh&)> workspace;
  // Bytes of one rank that the plan must fit, which `certify` holds it to; 0: the strategy's limit, if it has
  // one.
  int64_t memory_limit = 0;
  // What would become of the program: a changed copy of it, rewritten by the passes that follow in the
  // pipeline, up to and including `until`. For a pass whose choice is good or bad by its consequences. Null
  // outside a pipeline. Errors: FailedPrecondition if `until` does not follow; those of `change` and of the
  // passes.
  using Preview = std::function<absl::StatusOr<Program>(const std::function<absl::Status(Program&)>& change,
                                                        absl::string_view until)>;
  Preview preview;
  // Where persistent state must live, for programs that share it. Null: where this program likes best.
  const StateLayout* layout = nullptr;
  std::string OptionOr(absl::string_view key, absl::string_view otherwise) const;
  // A line for the table of what the passes did.
  void Note(std::string line) const {
    if (notes) notes->push_back(std::move(line));
  }
  std::vector<std::string>* notes = nullptr;
  // A figure about the pass's own work, for tests and benchmarks of the compiler.
  void Count(const std::string& what, int64_t n) const {
    if (counts) (*counts)[what] += n;
  }
  std::map<std::string, int64_t>* counts = nullptr;
};

using Pass = std::function<absl::StatusOr<bool>(Program&, const PassContext&)>;
using FunctionPass = std::function<absl::StatusOr<bool>(Function&, const PassContext&)>;
Pass ForEachFunction(FunctionPass pass);

struct PassDef {
  std::string name;  // kebab-case
  std::string doc;
  Pass run;
  // What must hold of the program for the pass to run (the pipeline refuses it otherwise), what holds after it, and
  // what does not any more. From the last two an error says which pass is missing, or stands too early. Before a pass
  // that ends Fact::kUnplaced, modules may be partly placed.
  std::vector<Fact> needs, provides, ends;
  // Whether strategy, target and options ask the pass to do something. Where they do not, it needs nothing and changes
  // nothing. Null: they always do.
  std::function<bool(const PassContext&)> asked;
};

class PassRegistry {
 public:
  void Add(PassDef def);
  const PassDef* Find(absl::string_view name) const;
  std::vector<const PassDef*> All() const;  // sorted by name
 private:
  std::map<std::string, PassDef> passes_;
};
// What RegisterPass has added; after a call of Passes() (builtin.h) the built-in ones, too.
PassRegistry& RegisteredPasses();
bool RegisterPass(PassDef def);

}  // namespace moe::passes
