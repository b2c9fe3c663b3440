#pragma once

#include <immintrin.h>

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

// See philox.inl. A block's words are the low halves of 64-bit lanes, where products leave theirs; the high halves are
// whatever they are.
inline void philox_blocks(PhiloxKey key, uint64_t first, uint32_t* __restrict words) {
  const __m256i m0 = _mm256_set1_epi64x(0xd2511f53), m1 = _mm256_set1_epi64x(0xcd9e8d57);
  const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
  for (int b = 0; b < kPhiloxBlocks;
       b += 8) {  // two vectors: one waits for nothing while the other multiplies
    __m256i c0[2], c1[2], c2[2], c3[2];
    for (int v = 0; v < 2; ++v) {
      c0[v] = _mm256_add_epi64(lanes, _mm256_set1_epi64x(static_cast<int64_t>(first + b + 4 * v)));
      c1[v] = _mm256_srli_epi64(c0[v], 32);
      c2[v] = c3[v] = _mm256_setzero_si256();
    }
    uint32_t low = key.low, high = key.high;
    for (int round = 0; round < 10; ++round) {
      const __m256i k0 = _mm256_set1_epi64x(low), k1 = _mm256_set1_epi64x(high);
      for (int v = 0; v < 2; ++v) {
        const __m256i one = _mm256_mul_epu32(c0[v], m0), other = _mm256_mul_epu32(c2[v], m1);
        c0[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(other, 32), c1[v]), k0);
        c2[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(one, 32), c3[v]), k1);
        c1[v] = other;
        c3[v] = one;
      }
      low += 0x9e3779b9u;
      high += 0xbb67ae85u;
    }
    for (int v = 0; v < 2; ++v) {
      const __m256i front = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0xaa);
      const __m256i back = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0xaa);
      const __m256i even = _mm256_unpacklo_epi64(front, back), odd = _mm256_unpackhi_epi64(front, back);
      __m256i* const to = reinterpret_cast<__m256i*>(words + 4 * (b + 4 * v));
      _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
      _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
    }
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
