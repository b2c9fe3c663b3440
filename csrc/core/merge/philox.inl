// Philox4x32-10: words that are a function of a key and a position, sixteen blocks side by side.
#pragma once

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

struct PhiloxKey {
  uint32_t low, high;
};

constexpr int kPhiloxBlocks = 16;                // made together
constexpr int kPhiloxWords = 4 * kPhiloxBlocks;  // a multiple of them is written

}  // namespace graftwork::GRAFTWORK_LEVEL

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/merge/philox.avx512.inl"
#elif defined(GRAFTWORK_LEVEL_IS_avx2)
#include "core/merge/philox.avx2.inl"
#else

namespace graftwork::GRAFTWORK_LEVEL {

// words[4 b + j] = word j of block first + b, for b < 16.
inline void philox_blocks(PhiloxKey key, uint64_t first, uint32_t* __restrict words) {
  uint32_t c0[kPhiloxBlocks], c1[kPhiloxBlocks], c2[kPhiloxBlocks], c3[kPhiloxBlocks];
  for (int b = 0; b < kPhiloxBlocks; ++b) {
    const uint64_t block = first + static_cast<uint64_t>(b);
    c0[b] = static_cast<uint32_t>(block);
    c1[b] = static_cast<uint32_t>(block >> 32);
    c2[b] = c3[b] = 0;
  }
  for (int round = 0; round < 10; ++round) {
    for (int b = 0; b < kPhiloxBlocks; ++b) {
      const uint64_t one = uint64_t{0xd2511f53u} * c0[b], other = uint64_t{0xcd9e8d57u} * c2[b];
      c0[b] = static_cast<uint32_t>(other >> 32) ^ c1[b] ^ key.low;
      c2[b] = static_cast<uint32_t>(one >> 32) ^ c3[b] ^ key.high;
      c1[b] = static_cast<uint32_t>(other);
      c3[b] = static_cast<uint32_t>(one);
    }
    key.low += 0x9e3779b9u;
    key.high += 0xbb67ae85u;
  }
  for (int b = 0; b < kPhiloxBlocks; ++b) {
    words[4 * b] = c0[b];
    words[4 * b + 1] = c1[b];
    words[4 * b + 2] = c2[b];
    words[4 * b + 3] = c3[b];
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif

namespace graftwork::GRAFTWORK_LEVEL {

// The words of the positions of one tile.
template <int kCount>
struct PhiloxTile {
  alignas(64) uint32_t room[(kCount + 3 + kPhiloxWords - 1) / kPhiloxWords * kPhiloxWords];

  const uint32_t* fill(PhiloxKey key, int64_t begin, int count) {
    const int skipped = static_cast<int>(begin % 4);
    const uint64_t first = static_cast<uint64_t>(begin) / 4;
    for (int at = 0; at < skipped + count; at += kPhiloxWords)
      philox_blocks(key, first + static_cast<uint64_t>(at / 4), room + at);
    return room + skipped;
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
