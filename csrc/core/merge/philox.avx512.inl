#pragma once

#include <immintrin.h>

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

// See philox.inl. A block's words are the low halves of 64-bit lanes, where products leave theirs; the high halves are
// whatever they are.
inline void philox_blocks(PhiloxKey key, uint64_t first, uint32_t* __restrict words) {
  const __m512i m0 = _mm512_set1_epi64(0xd2511f53), m1 = _mm512_set1_epi64(0xcd9e8d57);
  const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  for (int b = 0; b < kPhiloxBlocks;
       b += 16) {  // two vectors: one waits for nothing while the other multiplies
    __m512i c0[2], c1[2], c2[2], c3[2];
    for (int v = 0; v < 2; ++v) {
      c0[v] = _mm512_add_epi64(lanes, _mm512_set1_epi64(static_cast<int64_t>(first + b + 8 * v)));
      c1[v] = _mm512_srli_epi64(c0[v], 32);
      c2[v] = c3[v] = _mm512_setzero_si512();
    }
    uint32_t low = key.low, high = key.high;
    for (int round = 0; round < 10; ++round) {
      const __m512i k0 = _mm512_set1_epi64(low), k1 = _mm512_set1_epi64(high);
      for (int v = 0; v < 2; ++v) {
        const __m512i one = _mm512_mul_epu32(c0[v], m0), other = _mm512_mul_epu32(c2[v], m1);
        c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(other, 32), c1[v], k0, 0x96);
        c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(one, 32), c3[v], k1, 0x96);
        c1[v] = other;
        c3[v] = one;
      }
      low += 0x9e3779b9u;
      high += 0xbb67ae85u;
    }
    for (int v = 0; v < 2; ++v) {
      const __m512i front = _mm512_mask_blend_epi32(0xaaaa, c0[v], _mm512_slli_epi64(c1[v], 32));
      const __m512i back = _mm512_mask_blend_epi32(0xaaaa, c2[v], _mm512_slli_epi64(c3[v], 32));
      uint32_t* const to = words + 4 * (b + 8 * v);
      const __m512i low_half = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
      const __m512i high_half = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi64(front, low_half, back));
      _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(front, high_half, back));
    }
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
