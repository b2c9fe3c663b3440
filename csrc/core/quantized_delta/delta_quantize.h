// The difference of two matrices as codes of a few bits: extracted, quantised and packed in one pass.
#pragma once

#include <cstdint>

#include "core/quantized_delta/scheme.h"
#include "core/support/weight_format.h"

namespace graftwork {

// base may be null: then tuned is the difference. block is a multiple of 8, 0 (a row) or -1 (the matrix). iterations is 0
// (the scale of the largest magnitude) or the refits of a search for the scale of least squared error. Rows of codes have
// row_bytes. There is a scale (and zero, of asym) for each block; room has a float for each. *error is the sum of squared
// errors. report: the flat index of the first difference that is not finite, or -1; the first block whose scale is too
// large for its format, or -1; then the results are undefined. And the power of two that float16 scales are to be
// multiplied by. Nothing depends on threads or ISA level.
void delta_quantize(const void* tuned, const void* base, int64_t rows, int64_t columns, WeightFormat format,
                    int bits, Scheme scheme, int64_t block, int iterations, uint8_t* codes, int64_t row_bytes,
                    void* scales, WeightFormat scale_format, uint8_t* zeros, float* room, double* error,
                    int64_t* report, int threads);

}  // namespace graftwork
