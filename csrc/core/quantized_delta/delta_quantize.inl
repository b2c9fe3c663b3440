// The loops of delta_quantize.h. Blocks that fit a tile are read once: differences, scales and codes while they are in the
// L1 cache. Longer ones are read again for their codes, from a nearer cache if they are a row; a matrix of one scale is
// read twice. Bound by memory where no scale is searched.
#pragma once

#include "core/quantized_delta/fit.inl"

namespace graftwork::GRAFTWORK_LEVEL {

struct Matrix {
  const void *tuned, *base;
  int64_t rows, columns;
  void (*load)(const void* tuned, const void* base, int64_t at, int count, float* delta);
  void (*load_blocks)(const void* tuned, const void* base, int64_t at, int count, int block, float* delta,
                      float* wholes, float* lows);
};

// The blocks of a matrix, and where results go.
struct Packing {
  int64_t block;  // elements; more than a row has for one scale of all
  int iterations;
  ScaleRule rule;
  uint8_t* codes;
  int64_t row_bytes;
  float* scales;
  uint8_t* zeros;  // null for schemes without
};

constexpr int64_t kNone = INT64_MAX;

// What a chunk of rows gives beside codes.
struct Tally {
  LaneSums<1> errors;
  int64_t nonfinite;  // the first, or kNone
};

// One block in the L1 cache.
struct TilePieces {
  const float* delta;
  int length;

  int64_t count() const { return length; }
  template <int kSums, class Add>
  void sums(const Add& add, double* totals) const {
    double lanes[kSums][kLanes] = {};
    add(delta, length, lanes);
    for (int k = 0; k < kSums; ++k) totals[k] = folded(lanes[k]);
  }
  template <bool kSigned>
  Range range() const {
    Range range{0, 0};
    if constexpr (kSigned)
      range.widen(delta, length);
    else
      range.high = largest_magnitude(delta, length, 0);
    return range;
  }
};

// One block that is a long part of a row.
struct RowPieces {
  const Matrix& matrix;
  int64_t begin, length;

  int64_t count() const { return length; }
  // Calls body(delta, count, place from the block's beginning).
  template <class Body>
  void for_each(const Body& body) const {
    for_each_tile(length, [&](int64_t at, int count) {
      float delta[kTile];
      matrix.load(matrix.tuned, matrix.base, begin + at, count, delta);
      body(delta, count, at);
    });
  }
  template <int kSums, class Add>
  void add_sums(const Add& add, double (*lanes)[kLanes]) const {
    for_each([&](const float* delta, int count, int64_t) { add(delta, count, lanes); });
  }
  template <int kSums, class Add>
  void sums(const Add& add, double* totals) const {
    double lanes[kSums][kLanes] = {};
    add_sums<kSums>(add, lanes);
    for (int k = 0; k < kSums; ++k) totals[k] = folded(lanes[k]);
  }
  template <bool kSigned>
  Range range() const {
    Range range{0, 0};
    for_each([&](const float* delta, int count, int64_t) {
      range.widen(TilePieces{delta, count}.range<kSigned>());
    });
    return range;
  }
};

// All of a matrix as one block.
struct MatrixPieces {
  const Matrix& matrix;
  int threads;

  int64_t count() const { return matrix.rows * matrix.columns; }
  RowPieces row(int64_t number) const { return {matrix, number * matrix.columns, matrix.columns}; }
  template <int kSums, class Add>
  void sums(const Add& add, double* totals) const {
    const Chunks chunks = cut_rows(matrix.rows, matrix.columns);
    double partial[kMaxChunks][kSums];
    parallel_chunks(chunks, threads, [&](int chunk) {
      double lanes[kSums][kLanes] = {};
      for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i) row(i).add_sums<kSums>(add, lanes);
      for (int k = 0; k < kSums; ++k) partial[chunk][k] = folded(lanes[k]);
    });
    for (int k = 0; k < kSums; ++k) {
      totals[k] = 0;
      for (int chunk = 0; chunk < chunks.count; ++chunk) totals[k] += partial[chunk][k];
    }
  }
  template <bool kSigned>
  Range range() const {
    const Chunks chunks = cut_rows(matrix.rows, matrix.columns);
    Range range{0, 0};
    parallel_chunks<Range>(
        chunks, threads,
        [&](Range& mine, int chunk) {
          for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i)
            mine.widen(row(i).range<kSigned>());
        },
        [&](const Range& mine) { range.widen(mine); });
    return range;
  }
};

