// The page docs/ops.md, from the registries: what ops there are, what they mean, and which kernels they have.
// //tools:gen_ops_doc writes it, and a test holds the page to it.
#pragma once

#include <string>

#include "moe/ir/registry.h"
#include "moe/kernels/kernel.h"

namespace moe::kernels {

// op x {reference, cpu} x {f64, f32}, as a Markdown table. Ops on integers alone have one kernel for all;
// conversions between placements have none: the runtime executes them.
std::string SupportTable(const OpRegistry& ops, const KernelRegistry& kernels);

std::string OpsPage(const OpRegistry& ops, const KernelRegistry& kernels);

}  // namespace moe::kernels
