// GPTQ on a block of columns: each is quantised in turn, and its error passed on to those behind it.
#pragma once

#include <cstdint>

#include "core/quantized_delta/scheme.h"

namespace graftwork {

// For j = 0, 1, ... of each row: target = corrected[j] + sum over i < j of errors[i] * feedback[j][i], codes[j] = the
// code of target for the scale (and zero) of group groups[j], errors[j] = weights[j] - its value. Where diagonal[j] > 0,
// the row's loss grows by ((target - value) * diagonal[j])^2 - damping * errors[j]^2.
//
// weights, corrected: [rows], `columns` floats each, a stride apart. feedback: [columns][columns]. scales and zeros (which
// may be null): [rows][group_count]. codes, errors: [rows][columns]. losses: [rows]. At most 128 columns.
void gptq_block(const float* weights, int64_t weight_stride, const float* corrected, int64_t corrected_stride,
                const float* feedback, const float* scales, const uint8_t* zeros, const int32_t* groups,
                int64_t group_count, const float* diagonal, double damping, int bits, Scheme scheme,
                int64_t rows, int64_t columns, uint8_t* codes, float* errors, double* losses, int threads);

}  // namespace graftwork
