#include "moe/testing/op_cases.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "glog/logging.h"
#include "moe/device/convert.h"
#include "moe/ir/builder.h"

namespace moe::testing {

int64_t HostValue::cells() const {
  int64_t n = 1;
  for (int d = 0; d < ragged; ++d) n *= dims[d];
  return n;
}

int64_t HostValue::row_elements() const {
  int64_t n = 1;
  for (size_t d = ragged + 1; d < dims.size(); ++d) n *= dims[d];
  return n;
}

OpSizes OpSizes::Odd() {
  OpSizes s;
  s.batch = 2, s.sequence = 131, s.hidden = 328, s.kv_heads = 3, s.groups_per_kv = 2, s.head_dim = 41;
  s.vocab_blocks = 4, s.block_words = 253, s.vocab = 1009;
  s.experts = 7, s.groups = 3, s.tokens = 13, s.k = 2, s.capacity = 4, s.ffn = 77;
  return s;
}

OpSizes OpSizes::Tiny() {
  OpSizes s;
  s.batch = s.sequence = s.hidden = s.kv_heads = s.groups_per_kv = s.vocab_blocks = s.block_words = s.vocab =
      1;
  s.head_dim = 2;
  s.experts = s.groups = s.tokens = s.k = s.capacity = s.ffn = 1;
  return s;
}

namespace {

double Rounded(DType dtype, double x) {
  char stored[4];
  float y = static_cast<float>(x);
  device::FromF32(dtype, &y, stored, 1);
  device::ToF32(dtype, stored, &y, 1);
  return y;
}

// Builds one case: operands become arguments with random values.
class CaseBuilder {
 public:
  CaseBuilder(const OpRegistry& registry, const OpCaseOptions& options, uint64_t seed)
      : s(options.sizes), options_(options), registry_(registry), rng_(seed) {
    case_.module = std::make_unique<Module>("case");
    function_ = case_.module->AddFunction("f");
  }

  const OpSizes s;

  Value Real(Dims dims, double deviation = 1) {
    return Fill(options_.dtype, std::move(dims), [&] { return deviation * normal_(rng_); });
  }
  Value Positive(Dims dims) {
    return Fill(options_.dtype, std::move(dims), [&] { return 0.1 + std::abs(normal_(rng_)); });
  }
  // About the largest of random logits: far below them their exponents overflow, far above they vanish.
  Value Maxima(Dims dims) { return Maxima(std::move(dims), std::sqrt(static_cast<double>(s.hidden))); }
  Value Maxima(Dims dims, double deviation) {
    return Fill(options_.dtype, std::move(dims), [&, deviation] { return 5 * deviation + normal_(rng_); });
  }
  Value Scalar(double x) {
    return Fill(options_.dtype, {}, [&] { return x; });
  }
  // Values below 0 stand for none.
  Value Ints(Dims dims, int64_t low, int64_t high) {
    std::uniform_int_distribution<int64_t> d(low, high);
    return Fill(DType::kS32, std::move(dims), [&] { return static_cast<double>(d(rng_)); });
  }
  Value Positions(int64_t n) {
    double next = 3;
    return Fill(DType::kS32, {n}, [&] { return next++; });
  }
  // As a layout that gives a rank an early and a late chunk of the sequence would.
  Value ZigZagPositions(int64_t n) {
    int64_t i = 0;
    return Fill(DType::kS32, {n}, [&] {
      const double p = static_cast<double>(i < n / 2 ? 2 * i : 2 * (n - 1 - i) + 1);
      ++i;
      return p;
    });
  }
  Value Mask(Dims dims) {
    return Fill(options_.dtype, std::move(dims),
                [&] { return uniform_(rng_) < options_.masked ? 0.0 : 1.0; });
  }
  // Softmax-like rows along the last dim.
  Value Probabilities(Dims dims) {
    const int64_t e = dims.back();
    Value v = Positive(std::move(dims));
    std::vector<double>& p = case_.operands.back().data;
    for (size_t i = 0; i < p.size(); i += e) {
      double sum = 0;
      for (int64_t j = 0; j < e; ++j) sum += p[i + j];
      for (int64_t j = 0; j < e; ++j) p[i + j] /= sum;
    }
    return v;
  }

  // Rows of probabilities that differ by far more than a finite difference moves them; with ties, there are
  // only two.
  Value Ranked(Dims dims, bool ties) {
    const int64_t e = dims.back();
    std::vector<double> row(e);
    int64_t next = e;
    return Fill(options_.dtype, std::move(dims), [&, e] {
      if (next == e) {
        for (int64_t j = 0; j < e; ++j) row[j] = ties ? 1 + j % 2 : 1 + j + 0.5 * uniform_(rng_);
        std::shuffle(row.begin(), row.end(), rng_);
        next = 0;
      }
      return row[next++] / static_cast<double>(e * (e + 1));
    });
  }

