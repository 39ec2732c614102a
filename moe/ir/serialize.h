// Protobuf form of modules (module.proto). FromProto(ToProto(m)) == m, always; both are generic over the
// registry.
//
//   ModuleProto proto = ToProto(module);
//   ASSIGN_OR_RETURN(std::unique_ptr<Module> copy, FromProto(proto));
//   RETURN_IF_ERROR(Verify(*copy));
//
// FromProto is for hostile input: sizes are bounded (limits.h), every index is checked, and errors
// (InvalidArgument) name the function and the node. What spans several nodes is left to Verify, which belongs
// after every load. The results own all they hold. No state; any thread.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "moe/ir/graph.h"
#include "moe/ir/module.pb.h"
#include "moe/ir/registry.h"

namespace moe {

ModuleProto ToProto(const Module& module);
absl::StatusOr<std::unique_ptr<Module>> FromProto(const ModuleProto& proto,
                                                  const OpRegistry& registry = Ops());

MeshProto ToProto(const Mesh& mesh);
absl::StatusOr<Mesh> FromProto(const MeshProto& proto);

TypeProto ToProto(const Type& type);
// The type is verified against the mesh (VerifyType).
absl::StatusOr<Type> FromProto(const TypeProto& proto, const Mesh& mesh);

}  // namespace moe
