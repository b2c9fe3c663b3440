#pragma once

#include <immintrin.h>

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kAccumulators = 16;

struct WordLanes {
  __m512i v;

  static WordLanes load(const uint32_t* from, int bytes = 0) {
    return {_mm512_loadu_si512(reinterpret_cast<const uint8_t*>(from) + bytes)};
  }
  WordLanes right(int count) const { return {_mm512_srl_epi32(v, _mm_cvtsi32_si128(count))}; }
};

// Multiplied, not shifted: permutations keep the units for shifts busy.
inline WordLanes next_digit(WordLanes words) {
  return {_mm512_mulhi_epu16(words.v, _mm512_set1_epi16(0x1000))};
}

struct FloatLanes {
  __m512 v;

  static FloatLanes all(float value) { return {_mm512_set1_ps(value)}; }
  static FloatLanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static FloatLanes look_up(WordLanes index, FloatLanes table) {
    return {_mm512_permutexvar_ps(index.v, table.v)};  // which reads four bits
  }
  static FloatLanes bytes(WordLanes words) {
    return {_mm512_cvtepi32_ps(_mm512_and_si512(words.v, _mm512_set1_epi32(0xff)))};
  }
  static FloatLanes halves(WordLanes words) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(words.v))}; }
  FloatLanes operator+(FloatLanes other) const { return {_mm512_add_ps(v, other.v)}; }
  FloatLanes multiply_add(FloatLanes factor, FloatLanes sum) const {
    return {_mm512_fmadd_ps(v, factor.v, sum.v)};
  }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
};

// Within 16 bytes the rows r, r + 4, r + 8 and r + 12 share a vector, so that only squares of 4 x 4 words are left to
// transpose.
inline void transpose_words(const uint8_t* const* rows, int64_t offset, uint32_t* to) {
  const auto piece = [&](int row, int quad) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset) + quad);
  };
  __m512i lines[4][4];
  for (int j = 0; j < 4; ++j)  // a row's pieces together: rows a power of two apart share a set of the cache
    for (int quad = 0; quad < 4; ++quad) {
      __m512i line = _mm512_castsi128_si512(piece(j, quad));
      line = _mm512_mask_broadcast_i32x4(line, 0x00f0, piece(j + 4, quad));
      line = _mm512_mask_broadcast_i32x4(line, 0x0f00, piece(j + 8, quad));
      lines[quad][j] = _mm512_mask_broadcast_i32x4(line, 0xf000, piece(j + 12, quad));
    }
  for (int quad = 0; quad < 4; ++quad) {
    const __m512i* const line = lines[quad];
    const __m512i a = _mm512_unpacklo_epi32(line[0], line[1]), b = _mm512_unpackhi_epi32(line[0], line[1]);
    const __m512i c = _mm512_unpacklo_epi32(line[2], line[3]), d = _mm512_unpackhi_epi32(line[2], line[3]);
    uint32_t* const words = to + 4 * quad * kTileRows;
    _mm512_storeu_si512(words, _mm512_unpacklo_epi64(a, c));
    _mm512_storeu_si512(words + kTileRows, _mm512_unpackhi_epi64(a, c));
    _mm512_storeu_si512(words + 2 * kTileRows, _mm512_unpacklo_epi64(b, d));
    _mm512_storeu_si512(words + 3 * kTileRows, _mm512_unpackhi_epi64(b, d));
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
