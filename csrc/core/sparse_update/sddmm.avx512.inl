#pragma once

#include <immintrin.h>

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

inline void transpose_tile(const float (&tile)[kTile][kTile], float* to, int64_t stride) {
  __m512 rows[kTile], pairs[kTile];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_ps(tile[i]);
  for (int i = 0; i < 8; ++i) {  // 1x1 within 2x2
    pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {  // 2x2 within 4x4: rows[4i + c] has column c of every 128 bits
    const __m512 *low = pairs + 4 * i, *high = low + 2;
    rows[4 * i] = _mm512_shuffle_ps(low[0], high[0], 0x44);
    rows[4 * i + 1] = _mm512_shuffle_ps(low[0], high[0], 0xee);
    rows[4 * i + 2] = _mm512_shuffle_ps(low[1], high[1], 0x44);
    rows[4 * i + 3] = _mm512_shuffle_ps(low[1], high[1], 0xee);
  }
  for (int c = 0; c < 4; ++c) {  // 4x4 within 16x16: column c of every 128 bits, of all four
    const __m512 first = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0x44);
    const __m512 second = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0xee);
    const __m512 third = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0x44);
    const __m512 fourth = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0xee);
    _mm512_storeu_ps(to + c * stride, _mm512_shuffle_f32x4(first, third, 0x88));
    _mm512_storeu_ps(to + (4 + c) * stride, _mm512_shuffle_f32x4(first, third, 0xdd));
    _mm512_storeu_ps(to + (8 + c) * stride, _mm512_shuffle_f32x4(second, fourth, 0x88));
    _mm512_storeu_ps(to + (12 + c) * stride, _mm512_shuffle_f32x4(second, fourth, 0xdd));
  }
}

// Sixteen sums fold together: each step adds halves and leaves half as many vectors.
inline void multiply_rows(const float* const (&x)[kTile], const float* const (&dy)[kTile], int64_t length,
                          float (&sums)[kTile]) {
  __m512 lanes[kTile];
  for (int e = 0; e < kTile; ++e) {
    __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(x[e]), _mm512_loadu_ps(dy[e]));
    for (int64_t i = kTile; i < length; i += kTile)
      sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(x[e] + i), _mm512_loadu_ps(dy[e] + i)));
    lanes[e] = sum;
  }
  for (int e = 0; e < 8; ++e)  // of e and e + 8
    lanes[e] = _mm512_add_ps(_mm512_shuffle_f32x4(lanes[e], lanes[e + 8], 0x44),
                             _mm512_shuffle_f32x4(lanes[e], lanes[e + 8], 0xee));
  for (int e = 0; e < 4; ++e)  // of e, e + 8, e + 4 and e + 12
    lanes[e] = _mm512_add_ps(_mm512_shuffle_f32x4(lanes[e], lanes[e + 4], 0x88),
                             _mm512_shuffle_f32x4(lanes[e], lanes[e + 4], 0xdd));
  for (int e = 0; e < 4; e += 2)
    lanes[e] = _mm512_add_ps(_mm512_shuffle_ps(lanes[e], lanes[e + 1], 0x44),
                             _mm512_shuffle_ps(lanes[e], lanes[e + 1], 0xee));
  const __m512 folded =
      _mm512_add_ps(_mm512_shuffle_ps(lanes[0], lanes[2], 0x88), _mm512_shuffle_ps(lanes[0], lanes[2], 0xdd));
  _mm512_storeu_ps(sums, _mm512_shuffle_f32x4(folded, folded, 0xd8));
}

}  // namespace graftwork::GRAFTWORK_LEVEL
