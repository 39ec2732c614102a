#include "moe/plan/plan.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <xxhash.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/ir/serialize.h"
#include "moe/ir/text.h"
#include "moe/ir/verifier.h"
#include "moe/passes/certify/certify.h"
#include "moe/passes/memory/plan_memory.h"
#include "moe/passes/schedule/schedule_table.h"

namespace moe::plan {
namespace {

constexpr char kFile[] = "plan.pb", kTextFile[] = "plan.txt";

// The field PlanProto::checksum, which ends a file: its tag and eight bytes, the lowest first.
constexpr char kChecksumTag = PlanProto::kChecksumFieldNumber << 3 | 1;
constexpr size_t kChecksumBytes = 9;

std::string ChecksumField(absl::string_view bytes) {
  std::string field(1, kChecksumTag);
  const uint64_t hash = XXH64(bytes.data(), bytes.size(), 0);
  for (int i = 0; i < 8; ++i) field.push_back(static_cast<char>(hash >> (8 * i)));
  return field;
}

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("plan: ", what));
}

BufferProto ToProto(const BufferRef& ref) {
  BufferProto p;
  p.set_space(static_cast<int>(ref.space));
  p.set_offset(ref.offset);
  p.set_bytes(ref.bytes);
  if (ref.spill_offset >= 0) p.set_spill_offset(ref.spill_offset);
  return p;
}

absl::StatusOr<BufferRef> FromProto(const BufferProto& p) {
  if (p.space() < 0 || p.space() > static_cast<int>(Space::kFuture)) {
    return Malformed(absl::StrCat("a buffer lies in space ", p.space(), ", which does not exist"));
  }
  return BufferRef{static_cast<Space>(p.space()), p.offset(), p.bytes(),
                   p.has_spill_offset() ? p.spill_offset() : -1};
}

using RefMap = std::map<std::string, BufferRef>;

template <typename ProtoMap>
void ToProto(const RefMap& refs, ProtoMap* out) {
  for (const auto& [name, ref] : refs) (*out)[name] = ToProto(ref);
}

template <typename ProtoMap>
absl::Status FromProto(const ProtoMap& proto, RefMap* out) {
  for (const auto& [name, p] : proto) {
    ASSIGN_OR_RETURN((*out)[name], FromProto(p));
  }
  return absl::OkStatus();
}

SlotsProto ToProto(const StageMemory::Slots& s) {
  SlotsProto p;
  p.set_offset(s.offset);
  p.set_bytes(s.bytes);
  p.set_count(s.count);
  p.set_spill_offset(s.spill_offset);
  p.set_spill_bytes(s.spill_bytes);
  return p;
}

absl::StatusOr<StageMemory::Slots> FromProto(const SlotsProto& p) {
  for (const int64_t bytes : {p.bytes(), p.spill_bytes()}) {
    if (p.count() < 0 || bytes < 0 || (bytes > 0 && p.count() > kPlanNumbers.most_int64 / bytes)) {
      return Malformed(absl::StrCat(p.count(), " slots of ", bytes, " bytes each"));
    }
  }
  return StageMemory::Slots{p.offset(), p.bytes(), p.count(), p.spill_offset(), p.spill_bytes()};
}

template <typename ProtoMap, typename Map>
absl::Status SlotsFromProto(const ProtoMap& proto, Map* out) {
  for (const auto& [key, slots] : proto) {
    ASSIGN_OR_RETURN((*out)[key], FromProto(slots));
  }
  return absl::OkStatus();
}

ActionProto ToProto(const Action& a) {
  ActionProto p;
  p.set_kind(a.kind);
  p.set_chunk(a.chunk);
  p.set_microbatch(a.microbatch);
  p.set_residual_slot(a.residual_slot);
  if (a.weight_slot >= 0) p.set_weight_slot(a.weight_slot);
  for (const auto& [name, slot] : a.boundary_slots) (*p.mutable_boundary_slots())[name] = slot;
  p.set_boundary(a.boundary);
  p.set_slot(a.slot);
  p.set_peer_stage(a.peer_stage);
  return p;
}

