#include "moe/passes/overlap/bucket_collectives.h"

#include <algorithm>
#include <functional>
#include <map>
#include <queue>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "moe/base/status.h"
#include "moe/ir/builder.h"
#include "moe/ir/conversion_parts.h"
#include "moe/ir/registry.h"
#include "moe/ir/scope.h"
#include "moe/ir/state.h"
#include "moe/passes/overlap/node_order.h"

namespace moe::passes {
namespace {

bool UsedOnlyBy(Value v, const std::function<bool(const Node&)>& user) {
  for (const Use& u : v.node->uses(v.index)) {
    if (!user(*u.user)) return false;
  }
  return true;
}

// Attributes that say where a node came from and not what it does.
bool IsHint(const std::string& name) {
  return name == "steps" || name == "dim" || name == "tag" || name == "dual" || name == "like" ||
         name == "extents";
}

struct Bucket {
  std::vector<Node*> members;
  int64_t bytes = 0;
  int dims = 0;
  bool gathers = false;
  std::set<int> needs;  // buckets that its members depend on
};

class Bucketing {
 public:
  // accumulated_by: state -> functions that accumulate it.
  Bucketing(Function& f, int64_t limit, const std::map<std::string, std::string>& accumulated_by)
      : f_(f), mesh_(f.module()->mesh()), limit_(limit), accumulated_by_(accumulated_by), order_(f) {}

  absl::StatusOr<bool> Run() {
    needs_.resize(order_.size());
    bucket_of_.assign(order_.size(), -1);
    for (int i = 0; i < order_.size(); ++i) {
      for (const int j : order_.before(i)) {
        needs_[i].insert(needs_[j].begin(), needs_[j].end());
        if (bucket_of_[j] >= 0) needs_[i].insert(bucket_of_[j]);
      }
      RETURN_IF_ERROR(Consider(i));
    }
    for (size_t b = 0; b < buckets_.size(); ++b) {
      if (buckets_[b].members.size() > 1) continue;
      bucket_of_[order_.index(buckets_[b].members[0])] = -1;
      buckets_[b].members.clear();
    }
    RETURN_IF_ERROR(Sort());
    for (const Bucket& b : buckets_) {
      if (!b.members.empty()) RETURN_IF_ERROR(Emit(b));
    }
    return count_ > 0;
  }
  int buckets() const { return count_; }
  int members() const { return members_; }

 private:
  // What nodes must have in common, or "" for a node that goes alone.
  absl::StatusOr<std::string> Signature(const Node& n, bool* gathers) const {
    if (n.queue != Queue::kComm || !ConvertsOne(n) || n.type().ragged >= 0) return "";
    ASSIGN_OR_RETURN(const std::vector<ConversionPart> parts, ConversionParts(n, mesh_));
    const bool update = n.phase == Phase::kUpdate;
    std::vector<std::string> words = {std::string(DTypeName(n.type().dtype)),
                                      std::string(PhaseName(n.phase))};
    bool reduces = false;
    *gathers = false;
    for (const ConversionStep& s : parts[0].steps) {
      if (IsLocal(s.kind) || s.kind == StepKind::kPermute || s.kind == StepKind::kRotate ||
          s.kind == StepKind::kAllToAll)
        return "";
      if (s.kind == StepKind::kAllGather) {
        *gathers = !reduces;
      } else {
        reduces = true;
      }
      const int from = s.moves[0].from;
      words.push_back(
          absl::StrCat(StepKindName(s.kind), from == Placement::kMax ? " max " : " ", mesh_.Show(s.axes())));
    }
    for (const auto& [name, value] : n.attributes()) {
      if (IsHint(name) || name == "axes") continue;
      if (name == "wire") {
        words.push_back(absl::StrCat("as ", n.String("wire")));
        continue;
      }
      return "";  // something this pass does not know how to share
    }
    if (*gathers) {
      const Node& source = *n.operand(0).node;  // parameters, or narrow casts of them
      const bool of_state = source.Is("arg") || (source.Is("math.cast") && source.operand(0).node->Is("arg"));
      if (!of_state &&
          !(update && UsedOnlyBy(n.operand(0), [&](const Node& u) { return &u == &n || u.Is("return"); })))
        return "";
      words.push_back(of_state ? FirstLayer(n) : "updated");
      return absl::StrJoin(words, "; ");
    }
    const auto accumulates = [](const Node& u) { return u.Is("optim.accumulate"); };
    if (!update && !UsedOnlyBy(Value{const_cast<Node*>(&n), 0}, accumulates)) return "";
    // Gradients that are complete together.
    if (n.operand(0).node->Is("arg")) {
      const auto it = accumulated_by_.find(n.operand(0).node->binding.name);
      if (it != accumulated_by_.end()) words.push_back(it->second);
    }
    return absl::StrJoin(words, "; ");
  }

