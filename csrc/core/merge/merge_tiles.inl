// The sparsified differences of all donors, a tile at a time, on several threads.
#pragma once

#include "core/merge/donors.inl"
#include "core/merge/sparsify.inl"

namespace graftwork::GRAFTWORK_LEVEL {

struct MergeInputs {
  Donors donors;
  Sparsifier rule;
  int64_t numel;

  bool ranked() const { return rule.kind == SparsifyKind::ranked; }

  // Chunks of elements; of whole rows where ranks are needed.
  Chunks chunks() const {
    if (!ranked()) return cut(numel);
    const int64_t rows = numel / rule.columns, least = kMinChunk / rule.columns + 1;
    const int64_t share = (rows + kMaxChunks - 1) / kMaxChunks, length = share < least ? least : share;
    return {numel, length * rule.columns, static_cast<int>((rows + length - 1) / length)};
  }
};

// A thread's memory: tiles of differences; for ranks, a row of factors for each donor, and a row to sort.
struct MergeRoom {
  float *tiles, *factors;
  uint8_t* ranks;

  static int64_t bytes(int64_t donors, SparsifyKind kind, int64_t columns) {
    const int64_t tiles = 4 * donors * kTileRoom;
    if (kind != SparsifyKind::ranked) return tiles;
    return tiles + rounded_up(4 * donors * columns) + RankRoom::bytes(columns);
  }

  static MergeRoom at(uint8_t* memory, int64_t donors, int64_t columns) {
    uint8_t* const factors = memory + 4 * donors * kTileRoom;
    return {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(factors),
            factors + rounded_up(4 * donors * columns)};
  }
};

inline void rank_row(const MergeInputs& in, TileReader& reader, const MergeRoom& room, int64_t row) {
  const int64_t columns = in.rule.columns;
  for (int64_t donor = 0; donor < in.donors.count; ++donor) {
    RankRoom sorted = RankRoom::at(room.ranks, columns);
    for (int64_t at = 0; at < columns; at += kMergeTile) {
      reader.move_to(row + at, static_cast<int>(columns - at < kMergeTile ? columns - at : kMergeTile));
      reader.difference(donor, room.tiles);
      for (int i = 0; i < reader.count; ++i) sorted.keys[at + i] = score_of(room.tiles[i]);
    }
    rank_factors(sorted, in.rule.of(donor), row, columns, in.rule.by_probability,
                 room.factors + donor * columns);
  }
}

// Elements of the tile that begins here; it ends where a stretch of `stretch` elements does.
inline int tile_count(int64_t begin, int64_t end, int64_t stretch) {
  const int64_t stop = (begin / stretch + 1) * stretch, last = stop < end ? stop : end;
  return static_cast<int>(last - begin < kMergeTile ? last - begin : kMergeTile);
}

// Calls loaded(donor, finite) when a donor's differences of a tile are in room.tiles, then sparsified() when only those
// that are kept are.
template <class Loaded, class Sparsified>
inline void for_each_merge_tile(const MergeInputs& in, TileReader& reader, const MergeRoom& room,
                                int64_t begin, int64_t end, int64_t stretch, const Loaded& loaded,
                                const Sparsified& sparsified) {
  const int64_t columns = in.rule.columns;
  while (begin < end) {
    int64_t stop = begin + tile_count(begin, end, stretch);
    const float* factors = nullptr;
    if (in.ranked()) {
      const int64_t row = begin / columns * columns;
      if (row == begin) rank_row(in, reader, room, row);
      if (row + columns < stop) stop = row + columns;
      factors = room.factors + (begin - row);
    }
    reader.move_to(begin, static_cast<int>(stop - begin));
    for (int64_t donor = 0; donor < in.donors.count; ++donor)
      loaded(donor, reader.difference(donor, room.tiles + donor * kTileRoom));
    keep_tile(in.rule, in.donors.count, begin, reader.count, room.tiles, factors, columns);
    sparsified();
    begin = stop;
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
