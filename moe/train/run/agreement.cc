#include "moe/train/run/agreement.h"

#include <elf.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>
#include <link.h>
#include <xxhash.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/train/checkpoint/checkpoint.h"

namespace moe::train {
namespace {

constexpr int kMostShown = 12;

bool OfThisHost(absl::string_view name) {
  return name == "run_dir" || name == "resume" || name == "data_path";
}

void AddFields(const google::protobuf::Message& message, std::vector<Fact>& facts) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const google::protobuf::FieldDescriptor* f : fields) {
    if (f->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE && !f->is_repeated()) {
      AddFields(message.GetReflection()->GetMessage(message, f), facts);
      continue;
    }
    if (OfThisHost(f->name())) continue;
    std::vector<std::string> values;
    for (int i = 0; i < (f->is_repeated() ? message.GetReflection()->FieldSize(message, f) : 1); ++i) {
      google::protobuf::TextFormat::PrintFieldValueToString(message, f, f->is_repeated() ? i : -1,
                                                            &values.emplace_back());
    }
    facts.push_back({f->name(), absl::StrJoin(values, ", "), ""});
  }
}

// One line a fact, of three parts.
std::string Pack(const std::vector<Fact>& facts) {
  std::string text;
  for (const Fact& f : facts) {
    absl::StrAppend(&text, absl::CEscape(f.name), "\t", absl::CEscape(f.value), "\t", absl::CEscape(f.shown),
                    "\n");
  }
  return text;
}

absl::StatusOr<std::vector<Fact>> Unpack(const std::string& text, size_t process) {
  std::vector<Fact> facts;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, '\t');
    Fact f;
    if (parts.size() != 3 || !absl::CUnescape(parts[0], &f.name) || !absl::CUnescape(parts[1], &f.value) ||
        !absl::CUnescape(parts[2], &f.shown)) {
      return absl::FailedPreconditionError(
          absl::StrCat("process ", process, " is of another version of this program"));
    }
    facts.push_back(std::move(f));
  }
  return facts;
}

// "0.001 in process 0; 0.01 in processes 1, 3"
std::string Difference(const std::vector<std::pair<Fact, std::vector<size_t>>>& values) {
  return absl::StrJoin(values, "; ", [](std::string* out, const auto& v) {
    const auto& [fact, processes] = v;
    absl::StrAppend(out, fact.shown.empty() ? fact.value : fact.shown,
                    processes.size() == 1 ? " in process " : " in processes ",
                    absl::StrJoin(processes, ", "));
  });
}

int FindBuildId(dl_phdr_info* info, size_t, void* found) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_NOTE) continue;
    const char* at = reinterpret_cast<const char*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    const char* const end = at + info->dlpi_phdr[i].p_memsz;
    while (at + sizeof(ElfW(Nhdr)) <= end) {
      const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(at);
      const char* const name = at + sizeof(*note);
      const char* const text = name + (note->n_namesz + 3) / 4 * 4;
      if (note->n_type == NT_GNU_BUILD_ID &&
          absl::string_view(name, note->n_namesz) == absl::string_view("GNU", 4)) {
        *static_cast<std::string*>(found) = absl::BytesToHexString(absl::string_view(text, note->n_descsz));
        return 1;
      }
      at = text + (note->n_descsz + 3) / 4 * 4;
    }
  }
  return 1;  // the first is the program, and the only one that is asked
}

}  // namespace

std::vector<Fact> ConfigFacts(const RunConfig& config) {
  std::vector<Fact> facts;
  AddFields(config, facts);
  return facts;
}

absl::StatusOr<Fact> CheckpointFact(const std::string& dir) {
  if (dir.empty()) return Fact{"checkpoint", "none", ""};
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(dir));
  ASSIGN_OR_RETURN(const std::string manifest, ReadFile(JoinPath(dir, "manifest.json")));
  const std::string hash = absl::StrFormat("%016x", XXH64(manifest.data(), manifest.size(), 0));
  const int64_t step = checkpoint->meta().step;
  return Fact{"checkpoint", absl::StrCat(step, " ", hash),
              absl::StrCat("step ", step, " of ", dir, " (manifest ", hash, ")")};
}

Fact ProgramFact() {
  Fact fact = {"program", "", ""};
  dl_iterate_phdr(FindBuildId, &fact.value);
  if (fact.value.empty()) fact.value = "without a build id";
  return fact;
}

absl::Status CompareFacts(const std::vector<std::vector<Fact>>& facts) {
  std::vector<std::string> names;
  std::set<std::string> known;
  for (const std::vector<Fact>& of_process : facts) {
    for (const Fact& f : of_process) {
      if (known.insert(f.name).second) names.push_back(f.name);
    }
  }
  std::vector<std::string> differences;
  for (const std::string& name : names) {
    std::vector<std::pair<Fact, std::vector<size_t>>> values;  // by the first process that has it
    for (size_t p = 0; p < facts.size(); ++p) {
      const auto mine =
          std::find_if(facts[p].begin(), facts[p].end(), [&](const Fact& f) { return f.name == name; });
      const Fact fact = mine == facts[p].end() ? Fact{name, "", "not set"} : *mine;
      const auto same = std::find_if(values.begin(), values.end(), [&](const auto& v) {
        return v.first.value == fact.value && (v.first.shown == "not set") == (fact.shown == "not set");
      });
      if (same == values.end()) {
        values.push_back({fact, {p}});
      } else {
        same->second.push_back(p);
      }
    }
    if (values.size() > 1) differences.push_back(absl::StrCat(name, ": ", Difference(values)));
  }
  if (differences.empty()) return absl::OkStatus();
  const size_t more = differences.size() - std::min(differences.size(), size_t{kMostShown});
  differences.resize(differences.size() - more);
  if (more > 0) differences.push_back(absl::StrCat("and ", more, " more"));
  return absl::FailedPreconditionError(
      absl::StrCat("the processes of this run do not have the same, so nothing was trained:\n       ",
                   absl::StrJoin(differences, "\n       ")));
}

absl::Status CompareWithOthers(comm::Job* job, const std::vector<Fact>& mine) {
  ASSIGN_OR_RETURN(const std::vector<std::string> packed, job->Gather("facts", Pack(mine)));
  absl::Status verdict;
  std::vector<std::vector<Fact>> all;
  for (size_t p = 0; p < packed.size() && verdict.ok(); ++p) {
    const absl::StatusOr<std::vector<Fact>> facts = Unpack(packed[p], p);
    verdict = facts.status();
    if (facts.ok()) all.push_back(*facts);
  }
  if (verdict.ok() && job->rank() == 0) verdict = CompareFacts(all);
  ASSIGN_OR_RETURN(const std::string said, job->Agree("verdict", std::string(verdict.message())));
  return said.empty() ? absl::OkStatus() : absl::FailedPreconditionError(said);
}

}  // namespace moe::train
