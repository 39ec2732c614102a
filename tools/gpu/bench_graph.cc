#include "tools/gpu/bench_graph.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "moe/base/status.h"
#include "moe/device/convert.h"
#include "moe/device/stream_timer.h"
#include "moe/runtime/local.h"
#include "tools/bench_table.h"

namespace moe::tools {
namespace {

constexpr int64_t kPattern = 1 << 20;  // random elements that are different; then they repeat

}  // namespace

BenchGraph::BenchGraph(device::Device* device, kernels::Backend backend)
    : device_(device),
      backend_(backend),
      module_(std::make_unique<Module>("bench")),
      function_(module_->AddFunction("bench")),
      builder_(function_) {}

Value BenchGraph::Arg(const std::string& name, DType dtype, const std::vector<int64_t>& dims, BenchFill fill,
                      double scale) {
  const Value v = function_->AddArg(name, Type(dtype, dims));
  args_.push_back({v, {fill, scale}});
  return v;
}

absl::StatusOr<Node*> BenchGraph::Create(const std::string& op, std::vector<Value> operands,
                                         Attributes attributes, const std::string& name) {
  ASSIGN_OR_RETURN(Node * n, builder_.CreateNode(op, std::move(operands), std::move(attributes), name));
  nodes_.push_back({n, name.empty() ? op : name});
  return n;
}

absl::StatusOr<Value> BenchGraph::Op(const std::string& op, std::vector<Value> operands,
                                     Attributes attributes, const std::string& name) {
  ASSIGN_OR_RETURN(Node * n, Create(op, std::move(operands), std::move(attributes), name));
  return n->result(0);
}

absl::Status BenchGraph::Fill(const Value& v, BenchFill fill, double scale) {
  const Type& type = v.type();
  const int64_t n = type.num_elements(), element = ByteSize(type.dtype), pattern = std::min(n, kPattern);
  std::vector<char> host(pattern * element);
  std::mt19937_64 rng(std::hash<std::string>()(v.name()));
  if (type.dtype == DType::kS32) {
    int32_t* const x = reinterpret_cast<int32_t*>(host.data());
    for (int64_t i = 0; i < pattern; ++i) {
      x[i] = static_cast<int32_t>(fill == BenchFill::kIota ? i : rng() % static_cast<uint64_t>(scale));
    }
  } else {
    std::normal_distribution<float> normal(0, static_cast<float>(scale));
    std::vector<float> x(pattern, 1.0f);
    if (fill != BenchFill::kOnes) std::generate(x.begin(), x.end(), [&] { return normal(rng); });
    for (int64_t i = 0; fill == BenchFill::kSkewed && i < pattern; ++i) {
      if (i % type.dims.back() < std::max<int64_t>(1, type.dims.back() / 4)) x[i] *= 4;
    }
    if (type.dtype == DType::kF32) {
      std::copy_n(reinterpret_cast<const char*>(x.data()), host.size(), host.data());
    } else {
      device::FromF32(type.dtype, x.data(), host.data(), pattern);
    }
  }
  for (int64_t at = 0; at < n; at += pattern) {
    RETURN_IF_ERROR(stream_->Copy(memory_.at(v)->data() + at * element, host.data(),
                                  std::min(pattern, n - at) * element));
  }
  return stream_->Synchronize();
}

absl::Status BenchGraph::Prepare() {
  ASSIGN_OR_RETURN(stream_, device_->NewStream("compute"));
  const Mesh& mesh = module_->mesh();
  int64_t workspace = 0;
  const auto place = [&](Value v) -> absl::Status {
    // Dropless routing gives each choice a row: the rows of all experts together are known.
    const int64_t bytes = StorageOf(v.type(), mesh, 1.0).bytes;
    absl::StatusOr<std::unique_ptr<device::DeviceMemory>> memory = device_->Allocate(bytes);
    RETURN_IF_ERROR(Annotate(memory.status(), absl::StrCat("the benchmark holds ", bytes_,
                                                           " bytes and needs '", v.name(), "', too")));
    memory_[v] = *std::move(memory);
    bytes_ += bytes;
    return absl::OkStatus();
  };
  for (const auto& [v, fill] : args_) {
    RETURN_IF_ERROR(place(v));
    RETURN_IF_ERROR(Fill(v, fill.first, fill.second));
  }
  for (const auto& [n, name] : nodes_) {
    Step s;
    s.node = n;
    s.name = name;
    ASSIGN_OR_RETURN(s.kernel, kernels::Kernels().Lookup(*n, backend_));
    ASSIGN_OR_RETURN(s.context, runtime::LocalContext(*n, mesh, 0));
    s.context.stream = stream_.get();
    const auto tensor = [&](Value v) {
      return runtime::LocalTensor(v.type(), mesh, memory_.at(v)->data(), memory_.at(v)->bytes());
    };
    for (int i = 0; i < n->num_operands(); ++i) s.context.in.push_back(tensor(n->operand(i)));
    for (int r = 0; r < n->num_results(); ++r) {
      RETURN_IF_ERROR(place(n->result(r)));
      s.context.out.push_back(tensor(n->result(r)));
    }
    s.context.workspace_bytes =
        s.kernel->WorkspaceBytes(*n, *s.context.rule, s.context.extent, s.context.in, s.context.out);
    workspace = std::max(workspace, s.context.workspace_bytes);
    steps_.push_back(std::move(s));
  }
  ASSIGN_OR_RETURN(workspace_, device_->Allocate(workspace));
  bytes_ += workspace;
  for (Step& s : steps_) s.context.workspace = workspace_->data();
  return absl::OkStatus();
}

absl::Status BenchGraph::RunStep(Step& s) {
  if (device_->kind() == device::DeviceKind::kHost) {
    for (kernels::Tensor& t : s.context.in) {
      if (t.is_ragged()) RETURN_IF_ERROR(t.PlaceRows());
    }
  }
  return Annotate(s.kernel->Run(s.context), s.name);
}

absl::Status BenchGraph::Run() {
  for (Step& s : steps_) RETURN_IF_ERROR(RunStep(s));
  return absl::OkStatus();
}

absl::StatusOr<BenchTimes> BenchGraph::Time(int warm_up, int repeats) {
  for (int i = 0; i < warm_up; ++i) RETURN_IF_ERROR(Run());
  RETURN_IF_ERROR(stream_->Synchronize());
  device::StreamTimer timer(stream_.get());
  RETURN_IF_ERROR(timer.Reserve(static_cast<int64_t>(steps_.size()) + 1));
  std::vector<double> whole;
  for (int i = 0; i < repeats; ++i) {
    timer.Clear();
    ASSIGN_OR_RETURN(const int64_t begin, timer.Mark());
    RETURN_IF_ERROR(Run());
    ASSIGN_OR_RETURN(const int64_t end, timer.Mark());
    ASSIGN_OR_RETURN(const double seconds, timer.Seconds(begin, end));
    whole.push_back(seconds);
  }
  std::map<std::string, std::vector<double>> nodes;
  for (int i = 0; i < repeats; ++i) {
    timer.Clear();
    RETURN_IF_ERROR(timer.Mark().status());
    for (Step& s : steps_) {
      RETURN_IF_ERROR(RunStep(s));
      RETURN_IF_ERROR(timer.Mark().status());
    }
    RETURN_IF_ERROR(stream_->Synchronize());
    for (size_t s = 0; s < steps_.size(); ++s) {
      ASSIGN_OR_RETURN(const double seconds, timer.Seconds(s, s + 1));
      nodes[steps_[s].name].push_back(seconds);
    }
  }
  BenchTimes t;
  t.seconds = Median(whole);
  for (const auto& [name, seconds] : nodes) t.node_seconds[name] = Median(seconds);
  return t;
}

absl::StatusOr<std::vector<int32_t>> BenchGraph::ReadIntegers(Value v) {
  std::vector<int32_t> host(v.type().num_elements());
  RETURN_IF_ERROR(stream_->Copy(host.data(), memory_.at(v)->data(), host.size() * sizeof(int32_t)));
  RETURN_IF_ERROR(stream_->Synchronize());
  return host;
}

}  // namespace moe::tools