absl::StatusOr<Action> FromProto(const ActionProto& p) {
  if (p.kind() < 0 || p.kind() > Action::kReport)
    return Malformed(absl::StrCat("unknown kind of action ", p.kind()));
  Action a;
  a.kind = static_cast<Action::Kind>(p.kind());
  a.chunk = p.chunk();
  a.microbatch = p.microbatch();
  a.residual_slot = p.residual_slot();
  a.weight_slot = p.has_weight_slot() ? p.weight_slot() : -1;
  for (const auto& [name, slot] : p.boundary_slots()) a.boundary_slots[name] = slot;
  a.boundary = p.boundary();
  a.slot = p.slot();
  a.peer_stage = p.peer_stage();
  return a;
}

void ToProto(const Schedule& s, ScheduleProto* p) {
  p->set_name(s.name);
  p->set_microbatches(s.microbatches);
  for (const int stage : s.chunk_stage) p->add_chunk_stage(stage);
  if (s.copies != 1) p->set_copies(s.copies);
  for (const auto& row : s.table) {
    ScheduleProto::Row* r = p->add_table();
    for (const Schedule::Cell& c : row) r->add_cells(passes::CellToString(c));
  }
  for (const auto& [name, stages] : s.actions) {
    ScheduleProto::ProgramProto* program = p->add_programs();
    program->set_name(name);
    for (const auto& actions : stages) {
      ScheduleProto::Actions* list = program->add_stages();
      for (const Action& a : actions) *list->add_actions() = ToProto(a);
    }
  }
}

absl::StatusOr<Schedule> FromProto(const ScheduleProto& p) {
  Schedule s;
  s.name = p.name();
  s.microbatches = p.microbatches();
  s.chunk_stage.assign(p.chunk_stage().begin(), p.chunk_stage().end());
  s.copies = std::max(1, p.copies());
  for (const ScheduleProto::Row& row : p.table()) {
    s.table.emplace_back();
    for (const std::string& text : row.cells()) {
      absl::StatusOr<Schedule::Cell> cell = passes::ParseCell(text);
      if (!cell.ok()) return Malformed(absl::StrCat("schedule: ", cell.status().message()));
      s.table.back().push_back(*cell);
    }
  }
  for (const ScheduleProto::ProgramProto& program : p.programs()) {
    auto [it, fresh] = s.actions.try_emplace(program.name());
    if (!fresh) return Malformed(absl::StrCat("two programs are called '", program.name(), "'"));
    for (const ScheduleProto::Actions& list : program.stages()) {
      it->second.emplace_back();
      for (const ActionProto& a : list.actions()) {
        ASSIGN_OR_RETURN(Action action, FromProto(a));
        it->second.back().push_back(std::move(action));
      }
    }
  }
  return s;
}

void ToProto(const MemoryPlan& m, MemoryPlanProto* p) {
  p->set_alignment(m.alignment);
  for (const auto& [name, f] : m.functions) {
    FunctionMemoryProto& out = (*p->mutable_functions())[name];
    ToProto(f.values, out.mutable_values());
    ToProto(f.workspace, out.mutable_workspace());
    out.set_frame_bytes(f.frame_bytes);
    out.set_live_bytes(f.live_bytes);
    for (const auto& [node, earlier] : f.waits) {
      for (const std::string& e : earlier) (*out.mutable_waits())[node].add_name(e);
    }
  }
  for (const StageMemory& s : m.stages) {
    StageMemoryProto* out = p->add_stages();
    ToProto(s.states, out->mutable_states());
    ToProto(s.inputs, out->mutable_inputs());
    ToProto(s.futures, out->mutable_futures());
    for (const auto& [chunk, slots] : s.residuals) (*out->mutable_residuals())[chunk] = ToProto(slots);
    for (const auto& [chunk, slots] : s.weight_residuals)
      (*out->mutable_weight_residuals())[chunk] = ToProto(slots);
    for (const auto& [name, slots] : s.boundaries) (*out->mutable_boundaries())[name] = ToProto(slots);
    out->set_state_bytes(s.state_bytes);
    out->set_input_bytes(s.input_bytes);
    out->set_residual_bytes(s.residual_bytes);
    out->set_boundary_bytes(s.boundary_bytes);
    out->set_future_bytes(s.future_bytes);
    out->set_frame_bytes(s.frame_bytes);
    out->set_spill_bytes(s.spill_bytes);
    for (const auto& [kind, bytes] : s.state_bytes_by_kind)
      (*out->mutable_state_bytes_by_kind())[kind] = bytes;
  }
}

