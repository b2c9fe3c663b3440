// The loops of sddmm.h. For a block of the batch x and dy are transposed, so that a gradient is the product of two
// short rows; a block is as long as lets x stay in the L2 cache while all indices go by.
//
// The order of a sum is fixed: 16 lanes along a block, folded in halves, block after block.
#pragma once

#include <cstdint>

#include "core/support/lanes.h"
#include "core/support/numeric.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kTile = 16;  // columns and lanes of a tile that is transposed, and gradients at a time
constexpr int64_t kBlockFloats = 1 << 17;           // of x: half of an L2 cache
constexpr int64_t kMinBlock = 32, kMaxBlock = 256;  // of the batch

inline int64_t block_length(int64_t columns) {
  const int64_t length = kBlockFloats / (columns > 0 ? columns : 1) / kTile * kTile;
  return length < kMinBlock ? kMinBlock : length > kMaxBlock ? kMaxBlock : length;
}

inline int64_t whole_tiles(int64_t count) { return (count + kTile - 1) / kTile; }

inline int64_t sddmm_workspace_floats(int64_t columns, int64_t rows) {
  return (whole_tiles(columns) + whole_tiles(rows)) * kTile * block_length(columns);
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/sparse_update/sddmm.avx512.inl"
#elif defined(GRAFTWORK_LEVEL_IS_avx2)
#include "core/sparse_update/sddmm.avx2.inl"
#else
namespace graftwork::GRAFTWORK_LEVEL {

// to[c * stride + b] = tile[b][c].
inline void transpose_tile(const float (&tile)[kTile][kTile], float* to, int64_t stride) {
  for (int c = 0; c < kTile; ++c)
    for (int b = 0; b < kTile; ++b) to[c * stride + b] = tile[b][c];
}

// sums[e] = the product of the rows x[e] and dy[e], of `length` floats each.
inline void multiply_rows(const float* const (&x)[kTile], const float* const (&dy)[kTile], int64_t length,
                          float (&sums)[kTile]) {
  for (int e = 0; e < kTile; ++e) {
    float lanes[kTile];
    for (int l = 0; l < kTile; ++l) lanes[l] = x[e][l] * dy[e][l];
    for (int64_t i = kTile; i < length; i += kTile)
      for (int l = 0; l < kTile; ++l) lanes[l] += x[e][i + l] * dy[e][i + l];
    for (int width = kTile / 2; width > 0; width /= 2)
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    sums[e] = lanes[0];
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
#endif

namespace graftwork::GRAFTWORK_LEVEL {

// A matrix [batch][columns] and the transpose of a block of its rows, as floats: [columns][stride], zero past its end.
template <class Format>
struct BlockOf {
  const typename Format::Word* words;
  float* block;
  int64_t columns, stride;

  // Transposes 16 columns of the rows begin .. end - 1.
  void pack(int64_t tile_number, int64_t begin, int64_t end) const {
    const int64_t column = kTile * tile_number;
    const int wide = static_cast<int>(columns - column < kTile ? columns - column : kTile);
    for (int64_t b = begin; b < end; b += kTile) {
      const int high = static_cast<int>(end - b < kTile ? end - b : kTile);
      float tile[kTile][kTile];
      if (wide < kTile || high < kTile)
        for (auto& line : tile)
          for (float& value : line) value = 0;
      for (int r = 0; r < high; ++r) load(words + (b + r) * columns + column, wide, tile[r]);
      transpose_tile(tile, block + column * stride + (b - begin), stride);
    }
  }

 private:
  static void load(const typename Format::Word* from, int wide, float* to) {
    if (wide == kTile)  // a length that is known makes vectors of it
      for (int c = 0; c < kTile; ++c) to[c] = Format::value(from[c]);
    else
      for (int c = 0; c < wide; ++c) to[c] = Format::value(from[c]);
  }
};

// The row and the column of an index; those of sorted indices need no division but where a row begins.
struct RowOf {
  int64_t columns, row = 0, first = 0;

  int64_t column(int64_t index) {
    if (index < first || index - first >= columns) {
      row = index / columns;
      first = row * columns;
    }
    return index - first;
  }
};

// Adds what a block gives to the gradients begin .. end - 1.
template <class Index>
void add_block(const Index* indices, float* gradients, int64_t begin, int64_t end, const float* x_block,
               const float* dy_block, int64_t columns, int64_t stride, int64_t length, bool first) {
  RowOf place{columns};
  for (; begin < end; begin += kTile) {
    const int count = static_cast<int>(end - begin < kTile ? end - begin : kTile);
    const float *x[kTile], *dy[kTile];
    for (int e = 0; e < kTile; ++e) {
      const int64_t column = place.column(indices[begin + (e < count ? e : count - 1)]);
      x[e] = x_block + column * stride;
      dy[e] = dy_block + place.row * stride;
    }
    float sums[kTile];
    multiply_rows(x, dy, length, sums);
    for (int e = 0; e < count; ++e) gradients[begin + e] = first ? sums[e] : gradients[begin + e] + sums[e];
  }
}

template <class Index>
bool any_outside(const Index* indices, int64_t entries, int64_t numel, int threads) {
  struct State {
    bool any;
  };
  bool any = false;
  const Chunks chunks = cut(entries);
  parallel_chunks<State>(
      chunks, threads,
      [&](State& state, int chunk) {
        bool mine = false;
        for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i)
          mine |= (indices[i] < 0) | (indices[i] >= numel);
        state.any |= mine;
      },
      [&](const State& state) { any |= state.any; });
  return any;
}

// Entries in chunks that are worth a thread even where a block is short.
inline Chunks cut_products(int64_t entries) {
  const int64_t share = (entries + kMaxChunks - 1) / kMaxChunks, rounded = whole_tiles(share) * kTile;
  const int64_t length = rounded < 1024 ? 1024 : rounded;
  return {entries, length, static_cast<int>((entries + length - 1) / length)};
}

template <class Format, class Index>
void sddmm_of(const typename Format::Word* x, const typename Format::Word* dy, const Index* indices,
              float* gradients, float* workspace, int64_t batch, int64_t columns, int64_t rows,
              int64_t entries, int threads) {
  const int64_t stride = block_length(columns);
  const BlockOf<Format> xs{x, workspace, columns, stride};
  const BlockOf<Format> dys{dy, workspace + whole_tiles(columns) * kTile * stride, rows, stride};
  const int64_t x_tiles = whole_tiles(columns), tiles = x_tiles + whole_tiles(rows);
  const int64_t tiles_together = tiles / (8 * kMaxChunks) * 8 + 8;
  const Chunks packing{tiles, tiles_together,
                       static_cast<int>((tiles + tiles_together - 1) / tiles_together)};
  const Chunks products = cut_products(entries);
  for (int64_t i = 0; batch == 0 && i < entries; ++i) gradients[i] = 0;
  for (int64_t begin = 0; begin < batch; begin += stride) {
    const int64_t end = begin + stride < batch ? begin + stride : batch;
    parallel_chunks(packing, threads, [&](int chunk) {
      for (int64_t tile = packing.begin(chunk); tile < packing.end(chunk); ++tile)
        if (tile < x_tiles)
          xs.pack(tile, begin, end);
        else
          dys.pack(tile - x_tiles, begin, end);
    });
    parallel_chunks(products, threads, [&](int chunk) {
      add_block(indices, gradients, products.begin(chunk), products.end(chunk), xs.block, dys.block, columns,
                stride, whole_tiles(end - begin) * kTile, begin == 0);
    });
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
