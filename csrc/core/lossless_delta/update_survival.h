// How much of an update survives when weights are saved in a 16-bit format.
//
// Over pairs that are both finite: wanted update w = tuned - base, saved update s = round(tuned) -
// round(base), in double, rounding to the nearest in save_format, ties to even; s = 0 where a rounded weight
// is infinite. counts[3] = {w != 0, w != 0 and s == 0, round(tuned) infinite}; sums[3] = {sum w^2, sum s^2,
// sum w s}. All outputs are overwritten. The same bits come out for any number of threads and at every ISA
// level.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

// save_format is float16 or bfloat16, else std::invalid_argument.
void update_survival(const void* base, const void* tuned, int64_t numel, WeightFormat format,
                     WeightFormat save_format, int64_t* counts, double* sums, int threads);

}  // namespace graftwork
