// Words of 32 bits read and written sixteen at a time.
#pragma once

#include <immintrin.h>

namespace graftwork::GRAFTWORK_LEVEL {

inline void gather_lanes(const uint32_t* dense, const int32_t* index, int count, uint32_t* out) {
  int i = 0;
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_si512(out + i, _mm512_i32gather_epi32(_mm512_loadu_si512(index + i), dense, 4));
  for (; i < count; ++i) out[i] = dense[index[i]];
}

inline void gather_lanes(const uint32_t* dense, const int64_t* index, int count, uint32_t* out) {
  int i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        _mm512_i64gather_epi32(_mm512_loadu_si512(index + i), dense, 4));
  for (; i < count; ++i) out[i] = dense[index[i]];
}

}  // namespace graftwork::GRAFTWORK_LEVEL
