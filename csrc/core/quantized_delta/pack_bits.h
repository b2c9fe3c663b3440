// Codes of a few bits side by side in bytes.
//
// Element j of a row is in bits (j bits) mod 8 and following of byte j bits / 8, the least significant first; three bits
// are a plane of two, then a plane of the high ones. bits is 1, 2, 3, 4 or 8. Results do not depend on threads or level.
#pragma once

#include <cstdint>

namespace graftwork {

// Rows of row_bytes from rows of `columns` bytes, of which the lowest bits are taken; the rest of a row is zero.
void pack_bits(const uint8_t* codes, int64_t rows, int64_t columns, int bits, uint8_t* packed,
               int64_t row_bytes, int threads);

void unpack_bits(const uint8_t* packed, int64_t row_bytes, int64_t rows, int64_t columns, int bits,
                 uint8_t* codes, int threads);

}  // namespace graftwork
