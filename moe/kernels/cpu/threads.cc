#include "moe/kernels/cpu/threads.h"

#include <cblas.h>
#include <omp.h>

namespace moe::kernels {

void UseOneThreadInThisThread() {
  // OpenMP keeps the number per thread, OpenBLAS per process.
  static const bool openblas = (openblas_set_num_threads(1), true);
  thread_local const bool openmp = (omp_set_num_threads(1), true);
  (void)openblas;
  (void)openmp;
}

}  // namespace moe::kernels
