#pragma once

#include <immintrin.h>

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

// See collect.inl. Compressed in a register and stored whole: some processors compress to memory very slowly.
inline int collect(const uint32_t* scores, int count, uint32_t first, uint32_t least, uint32_t span,
                   uint32_t* positions, uint32_t* found) {
  const __m512i low = _mm512_set1_epi32(static_cast<int>(least));
  const __m512i width = _mm512_set1_epi32(static_cast<int>(span));
  const __m512i sixteen = _mm512_set1_epi32(16);
  __m512i position = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                      _mm512_set1_epi32(static_cast<int>(first)));
  int kept = 0;
  for (int i = 0; i < count; i += 16) {
    const __mmask16 lanes = count - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - i)) - 1);
    const __m512i score = _mm512_maskz_loadu_epi32(lanes, scores + i);
    const __mmask16 inside = _mm512_mask_cmplt_epu32_mask(lanes, _mm512_sub_epi32(score, low), width);
    const __m512i where = _mm512_maskz_compress_epi32(inside, position);
    const __m512i what = _mm512_maskz_compress_epi32(inside, score);
    const int more = __builtin_popcount(inside);
    if (more <= 8) {  // half a vector crosses fewer cache lines
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(positions + kept), _mm512_castsi512_si256(where));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(found + kept), _mm512_castsi512_si256(what));
    } else {
      _mm512_storeu_si512(positions + kept, where);
      _mm512_storeu_si512(found + kept, what);
    }
    kept += more;
    position = _mm512_add_epi32(position, sixteen);
  }
  return kept;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
