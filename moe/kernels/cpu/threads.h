// Threads inside the GEMM libraries. Parallelism comes from the ranks: many virtual devices share the cores,
// so the libraries stay on the thread that calls them.
#pragma once

namespace moe::kernels {

// Makes GEMMs called from this thread run on this thread alone. Cheap after the first call in a thread; the
// GEMM wrapper calls it, so nobody else needs to.
void UseOneThreadInThisThread();

}  // namespace moe::kernels