  // The layer that needs the value first.
  std::string FirstLayer(const Node& n) const {
    int first = order_.size();
    for (const Use& u : n.uses()) {
      if (order_.Has(u.user)) first = std::min(first, order_.index(u.user));
    }
    return first == order_.size() ? "" : std::string(ParseScope(order_.node(first)->scope).layer_text);
  }

  int64_t BytesOf(const Node& n) const {
    const Type &from = n.operand(0).type(), &to = n.type();
    return std::max(from.LocalElements(mesh_), to.LocalElements(mesh_)) * ByteSize(to.dtype);
  }

  // Does `from` depend on `to`, through other buckets too?
  bool Reaches(int from, int to, std::set<int>* seen) const {
    if (from == to) return true;
    if (!seen->insert(from).second) return false;
    for (const int next : buckets_[from].needs) {
      if (Reaches(next, to, seen)) return true;
    }
    return false;
  }

  absl::Status Consider(int i) {
    Node* n = order_.node(i);
    bool gathers = false;
    ASSIGN_OR_RETURN(const std::string signature, Signature(*n, &gathers));
    if (signature.empty()) return absl::OkStatus();
    const int64_t bytes = BytesOf(*n);
    if (bytes > limit_) return absl::OkStatus();
    auto open = open_.find(signature);
    if (open != open_.end()) {
      Bucket& b = buckets_[open->second];
      bool fits = b.bytes + bytes <= limit_ && b.dims + n->type().rank() <= kMaxBucketDims;
      std::set<int> seen;
      for (const int need : needs_[i]) fits = fits && !Reaches(need, open->second, &seen);
      if (fits) {
        b.members.push_back(n);
        b.bytes += bytes;
        b.dims += n->type().rank();
        b.needs.insert(needs_[i].begin(), needs_[i].end());
        bucket_of_[i] = open->second;
        return absl::OkStatus();
      }
    }
    bucket_of_[i] = open_[signature] = static_cast<int>(buckets_.size());
    buckets_.push_back({{n}, bytes, n->type().rank(), gathers, needs_[i]});
    return absl::OkStatus();
  }

  // Members of a bucket next to each other, at the place of the last one (gathers: the first); everything
  // else where it is unless it has to wait.
  absl::Status Sort() {
    std::map<int, std::vector<int>> groups;  // by the group's place in the list -> nodes
    std::vector<int> group_of(order_.size());
    for (int i = 0; i < order_.size(); ++i) {
      group_of[i] = i;
      if (bucket_of_[i] >= 0) {
        const Bucket& b = buckets_[bucket_of_[i]];
        group_of[i] = order_.index(b.gathers ? b.members.front() : b.members.back());
      }
      groups[group_of[i]].push_back(i);
    }
    std::map<int, std::set<int>> before, after;
    for (int i = 0; i < order_.size(); ++i) {
      for (const int j : order_.before(i)) {
        if (group_of[j] == group_of[i]) continue;
        before[group_of[i]].insert(group_of[j]);
        after[group_of[j]].insert(group_of[i]);
      }
    }
    std::priority_queue<int, std::vector<int>, std::greater<int>> ready;
    for (const auto& [g, _] : groups) {
      if (before[g].empty()) ready.push(g);
    }
    std::vector<Node*> sorted;
    while (!ready.empty()) {
      const int g = ready.top();
      ready.pop();
      for (const int i : groups[g]) sorted.push_back(order_.node(i));
      for (const int next : after[g]) {
        before[next].erase(g);
        if (before[next].empty()) ready.push(next);
      }
    }
    if (static_cast<int>(sorted.size()) != order_.size()) {
      return absl::InternalError(
          absl::StrCat("bucket-collectives: buckets of @", f_.name(), " wait for each other"));
    }
    Rearrange(f_, sorted);
    return absl::OkStatus();
  }

