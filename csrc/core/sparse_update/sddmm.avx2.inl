#pragma once

#include <immintrin.h>

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

// Eight rows of eight floats, a tile line apart, as eight columns, `stride` apart.
inline void transpose_eight(const float* from, float* to, int64_t stride) {
  __m256 rows[8], pairs[8];
  for (int i = 0; i < 8; ++i) rows[i] = _mm256_loadu_ps(from + i * kTile);
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    const __m256 *low = pairs + 4 * i, *high = low + 2;
    rows[4 * i] = _mm256_shuffle_ps(low[0], high[0], 0x44);
    rows[4 * i + 1] = _mm256_shuffle_ps(low[0], high[0], 0xee);
    rows[4 * i + 2] = _mm256_shuffle_ps(low[1], high[1], 0x44);
    rows[4 * i + 3] = _mm256_shuffle_ps(low[1], high[1], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(to + c * stride, _mm256_permute2f128_ps(rows[c], rows[4 + c], 0x20));
    _mm256_storeu_ps(to + (4 + c) * stride, _mm256_permute2f128_ps(rows[c], rows[4 + c], 0x31));
  }
}

inline void transpose_tile(const float (&tile)[kTile][kTile], float* to, int64_t stride) {
  for (int b = 0; b < kTile; b += 8)
    for (int c = 0; c < kTile; c += 8) transpose_eight(&tile[b][c], to + c * stride + b, stride);
}

// Eight sums fold together: each step adds halves and leaves half as many vectors.
inline void multiply_rows(const float* const (&x)[kTile], const float* const (&dy)[kTile], int64_t length,
                          float (&sums)[kTile]) {
  for (int begin = 0; begin < kTile; begin += 8) {
    __m256 lanes[8];
    for (int e = 0; e < 8; ++e) {
      const float *a = x[begin + e], *b = dy[begin + e];
      __m256 low = _mm256_mul_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b));
      __m256 high = _mm256_mul_ps(_mm256_loadu_ps(a + 8), _mm256_loadu_ps(b + 8));
      for (int64_t i = kTile; i < length; i += kTile) {
        low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
        high = _mm256_add_ps(high, _mm256_mul_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8)));
      }
      lanes[e] = _mm256_add_ps(low, high);
    }
    for (int e = 0; e < 4; ++e)  // of e and e + 4
      lanes[e] = _mm256_add_ps(_mm256_permute2f128_ps(lanes[e], lanes[e + 4], 0x20),
                               _mm256_permute2f128_ps(lanes[e], lanes[e + 4], 0x31));
    for (int e = 0; e < 4; e += 2)
      lanes[e] = _mm256_add_ps(_mm256_shuffle_ps(lanes[e], lanes[e + 1], 0x44),
                               _mm256_shuffle_ps(lanes[e], lanes[e + 1], 0xee));
    _mm256_storeu_ps(sums + begin, _mm256_add_ps(_mm256_shuffle_ps(lanes[0], lanes[2], 0x88),
                                                 _mm256_shuffle_ps(lanes[0], lanes[2], 0xdd)));
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
