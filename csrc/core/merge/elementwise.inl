// The loops of elementwise.h.
#pragma once

#include "core/merge/merge_many.inl"

namespace graftwork::GRAFTWORK_LEVEL {

inline void add_difference(const float* __restrict minuend, const float* __restrict subtrahend,
                           const float* __restrict onto, float scale, int count, float* __restrict values) {
  for (int i = 0; i < count; ++i) {
    const float moved = (minuend[i] - subtrahend[i]) * scale;
    values[i] = moved == 0 ? onto[i] : onto[i] + moved;
  }
  if (scale != 1) return;
  for (int i = 0; i < count; ++i)
    values[i] = bit_cast<uint32_t>(subtrahend[i]) == bit_cast<uint32_t>(onto[i]) ? minuend[i] : values[i];
}

// One tile's words, rounded to the nearest; nothing is counted.
inline void round_tile(const Output& out, int64_t begin, int count, const float* __restrict values) {
  with_format(out.format, [&]<class Format>() {
    typename Format::Word* __restrict const to = static_cast<typename Format::Word*>(out.words) + begin;
    for (int i = 0; i < count; ++i) to[i] = nearest_word<Format>(values[i]);
  });
}

inline void add_diff_chunk(const Donors& three, float scale, const Output& out, int64_t begin, int64_t end) {
  alignas(64) float minuend[kTileRoom], subtrahend[kTileRoom], onto[kTileRoom], values[kTileRoom];
  for (; begin < end; begin += kMergeTile) {
    const int count = static_cast<int>(end - begin < kMergeTile ? end - begin : kMergeTile);
    three.load(0, begin, count, nullptr, minuend);
    three.load(1, begin, count, nullptr, subtrahend);
    three.load(2, begin, count, nullptr, onto);
    add_difference(minuend, subtrahend, onto, scale, count, values);
    round_tile(out, begin, count, values);
  }
}

inline void swap_near(const float* __restrict donor, const float* __restrict base, float t, int count,
                      float* __restrict values) {
  for (int i = 0; i < count; ++i) {
    const float apart = __builtin_fabsf(donor[i] - base[i]), weight = t / apart;
    const float mixed = weight * donor[i] + (1.0f - weight) * base[i];
    values[i] = apart <= t ? donor[i] : mixed;
  }
}

inline void nearswap_chunk(const Donors& two, float t, const Output& out, const NonfiniteCounts& nonfinite,
                           int64_t begin, int64_t end, WrittenCounts& counts) {
  alignas(64) float donor[kTileRoom], values[kTileRoom];
  TileReader reader(two);
  for (; begin < end; begin += kMergeTile) {
    reader.move_to(begin, static_cast<int>(end - begin < kMergeTile ? end - begin : kMergeTile));
    const bool finite = two.load(0, begin, reader.count, nullptr, donor);
    if (!finite) nonfinite.add_tile(0, begin, reader.count);
    if (!reader.base_finite) nonfinite.add_tile(1, begin, reader.count);
    if (two.zero_nonfinite && !(finite && reader.base_finite)) {
      const float* const base = reader.base;
      bool own[kMergeTile];
      for (int i = 0; i < reader.count; ++i)
        own[i] = absolute_bits(donor[i]) < kInfinity32 && absolute_bits(base[i]) < kInfinity32;
      reader.settle_base();
      for (int i = 0; i < reader.count; ++i) donor[i] = own[i] ? donor[i] : base[i];
    }
    swap_near(donor, reader.base, t, reader.count, values);
    write_tile<Values::moved_from_start>(out, begin, reader.count, reader.base, false, values, counts);
  }
}

inline void uniform_chunk(PhiloxKey key, int64_t start, int64_t begin, int64_t end, float* out) {
  PhiloxTile<kMergeTile> tile;
  for (; begin < end; begin += kMergeTile) {
    const int count = static_cast<int>(end - begin < kMergeTile ? end - begin : kMergeTile);
    const uint32_t* __restrict const words = tile.fill(key, start + begin, count);
    float* __restrict const to = out + begin;
    for (int i = 0; i < count; ++i)
      to[i] = static_cast<float>(static_cast<int32_t>(words[i] >> 8)) * 0x1p-24f;
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
