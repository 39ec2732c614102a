#include "moe/passes/pipeline.h"

#include <glog/logging.h>
#include <re2/re2.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/passes/remove_dead_nodes.h"

namespace moe::passes {
namespace {

absl::Status Malformed(absl::string_view text, size_t at, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("pipeline '", text, "', character ", at + 1, ": ", what,
                                                 "; write pass,pass{option=value}"));
}

// Word characters of names, options and values; everything but the separators.
bool IsWordChar(char c) { return !absl::ascii_isspace(c) && c != ',' && c != '{' && c != '}' && c != '='; }

bool Names(const std::vector<Fact>& facts, Fact fact) {
  return std::find(facts.begin(), facts.end(), fact) != facts.end();
}

// What a module has to be when these passes are still to come.
VerifyOptions VerifyBefore(const PassRegistry& registry, absl::Span<const PipelineStep> steps,
                           const PipelineOptions& options) {
  VerifyOptions verify;
  const auto& off = options.disable_passes;
  for (const PipelineStep& step : steps) {
    const PassDef* def = registry.Find(step.pass);
    const bool runs = std::find(off.begin(), off.end(), step.pass) == off.end();
    verify.unplaced_nodes =
        verify.unplaced_nodes || (def != nullptr && runs && Names(def->ends, Fact::kUnplaced));
  }
  return verify;
}

int64_t CountNodes(const Program& program) {
  int64_t nodes = 0;
  for (const auto& function : program.module->functions()) nodes += function->num_nodes();
  return nodes;
}

// The error with the pass's name in front, where the pass has not put it there.
absl::Status ErrorOf(const absl::Status& status, const std::string& pass) {
  return absl::StartsWith(status.message(), absl::StrCat(pass, ": ")) ? status : Annotate(status, pass);
}

// The passes of the registry that have the fact in that list of theirs: "shard", "a or b".
std::string NamesOf(const PassRegistry& registry, Fact fact, std::vector<Fact> PassDef::*list) {
  std::vector<std::string> names;
  for (const PassDef* def : registry.All()) {
    if (Names(def->*list, fact)) names.push_back(def->name);
  }
  return absl::StrJoin(names, " or ");
}

absl::Status CheckNeeds(const PassRegistry& registry, const PassDef& def, const Program& program,
                        const PassContext& context) {
  if (def.asked && !def.asked(context)) return absl::OkStatus();
  for (const Fact fact : def.needs) {
    const std::string why = WhyNot(fact, program);
    if (why.empty()) continue;
    std::string message = absl::StrCat(def.name, " needs ", DescribeFact(fact), ", and ", why);
    const std::string provided = NamesOf(registry, fact, &PassDef::provides);
    const std::string ended = NamesOf(registry, fact, &PassDef::ends);
    if (!provided.empty()) absl::StrAppend(&message, "; run ", provided, " before it");
    if (!ended.empty()) absl::StrAppend(&message, "; it cannot stand after ", ended);
    return absl::FailedPreconditionError(message);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RunPass(const PassRegistry& registry, const std::string& name, Program& program,
                             const PassContext& context) {
  const PassDef& def = *registry.Find(name);
  RETURN_IF_ERROR(CheckNeeds(registry, def, program, context));
  const absl::StatusOr<bool> changed = def.run(program, context);
  if (!changed.ok()) return ErrorOf(changed.status(), name);
  return changed;
}

// See PassContext::preview. Says nothing and verifies nothing: the passes will do both when they run in
// earnest.
absl::StatusOr<Program> Preview(const PassRegistry& registry, const std::vector<PipelineStep>& rest,
                                const std::vector<std::string>& off, const Program& program,
                                PassContext context, const std::function<absl::Status(Program&)>& change,
                                absl::string_view until) {
  context.notes = nullptr;
  context.preview = nullptr;
  Program copy = CloneProgram(program);
  RETURN_IF_ERROR(change(copy));
  for (const PipelineStep& step : rest) {
    if (std::find(off.begin(), off.end(), step.pass) != off.end()) continue;
    context.options = step.options;
    ASSIGN_OR_RETURN(const bool changed, RunPass(registry, step.pass, copy, context));
    for (const auto& function : copy.module->functions()) {
      if (changed) RETURN_IF_ERROR(RemoveDeadNodes(*function, context).status());
    }
    if (step.pass == until) return copy;
  }
  return absl::FailedPreconditionError(absl::StrCat("no pass ", until, " follows in the pipeline"));
}

// Notes in the inventory which nodes of the model `pass` has replaced.
void NoteRewrites(const std::string& pass, Program* program) {
  if (program->inventory.empty()) return;
  absl::flat_hash_set<std::pair<absl::string_view, absl::string_view>> present;
  for (const auto& function : program->module->functions()) {
    // Names are unique within a function: the update may have another node of the same.
    const FunctionKind kind = function->role().kind;
    if (kind == FunctionKind::kUpdate || kind == FunctionKind::kReport) continue;
    for (const auto& node : function->body()) {
      if (node->num_results() > 0) present.emplace(node->op_name(), node->result_name());
    }
  }
  for (LogicalNode& node : program->inventory) {
    if (node.rewritten_by.empty() && present.count({node.op, node.name}) == 0) node.rewritten_by = pass;
  }
}

// Writes the module after the passes whose names match: module_0001.<module>.0003.after_<pass>.txt.
class Dumper {
 public:
  static absl::StatusOr<Dumper> Create(const PipelineOptions& options, const Module& module) {
    Dumper dumper;
    dumper.folder_ = options.dump_to;
    if (dumper.folder_.empty()) return dumper;
    dumper.passes_ = std::make_unique<RE2>(options.dump_pass_re, RE2::Quiet);
    if (!dumper.passes_->ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("dump_pass_re '", options.dump_pass_re,
                       "' is not a regular expression: ", dumper.passes_->error()));
    }
    for (const char c : module.name()) dumper.module_ += absl::ascii_isalnum(c) || c == '-' ? c : '_';
    RETURN_IF_ERROR(MakeFolders(dumper.folder_));
    return dumper;
  }

  absl::Status Dump(int step, absl::string_view when, const std::string& pass, const Module& module) const {
    if (folder_.empty() || !RE2::PartialMatch(pass, *passes_)) return absl::OkStatus();
    const std::string file = absl::StrFormat("module_0001.%s.%04d.%s_%s.txt", module_, step, when, pass);
    return WriteFile(JoinPath(folder_, file), PrintModule(module));
  }

 private:
  std::string folder_, module_;
  std::unique_ptr<RE2> passes_;
};

}  // namespace

absl::StatusOr<std::vector<PipelineStep>> ParsePipeline(absl::string_view text) {
  std::vector<PipelineStep> steps;
  size_t at = 0;
  const auto skip = [&] {
    while (at < text.size() && absl::ascii_isspace(text[at])) ++at;
  };
  const auto accept = [&](char c) {
    skip();
    if (at >= text.size() || text[at] != c) return false;
    ++at;
    return true;
  };
  const auto word = [&] {
    skip();
    const size_t start = at;
    while (at < text.size() && IsWordChar(text[at])) ++at;
    return std::string(text.substr(start, at - start));
  };
  skip();
  if (at == text.size()) return steps;
  while (true) {
    PipelineStep step;
    step.pass = word();
    if (step.pass.empty()) return Malformed(text, at, "expected the name of a pass");
    if (accept('{') && !accept('}')) {
      while (true) {
        const std::string key = word();
        if (key.empty()) return Malformed(text, at, "expected an option");
        std::string value = accept('=') ? word() : "true";
        if (!step.options.emplace(key, std::move(value)).second) {
          return Malformed(text, at, absl::StrCat("option '", key, "' appears twice"));
        }
        if (accept('}')) break;
        if (!accept(',')) return Malformed(text, at, "expected ',' or '}'");
      }
    }
    steps.push_back(std::move(step));
    skip();
    if (at == text.size()) return steps;
    if (!accept(',')) return Malformed(text, at, "expected ','");
  }
}

absl::StatusOr<const PassDef*> FindPass(const PassRegistry& registry, absl::string_view name) {
  const PassDef* def = registry.Find(name);
  if (def != nullptr) return def;
  std::vector<std::string> names;
  for (const PassDef* d : registry.All()) names.push_back(d->name);
  return absl::InvalidArgumentError(
      absl::StrCat("unknown pass '", name, "'; there are ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<std::vector<PassResult>> RunPipeline(const PassRegistry& registry, absl::string_view pipeline,
                                                    Program& program, PassContext context,
                                                    const PipelineOptions& options) {
  CHECK(program.module != nullptr);
  ASSIGN_OR_RETURN(const std::vector<PipelineStep> steps, ParsePipeline(pipeline));
  for (const PipelineStep& step : steps) RETURN_IF_ERROR(FindPass(registry, step.pass).status());
  for (const std::string& name : options.disable_passes) {
    RETURN_IF_ERROR(Annotate(FindPass(registry, name).status(), "disable_passes"));
  }
  if (options.verify) RETURN_IF_ERROR(Verify(*program.module, VerifyBefore(registry, steps, options)));
  ASSIGN_OR_RETURN(const Dumper dumper, Dumper::Create(options, *program.module));
  if (!steps.empty()) RETURN_IF_ERROR(dumper.Dump(0, "before", steps[0].pass, *program.module));

  if (context.memory_limit == 0) context.memory_limit = context.strategy.memory_limit;
  std::vector<PassResult> results;
  for (size_t at = 0; at < steps.size(); ++at) {
    const PipelineStep& step = steps[at];
    const auto& off = options.disable_passes;
    if (std::find(off.begin(), off.end(), step.pass) != off.end()) continue;
    PassResult result;
    result.name = step.pass;
    result.nodes_before = CountNodes(program);
    Program before;
    if (options.validate) before = CloneProgram(program);

    context.options = step.options;
    context.notes = &result.notes;
    const std::vector<PipelineStep> rest(steps.begin() + static_cast<int>(at) + 1, steps.end());
    context.preview = [&](const std::function<absl::Status(Program&)>& change, absl::string_view until) {
      return Preview(registry, rest, off, program, context, change, until);
    };
    context.counts = &result.counts;
    const auto start = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(result.changed, RunPass(registry, step.pass, program, context));
    if (result.changed) {
      for (const auto& function : program.module->functions()) {
        RETURN_IF_ERROR(RemoveDeadNodes(*function, context).status());
      }
      NoteRewrites(step.pass, &program);
    }
    result.milliseconds =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    result.nodes_after = CountNodes(program);
    for (const std::string& note : result.notes) program.notes.emplace_back(step.pass, note);

    if (result.changed) {
      RETURN_IF_ERROR(dumper.Dump(static_cast<int>(results.size()) + 1, "after", step.pass, *program.module));
      if (options.verify) {
        const VerifyOptions verify = VerifyBefore(registry, absl::MakeSpan(steps).subspan(at + 1), options);
        RETURN_IF_ERROR(Annotate(Verify(*program.module, verify), absl::StrCat("after ", step.pass)));
      }
      if (options.validate) RETURN_IF_ERROR(options.validate(step.pass, before, program));
    }
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace moe::passes
