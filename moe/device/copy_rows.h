// Boxes of elements from one layout to another, on the host.
//
//   CopyRows(layout.pack_row, rows, x, layout.row_in, packed, layout.row_block, ByteSize(dtype));
//
// Stateless.
#pragma once

#include <cstdint>

#include "moe/ir/conversion_layout.h"

namespace moe::device {

// Copies a box of elements of `element` bytes.
void CopyStrided(const StridedCopy& copy, const char* from, char* to, int64_t element);

// `rows` rows, of each the box `copy`; from_row, to_row: elements from one row to the next.
void CopyRows(const StridedCopy& copy, int64_t rows, const char* from, int64_t from_row, char* to,
              int64_t to_row, int64_t element);

}  // namespace moe::device
