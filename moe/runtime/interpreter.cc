#include "moe/runtime/interpreter.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/runtime/init.h"
#include "moe/runtime/local.h"

namespace moe::runtime {
namespace {

// Index of the result that holds the chosen experts, or -1.
int ExpertResult(const Node& n) { return n.op().Has(kDecision) ? n.op().FindResult("expert") : -1; }

template <typename T>
void GatherTop(const T* probability, int64_t experts, const int32_t* expert, int64_t choices, int64_t k,
               T* top) {
  for (int64_t i = 0; i < choices; ++i)
    top[i] = expert[i] < 0 ? T(0) : probability[i / k * experts + expert[i]];
}

absl::Status CopyOut(DType dtype, const void* data, absl::Span<double> out) {
  switch (dtype) {
    case DType::kF32:
      std::copy_n(static_cast<const float*>(data), out.size(), out.begin());
      return absl::OkStatus();
    case DType::kF64:
      std::copy_n(static_cast<const double*>(data), out.size(), out.begin());
      return absl::OkStatus();
    case DType::kS32:
      std::copy_n(static_cast<const int32_t*>(data), out.size(), out.begin());
      return absl::OkStatus();
    default:
      return absl::UnimplementedError(absl::StrCat("no host access to ", DTypeName(dtype)));
  }
}

template <typename In>
absl::Status CopyIn(const In* in, int64_t n, DType dtype, void* data) {
  switch (dtype) {
    case DType::kF32:
      std::transform(in, in + n, static_cast<float*>(data), [](In x) { return static_cast<float>(x); });
      return absl::OkStatus();
    case DType::kF64:
      std::transform(in, in + n, static_cast<double*>(data), [](In x) { return static_cast<double>(x); });
      return absl::OkStatus();
    case DType::kS32:
      std::transform(in, in + n, static_cast<int32_t*>(data), [](In x) { return static_cast<int32_t>(x); });
      return absl::OkStatus();
    default:
      return absl::UnimplementedError(absl::StrCat("no host access to ", DTypeName(dtype)));
  }
}

}  // namespace

struct Interpreter::Buffer {
  explicit Buffer(int64_t size)
      : bytes(size), data(::operator new(std::max<int64_t>(size, 64), std::align_val_t(64))) {}
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  const int64_t bytes;
  void* const data;
};

struct Interpreter::Program {
  struct Step {
    Node* node = nullptr;
    const kernels::Kernel* kernel = nullptr;
    kernels::KernelContext context;  // without tensors
    int64_t workspace = 0;
    std::vector<int> in, out;
    std::vector<int> takes_over;  // per result: the value whose storage it takes over, or -1
    std::vector<int> release;     // values that nothing later uses
  };
  struct BoundValue {
    int value = 0;
    Binding binding;
  };
  std::vector<Type> types;  // per value
  std::vector<Step> steps;
  std::vector<BoundValue> args, results;
};

Interpreter::Interpreter(std::unique_ptr<Module> module, InterpreterOptions options)
    : module_(std::move(module)), options_(std::move(options)) {}
Interpreter::~Interpreter() = default;

absl::StatusOr<std::unique_ptr<Interpreter>> Interpreter::Create(const Module& module,
                                                                 InterpreterOptions options) {
  std::unique_ptr<Interpreter> it(new Interpreter(CloneModule(module), std::move(options)));
  const Module& m = *it->module_;
  const Function *step = m.Find(FunctionKind::kStep), *update = m.Find(FunctionKind::kUpdate),
                 *report = m.Find(FunctionKind::kReport);
  if (step == nullptr || report == nullptr) {
    return absl::FailedPreconditionError(
        "interpreter: the module has no @step and @report; it runs the logical module, "
        "before partition-stages");
  }
  ASSIGN_OR_RETURN(it->step_, it->Prepare(*step, false));
  ASSIGN_OR_RETURN(it->forward_, it->Prepare(*step, true));
  ASSIGN_OR_RETURN(it->report_, it->Prepare(*report, false));
  if (update != nullptr) {
    ASSIGN_OR_RETURN(it->update_, it->Prepare(*update, false));
  }
  for (const auto& s : m.states()) {
    auto buffer = std::make_shared<Buffer>(s->type.num_elements() * ByteSize(s->type.dtype));
    std::memset(buffer->data, 0, buffer->bytes);
    it->states_[s->name] = std::move(buffer);
  }
  return it;
}

absl::StatusOr<std::unique_ptr<Interpreter::Program>> Interpreter::Prepare(const Function& f,
                                                                           bool forward_only) const {
  auto p = std::make_unique<Program>();
  std::map<Value, int> index;
  std::map<std::string, int> state_result;  // state -> value that becomes it
  auto add = [&](Value v) -> absl::Status {
    if (!v.type().placement.IsReplicated()) {
      return absl::FailedPreconditionError(
          absl::StrCat("interpreter: %", v.name(), " of @", f.name(), " is placed as ",
                       TypeToString(v.type(), module_->mesh()), "; it runs graphs of one device"));
    }
    index.emplace(v, static_cast<int>(p->types.size()));
    p->types.push_back(v.type());
    return absl::OkStatus();
  };
  for (Node* arg : f.args()) {
    RETURN_IF_ERROR(add(arg->result()));
    const Binding& binding = arg->binding;
    if (!binding.IsState() && binding.kind != Binding::kBatch && binding.kind != Binding::kScalar) {
      return absl::FailedPreconditionError(
          absl::StrCat("interpreter: argument %", arg->result_name(), " of @", f.name(), " is bound to '",
                       BindingKindName(binding.kind), "'; legal are state, batch, scalar"));
    }
    if (binding.IsState() && module_->FindState(binding.name) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("interpreter: no state named '", binding.name, "'"));
    }
    p->args.push_back({index.at(arg->result()), binding});
  }
  for (Node* n : f.Nodes()) {
    if (forward_only && n->phase != Phase::kForward) continue;
    Program::Step s;
    s.node = n;
    ASSIGN_OR_RETURN(s.kernel, kernels::Kernels().Lookup(*n, options_.backend));
    ASSIGN_OR_RETURN(s.context, LocalContext(*n, module_->mesh(), 0));
    ASSIGN_OR_RETURN(s.workspace, NodeWorkspace(*n, module_->mesh(), options_.backend, 0));
    for (Value v : n->operands()) {
      const auto it = index.find(v);
      if (it == index.end()) {
        return absl::InvalidArgumentError(absl::StrCat("interpreter: %", n->result_name(), " uses %",
                                                       v.name(), ", which is not computed before it"));
      }
      s.in.push_back(it->second);
    }
    for (int i = 0; i < n->num_results(); ++i) {
      RETURN_IF_ERROR(add(n->result(i)));
      s.out.push_back(index.at(n->result(i)));
    }
    s.takes_over.assign(s.out.size(), -1);
    p->steps.push_back(std::move(s));
  }
  for (int i = 0; i < f.num_results(); ++i) {
    const auto it = index.find(f.result(i));
    if (it == index.end()) continue;  // of the backward, when only the forward runs
    const Binding& binding = f.result_binding(i);
    p->results.push_back({it->second, binding});
    if (binding.kind == Binding::kState) state_result[binding.name] = it->second;
  }
  // Lifetimes. A value ends after its last use; what an in-place op takes over must end there. The storage of
  // a state may only be taken over if the state gets a new value.
  std::vector<int> last(p->types.size(), -1);
  for (size_t i = 0; i < p->steps.size(); ++i) {
    for (int v : p->steps[i].in) last[v] = static_cast<int>(i);
    for (int v : p->steps[i].out) last[v] = static_cast<int>(i);
  }
  for (const auto& r : p->results) last[r.value] = static_cast<int>(p->steps.size());
  std::vector<bool> keep(p->types.size(), false);
  for (const auto& a : p->args) {
    keep[a.value] = a.binding.IsState() && !state_result.count(a.binding.name);
  }
  for (size_t v = 0; v < last.size(); ++v) {
    if (last[v] >= 0 && last[v] < static_cast<int>(p->steps.size()))
      p->steps[last[v]].release.push_back(static_cast<int>(v));
  }
  for (size_t i = 0; i < p->steps.size(); ++i) {
    Program::Step& s = p->steps[i];
    for (int result = 0; result < s.node->num_results(); ++result) {
      const int operand = InPlaceOperand(*s.node, result);
      if (operand < 0) continue;
      const int v = s.in[operand];
      if (last[v] == static_cast<int>(i) && !keep[v] && std::count(s.in.begin(), s.in.end(), v) == 1) {
        s.takes_over[result] = v;
      }
    }
  }
  return p;
}

