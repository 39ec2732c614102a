#include "moe/device/copy_rows.h"

#include <cstring>

namespace moe::device {
namespace {

// The innermost loop with a run of kBytes known to the compiler; 0: any.
template <int kBytes>
void CopyRuns(const char* from, char* to, int64_t count, int64_t from_stride, int64_t to_stride,
              int64_t bytes) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride, kBytes > 0 ? kBytes : bytes);
  }
}

void CopyLoops(const StridedCopy& copy, size_t depth, const char* from, char* to, int64_t element) {
  const int64_t bytes = copy.run * element;
  if (depth == copy.loops.size()) {
    std::memcpy(to, from, bytes);
    return;
  }
  const StridedCopy::Loop& loop = copy.loops[depth];
  const int64_t from_stride = loop.from_stride * element, to_stride = loop.to_stride * element;
  if (depth + 1 < copy.loops.size()) {
    for (int64_t i = 0; i < loop.count; ++i) {
      CopyLoops(copy, depth + 1, from + i * from_stride, to + i * to_stride, element);
    }
    return;
  }
  switch (bytes) {
    case 2:
      return CopyRuns<2>(from, to, loop.count, from_stride, to_stride, bytes);
    case 4:
      return CopyRuns<4>(from, to, loop.count, from_stride, to_stride, bytes);
    case 8:
      return CopyRuns<8>(from, to, loop.count, from_stride, to_stride, bytes);
    case 16:
      return CopyRuns<16>(from, to, loop.count, from_stride, to_stride, bytes);
    default:
      return CopyRuns<0>(from, to, loop.count, from_stride, to_stride, bytes);
  }
}

}  // namespace

void CopyRows(const StridedCopy& copy, int64_t rows, const char* from, int64_t from_row, char* to,
              int64_t to_row, int64_t element) {
  if (rows == 0) return;
  if (copy.IsContiguous() && copy.run == from_row && copy.run == to_row) {
    std::memcpy(to, from, rows * copy.run * element);
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    CopyLoops(copy, 0, from + r * from_row * element, to + r * to_row * element, element);
}

void CopyStrided(const StridedCopy& copy, const char* from, char* to, int64_t element) {
  CopyLoops(copy, 0, from, to, element);
}

}  // namespace moe::device
