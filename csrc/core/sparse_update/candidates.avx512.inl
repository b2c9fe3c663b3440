#pragma once

#include <immintrin.h>

#include "core/sparse_update/scores.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kFetchNext = 512;  // bytes: one pass without a stop needs less of a start

// Sixteen weights as float32; those past `lanes` are 0.
inline __m512 load_values(Float32, const uint32_t* from, __mmask16 lanes) {
  return _mm512_maskz_loadu_ps(lanes, from);
}
inline __m512 load_values(BFloat16, const uint16_t* from, __mmask16 lanes) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
inline __m512 load_values(Float16, const uint16_t* from, __mmask16 lanes) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from));
}

// See candidates.inl. In one pass over the tile, so that the next lines are asked for all the time.
template <class Format>
inline FoundInTile find_in_tile(const typename Format::Word* x, const typename Format::Word* base, int count,
                                uint32_t position, uint32_t least, uint32_t* positions, uint32_t* found) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i low = _mm512_set1_epi32(static_cast<int>(least));
  const __m512i tie = _mm512_set1_epi32(static_cast<int>(least - 1));
  const __m512i sixteen = _mm512_set1_epi32(16), one = _mm512_set1_epi32(1);
  __m512i place = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                   _mm512_set1_epi32(static_cast<int>(position)));
  __m512i most = _mm512_setzero_si512(), ties = _mm512_setzero_si512();
  int kept = 0;
  for (int i = 0; i < count; i += 16) {
    const __mmask16 lanes = count - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - i)) - 1);
    fetch_ahead<kFetchNext>(x + i, 16);
    __m512 value = load_values(Format{}, x + i, lanes);
    if (base != nullptr) {
      fetch_ahead<kFetchNext>(base + i, 16);
      value = _mm512_sub_ps(value, load_values(Format{}, base + i, lanes));
    }
    const __m512i score = _mm512_and_si512(_mm512_castps_si512(value), magnitude);
    most = _mm512_max_epi32(most, score);
    ties = _mm512_mask_add_epi32(ties, _mm512_mask_cmpeq_epi32_mask(lanes, score, tie), ties, one);
    const __mmask16 inside = _mm512_mask_cmpge_epi32_mask(lanes, score, low);
    const __m512i where = _mm512_maskz_compress_epi32(inside, place);
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
    place = _mm512_add_epi32(place, sixteen);
  }
  return {kept, _mm512_reduce_add_epi32(ties),
          _mm512_reduce_max_epi32(most) > static_cast<int>(kInfiniteScore)};
}

}  // namespace graftwork::GRAFTWORK_LEVEL
