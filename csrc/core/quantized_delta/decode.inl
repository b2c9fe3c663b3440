// Adds the terms of a tile of codes to its sums, one level of a scheme and width at a time.
#pragma once

#include "core/quantized_delta/levels.inl"
#include "core/quantized_delta/packing.inl"
#include "core/quantized_delta/rows.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// A piece of a row: its sums, the codes' bytes in both planes, and for each of its blocks the factor times the scale and
// the zero. Blocks have `block` elements; the first one here begins `before` elements ahead of the piece.
struct CodedPiece {
  float* sums;
  int count;
  const uint8_t *low, *high;
  const float* scales;
  const uint8_t* zeros;  // null for schemes without
  int64_t block, before;

  // Calls body(begin, end, scale, zero) for the part of each block; begin is a multiple of 8.
  template <class Body>
  void for_each_block(const Body& body) const {
    int begin = 0;
    for (int number = 0; begin < count; ++number) {
      const int64_t stop = (number + 1) * block - before;
      const int end = stop < count ? static_cast<int>(stop) : count;
      body(begin, end, scales[number], zeros == nullptr ? 0.0f : static_cast<float>(zeros[number]));
      begin = end;
    }
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/quantized_delta/decode.avx512.inl"
#else

namespace graftwork::GRAFTWORK_LEVEL {

// sums += terms, or = terms if they are the first.
template <class Code, bool kFirst>
void add_terms(const CodedPiece& piece) {
  uint8_t codes[kTile];
  unpack_codes<Code::bits>(piece.low, piece.high, piece.count, codes);
  piece.for_each_block([&](int begin, int end, float scale, float zero) {
    float* __restrict const sums = piece.sums;
    if constexpr (Code::scheme == Scheme::nf4) {
      float terms[16];
      for (int k = 0; k < 16; ++k) terms[k] = kNf4Levels[k] * scale;
      for (int i = begin; i < end; ++i) sums[i] = kFirst ? terms[codes[i]] : sums[i] + terms[codes[i]];
    } else {
      for (int i = begin; i < end; ++i) {
        const float term = Code::level(codes[i], zero) * scale;
        sums[i] = kFirst ? term : sums[i] + term;
      }
    }
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif
