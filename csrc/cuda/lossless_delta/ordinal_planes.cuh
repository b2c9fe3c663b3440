// Bit-exact difference of two tensors of one dtype as byte planes, on the GPU.
//
// A word u of word_bytes bytes has the position k(u): its order among all bit patterns for floats, u itself
// for integers. z = zigzag(k(tuned) - k(base)), modulo 2^(8 word_bytes); planes[j * numel + i] is byte j of
// z_i, least significant first. The bytes are those of core/lossless_delta/ordinal_planes.h.
#pragma once

#include <cstdint>

namespace graftwork::cuda {

// reverse: takes the differences away instead of adding them, which gives `base` for `tuned`.
//
// Both queue their work on `stream` and return a CUDA error code: kInvalidArgument unless word_bytes is 1, 2,
// 4 or 8. No output may overlap an input. Fastest when base and tuned lie on 16 bytes, planes on 16 /
// word_bytes bytes, and 16 / word_bytes divides numel.
int encode_ordinal_planes(const void* base, const void* tuned, uint8_t* planes, int64_t numel, int word_bytes,
                          bool is_float, void* stream);

int decode_ordinal_planes(const void* base, const uint8_t* planes, void* tuned, int64_t numel, int word_bytes,
                          bool is_float, bool reverse, void* stream);

}  // namespace graftwork::cuda
