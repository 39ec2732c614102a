// What a CUDA stream does with values by kernels of its own: strided copies, reductions, wire formats. Equal
// bit for bit to moe/device/{copy_rows,reduce,wire_codec}.h, but for the payload of a NaN.
//
//   RETURN_IF_ERROR(cuda::CopyRows(stream, copy, rows, from, from_row, to, to_row, element));
//
// All pointers are device memory; arguments as in moe/device/device.h. Calls return when the work is
// enqueued.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "moe/device/cuda/cuda.h"
#include "moe/ir/conversion_layout.h"
#include "moe/ir/types.h"
#include "moe/ir/wire_format.h"

namespace moe::cuda {

// Most sources of one reduction; more are Unimplemented.
inline constexpr int kMostSources = 256;

absl::Status CopyRows(cudaStream_t stream, const StridedCopy& copy, int64_t rows, const void* from,
                      int64_t from_row, void* to, int64_t to_row, int64_t element);
absl::Status Reduce(cudaStream_t stream, absl::Span<const void* const> from, void* to, int64_t count,
                    DType dtype, Reduction kind);
absl::Status Encode(cudaStream_t stream, WireFormat wire, DType dtype, const void* from, int64_t n, char* to);
absl::Status Decode(cudaStream_t stream, WireFormat wire, absl::Span<const char* const> from, int64_t n,
                    Reduction kind, DType dtype, void* to);

}  // namespace moe::cuda