  // A routing of [b c t k]: distinct experts per token as far as there are enough, none for masked tokens;
  // expert 0 gets nothing. Made once, so that experts, slots and ragged sizes of a case agree.
  Value Experts() {
    Route(false);
    return Given(DType::kS32, ChoiceDims(), experts_);
  }
  Value Slots(bool dropless) {
    Route(dropless);
    return Given(DType::kS32, ChoiceDims(), slots_);
  }
  // Twice as many expert slots as experts: two of each expert, out of order, but for one that is empty.
  Value ExpertMap() {
    int64_t w = 0;
    return Fill(DType::kS32, {2 * s.experts}, [&] {
      const int64_t slot = w++;
      return static_cast<double>(slot == 0 && s.experts > 1 ? -1 : (slot * 3 + slot / s.experts) % s.experts);
    });
  }
  Dims ChoiceDims() const { return {s.batch, s.groups, s.tokens, s.k}; }
  // [e b c p rest]: dense with `capacity` slots, or ragged with sizes that follow from the routing.
  Value DispatchedTokens(bool dropless, Dims rest) {
    Route(dropless);
    Dims dims = {s.experts, s.batch, s.groups, s.capacity};
    dims.insert(dims.end(), rest.begin(), rest.end());
    if (!dropless) return Real(std::move(dims));
    HostValue v;
    v.dtype = options_.dtype;
    v.dims = dims;
    v.ragged = 3;
    v.ragged_bound = s.tokens * s.k;
    v.sizes.assign(v.cells(), 0);
    const int64_t groups = s.batch * s.groups, choices = s.tokens * s.k;
    int64_t rows = 0;
    for (int64_t i = 0; i < groups * choices; ++i) {
      if (experts_[i] < 0) continue;
      ++v.sizes[experts_[i] * groups + i / choices];
      ++rows;
    }
    v.data.resize(rows * v.row_elements());
    for (double& x : v.data) x = normal_(rng_);
    Type type(v.dtype, dims);
    type.ragged = 3;
    type.ragged_bound = v.ragged_bound;
    return Add(std::move(v), type);
  }

  void Op(absl::string_view op, std::vector<Value> operands, Attributes attributes = {}) {
    WidenWhereDeclared(*registry_.Find(op), operands);
    Builder b(function_, registry_);
    absl::StatusOr<Node*> n = b.CreateNode(op, std::move(operands), std::move(attributes));
    CHECK(n.ok()) << op << ": " << n.status();
    case_.node = *n;
  }
  // For ops whose number of results varies.
  void TypedOp(absl::string_view op, std::vector<Value> operands, Attributes attributes,
               std::vector<Type> types) {
    Builder b(function_, registry_);
    absl::StatusOr<Node*> n = b.CreateTyped(op, std::move(operands), std::move(attributes), std::move(types));
    CHECK(n.ok()) << op << ": " << n.status();
    case_.node = *n;
  }
  // That of sums over many tokens: f32 at least.
  std::string DTypeOfSums() const {
    return std::string(DTypeName(ByteSize(options_.dtype) < 4 ? DType::kF32 : options_.dtype));
  }
  std::string DTypeOfReals() const { return std::string(DTypeName(options_.dtype)); }
  double Normal() { return normal_(rng_); }

  OpCase Finish(std::string name) {
    case_.name = std::move(name);
    // Operands in the order of the node (they may have been made in another).
    std::vector<HostValue> ordered;
    for (const Value& v : case_.node->operands()) ordered.push_back(case_.operands[index_.at(v.node)]);
    case_.operands = std::move(ordered);
    return std::move(case_);
  }

 private:
  Value Fill(DType dtype, Dims dims, const std::function<double()>& next) {
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    std::vector<double> data(n);
    for (double& x : data) x = next();
    return Given(dtype, std::move(dims), std::move(data));
  }
  Value Given(DType dtype, Dims dims, std::vector<double> data) {
    HostValue v;
    v.dtype = dtype;
    v.dims = dims;
    v.data = std::move(data);
    return Add(std::move(v), Type(dtype, dims));
  }
  Value Add(HostValue v, Type type) {
    if (IsFloat(v.dtype) && v.dtype != DType::kF64) {
      for (double& x : v.data) x = Rounded(v.dtype, x);
    }
    Value arg = function_->AddArg(absl::StrCat("x", case_.operands.size()), std::move(type));
    index_[arg.node] = case_.operands.size();
    case_.operands.push_back(std::move(v));
    return arg;
  }

  void WidenWhereDeclared(const OpDef& op, const std::vector<Value>& operands) {
    for (int i = 0; i < static_cast<int>(operands.size()); ++i) {
      if (!op.IsWide(i)) continue;
      Type type = operands[i].type();
      HostValue& v = case_.operands[index_.at(operands[i].node)];
      type.dtype = v.dtype = AtLeastF32(type.dtype);
      operands[i].node->SetType(0, type);
    }
  }

