#pragma once

#include <immintrin.h>

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kAccumulators = 4;

struct WordLanes {
  __m256i low, high;

  static WordLanes load(const uint32_t* from, int bytes = 0) {
    const __m256i* const halves =
        reinterpret_cast<const __m256i*>(reinterpret_cast<const uint8_t*>(from) + bytes);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
  }
  WordLanes right(int count) const {
    const __m128i shift = _mm_cvtsi32_si128(count);
    return {_mm256_srl_epi32(low, shift), _mm256_srl_epi32(high, shift)};
  }
};

// Multiplied, not shifted: permutations keep the units for shifts busy.
inline WordLanes next_digit(WordLanes words) {
  const __m256i factor = _mm256_set1_epi16(0x1000);
  return {_mm256_mulhi_epu16(words.low, factor), _mm256_mulhi_epu16(words.high, factor)};
}

struct FloatLanes {
  __m256 low, high;

  static FloatLanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static FloatLanes load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static FloatLanes look_up(WordLanes index, FloatLanes table) {
    const auto eight =
        [&](__m256i lanes) {  // three bits choose in each half of the table, the fourth the half
          const __m256 half = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28));
          return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, lanes),
                                  _mm256_permutevar8x32_ps(table.high, lanes), half);
        };
    return {eight(index.low), eight(index.high)};
  }
  static FloatLanes bytes(WordLanes words) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    return {_mm256_cvtepi32_ps(_mm256_and_si256(words.low, byte)),
            _mm256_cvtepi32_ps(_mm256_and_si256(words.high, byte))};
  }
  static FloatLanes halves(WordLanes words) {
    const __m256i half = _mm256_set1_epi32(0xffff);
    const __m256i packed =
        _mm256_packus_epi32(_mm256_and_si256(words.low, half), _mm256_and_si256(words.high, half));
    const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(ordered)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1))};
  }
  FloatLanes operator+(FloatLanes other) const {
    return {_mm256_add_ps(low, other.low), _mm256_add_ps(high, other.high)};
  }
  FloatLanes multiply_add(FloatLanes factor, FloatLanes sum) const {
    return {_mm256_fmadd_ps(low, factor.low, sum.low), _mm256_fmadd_ps(high, factor.high, sum.high)};
  }
  void store(float* to) const {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }
};

// Within 16 bytes the rows r and r + 4 of eight share a vector, so that only squares of 4 x 4 words are left to transpose.
inline void transpose_words(const uint8_t* const* rows, int64_t offset, uint32_t* to) {
  for (int half = 0; half < kLanes; half += 8)
    for (int quad = 0; quad < 4; ++quad) {
      __m256i line[4];
      for (int j = 0; j < 4; ++j) {
        const auto piece = [&](int row) {
          return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[half + row] + offset) + quad);
        };
        line[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(piece(j)), piece(j + 4), 1);
      }
      const __m256i a = _mm256_unpacklo_epi32(line[0], line[1]), b = _mm256_unpackhi_epi32(line[0], line[1]);
      const __m256i c = _mm256_unpacklo_epi32(line[2], line[3]), d = _mm256_unpackhi_epi32(line[2], line[3]);
      const __m256i words[4] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c),
                                _mm256_unpacklo_epi64(b, d), _mm256_unpackhi_epi64(b, d)};
      for (int w = 0; w < 4; ++w)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (4 * quad + w) * kTileRows + half), words[w]);
    }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
