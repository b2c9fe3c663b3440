// Merges that look at one weight at a time.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

// words[4] = {minuend, subtrahend, onto, unused}, formats[4] theirs: out = round(onto + scale * (minuend - subtrahend)),
// and where scale is 1 and subtrahend and onto have the same bits as floats, the minuend.
void add_diff(const void* const* words, const int32_t* formats, int64_t numel, double scale, void* out,
              WeightFormat out_format, int threads);

// words[2] = {donor, base}: out = round(w donor + (1 - w) base), w = min(1, t / |donor - base|). options, residual and
// counts[7] as in merge_many.h.
void nearswap(const void* const* words, const int32_t* formats, int64_t numel, double t,
              const int64_t* options, void* out, WeightFormat out_format, float* residual, int64_t* counts,
              int threads);

// out[i] = the upper 24 bits of word start + i of the key's Philox stream, times 2^-24.
void philox_uniform(float* out, int64_t numel, uint32_t key_low, uint32_t key_high, int64_t start,
                    int threads);

}  // namespace graftwork
