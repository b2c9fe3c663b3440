// Packed deltas back to numbers, alone or on top of a base.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

// Numbers of a pack in the table of dequant_add: address of the codes, bytes from row to row, address of the scales,
// their format, address of the zeros (0 without), address of the factors, whether there is one for each row, bits,
// scheme, block (0 a row, -1 the matrix), power of two of the scales.
constexpr int kPackNumbers = 11;

// out = round(base + sum of level * (factor * scale)), in float and in the order of the packs. base may be out, or null:
// then the first term stands alone. A row whose factors are all zero is the base's. Results do not depend on threads or
// ISA level. factors are finite.
void dequant_add(void* out, WeightFormat out_format, const void* base, WeightFormat base_format, int64_t rows,
                 int64_t columns, const int64_t* table, int packs, int threads);

}  // namespace graftwork