absl::StatusOr<MemoryPlan> FromProto(const MemoryPlanProto& p) {
  MemoryPlan m;
  m.alignment = p.alignment();
  for (const auto& [name, f] : p.functions()) {
    FunctionMemory& out = m.functions[name];
    RETURN_IF_ERROR(FromProto(f.values(), &out.values));
    RETURN_IF_ERROR(FromProto(f.workspace(), &out.workspace));
    out.frame_bytes = f.frame_bytes();
    out.live_bytes = f.live_bytes();
    for (const auto& [node, earlier] : f.waits())
      out.waits[node].assign(earlier.name().begin(), earlier.name().end());
  }
  for (const StageMemoryProto& s : p.stages()) {
    StageMemory& out = m.stages.emplace_back();
    RETURN_IF_ERROR(FromProto(s.states(), &out.states));
    RETURN_IF_ERROR(FromProto(s.inputs(), &out.inputs));
    RETURN_IF_ERROR(FromProto(s.futures(), &out.futures));
    RETURN_IF_ERROR(SlotsFromProto(s.residuals(), &out.residuals));
    RETURN_IF_ERROR(SlotsFromProto(s.weight_residuals(), &out.weight_residuals));
    RETURN_IF_ERROR(SlotsFromProto(s.boundaries(), &out.boundaries));
    out.state_bytes = s.state_bytes();
    out.input_bytes = s.input_bytes();
    out.residual_bytes = s.residual_bytes();
    out.boundary_bytes = s.boundary_bytes();
    out.future_bytes = s.future_bytes();
    out.frame_bytes = s.frame_bytes();
    out.spill_bytes = s.spill_bytes();
    for (const auto& [kind, bytes] : s.state_bytes_by_kind()) out.state_bytes_by_kind[kind] = bytes;
  }
  return m;
}

void ToProto(const cost::Target& t, TargetProto* p) {
  p->set_name(t.name);
  p->set_flops(t.flops);
  p->set_bytes_per_second(t.bytes_per_second);
  p->set_link_bytes_per_second(t.link_bytes_per_second);
  p->set_link_latency_seconds(t.link_latency_seconds);
  p->set_node_bytes_per_second(t.node_bytes_per_second);
  p->set_node_latency_seconds(t.node_latency_seconds);
  for (const std::string& f : t.fusions) p->add_fusions(f);
  p->set_all_fusions(t.all_fusions);
  p->set_bucket_bytes(t.bucket_bytes);
  p->set_overlaps(t.overlaps);
  for (const std::string& library : t.libraries) p->add_libraries(library);
  p->set_device(t.device);
  p->set_f8_flops(t.f8_flops);
}

cost::Target FromProto(const TargetProto& p) {
  cost::Target t;
  t.name = p.name();
  t.flops = p.flops();
  t.bytes_per_second = p.bytes_per_second();
  t.link_bytes_per_second = p.link_bytes_per_second();
  t.link_latency_seconds = p.link_latency_seconds();
  if (p.node_bytes_per_second() > 0) t.node_bytes_per_second = p.node_bytes_per_second();
  if (p.node_latency_seconds() > 0) t.node_latency_seconds = p.node_latency_seconds();
  t.fusions.insert(p.fusions().begin(), p.fusions().end());
  t.all_fusions = p.all_fusions();
  t.bucket_bytes = p.bucket_bytes();
  t.overlaps = p.overlaps();
  t.libraries.insert(p.libraries().begin(), p.libraries().end());
  if (!p.device().empty()) t.device = p.device();
  t.f8_flops = p.f8_flops();
  return t;
}

}  // namespace