absl::Status Interpreter::InitializeState(uint64_t seed) {
  for (const auto& s : module_->states()) {
    const Dims& dims = s->type.dims;
    InitializeBlock(Initializer(*module_, *s, seed), {Dims(dims.size(), 0), dims, dims}, s->type.dtype,
                    static_cast<char*>(states_.at(s->name)->data));
  }
  return absl::OkStatus();
}

absl::StatusOr<Reports> Interpreter::TrainStep(const StepInputs& inputs) {
  if (update_ == nullptr)
    return absl::FailedPreconditionError("interpreter: no @update; run autodiff before TrainStep");
  return Step(inputs, true);
}

absl::StatusOr<Reports> Interpreter::EvalStep(const StepInputs& inputs) { return Step(inputs, false); }

absl::StatusOr<Reports> Interpreter::Step(const StepInputs& inputs, bool train) {
  RETURN_IF_ERROR(CheckInputs(inputs));
  for (const auto& s : module_->states()) {
    if (AttrString(s->attributes, "reset") == "step") {
      std::memset(states_.at(s->name)->data, 0, states_.at(s->name)->bytes);
    }
  }
  Reports reports;
  const int microbatches = static_cast<int>(AttrInt(module_->attributes(), "microbatches", 1));
  for (int j = 0; j < microbatches; ++j)
    RETURN_IF_ERROR(Run(train ? *step_ : *forward_, inputs, j, &reports));
  if (train) RETURN_IF_ERROR(Run(*update_, inputs, -1, &reports));
  RETURN_IF_ERROR(Run(*report_, inputs, -1, &reports));
  return reports;
}