  void Route(bool dropless) {
    if (!experts_.empty()) return;
    const int64_t choices = s.tokens * s.k;
    for (int64_t g = 0; g < s.batch * s.groups; ++g) {
      std::vector<int64_t> count(s.experts, 0);
      for (int64_t t = 0; t < s.tokens; ++t) {
        const bool masked = uniform_(rng_) < options_.masked;
        const int64_t first = s.experts > 1 ? 1 : 0, n = s.experts - first;
        const int64_t start = std::uniform_int_distribution<int64_t>(0, n - 1)(rng_);
        for (int64_t k = 0; k < s.k; ++k) {
          const int64_t e = masked ? -1 : first + (start + k) % n;
          int64_t slot = -1;
          if (e >= 0) slot = count[e]++;
          experts_.push_back(static_cast<double>(e));
          slots_.push_back(static_cast<double>(dropless || slot < s.capacity ? slot : -1));
        }
      }
    }
    CHECK_EQ(experts_.size(), s.batch * s.groups * choices);
  }

  const OpCaseOptions& options_;
  const OpRegistry& registry_;
  std::mt19937_64 rng_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
  OpCase case_;
  Function* function_;
  std::map<const Node*, size_t> index_;
  std::vector<double> experts_, slots_;
};

using Make = std::function<void(CaseBuilder&)>;
struct NamedCase {
  std::string name;
  Make make;
};
using Cases = std::vector<NamedCase>;

void MathCases(Cases* out) {
  auto tokens = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.sequence, c.s.hidden}; };
  auto add = [&](std::string name, Make make) { out->push_back({std::move(name), std::move(make)}); };
  auto unary = [&](std::string op, Attributes attributes = {}) {
    add(op, [=](CaseBuilder& c) { c.Op(op, {c.Positive(tokens(c))}, attributes); });
  };
  add("math.constant", [](CaseBuilder& c) {
    c.Op("math.constant", {}, {{"value", 2.5}, {"dtype", c.DTypeOfReals()}});
  });
  for (const std::string op : {"math.add", "math.mul", "math.silu_grad", "nn.swiglu"}) {
    add(op, [=](CaseBuilder& c) { c.Op(op, {c.Real(tokens(c)), c.Real(tokens(c))}); });
    add(op + "/dropless", [=](CaseBuilder& c) {
      const Value x = c.DispatchedTokens(true, {c.s.ffn});
      c.Op(op, {x, c.DispatchedTokens(true, {c.s.ffn})});
    });
  }
  add("math.mul/scalar", [=](CaseBuilder& c) { c.Op("math.mul", {c.Real(tokens(c)), c.Real({})}); });
  add("math.add/scalar", [=](CaseBuilder& c) { c.Op("math.add", {c.Real(tokens(c)), c.Real({})}); });
  unary("math.scale", {{"by", -0.75}});
  add("math.scale/dropless", [](CaseBuilder& c) {
    c.Op("math.scale", {c.DispatchedTokens(true, {c.s.ffn})}, {{"by", 3.0}});
  });
  add("math.silu", [=](CaseBuilder& c) { c.Op("math.silu", {c.Real(tokens(c))}); });
  unary("math.log");
  unary("math.reciprocal");
  unary("math.at_least", {{"value", 0.5}});
  add("math.cast", [=](CaseBuilder& c) {
    c.Op("math.cast", {c.Real(tokens(c))}, {{"dtype", c.DTypeOfReals()}});
  });
  add("math.cast/counts", [=](CaseBuilder& c) {
    c.Op("math.cast", {c.Ints({c.s.experts}, 0, 99)}, {{"dtype", c.DTypeOfReals()}});
  });
  add("math.cast/dropless", [=](CaseBuilder& c) {
    c.Op("math.cast", {c.DispatchedTokens(true, {c.s.ffn})}, {{"dtype", c.DTypeOfReals()}});
  });
  add("math.sum_squares", [=](CaseBuilder& c) { c.Op("math.sum_squares", {c.Real(tokens(c))}); });
  add("math.reduce_max", [=](CaseBuilder& c) {
    c.Op("math.reduce_max", {c.Real(tokens(c))}, {{"eq", "b s u -> b s"}});
  });
  add("math.broadcast", [](CaseBuilder& c) {
    c.Op("math.broadcast", {c.Real({c.s.batch, c.s.experts})},
         {{"eq", "b e -> b t e"}, {"extents", std::vector<std::string>{absl::StrCat("t=", c.s.tokens)}}});
  });
  add("math.reshape", [](CaseBuilder& c) {
    c.Op("math.reshape", {c.Real({c.s.batch, c.s.groups * c.s.tokens, c.s.hidden})},
         {{"eq", "b (c t) h -> b c t h"},
          {"extents", std::vector<std::string>{absl::StrCat("c=", c.s.groups)}}});
  });
  add("math.permute_blocks", [](CaseBuilder& c) {
    c.Op("math.permute_blocks", {c.Real({c.s.batch, 4 * c.s.tokens, c.s.hidden})},
         {{"dim", int64_t{1}}, {"order", std::vector<int64_t>{0, 3, 1, 2}}});
  });
  for (int64_t dim : {0, 1}) {
    add(absl::StrCat("math.rotate/", dim), [dim](CaseBuilder& c) {
      c.Op("math.rotate", {c.Real({4 * c.s.batch, 4 * c.s.tokens, c.s.hidden})},
           {{"dim", dim}, {"blocks", int64_t{4}}});
    });
  }
  // Einsum: the shapes of a transformer, what autodiff makes of them, and forms that no GEMM fits.
  struct Eq {
    std::string name, eq;
    std::vector<std::string> dims;  // letters, see below
  };
  const std::vector<Eq> eqs = {
      {"/projection", "b s h, h n d -> b s n d", {"bsh", "hnd"}},
      {"/out-projection", "b s n d, n d h -> b s h", {"bsnd", "ndh"}},
      {"/weight-gradient", "b s n d, b s h -> h n d", {"bsnd", "bsh"}},
      {"/out-weight-gradient", "b s h, b s n d -> n d h", {"bsh", "bsnd"}},
      {"/activation-gradient", "b s n d, h n d -> b s h", {"bsnd", "hnd"}},
      {"/router", "b c t h, h e -> b c t e", {"bcth", "he"}},
      {"/experts", "e b c p h, e h f -> e b c p f", {"ebcph", "ehf"}},
      {"/experts-dw", "e b c p f, e b c p h -> e h f", {"ebcpf", "ebcph"}},
      {"/experts-dx", "e b c p f, e h f -> e b c p h", {"ebcpf", "ehf"}},
      {"/dot", "b s, b s ->", {"bs", "bs"}},
      {"/sum", "b s h -> s", {"bsh"}},
      {"/transpose", "b s h -> h b s", {"bsh"}},
      {"/per-expert", "b c t e, e -> b c t e", {"bcte", "e"}},
      {"/interleaved", "b s n d, h s -> b h n d", {"bsnd", "hs"}},
      {"/three", "b s, b s h, h -> b h", {"bs", "bsh", "h"}},
      {"/outer", "b h, s f -> b s h f", {"bh", "sf"}},
  };
  for (const Eq& q : eqs) {
    add("math.einsum" + q.name, [q](CaseBuilder& c) {
      const std::map<char, int64_t> extent = {{'b', c.s.batch},    {'s', c.s.sequence}, {'h', c.s.hidden},
                                              {'n', c.s.kv_heads}, {'d', c.s.head_dim}, {'c', c.s.groups},
                                              {'t', c.s.tokens},   {'e', c.s.experts},  {'p', c.s.capacity},
                                              {'f', c.s.ffn}};
      std::vector<Value> operands;
      for (const std::string& letters : q.dims) {
        Dims dims;
        for (char letter : letters) dims.push_back(extent.at(letter));
        operands.push_back(c.Real(dims));
      }
      c.Op("math.einsum", operands, {{"eq", q.eq}});
    });
  }
  add("math.einsum/experts/dropless", [](CaseBuilder& c) {
    const Value x = c.DispatchedTokens(true, {c.s.hidden});
    c.Op("math.einsum", {x, c.Real({c.s.experts, c.s.hidden, c.s.ffn})},
         {{"eq", "e b c p! h, e h f -> e b c p! f"}});
  });
  add("math.einsum/experts-dx/dropless", [](CaseBuilder& c) {
    const Value dy = c.DispatchedTokens(true, {c.s.ffn});
    c.Op("math.einsum", {dy, c.Real({c.s.experts, c.s.hidden, c.s.ffn})},
         {{"eq", "e b c p! f, e h f -> e b c p! h"}});
  });
  add("math.einsum/experts-dw/dropless", [](CaseBuilder& c) {
    const Value dy = c.DispatchedTokens(true, {c.s.ffn});
    c.Op("math.einsum", {dy, c.DispatchedTokens(true, {c.s.hidden})},
         {{"eq", "e b c p! f, e b c p! h -> e h f"}});
  });
  add("math.einsum/shared-dw/dropless", [](CaseBuilder& c) {
    const Value dy = c.DispatchedTokens(true, {c.s.ffn});
    c.Op("math.einsum", {dy, c.DispatchedTokens(true, {c.s.hidden})},
         {{"eq", "e b c p! f, e b c p! h -> h f"}});
  });
  // The products of experts on operands rounded to e4m3.
  struct RoundedEq {
    std::string name, eq;
    int ragged;  // operands from this one on are dense
  };
  for (const RoundedEq& q : {RoundedEq{"experts", "e b c p h, e h f -> e b c p f", 1},
                             {"experts-dx", "e b c p f, e h f -> e b c p h", 1},
                             {"experts-dw", "e b c p f, e b c p h -> e h f", 2},
                             {"shared-dw", "e b c p f, e b c p h -> h f", 2}}) {
    for (const bool dropless : {false, true}) {
      add(absl::StrCat("math.einsum/f8-", q.name, dropless ? "/dropless" : ""),
          [q, dropless](CaseBuilder& c) {
            std::vector<Value> operands;
            const std::vector<std::string> terms = absl::StrSplit(q.eq, absl::ByAnyChar(",-"));
            for (int i = 0; i < 2; ++i) {
              const bool hidden = absl::StrContains(terms[i], "h"), weight = i >= q.ragged;
              operands.push_back(weight ? c.Real({c.s.experts, c.s.hidden, c.s.ffn})
                                        : c.DispatchedTokens(dropless, {hidden ? c.s.hidden : c.s.ffn}));
            }
            Attributes attributes = {{"eq", q.eq}, {"multiply", std::string("f8e4m3")}};
            if (q.ragged == 2) attributes["dtype"] = c.DTypeOfSums();
            c.Op("math.einsum", operands, attributes);
          });
    }
  }
  add("math.einsum/per-sample/dropless", [](CaseBuilder& c) {
    const Value x = c.DispatchedTokens(true, {c.s.hidden});
    c.Op("math.einsum", {x, c.Real({c.s.batch, c.s.hidden})}, {{"eq", "e b c p! h, b h -> e b c p! h"}});
  });
}

