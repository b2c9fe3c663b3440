// Bit-exact difference of two tensors of one dtype as byte planes.
//
// A word u of word_bytes bytes has the position k(u): its order among all bit patterns for floats, u itself
// for integers. z = zigzag(k(tuned) - k(base)), modulo 2^(8 word_bytes); planes[j * numel + i] is byte j of
// z_i, least significant first. Any pattern survives the round trip: -0, infinities, NaN payloads.
#pragma once

#include <cstdint>

namespace graftwork {

// word_bytes is 1, 2, 4 or 8, else std::invalid_argument. No output may overlap an input.
void encode_ordinal_planes(const void* base, const void* tuned, uint8_t* planes, int64_t numel,
                           int word_bytes, bool is_float, int threads);

// reverse: takes the differences away instead of adding them, which gives `base` for `tuned`.
void decode_ordinal_planes(const void* base, const uint8_t* planes, void* tuned, int64_t numel,
                           int word_bytes, bool is_float, bool reverse, int threads);

}  // namespace graftwork
