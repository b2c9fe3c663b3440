// Copies that go past the caches: for a result too large to stay in them, a line need not be read to be written.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace graftwork::GRAFTWORK_LEVEL {

// From so many bytes on a result is rather not found in the caches when it is read again.
constexpr int64_t kStreamedBytes = int64_t{8} << 20;

// A memcpy; call finish_streams() before another thread reads the result.
inline void stream_bytes(void* to, const void* from, int64_t nbytes) {
#if defined(__SSE2__)
  uint8_t* out = static_cast<uint8_t*>(to);
  const uint8_t* in = static_cast<const uint8_t*>(from);
  const int64_t until_line = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(out) & 63);
  if (nbytes >= until_line + 64) {
    std::memcpy(out, in, until_line);
    out += until_line;
    in += until_line;
    nbytes -= until_line;
    for (; nbytes >= 64; nbytes -= 64, out += 64, in += 64) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
#else
      for (int i = 0; i < 64; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
#endif
    }
  }
  std::memcpy(out, in, nbytes);
#else
  std::memcpy(to, from, nbytes);
#endif
}

inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace graftwork::GRAFTWORK_LEVEL
