#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/support/lanes16.h"

namespace graftwork::GRAFTWORK_LEVEL {

// See collect.inl.
inline int collect(const uint32_t* scores, int count, uint32_t first, uint32_t least, uint32_t span,
                   uint32_t* positions, uint32_t* found) {
  const __m256i low = _mm256_set1_epi32(static_cast<int>(least));
  const __m256i width = _mm256_set1_epi32(static_cast<int>(span));
  const __m256i eight = _mm256_set1_epi32(8);
  __m256i position =
      _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(static_cast<int>(first)));
  int kept = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i score = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scores + i));
    const __m256i above = _mm256_sub_epi32(score, low);
    const __m256i outside = _mm256_cmpeq_epi32(_mm256_max_epu32(above, width), above);  // above >= width
    const uint32_t inside = ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(outside))) & 0xff;
    const __m256i order = Lanes16::order(kLaneOrders.pack[inside]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(positions + kept),
                        _mm256_permutevar8x32_epi32(position, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(found + kept), _mm256_permutevar8x32_epi32(score, order));
    kept += __builtin_popcount(inside);
    position = _mm256_add_epi32(position, eight);
  }
  for (; i < count; ++i) {
    positions[kept] = first + static_cast<uint32_t>(i);
    found[kept] = scores[i];
    kept += scores[i] - least < span;
  }
  return kept;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
