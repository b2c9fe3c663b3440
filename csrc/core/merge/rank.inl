// Ranks of the magnitudes in a row, and what MagPrune makes of them.
#pragma once

#include "core/merge/donors.inl"
#include "core/merge/philox.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// Scratch for one row.
struct RankRoom {
  uint32_t *keys, *other_keys, *places, *other_places;

  static int64_t bytes(int64_t columns) { return 4 * rounded_up(4 * columns); }

  static RankRoom at(uint8_t* memory, int64_t columns) {
    const int64_t stride = rounded_up(4 * columns);
    const auto part = [&](int number) { return reinterpret_cast<uint32_t*>(memory + number * stride); };
    return {part(0), part(1), part(2), part(3)};
  }
};

// Sorts the places by their keys, below 2^31, equal ones in their order: three rounds of eleven bits (the last: nine).
inline void sort_places(RankRoom& room, int64_t columns) {
  constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
  uint32_t starts[3][kDigits];
  for (auto& table : starts)
    for (uint32_t& start : table) start = 0;
  for (int64_t i = 0; i < columns; ++i) {
    room.places[i] = static_cast<uint32_t>(i);
    for (int round = 0; round < 3; ++round)
      ++starts[round][room.keys[i] >> (kDigitBits * round) & (kDigits - 1)];
  }
  for (int round = 0; round < 3; ++round) {
    uint32_t before = 0;
    for (uint32_t& start : starts[round]) {
      const uint32_t here = start;
      start = before;
      before += here;
    }
    for (int64_t i = 0; i < columns; ++i) {
      const uint32_t key = room.keys[i];
      const uint32_t to = starts[round][key >> (kDigitBits * round) & (kDigits - 1)]++;
      room.other_keys[to] = key;
      room.other_places[to] = room.places[i];
    }
    uint32_t* const keys = room.keys;
    uint32_t* const places = room.places;
    room.keys = room.other_keys;
    room.places = room.other_places;
    room.other_keys = keys;
    room.other_places = places;
  }
}

// factors[i] for a row whose scores are in room.keys: 0 where the word of its position is not below the limit of its
// rank, which goes from limits[0] to limits[1]; else 1, or what the difference is divided by to make up for the others.
inline void rank_factors(RankRoom& room, const int64_t* limits, int64_t begin, int64_t columns,
                         bool by_probability, float* __restrict factors) {
  const uint64_t low = static_cast<uint64_t>(limits[0]), high = static_cast<uint64_t>(limits[1]);
  sort_places(room, columns);
  uint32_t* const words = room.other_keys;  // free again
  PhiloxTile<kMergeTile> tile;
  const PhiloxKey key{static_cast<uint32_t>(limits[2]), static_cast<uint32_t>(limits[3])};
  for (int64_t at = 0; at < columns; at += kMergeTile) {
    const int count = static_cast<int>(columns - at < kMergeTile ? columns - at : kMergeTile);
    const uint32_t* const made = tile.fill(key, begin + at, count);
    for (int i = 0; i < count; ++i) words[at + i] = made[i];
  }
  for (int64_t rank = 0; rank < columns; ++rank) {
    const uint32_t place = room.places[rank];
    const uint64_t below =
        columns == 1 ? (low + high) / 2
                     : low + (high - low) * static_cast<uint64_t>(rank) / static_cast<uint64_t>(columns - 1);
    const float factor = by_probability ? 0x1p32f / static_cast<float>(static_cast<int64_t>(below)) : 1.0f;
    factors[place] = words[place] < below ? factor : 0.0f;
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