void NnCases(Cases* out) {
  auto add = [&](std::string name, Make make) { out->push_back({std::move(name), std::move(make)}); };
  auto tokens = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.sequence, c.s.hidden}; };
  auto words = [](CaseBuilder& c) { return c.s.vocab_blocks * c.s.block_words; };
  add("nn.embed", [=](CaseBuilder& c) {
    c.Op("nn.embed", {c.Ints({c.s.batch, c.s.sequence}, 0, words(c) - 1), c.Real({words(c), c.s.hidden})});
  });
  add("nn.embed_grad", [=](CaseBuilder& c) {
    c.Op("nn.embed_grad", {c.Ints({c.s.batch, c.s.sequence}, 0, words(c) - 1), c.Real(tokens(c))},
         {{"vocab", words(c)}});
  });
  const Attributes eps = {{"eps", 1e-5}};
  add("nn.rms_norm", [=](CaseBuilder& c) {
    c.Op("nn.rms_norm", {c.Real(tokens(c)), c.Real({c.s.hidden})}, eps);
  });
  add("nn.rms_norm_dx", [=](CaseBuilder& c) {
    c.Op("nn.rms_norm_dx", {c.Real(tokens(c)), c.Real({c.s.hidden}), c.Real(tokens(c))}, eps);
  });
  add("nn.rms_norm_dw", [=](CaseBuilder& c) {
    c.Op("nn.rms_norm_dw", {c.Real(tokens(c)), c.Real(tokens(c))}, eps);
  });
  add("nn.add_rms_norm", [=](CaseBuilder& c) {
    c.Op("nn.add_rms_norm", {c.Real(tokens(c)), c.Real(tokens(c)), c.Real({c.s.hidden})}, eps);
  });
  auto heads = [](CaseBuilder& c) {
    return Dims{c.s.batch, c.s.sequence, c.s.kv_heads * c.s.groups_per_kv, c.s.head_dim};
  };
  auto keys = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.sequence, c.s.kv_heads, c.s.head_dim}; };
  for (bool inverse : {false, true}) {
    add(inverse ? "nn.rope/inverse" : "nn.rope", [=](CaseBuilder& c) {
      c.Op("nn.rope", {c.Real(heads(c)), c.Positions(c.s.sequence)}, {{"theta", 1e4}, {"inverse", inverse}});
    });
  }
  add("nn.rope/zig-zag", [=](CaseBuilder& c) {
    c.Op("nn.rope", {c.Real(heads(c)), c.ZigZagPositions(c.s.sequence)}, {{"theta", 1e4}});
  });
  for (bool zig_zag : {false, true}) {
    auto positions = [=](CaseBuilder& c) {
      return zig_zag ? c.ZigZagPositions(c.s.sequence) : c.Positions(c.s.sequence);
    };
    add(zig_zag ? "nn.attention/zig-zag" : "nn.attention", [=](CaseBuilder& c) {
      const Value q = c.Real(heads(c)), k = c.Real(keys(c)), v = c.Real(keys(c));
      const Value qp = positions(c), kp = positions(c);
      c.Op("nn.attention", {q, k, v, qp, kp});
    });
    // Any o and lse make a defined, if meaningless, gradient; lse is high, so that exp stays small.
    add(zig_zag ? "nn.attention_grad/zig-zag" : "nn.attention_grad", [=](CaseBuilder& c) {
      const Value q = c.Real(heads(c)), k = c.Real(keys(c)), v = c.Real(keys(c));
      const Value qp = positions(c), kp = positions(c), o = c.Real(heads(c));
      const Value lse = c.Maxima({c.s.batch, c.s.sequence, c.s.kv_heads * c.s.groups_per_kv});
      c.Op("nn.attention_grad", {q, k, v, qp, kp, o, lse, c.Real(heads(c))});
    });
  }
  // Two blocks of the sequence that see their own keys alone.
  auto two = [](Dims dims) {
    dims[1] *= 2;
    return dims;
  };
  add("nn.attention/blocks", [=](CaseBuilder& c) {
    const Value q = c.Real(two(heads(c))), k = c.Real(two(keys(c))), v = c.Real(two(keys(c)));
    const Value qp = c.Positions(2 * c.s.sequence), kp = c.ZigZagPositions(2 * c.s.sequence);
    c.Op("nn.attention", {q, k, v, qp, kp}, {{"blocks", int64_t{2}}});
  });
  add("nn.attention_grad/blocks", [=](CaseBuilder& c) {
    const Value q = c.Real(two(heads(c))), k = c.Real(two(keys(c))), v = c.Real(two(keys(c)));
    const Value qp = c.Positions(2 * c.s.sequence), kp = c.ZigZagPositions(2 * c.s.sequence);
    const Value o = c.Real(two(heads(c)));
    const Value lse = c.Maxima({c.s.batch, 2 * c.s.sequence, c.s.kv_heads * c.s.groups_per_kv});
    c.Op("nn.attention_grad", {q, k, v, qp, kp, o, lse, c.Real(two(heads(c)))}, {{"blocks", int64_t{2}}});
  });
  add("nn.attention_merge", [=](CaseBuilder& c) {
    const Dims rows = {c.s.batch, c.s.sequence, c.s.kv_heads * c.s.groups_per_kv};
    c.Op("nn.attention_merge", {c.Real(heads(c)), c.Real(rows), c.Real(heads(c)), c.Real(rows)});
  });
  add("nn.swiglu_grad", [=](CaseBuilder& c) {
    c.Op("nn.swiglu_grad", {c.Real(tokens(c)), c.Real(tokens(c)), c.Real(tokens(c))});
  });
  add("nn.swiglu_grad/dropless", [=](CaseBuilder& c) {
    const Value gate = c.DispatchedTokens(true, {c.s.ffn}), up = c.DispatchedTokens(true, {c.s.ffn});
    c.Op("nn.swiglu_grad", {gate, up, c.DispatchedTokens(true, {c.s.ffn})});
  });
  auto scores = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.groups, c.s.tokens, c.s.experts}; };
  auto routed = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.groups, c.s.tokens}; };
  add("nn.softmax", [=](CaseBuilder& c) { c.Op("nn.softmax", {c.Real(scores(c))}); });
  add("nn.softmax_grad", [=](CaseBuilder& c) {
    c.Op("nn.softmax_grad", {c.Probabilities(scores(c)), c.Real(scores(c))});
  });
  add("nn.log_sum_exp", [=](CaseBuilder& c) { c.Op("nn.log_sum_exp", {c.Real(scores(c))}); });
  add("nn.log_sum_exp_grad", [=](CaseBuilder& c) {
    c.Op("nn.log_sum_exp_grad", {c.Real(scores(c)), c.Positive(routed(c)), c.Real(routed(c))});
  });
  auto head = [=](CaseBuilder& c) { return Attributes{{"blocks", c.s.vocab_blocks}, {"vocab", c.s.vocab}}; };
  auto labels = [](CaseBuilder& c) { return c.Ints({c.s.batch, c.s.sequence}, 0, c.s.vocab - 1); };
  add("nn.head_stats", [=](CaseBuilder& c) {
    const Value x = c.Real(tokens(c)), w = c.Real({words(c), c.s.hidden});
    c.Op("nn.head_stats", {x, w, labels(c)}, head(c));
  });
  auto blocks = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.sequence, c.s.vocab_blocks}; };
  add("nn.head_stats/all-padding", [=](CaseBuilder& c) {
    const Value x = c.Real(tokens(c)), w = c.Real({words(c), c.s.hidden});
    c.Op("nn.head_stats", {x, w, c.Ints({c.s.batch, c.s.sequence}, -1, 0)},
         {{"blocks", c.s.vocab_blocks}, {"vocab", int64_t{1}}});
  });
  add("nn.head_stats_grad", [=](CaseBuilder& c) {
    // Logits of deviation 1, so that no seed has one whose exponent is beyond f16.
    const Value x = c.Real(tokens(c), 1 / std::sqrt(static_cast<double>(c.s.hidden)));
    const Value w = c.Real({words(c), c.s.hidden}), l = labels(c);
    const Value max = c.Maxima(blocks(c), 1), dsum = c.Real(blocks(c));
    c.Op("nn.head_stats_grad", {x, w, l, max, dsum, c.Real({c.s.batch, c.s.sequence})}, head(c));
  });
  add("nn.merge_sum_exp", [=](CaseBuilder& c) {
    const Value m = c.Real(blocks(c)), sum = c.Positive(blocks(c));
    c.Op("nn.merge_sum_exp", {m, sum, c.Positive({c.s.batch, c.s.sequence})});
  });
  add("nn.merge_sum_exp_grad", [=](CaseBuilder& c) {
    const Value m = c.Real(blocks(c)), max = c.Positive({c.s.batch, c.s.sequence});
    c.Op("nn.merge_sum_exp_grad", {m, max, c.Real({c.s.batch, c.s.sequence})});
  });
}

