// What a fine-tune changed, in one pass over base and tuned.
//
// counts[5] = {words that differ, base NaN, base Inf, tuned NaN, tuned Inf};
// sums[4] = {sum d^2, sum base^2, sum tuned^2, max |d|}, d = tuned - base in double, over pairs that are both
// finite; histogram[rows][columns]: rows = the base's biased exponent field (2^exponent bits), columns = 16
// word bytes + 1, entry 8 word bytes + sign(d) bitlength(|d|) of the signed, wrapped ordinal difference d.
// All outputs are overwritten. The same bits come out for any number of threads and at every ISA level.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

void delta_stats(const void* base, const void* tuned, int64_t numel, WeightFormat format, int64_t* counts,
                 double* sums, int64_t* histogram, int threads);

}  // namespace graftwork
