// Words of 32 bits read eight, or four, at a time.
#pragma once

#include <immintrin.h>

namespace graftwork::GRAFTWORK_LEVEL {

inline void gather_lanes(const uint32_t* dense, const int32_t* index, int count, uint32_t* out) {
  const int* const words = reinterpret_cast<const int*>(dense);
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_i32gather_epi32(words, at, 4));
  }
  for (; i < count; ++i) out[i] = dense[index[i]];
}

inline void gather_lanes(const uint32_t* dense, const int64_t* index, int count, uint32_t* out) {
  const int* const words = reinterpret_cast<const int*>(dense);
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_i64gather_epi32(words, at, 4));
  }
  for (; i < count; ++i) out[i] = dense[index[i]];
}

}  // namespace graftwork::GRAFTWORK_LEVEL