void MoeCases(Cases* out) {
  auto add = [&](std::string name, Make make) { out->push_back({std::move(name), std::move(make)}); };
  auto scores = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.groups, c.s.tokens, c.s.experts}; };
  auto routed = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.groups, c.s.tokens}; };
  auto hidden = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.groups, c.s.tokens, c.s.hidden}; };
  for (const bool ties : {false, true}) {
    add(ties ? "moe.top_k/ties" : "moe.top_k", [=](CaseBuilder& c) {
      const Value p = c.Ranked(scores(c), ties);
      c.Op("moe.top_k", {p, c.Mask(routed(c))}, {{"k", std::min(c.s.k, c.s.experts)}});
    });
  }
  for (const char* op : {"moe.router", "moe.softmax_top_k"}) {
    add(op, [=](CaseBuilder& c) {
      const Value x = c.Real(scores(c));
      c.Op(op, {x, c.Mask(routed(c))}, {{"k", std::min(c.s.k, c.s.experts)}});
    });
  }
  add("moe.top_k_grad", [=](CaseBuilder& c) {
    const Value e = c.Experts();
    c.Op("moe.top_k_grad", {e, c.Real(c.ChoiceDims())}, {{"experts", c.s.experts}});
  });
  add("moe.normalize", [=](CaseBuilder& c) { c.Op("moe.normalize", {c.Positive(c.ChoiceDims())}); });
  add("moe.normalize_grad", [=](CaseBuilder& c) {
    const Value p = c.Positive(c.ChoiceDims());
    c.Op("moe.normalize_grad", {p, c.Real(c.ChoiceDims())});
  });
  add("moe.count", [=](CaseBuilder& c) { c.Op("moe.count", {c.Experts()}, {{"experts", c.s.experts}}); });
  add("moe.count/per-sequence", [=](CaseBuilder& c) {
    c.Op("moe.count", {c.Experts()}, {{"experts", c.s.experts}, {"per_sequence", true}});
  });
  add("moe.count_kept", [=](CaseBuilder& c) { c.Op("moe.count_kept", {c.Slots(false)}); });
  for (const bool dropless : {false, true}) {
    add(dropless ? "moe.choose_replicas/dropless" : "moe.choose_replicas", [=](CaseBuilder& c) {
      const Value slot = c.Slots(dropless);
      c.Op("moe.choose_replicas", {c.Experts(), slot, c.ExpertMap()});
    });
  }
  add("moe.sum_replicas", [](CaseBuilder& c) {
    const Value x = c.Real({2 * c.s.experts, c.s.hidden, c.s.ffn});
    c.Op("moe.sum_replicas", {x, c.ExpertMap()}, {{"experts", c.s.experts}});
  });
  add("moe.copy_to_replicas", [](CaseBuilder& c) {
    const Value x = c.Real({c.s.experts, c.s.hidden, c.s.ffn});
    c.Op("moe.copy_to_replicas", {x, c.ExpertMap()}, {{"expert_slots", 2 * c.s.experts}});
  });
  for (const bool dropless : {false, true}) {
    const std::string suffix = dropless ? "/dropless" : "";
    const Attributes ragged = {{"dropless", dropless}};
    auto slots = [=](CaseBuilder& c) {
      return Attributes{{"experts", c.s.experts}, {"slots", c.s.capacity}, {"dropless", dropless}};
    };
    add("moe.slots" + suffix, [=](CaseBuilder& c) {
      c.Op("moe.slots", {c.Experts()},
           {{"experts", c.s.experts}, {"capacity", c.s.capacity}, {"dropless", dropless}});
    });
    add("moe.dispatch" + suffix, [=](CaseBuilder& c) {
      const Value slot = c.Slots(dropless), x = c.Real(hidden(c));
      c.Op("moe.dispatch", {x, c.Experts(), slot}, slots(c));
    });
    add("moe.split_experts" + suffix, [=](CaseBuilder& c) {
      const Value d = c.DispatchedTokens(dropless, {c.s.hidden});
      const int64_t parts = c.s.experts % 2 ? c.s.experts : 2;
      Type part = d.type();
      part.dims[0] /= parts;
      c.TypedOp("moe.split_experts", {d}, {{"chunks", parts}, {"ways", c.s.experts / parts}},
                std::vector<Type>(parts, part));
    });
    add("moe.join_experts" + suffix, [=](CaseBuilder& c) {
      std::vector<Value> parts = {c.DispatchedTokens(dropless, {c.s.hidden})};
      if (!dropless)
        parts.push_back(c.DispatchedTokens(dropless, {c.s.hidden}));  // ragged: all rows are in one part
      const auto count = static_cast<int64_t>(parts.size());
      c.Op("moe.join_experts", std::move(parts),
           {{"chunks", count}, {"ways", c.s.experts % 2 ? int64_t{1} : 2}});
    });
    add("moe.undispatch" + suffix, [=](CaseBuilder& c) {
      const Value slot = c.Slots(dropless), d = c.DispatchedTokens(dropless, {c.s.hidden});
      c.Op("moe.undispatch", {d, c.Experts(), slot}, ragged);
    });
    add("moe.combine" + suffix, [=](CaseBuilder& c) {
      const Value slot = c.Slots(dropless), o = c.DispatchedTokens(dropless, {c.s.hidden});
      const Value p = c.Positive(c.ChoiceDims());
      c.Op("moe.combine", {o, p, c.Experts(), slot}, ragged);
    });
    add("moe.combine_do" + suffix, [=](CaseBuilder& c) {
      const Value slot = c.Slots(dropless), dy = c.Real(hidden(c)), p = c.Positive(c.ChoiceDims());
      c.Op("moe.combine_do", {dy, p, c.Experts(), slot}, slots(c));
    });
    add("moe.combine_dp" + suffix, [=](CaseBuilder& c) {
      const Value slot = c.Slots(dropless), o = c.DispatchedTokens(dropless, {c.s.hidden}),
                  dy = c.Real(hidden(c));
      c.Op("moe.combine_dp", {o, dy, c.Experts(), slot}, ragged);
    });
  }
}

