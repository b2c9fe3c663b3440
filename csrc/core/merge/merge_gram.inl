// The loops of merge_gram.h: every tile is read once, and multiplied with itself in the L1 cache.
#pragma once

#include "core/merge/donors.inl"
#include "core/support/lanes.h"

namespace graftwork::GRAFTWORK_LEVEL {

inline int64_t gram_pairs(int64_t donors) { return donors * (donors + 1) / 2; }

// lanes[pair][16] += the products of a tile; the product of two floats is exact in double, fused or not.
inline void add_pair(const float* __restrict x, const float* __restrict y, int count,
                     double* __restrict lanes) {
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  for_each_in_lanes(
      count, [&](int i, int lane) { sums[lane] += static_cast<double>(x[i]) * static_cast<double>(y[i]); });
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane];
}

// A thread's memory: tiles of differences, and lanes for each pair.
struct GramRoom {
  float* tiles;
  double* lanes;

  static int64_t bytes(int64_t donors) { return 4 * donors * kTileRoom + 8 * kLanes * gram_pairs(donors); }
  static GramRoom at(uint8_t* memory, int64_t donors) {
    return {reinterpret_cast<float*>(memory), reinterpret_cast<double*>(memory + 4 * donors * kTileRoom)};
  }
};

// sums[pair] of the elements from `begin` to `end`.
inline void gram_of(const Donors& donors, const GramRoom& room, int64_t begin, int64_t end, double* sums) {
  const int64_t count = donors.count, pairs = gram_pairs(count);
  for (int64_t k = 0; k < kLanes * pairs; ++k) room.lanes[k] = 0;
  TileReader reader(donors);
  for (; begin < end; begin += kMergeTile) {
    reader.move_to(begin, static_cast<int>(end - begin < kMergeTile ? end - begin : kMergeTile));
    double* lanes = room.lanes;
    for (int64_t i = 0; i < count; ++i) {
      reader.difference(i, room.tiles + i * kTileRoom);
      for (int64_t j = 0; j <= i; ++j, lanes += kLanes)
        add_pair(room.tiles + i * kTileRoom, room.tiles + j * kTileRoom, reader.count, lanes);
    }
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    sums[pair] = 0;
    for (int lane = 0; lane < kLanes; ++lane) sums[pair] += room.lanes[kLanes * pair + lane];
  }
}

inline void fill_gram(const double* sums, int64_t donors, double* gram) {
  for (int64_t i = 0; i < donors; ++i)
    for (int64_t j = 0; j <= i; ++j, ++sums) gram[i * donors + j] = gram[j * donors + i] = *sums;
}

inline Chunks gram_chunks(int64_t numel, int64_t rows) {
  if (rows <= 1) return cut(numel);
  const int64_t least = kMinChunk / (numel / rows + 1) + 1, share = (rows + kMaxChunks - 1) / kMaxChunks;
  const int64_t length = share < least ? least : share;  // rows
  return {rows, length, static_cast<int>((rows + length - 1) / length)};
}

inline int64_t gram_workspace(int64_t donors, int64_t numel, int64_t rows, int threads) {
  // One row: the sums of all chunks. Many rows: one row's sums for each thread.
  const int64_t sums = rows <= 1 ? gram_chunks(numel, rows).count : threads;
  return rounded_up(8 * gram_pairs(donors) * (sums + 1)) + GramRoom::bytes(donors) * threads;
}

inline void gram_into(const Donors& donors, int64_t numel, int64_t rows, double* gram, uint8_t* workspace,
                      int threads) {
  const int64_t count = donors.count, pairs = gram_pairs(count);
  const Chunks chunks = gram_chunks(numel, rows);
  double* const sums = reinterpret_cast<double*>(workspace);
  const int64_t parts = rows <= 1 ? chunks.count : threads;
  Slots slots{workspace + rounded_up(8 * pairs * (parts + 1)), GramRoom::bytes(count)};
  struct State {
    uint8_t* memory = nullptr;
  };
  const int64_t columns = rows <= 1 ? 1 : numel / rows;
  parallel_chunks<State>(
      chunks, threads,
      [&](State& mine, int chunk) {
        if (mine.memory == nullptr) mine.memory = slots.take();
        const GramRoom room = GramRoom::at(mine.memory, count);
        if (rows <= 1) {
          gram_of(donors, room, chunks.begin(chunk), chunks.end(chunk), sums + pairs * chunk);
          return;
        }
        const int64_t thread = (mine.memory - slots.workspace) / slots.bytes;
        for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
          gram_of(donors, room, row * columns, (row + 1) * columns, sums + pairs * thread);
          fill_gram(sums + pairs * thread, count, gram + row * count * count);
        }
      },
      [](const State&) {});
  if (rows != 1) return;
  double* const total = sums + pairs * parts;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    total[pair] = 0;
    for (int chunk = 0; chunk < chunks.count; ++chunk) total[pair] += sums[pairs * chunk + pair];
  }
  fill_gram(total, count, gram);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