PlanProto PlanToProto(const Plan& plan) {
  PlanProto p;
  p.set_version(kPlanVersion);
  *p.mutable_module() = ToProto(*plan.program.module);
  ToProto(plan.program.schedule, p.mutable_schedule());
  ToProto(plan.program.memory, p.mutable_memory());
  p.set_strategy(plan.strategy.ToString());
  ToProto(plan.target, p.mutable_target());
  for (const auto& [pass, line] : plan.program.notes) {
    NoteProto* note = p.add_notes();
    note->set_pass(pass);
    note->set_line(line);
  }
  for (const LogicalNode& n : plan.program.inventory) {
    LogicalNodeProto* out = p.add_inventory();
    out->set_op(n.op);
    out->set_name(n.name);
    for (const int c : n.chunks) out->add_chunks(c);
    out->set_rewritten_by(n.rewritten_by);
  }
  p.set_model(plan.model_text);
  p.set_train(plan.train_text);
  p.set_pipeline(plan.pipeline);
  return p;
}

absl::StatusOr<Plan> PlanFromProto(const PlanProto& p) {
  if (p.version() < 1) {
    return Malformed(absl::StrCat("format version ", p.version(), "; versions begin at 1"));
  }
  if (p.version() != kPlanVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "plan: format version ", p.version(), "; this build reads version ", kPlanVersion,
        p.version() > kPlanVersion ? ": use a newer build, or compile again" : ": compile again"));
  }
  // The numbers of the module have limits of their own (moe/ir/limits.h).
  RETURN_IF_ERROR(Annotate(CheckNumbers(p, kPlanNumbers, {"module"}), "plan"));
  Plan plan;
  ASSIGN_OR_RETURN(plan.program.module, FromProto(p.module()));
  RETURN_IF_ERROR(Annotate(Verify(*plan.program.module), "plan"));
  ASSIGN_OR_RETURN(plan.program.schedule, FromProto(p.schedule()));
  ASSIGN_OR_RETURN(plan.program.memory, FromProto(p.memory()));
  ASSIGN_OR_RETURN(plan.strategy, strategy::ParseStrategy(p.strategy()));
  plan.target = FromProto(p.target());
  for (const NoteProto& note : p.notes()) plan.program.notes.emplace_back(note.pass(), note.line());
  for (const LogicalNodeProto& n : p.inventory()) {
    plan.program.inventory.push_back(
        {n.op(), n.name(), {n.chunks().begin(), n.chunks().end()}, n.rewritten_by()});
  }
  plan.model_text = p.model();
  plan.train_text = p.train();
  plan.pipeline = p.pipeline();
  passes::CertifyOptions options;
  options.overload = plan.strategy.overload;
  RETURN_IF_ERROR(Annotate(passes::Certify(plan.program, options).status(), "plan"));
  return plan;
}

std::string SerializePlan(const Plan& plan) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);  // maps in order of keys
    PlanToProto(plan).SerializeToCodedStream(&coded);
  }
  return bytes + ChecksumField(bytes);
}

absl::StatusOr<Plan> ParsePlan(absl::string_view bytes) {
  if (static_cast<int64_t>(bytes.size()) > kPlanLimits.bytes) {
    return Malformed(absl::StrCat(bytes.size(), " bytes; at most ", kPlanLimits.bytes, " are allowed"));
  }
  if (bytes.size() < kChecksumBytes || bytes[bytes.size() - kChecksumBytes] != kChecksumTag) {
    return absl::DataLossError(
        "plan: there is no checksum at its end: an older build wrote it, or it is cut off; compile again");
  }
  const absl::string_view body = bytes.substr(0, bytes.size() - kChecksumBytes);
  if (bytes.substr(body.size()) != ChecksumField(body)) {
    return absl::DataLossError("plan: its checksum does not match; it was damaged or edited: compile again");
  }
  PlanProto proto;
  RETURN_IF_ERROR(Annotate(ParseProto(body, kPlanLimits, proto), "plan"));
  return PlanFromProto(proto);
}