void OptimCases(Cases* out) {
  auto add = [&](std::string name, Make make) { out->push_back({std::move(name), std::move(make)}); };
  auto weight = [](CaseBuilder& c) { return Dims{c.s.hidden, c.s.ffn}; };
  add("optim.accumulate", [=](CaseBuilder& c) {
    c.Op("optim.accumulate", {c.Real(weight(c)), c.Real(weight(c))});
  });
  for (double max_norm : {0.0, 1.0}) {
    add(absl::StrCat("optim.clip/", max_norm), [=](CaseBuilder& c) {
      c.Op("optim.clip", {c.Positive({})}, {{"max_norm", max_norm}});
    });
  }
  const Attributes adamw = {{"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}};
  for (double finite : {0.0, 1.0}) {
    add(finite ? "optim.adamw" : "optim.adamw/not-finite", [=](CaseBuilder& c) {
      const Value p = c.Real(weight(c)), g = c.Real(weight(c)), m = c.Real(weight(c)),
                  v = c.Positive(weight(c));
      Attributes attributes = adamw;
      attributes["weight_decay"] = 0.1;
      const Value factor = c.Scalar(0.5), is_finite = c.Scalar(finite), rate = c.Scalar(0.01);
      const Value bias1 = c.Scalar(0.19);
      c.Op("optim.adamw", {p, g, m, v, factor, is_finite, rate, bias1, c.Scalar(0.002)}, attributes);
    });
  }
}

void FusedCases(Cases* out) {
  auto add = [&](std::string name, Make make) { out->push_back({std::move(name), std::move(make)}); };
  auto tokens = [](CaseBuilder& c) { return Dims{c.s.batch, c.s.sequence, c.s.hidden}; };
  const std::vector<std::string> all = {"t0 = mul x0 x1",     "t1 = scale t0 0.5",     "t2 = silu_grad x0 t1",
                                        "t3 = silu t2",       "t4 = at_least t3 0.25", "t5 = log t4",
                                        "t6 = reciprocal t4", "t7 = add t5 t6",        "t8 = mul t7 x2",
                                        "t9 = add x2 t8"};
  add("math.fused", [=](CaseBuilder& c) {
    const Value x = c.Real(tokens(c)), y = c.Real(tokens(c));
    c.Op("math.fused", {x, y, c.Real({})}, {{"program", all}});
  });
  add("math.fused/dropless", [=](CaseBuilder& c) {
    const Value x = c.DispatchedTokens(true, {c.s.ffn}), y = c.DispatchedTokens(true, {c.s.ffn});
    c.Op("math.fused", {x, y}, {{"program", std::vector<std::string>{"t0 = silu x0", "t1 = mul t0 x1"}}});
  });
  for (const double finite : {1.0, 0.0}) {
    add(finite ? "optim.multi_adamw" : "optim.multi_adamw/not-finite", [=](CaseBuilder& c) {
      // The second tensor has a copy.
      std::vector<Value> operands = {c.Scalar(0.5), c.Scalar(finite), c.Scalar(0.01), c.Scalar(0.19),
                                     c.Scalar(0.002)};
      std::vector<Type> types;
      for (const Dims& dims : {Dims{c.s.hidden}, Dims{c.s.hidden, c.s.ffn}}) {
        for (const Value& v : {c.Real(dims), c.Real(dims), c.Real(dims), c.Positive(dims)})
          operands.push_back(v);
        types.insert(types.end(), 3, operands.back().type());
      }
      types.push_back(types.back());
      const std::string dtype(DTypeName(types.back().dtype));
      c.TypedOp("optim.multi_adamw", std::move(operands),
                {{"beta1", 0.9},
                 {"beta2", 0.999},
                 {"eps", 1e-8},
                 {"weight_decay", std::vector<std::string>{"0", "0.1"}},
                 {"copies", std::vector<int64_t>{1}},
                 {"dtype", dtype}},
                std::move(types));
    });
  }
}

}  // namespace

std::vector<OpCase> MakeOpCases(const OpRegistry& registry, const OpCaseOptions& options) {
  Cases cases;
  MathCases(&cases);
  NnCases(&cases);
  MoeCases(&cases);
  OptimCases(&cases);
  FusedCases(&cases);
  std::vector<OpCase> out;
  for (size_t i = 0; i < cases.size(); ++i) {
    CaseBuilder builder(registry, options, options.seed * 1000003 + i);
    cases[i].make(builder);
    out.push_back(builder.Finish(cases[i].name));
  }
  return out;
}

}  // namespace moe::testing