absl::Status Interpreter::CheckInputs(const StepInputs& inputs) const {
  const int64_t samples = AttrInt(module_->attributes(), "global_batch", 0);
  const int64_t seq = AttrInt(module_->attributes(), "seq_length", 0);
  auto check = [&](const char* name, int64_t have, int64_t want) {
    if (have == want) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("step inputs: ", name, " has ", have, " elements; the model takes ", want));
  };
  RETURN_IF_ERROR(check("tokens", inputs.tokens.size(), samples * seq));
  RETURN_IF_ERROR(check("labels", inputs.labels.size(), samples * seq));
  RETURN_IF_ERROR(check("mask", inputs.mask.size(), samples * seq));
  return check("positions", inputs.positions.size(), seq);
}

absl::StatusOr<Interpreter::BufferPtr> Interpreter::InputOf(const Binding& binding, const Type& type,
                                                            const StepInputs& inputs, int microbatch) const {
  const std::string& name = binding.name;
  const int64_t n = type.num_elements();
  auto buffer = std::make_shared<Buffer>(n * ByteSize(type.dtype));
  if (binding.kind == Binding::kScalar) {
    const auto it = inputs.scalars.find(name);
    if (it == inputs.scalars.end()) {
      return absl::InvalidArgumentError(absl::StrCat("step inputs: scalar '", name, "' is missing"));
    }
    RETURN_IF_ERROR(CopyIn(&it->second, 1, type.dtype, buffer->data));
    return buffer;
  }
  auto part = [&](const auto& all) -> absl::Status {
    const int64_t begin = name == "positions" ? 0 : microbatch * n;
    if (begin < 0 || begin + n > static_cast<int64_t>(all.size())) {
      return absl::InvalidArgumentError(absl::StrCat("step inputs: '", name, "' has ", all.size(),
                                                     " elements; microbatch ", microbatch,
                                                     " needs those from ", begin, " to ", begin + n));
    }
    return CopyIn(all.data() + begin, n, type.dtype, buffer->data);
  };
  absl::Status status;
  if (name == "tokens") {
    status = part(inputs.tokens);
  } else if (name == "labels") {
    status = part(inputs.labels);
  } else if (name == "mask") {
    status = part(inputs.mask);
  } else if (name == "positions") {
    status = part(inputs.positions);
  } else {
    status = absl::InvalidArgumentError(
        absl::StrCat("no batch input named '", name, "'; legal are tokens, labels, mask and positions"));
  }
  RETURN_IF_ERROR(status);
  return buffer;
}