  absl::Status Emit(const Bucket& bucket) {
    std::vector<Value> operands;
    std::vector<Type> types;
    std::vector<std::string> parts, names;
    bool told = true;  // by the types
    for (Node* n : bucket.members) {
      operands.push_back(n->operand(0));
      types.push_back(n->type());
      ASSIGN_OR_RETURN(const std::vector<ConversionPart> part, ConversionParts(*n, mesh_));
      parts.push_back(PrintSteps(part[0].steps, mesh_));
      told = told && !n->Has("steps");
      names.push_back(n->result_name());
    }
    Builder b = Builder::Before(bucket.members[0]);
    b.scope = std::string(ParseScope(bucket.members[0]->scope).layer_text);
    b.provenance = {"bucket-collectives",
                    absl::StrCat(bucket.members.size(), " in one, ", bucket.bytes, " bytes")};
    Attributes attributes = {{"axes", bucket.members[0]->axes()}};
    if (!told) attributes["parts"] = parts;
    if (bucket.members[0]->Has("wire")) attributes["wire"] = bucket.members[0]->String("wire");
    ASSIGN_OR_RETURN(Node * node, b.CreateTyped("comm.bucket", std::move(operands), std::move(attributes),
                                                std::move(types), "bucket"));
    for (size_t i = 0; i < names.size(); ++i) {
      f_.ReplaceAllUses(bucket.members[i]->result(), node->result(static_cast<int>(i)));
      f_.Erase(bucket.members[i]);
      node->SetResultName(static_cast<int>(i), names[i]);
    }
    ++count_;
    members_ += static_cast<int>(names.size());
    return absl::OkStatus();
  }

  Function& f_;
  const Mesh& mesh_;
  const int64_t limit_;
  const std::map<std::string, std::string>& accumulated_by_;
  const NodeOrder order_;
  std::vector<Bucket> buckets_;
  std::map<std::string, int> open_;   // signature -> bucket that takes more
  std::vector<int> bucket_of_;        // by node; -1: none
  std::vector<std::set<int>> needs_;  // by node: buckets that it depends on
  int count_ = 0, members_ = 0;
};

int64_t BucketBytes(const PassContext& context) {
  return context.strategy.bucket >= 0 ? context.strategy.bucket : context.target.bucket_bytes;
}

}  // namespace

bool AsksForBuckets(const PassContext& context) { return BucketBytes(context) > 0; }

absl::StatusOr<bool> BucketCollectives(Program& program, const PassContext& context) {
  if (!AsksForBuckets(context)) return false;
  const int64_t limit = BucketBytes(context);
  std::map<std::string, std::string> accumulated_by;
  for (const auto& f : program.module->functions()) {
    if (!f->role().IsOfMicrobatch()) continue;
    for (int r = 0; r < f->num_results(); ++r) {
      if (f->result_binding(r).kind != Binding::kState) continue;
      absl::StrAppend(&accumulated_by[f->result_binding(r).name], f->name(), " ");
    }
  }
  int buckets = 0, members = 0;
  for (const auto& f : program.module->functions()) {
    Bucketing bucketing(*f, limit, accumulated_by);
    RETURN_IF_ERROR(bucketing.Run().status());
    buckets += bucketing.buckets();
    members += bucketing.members();
  }
  if (buckets > 0) {
    context.Note(
        absl::StrFormat("%d collectives in %d buckets of at most %d bytes", members, buckets, limit));
  }
  return buckets > 0;
}

}  // namespace moe::passes