template <class Code, class Pieces>
Fitted fit(const Packing& packing, const Pieces& pieces) {
  const Extent extent = extent_of<Code>(pieces);
  if constexpr (Code::scheme != Scheme::sign)
    if (packing.iterations > 0) return search<Code>(extent, packing.rule, packing.iterations, pieces);
  const float scale = packing.rule.round(scale_before_rounding<Code>(extent, 1));
  return {scale, zero_of<Code>(extent.low, scale), 0};
}

// Whether a block's differences are all finite: then what its scale is made of is. (A sum of floats in double is.)
inline bool is_finite(float x) { return (bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }

inline void note_nonfinite(const float* delta, int count, int64_t at, Tally& tally) {
  const int found = first_nonfinite(delta, count);
  if (found >= 0 && at + found < tally.nonfinite) tally.nonfinite = at + found;
}

// Scales and zeros of blocks side by side, of the largest magnitudes; as fit, but many at once. Whether all is finite.
template <class Code>
bool fit_extents(const ScaleRule& rule, const float* wholes, const float* lows, int blocks, float* scales,
                 uint8_t* zeros) {
  int32_t finite = 1;
  for (int k = 0; k < blocks; ++k) {
    finite &= is_finite(wholes[k]) ? 1 : 0;
    scales[k] = scale_before_rounding<Code>({wholes[k], lows[k]}, 1);
  }
  rule.round(scales, blocks);
  if constexpr (Code::scheme == Scheme::asym)
    for (int k = 0; k < blocks; ++k) zeros[k] = static_cast<uint8_t>(zero_of<Code>(lows[k], scales[k]));
  return finite != 0;
}

// Scales and zeros of blocks side by side by a search.
template <class Code>
void search_blocks(const Packing& packing, const float* delta, int count, int blocks, float* scales,
                   uint8_t* zeros) {
  const int block = static_cast<int>(packing.block);
  for (int k = 0; k < blocks; ++k) {
    const int begin = k * block, length = begin + block < count ? block : count - begin;
    const Fitted found = fit<Code>(packing, TilePieces{delta + begin, length});
    scales[k] = found.scale;
    if (zeros != nullptr) zeros[k] = static_cast<uint8_t>(found.zero);
  }
}

// All blocks of a row that fit a tile each.
template <class Code>
void pack_short_blocks(const Matrix& matrix, const Packing& packing, int64_t row, Tally& tally) {
  const Planes<Code::bits> planes(matrix.columns);
  const int64_t blocks_of_row = (matrix.columns + packing.block - 1) / packing.block;
  const int64_t step = kTile / packing.block * packing.block;
  uint8_t* const bytes = packing.codes + row * packing.row_bytes;
  for (int64_t column = 0; column < matrix.columns; column += step) {
    const int count = static_cast<int>(matrix.columns - column < step ? matrix.columns - column : step);
    const int blocks = static_cast<int>((count + packing.block - 1) / packing.block);
    const int64_t first = row * blocks_of_row + column / packing.block;
    float* const scales = packing.scales + first;
    uint8_t* const zeros = packing.zeros == nullptr ? nullptr : packing.zeros + first;
    float delta[kTile], wholes[kTile / 8], lows[kTile / 8];
    const int64_t at = row * matrix.columns + column;
    const int block = static_cast<int>(packing.block);
    matrix.load_blocks(matrix.tuned, matrix.base, at, count, block, delta, wholes, lows);
    bool finite = true;
    if (packing.iterations == 0) {
      finite = fit_extents<Code>(packing.rule, wholes, lows, blocks, scales, zeros);
    } else {
      search_blocks<Code>(packing, delta, count, blocks, scales, zeros);
      finite = first_nonfinite(delta, count) < 0;
    }
    if (!finite) note_nonfinite(delta, count, at, tally);
    encode<Code>({delta, count, block, scales, zeros}, planes.low(bytes, column), planes.high(bytes, column),
                 tally.errors);
  }
}

// The codes of a block for its scale, tile by tile; it begins at a column of a row.
template <class Code>
void pack_long_block(const Matrix& matrix, const Packing& packing, int64_t row, int64_t column,
                     int64_t length, const float* scale, const uint8_t* zero, Tally& tally) {
  const Planes<Code::bits> planes(matrix.columns);
  uint8_t* const bytes = packing.codes + row * packing.row_bytes;
  const int64_t begin = row * matrix.columns + column;
  RowPieces{matrix, begin, length}.for_each([&](const float* delta, int count, int64_t at) {
    if (largest_magnitude(delta, count, 0) >= kInfinityBits) note_nonfinite(delta, count, begin + at, tally);
    encode<Code>({delta, count, count, scale, zero}, planes.low(bytes, column + at),
                 planes.high(bytes, column + at), tally.errors);
  });
}

template <class Code>
void pack_row(const Matrix& matrix, const Packing& packing, int64_t row, Tally& tally) {
  const Planes<Code::bits> planes(matrix.columns);
  const int64_t used = planes.low_bytes + (Code::bits == 3 ? (matrix.columns + 7) / 8 : 0);
  std::memset(packing.codes + row * packing.row_bytes + used, 0, packing.row_bytes - used);
  if (packing.block > matrix.columns)
    return pack_long_block<Code>(matrix, packing, row, 0, matrix.columns, packing.scales, packing.zeros,
                                 tally);
  if (packing.block <= kTile) return pack_short_blocks<Code>(matrix, packing, row, tally);
  int64_t number = row * ((matrix.columns + packing.block - 1) / packing.block);
  for (int64_t column = 0; column < matrix.columns; column += packing.block, ++number) {
    const int64_t left = matrix.columns - column, length = left < packing.block ? left : packing.block;
    const Fitted found = fit<Code>(packing, RowPieces{matrix, row * matrix.columns + column, length});
    packing.scales[number] = found.scale;
    if (packing.zeros != nullptr) packing.zeros[number] = static_cast<uint8_t>(found.zero);
    pack_long_block<Code>(matrix, packing, row, column, length, packing.scales + number,
                          packing.zeros == nullptr ? nullptr : packing.zeros + number, tally);
  }
}

// Codes, scales and zeros of all rows; the first difference that is not finite, or -1.
template <class Code>
int64_t pack_matrix(const Matrix& matrix, const Packing& packing, double* error, int threads) {
  if (packing.block > matrix.columns) {
    const Fitted found = fit<Code>(packing, MatrixPieces{matrix, threads});
    packing.scales[0] = found.scale;
    if (packing.zeros != nullptr) packing.zeros[0] = static_cast<uint8_t>(found.zero);
  }
  const Chunks chunks = cut_rows(matrix.rows, matrix.columns);
  ChunkSums<1> partial;
  struct State {
    int64_t found;  // plus one, or 0
  };
  int64_t nonfinite = kNone;
  parallel_chunks<State>(
      chunks, threads,
      [&](State& mine, int chunk) {
        Tally tally{{}, kNone};
        for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row)
          pack_row<Code>(matrix, packing, row, tally);
        partial.set(chunk, tally.errors);
        if (tally.nonfinite != kNone && (mine.found == 0 || tally.nonfinite < mine.found - 1))
          mine.found = tally.nonfinite + 1;
      },
      [&](const State& mine) {
        if (mine.found != 0 && mine.found - 1 < nonfinite) nonfinite = mine.found - 1;
      });
  partial.total(chunks.count, error);
  return nonfinite == kNone ? -1 : nonfinite;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