absl::Status Interpreter::Run(const Program& p, const StepInputs& inputs, int microbatch, Reports* reports) {
  const Mesh& mesh = module_->mesh();
  std::vector<BufferPtr> values(p.types.size());
  for (const auto& arg : p.args) {
    if (arg.binding.IsState()) {
      values[arg.value] = states_.at(arg.binding.name);
    } else {
      ASSIGN_OR_RETURN(values[arg.value], InputOf(arg.binding, p.types[arg.value], inputs, microbatch));
    }
  }
  auto tensor = [&](int v) { return LocalTensor(p.types[v], mesh, values[v]->data, values[v]->bytes); };
  for (const Program::Step& s : p.steps) {
    kernels::KernelContext c = s.context;
    for (int v : s.in) {
      c.in.push_back(tensor(v));
      if (c.in.back().is_ragged()) RETURN_IF_ERROR(c.in.back().PlaceRows());
    }
    for (size_t i = 0; i < s.out.size(); ++i) {
      const int v = s.out[i];
      if (s.takes_over[i] >= 0) {
        values[v] = values[s.takes_over[i]];
      } else {
        values[v] = std::make_shared<Buffer>(StorageOf(p.types[v], mesh).bytes);
        if (options_.poison) std::memset(values[v]->data, 0xff, values[v]->bytes);
      }
      c.out.push_back(tensor(v));
    }
    if (s.workspace > 0) {
      if (workspace_ == nullptr || workspace_->bytes < s.workspace)
        workspace_ = std::make_shared<Buffer>(s.workspace);
      c.workspace = workspace_->data;
      c.workspace_bytes = s.workspace;
    }
    RETURN_IF_ERROR(Annotate(s.kernel->Run(c), absl::StrCat(s.node->op_name(), " %", s.node->result_name())));
    if (replay_ != nullptr) RETURN_IF_ERROR(Replay(*s.node, microbatch, c));
    if (record_ != nullptr) Record(*s.node, microbatch, c);
    if (options_.observer) {
      for (int i = 0; i < s.node->num_results(); ++i)
        options_.observer(s.node->result(i), microbatch, c.out[i]);
    }
    for (int v : s.release) values[v].reset();
  }
  for (const auto& result : p.results) {
    const auto& [kind, name, peer] = result.binding;
    if (kind == Binding::kState) {
      states_[name] = values[result.value];
    } else if (kind == Binding::kReport) {
      const Type& type = p.types[result.value];
      std::vector<double> read(type.num_elements());
      RETURN_IF_ERROR(CopyOut(type.dtype, values[result.value]->data, absl::MakeSpan(read)));
      std::vector<double>& sum = (*reports)[name];
      sum.resize(std::max(sum.size(), read.size()), 0.0);
      for (size_t i = 0; i < read.size(); ++i) sum[i] += read[i];
    }
  }
  return absl::OkStatus();
}

void Interpreter::Record(const Node& n, int microbatch, const kernels::KernelContext& c) const {
  const int r = ExpertResult(n);
  if (r < 0) return;
  const int32_t* expert = c.out[r].As<int32_t>();
  (*record_)[{n.result_name(r), microbatch}].assign(expert, expert + c.out[r].elements());
}

// Puts recorded experts in place of those just chosen, and what follows from them: their probabilities and
// counts.
absl::Status Interpreter::Replay(const Node& n, int microbatch, kernels::KernelContext& c) const {
  const int r = ExpertResult(n);
  if (r < 0) return absl::OkStatus();
  const auto it = replay_->find({n.result_name(r), microbatch});
  if (it == replay_->end()) {
    return absl::NotFoundError(
        absl::StrCat("no recorded decision for %", n.result_name(r), ", microbatch ", microbatch));
  }
  const std::vector<int32_t>& recorded = it->second;
  const int64_t choices = c.out[r].elements(), k = c.Extent("k"), experts = c.Extent("e");
  if (static_cast<int64_t>(recorded.size()) != choices ||
      std::any_of(recorded.begin(), recorded.end(), [&](int32_t e) { return e < -1 || e >= experts; })) {
    return absl::InvalidArgumentError(absl::StrCat("the recorded decision for %", n.result_name(r),
                                                   ", microbatch ", microbatch, ", is of another model"));
  }
  int32_t* expert = c.out[r].As<int32_t>();
  std::copy(recorded.begin(), recorded.end(), expert);
  const std::vector<std::string>& names = n.op().result_names;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == "top") {
      const kernels::Tensor& p = names[0] == "probability" ? c.out[0] : c.in[0];
      if (p.dtype == DType::kF64) {
        GatherTop(p.As<double>(), experts, expert, choices, k, c.out[i].As<double>());
      } else {
        GatherTop(p.As<float>(), experts, expert, choices, k, c.out[i].As<float>());
      }
    } else if (names[i] == "count") {
      int32_t* count = c.out[i].As<int32_t>();
      std::fill_n(count, experts, 0);
      for (int32_t e : recorded) {
        if (e >= 0) ++count[e];
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> Interpreter::ReadStored(const State& state) {
  std::vector<double> values(state.type.num_elements());
  RETURN_IF_ERROR(CopyOut(state.type.dtype, states_.at(state.name)->data, absl::MakeSpan(values)));
  return values;
}

absl::Status Interpreter::WriteStored(const State& state, absl::Span<const double> values) {
  return CopyIn(values.data(), static_cast<int64_t>(values.size()), state.type.dtype,
                states_.at(state.name)->data);
}

}  // namespace moe::runtime
