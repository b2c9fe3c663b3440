#pragma once

#include <immintrin.h>

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

// See range.inl. Compressed in a register and stored whole: some processors compress to memory very slowly.
inline int collect_range(const float* __restrict values, int count, uint32_t least, uint32_t span,
                         uint32_t* __restrict found, int32_t* above) {
  const __m512i low = _mm512_set1_epi32(static_cast<int>(least));
  const __m512i width = _mm512_set1_epi32(static_cast<int>(span));
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), infinity = _mm512_set1_epi32(0x7f800000);
  const __m512i nan = _mm512_set1_epi32(0x7fc00000);
  int kept = 0;
  int32_t over = 0;
  for (int i = 0; i < count; i += 16) {
    const __mmask16 lanes = count - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - i)) - 1);
    __m512i score = _mm512_and_si512(_mm512_maskz_loadu_epi32(lanes, values + i), magnitude);
    score = _mm512_mask_mov_epi32(score, _mm512_cmpgt_epi32_mask(score, infinity), nan);
    const __m512i from = _mm512_sub_epi32(score, low);
    const __mmask16 inside = _mm512_mask_cmplt_epu32_mask(lanes, from, width);
    const __mmask16 reached = _mm512_mask_cmpge_epi32_mask(lanes, score, low);
    _mm512_storeu_si512(found + kept, _mm512_maskz_compress_epi32(inside, from));
    kept += __builtin_popcount(inside);
    over += __builtin_popcount(reached);
  }
  *above = over - kept;
  return kept;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
