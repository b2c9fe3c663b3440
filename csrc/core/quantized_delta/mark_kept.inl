// The loops of mark_kept.h: flags of a tile, a byte each, become bits.
#pragma once

#include "core/merge/philox.inl"
#include "core/quantized_delta/extract.inl"
#include "core/quantized_delta/packing.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// What keeps a difference.
struct Keeping {
  KeepRule rule;
  float least;
  PhiloxKey key;
  uint32_t below;  // of 24 bits

  void flag_drawn(int64_t begin, int count, uint8_t* __restrict flags) const {
    PhiloxTile<kTile> tile;
    const uint32_t* const words = tile.fill(key, begin, count);
    const uint32_t limit = below;
    for (int i = 0; i < count; ++i) flags[i] = (words[i] >> 8) < limit ? 1 : 0;
  }

  void flag_large(const float* __restrict delta, int count, uint8_t* __restrict flags) const {
    const float limit = least;
    for (int i = 0; i < count; ++i) flags[i] = __builtin_fabsf(delta[i]) >= limit ? 1 : 0;
  }

  // An element is kept if fewer than two of the other three come before it.
  static void flag_two_of_four(const float* __restrict delta, int count, uint8_t* __restrict flags) {
    for (int i = 0; i < count; i += 4) {
      float magnitudes[4];
      for (int k = 0; k < 4; ++k) magnitudes[k] = __builtin_fabsf(delta[i + k]);
      for (int k = 0; k < 4; ++k) {
        int before = 0;
        for (int other = 0; other < 4; ++other)
          before += other < k   ? magnitudes[other] >= magnitudes[k]
                    : other > k ? magnitudes[other] > magnitudes[k]
                                : 0;
        flags[i + k] = before < 2 ? 1 : 0;
      }
    }
  }

  void flag(const float* delta, int64_t begin, int count, uint8_t* flags) const {
    switch (rule) {
      case KeepRule::threshold: return flag_large(delta, count, flags);
      case KeepRule::two_of_four: return flag_two_of_four(delta, count, flags);
      case KeepRule::drawn: return flag_drawn(begin, count, flags);
    }
  }
};

// Packs the flags of a tile; how many are set.
inline int pack_flags(uint8_t* flags, int count, uint8_t* bytes) {
  std::memset(flags + count, 0, 8);
  pack_plane<1, 0>(flags, count, bytes);
  int kept = 0;
  for (int i = 0; i < count; ++i) kept += flags[i];
  return kept;
}

template <class Format>
void mark_kept_of(const void* tuned, const void* base, int64_t numel, const Keeping& keeping, uint8_t* bitmap,
                  int64_t* report, int threads) {
  struct State {
    int64_t kept, nonfinite;  // the first, plus one
  };
  const Chunks chunks =
      cut(numel);  // of a multiple of 4096: no byte, and no group of four, is in two of them
  int64_t kept = 0, nonfinite = 0;
  parallel_chunks<State>(
      chunks, threads,
      [&](State& mine, int chunk) {
        for (int64_t at = chunks.begin(chunk); at < chunks.end(chunk); at += kTile) {
          const int64_t left = chunks.end(chunk) - at;
          const int count = static_cast<int>(left < kTile ? left : kTile);
          float delta[kTile];
          uint8_t flags[kTile + 8];
          extract<Format>(tuned, base, at, count, delta);
          if (largest_magnitude(delta, count, 0) >= kInfinityBits) {
            const int64_t found = at + first_nonfinite(delta, count) + 1;
            mine.nonfinite = mine.nonfinite == 0 || found < mine.nonfinite ? found : mine.nonfinite;
          }
          keeping.flag(delta, at, count, flags);
          mine.kept += pack_flags(flags, count, bitmap + at / 8);
        }
      },
      [&](const State& mine) {
        kept += mine.kept;
        if (mine.nonfinite != 0 && (nonfinite == 0 || mine.nonfinite < nonfinite)) nonfinite = mine.nonfinite;
      });
  report[0] = kept;
  report[1] = nonfinite - 1;
}

inline void mark_drawn_of(int64_t numel, const Keeping& keeping, uint8_t* bitmap, int threads) {
  const Chunks chunks = cut(numel);
  parallel_chunks(chunks, threads, [&](int chunk) {
    for (int64_t at = chunks.begin(chunk); at < chunks.end(chunk); at += kTile) {
      const int64_t left = chunks.end(chunk) - at;
      const int count = static_cast<int>(left < kTile ? left : kTile);
      uint8_t flags[kTile + 8];
      keeping.flag_drawn(at, count, flags);
      pack_flags(flags, count, bitmap + at / 8);
    }
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
