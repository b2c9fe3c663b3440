// Which of 64 words differ, as a set of bits.
#pragma once

#include <cstdint>

#if defined(GRAFTWORK_LEVEL_IS_avx512) || defined(GRAFTWORK_LEVEL_IS_avx2)
#include <immintrin.h>
#endif

namespace graftwork::GRAFTWORK_LEVEL {

// Bit i is set if one[i] and other[i] differ, for i < 64. Word: 16 or 32 bits.
template <class Word>
inline uint64_t unequal_words(const Word* one, const Word* other) {
#if defined(GRAFTWORK_LEVEL_IS_avx512)
  constexpr int kWords = 64 / sizeof(Word);  // a vector's
  uint64_t unequal = 0;
  for (int i = 0; i < 64; i += kWords) {
    const __m512i x = _mm512_loadu_si512(one + i), y = _mm512_loadu_si512(other + i);
    if constexpr (sizeof(Word) == 2)
      unequal |= static_cast<uint64_t>(_mm512_cmpneq_epi16_mask(x, y)) << i;
    else
      unequal |= static_cast<uint64_t>(_mm512_cmpneq_epi32_mask(x, y)) << i;
  }
  return unequal;
#elif defined(GRAFTWORK_LEVEL_IS_avx2)
  constexpr int kWords = 32 / sizeof(Word);
  uint64_t equal = 0;
  for (int i = 0; i < 64; i += kWords) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(one + i));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(other + i));
    if constexpr (sizeof(Word) == 2) {  // sixteen words to sixteen bytes
      const __m256i same = _mm256_cmpeq_epi16(x, y);
      const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(same), _mm256_extracti128_si256(same, 1));
      equal |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(bytes))) << i;
    } else {
      const __m256 same = _mm256_castsi256_ps(_mm256_cmpeq_epi32(x, y));
      equal |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(same))) << i;
    }
  }
  return ~equal;
#else
  Word any = 0;
  for (int i = 0; i < 64; ++i) any |= static_cast<Word>(one[i] ^ other[i]);  // vectorises
  if (any == 0) return 0;
  uint64_t unequal = 0;
  for (int i = 0; i < 64; ++i) unequal |= static_cast<uint64_t>(one[i] != other[i]) << i;
  return unequal;
#endif
}

}  // namespace graftwork::GRAFTWORK_LEVEL
