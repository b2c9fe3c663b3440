// Sixteen weights as floats.
#pragma once

#include <immintrin.h>

#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

template <class Format>
inline __m512 weights_of(__m256i words) {
  if constexpr (Format::kExponentBits == 8)
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
  return _mm512_cvtph_ps(words);
}

template <class Format>
inline __m512 load_weights(const typename Format::Word* from) {
  if constexpr (sizeof *from == 4) return _mm512_loadu_ps(from);
  return weights_of<Format>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Zero in the lanes that are not loaded.
template <class Format>
inline __m512 load_some_weights(const typename Format::Word* from, __mmask16 lanes) {
  if constexpr (sizeof *from == 4) return _mm512_maskz_loadu_ps(lanes, from);
  return weights_of<Format>(_mm256_maskz_loadu_epi16(lanes, from));
}

// The nearest words of 16 bits, ties to even; a NaN stays one, as word_of() has it.
template <class Format>
inline __m256i words_of_sixteen(__m512 values) {
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  if constexpr (Format::kExponentBits == 8) {
    const __m512i bits = _mm512_castps_si512(values), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i rounded = _mm512_srli_epi32(sum, 16);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
  }
  const __m256i words = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i sign = _mm256_and_si256(words, _mm256_set1_epi16(INT16_MIN));
  const __m256i quiet = _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00));
  return _mm256_mask_mov_epi16(words, nan, quiet);
}

template <class Format>
inline void store_weights(typename Format::Word* to, __m512 values) {
  if constexpr (sizeof *to == 4)
    _mm512_storeu_ps(to, values);
  else
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words_of_sixteen<Format>(values));
}

template <class Format>
inline void store_some_weights(typename Format::Word* to, __mmask16 lanes, __m512 values) {
  if constexpr (sizeof *to == 4)
    _mm512_mask_storeu_ps(to, lanes, values);
  else
    _mm256_mask_storeu_epi16(to, lanes, words_of_sixteen<Format>(values));
}

}  // namespace graftwork::GRAFTWORK_LEVEL