std::string PlanToText(const Plan& plan) {
  const Program& p = plan.program;
  std::string out = absl::StrCat("plan version ", kPlanVersion, "\nstrategy ", plan.strategy.ToString(),
                                 "\ntarget ", plan.target.name, "\npipeline ", plan.pipeline, "\n");
  for (const auto& [pass, line] : p.notes) absl::StrAppend(&out, "note ", pass, ": ", line, "\n");
  absl::StrAppend(&out, "\nschedule ", p.schedule.name, ", ", p.schedule.microbatches,
                  " microbatches, chunks on stages ", absl::StrJoin(p.schedule.chunk_stage, " "), "\n");
  for (const auto& [name, stages] : p.schedule.actions) {
    for (size_t s = 0; s < stages.size(); ++s) {
      absl::StrAppend(&out, name, " stage ", s, ": ",
                      absl::StrJoin(stages[s], ", ",
                                    [](std::string* o, const Action& a) {
                                      absl::StrAppend(o, ActionToString(a));
                                      if (a.slot >= 0) absl::StrAppend(o, " [", a.slot, "]");
                                      if (a.residual_slot >= 0)
                                        absl::StrAppend(o, " [residuals ", a.residual_slot, "]");
                                      if (a.weight_slot >= 0)
                                        absl::StrAppend(o, " [weight residuals ", a.weight_slot, "]");
                                    }),
                      "\n");
    }
  }
  out += "\n";
  for (size_t s = 0; s < p.memory.stages.size(); ++s) {
    const StageMemory& m = p.memory.stages[s];
    absl::StrAppend(&out, "memory stage ", s, ": peak ", m.peak_bytes(), " bytes = state ", m.state_bytes,
                    " + input ", m.input_bytes, " + residual ", m.residual_bytes, " + boundary ",
                    m.boundary_bytes, " + future ", m.future_bytes, " + frame ", m.frame_bytes, "; spill ",
                    m.spill_bytes, "\n");
    const auto slots = [&](const std::string& what, const StageMemory::Slots& x) {
      absl::StrAppend(&out, "  ", what, ": ", x.count, " x ", x.bytes, " at ", x.offset, "\n");
    };
    for (const auto& [c, x] : m.residuals) slots(absl::StrCat("residuals of chunk ", c), x);
    for (const auto& [c, x] : m.weight_residuals) slots(absl::StrCat("weight residuals of chunk ", c), x);
    for (const auto& [v, x] : m.boundaries) slots(absl::StrCat("boundary ", v), x);
    for (const auto& [name, ref] : m.futures) {
      absl::StrAppend(&out, "  future ", name, ": ", ref.bytes, " at ", ref.offset, "\n");
    }
    for (const auto& [name, ref] : m.states) {
      absl::StrAppend(&out, "  state ", name, ": ", ref.bytes, " at ", ref.offset, "\n");
    }
  }
  absl::StrAppend(&out, "\n", PrintModule(*p.module), "\n");
  for (const auto& [name, f] : p.memory.functions) {
    absl::StrAppend(&out, "buffers @", name, ": frame ", f.frame_bytes, ", live at most ", f.live_bytes,
                    "\n");
    for (const auto& [value, ref] : f.values) {
      absl::StrAppend(&out, "  %", value, ": ", SpaceName(ref.space), " ", ref.offset, " + ", ref.bytes,
                      ref.spill_offset >= 0 ? absl::StrCat(", spill ", ref.spill_offset) : "", "\n");
    }
    for (const auto& [node, ref] : f.workspace) {
      absl::StrAppend(&out, "  workspace of %", node, ": ", ref.offset, " + ", ref.bytes, "\n");
    }
    for (const auto& [node, earlier] : f.waits) {
      absl::StrAppend(&out, "  %", node, " waits for %", absl::StrJoin(earlier, ", %"), "\n");
    }
  }
  return out;
}

absl::Status SavePlan(const Plan& plan, const std::string& folder) {
  RETURN_IF_ERROR(MakeFolders(folder));
  RETURN_IF_ERROR(WriteFile(JoinPath(folder, kFile), SerializePlan(plan)));
  return WriteFile(JoinPath(folder, kTextFile), PlanToText(plan));
}

absl::StatusOr<Plan> LoadPlan(const std::string& path) {
  const std::string file = IsFolder(path) ? JoinPath(path, kFile) : path;
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(file, kPlanLimits.bytes));
  absl::StatusOr<Plan> plan = ParsePlan(bytes);
  if (!plan.ok()) return Annotate(plan.status(), file);
  return plan;
}

Plan ClonePlan(const Plan& plan) {
  return {CloneProgram(plan.program),
          plan.strategy,
          plan.target,
          plan.model_text,
          plan.train_text,
          plan.pipeline};
}

}  // namespace moe::plan
