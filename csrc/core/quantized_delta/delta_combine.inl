// The loops of delta_combine.h. The lanes of a vector are the words of 64 bytes of a row; the same code of all of them
// is added at once, times the coefficient of its block. Of a token the coefficients of all rows and blocks are made first.
//
// The order of a sum is fixed: row by row, then the next plane, then the next combination.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/quantized_delta/delta_combine.h"
#include "core/quantized_delta/delta_linear_lanes.inl"
#include "core/quantized_delta/delta_linear_values.inl"
#include "core/quantized_delta/delta_planes.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int64_t kRowsAhead = 16;         // that are prefetched
constexpr int64_t kColumnsTogether = 512;  // of y: whole tiles of every width

// What is prepared of a token: coefficients [rows][stride], of which a vector is read from any block on, and what the
// zeros take off the columns of each block.
struct Coefficients {
  int64_t rows, blocks, stride, floats;

  static Coefficients of(int64_t rows, int64_t blocks) {
    const int64_t stride = blocks + kLanes - 1;
    return {rows, blocks, stride, divide_up(rows * stride + blocks, kLanes) * kLanes};
  }
  static Coefficients of(const DeltaMatrix& matrix) {
    return of(matrix.rows, matrix.scale_stride ? matrix.scale_stride : 1);
  }

  template <class Format>
  void fill(const DeltaMatrix& matrix, const float* inputs, const float* weights, float* to) const {
    const auto* const scales = reinterpret_cast<const typename Format::Word*>(matrix.scales);
    const uint8_t* const zeros = reinterpret_cast<const uint8_t*>(matrix.zeros);
    float* const taken_off = to + rows * stride;
    for (int64_t b = 0; b < blocks; ++b) taken_off[b] = 0;
    for (int64_t k = 0; k < rows; ++k) {
      const float factor = inputs[k] * weights[k];
      float* const line = to + k * stride;
      for (int64_t b = 0; b < blocks; ++b)
        line[b] = factor * Format::value(scales[k * matrix.scale_stride + b]);
      for (int64_t b = blocks; b < stride; ++b) line[b] = 0;
      for (int64_t b = 0; zeros && b < blocks; ++b)
        taken_off[b] += line[b] * static_cast<float>(zeros[k * matrix.scale_stride + b] - matrix.zero_centre);
    }
  }
};

// The columns of up to 64 bytes of a plane, from `word` on, whose blocks a vector of coefficients holds.
template <int kBits>
struct CombinedTile {
  static constexpr int kCodes = 32 / kBits, kOctets = kCodes > kOctet ? kCodes / kOctet : 1;
  const DeltaMatrix& matrix;
  const Plane& plane;
  int64_t column, bytes;             // the first column; of a row
  uint32_t blocks[kOctets][kLanes];  // of the octets of every word, counted from the first
  int64_t first_block;

  static int64_t columns_of(const DeltaMatrix& matrix) {
    const int64_t all = kPieceWords * kCodes,
                  begins = kColumnsTogether % (matrix.block ? matrix.block : 1) == 0;
    const int64_t most =
        matrix.block ? (kLanes - !begins) * matrix.block : all;  // a block may end in the tile
    return most < all ? most / kCodes * kCodes : all;
  }

  CombinedTile(const DeltaMatrix& of, const Plane& of_plane, int64_t from, int64_t to)
      : matrix(of), plane(of_plane), column(from), bytes(divide_up((to - from) * kBits, 8)) {
    first_block = matrix.block ? column / matrix.block : 0;
    for (int o = 0; o < kOctets; ++o)
      for (int w = 0; w < kLanes; ++w) {
        const int64_t at = column + w * kCodes + o * kOctet;
        blocks[o][w] = matrix.block && at < to ? static_cast<uint32_t>(at / matrix.block - first_block) : 0;
      }
  }

  // sums[t][c][w] = the sum over the rows of code c of word w, for kGroup codes from `code` on.
  template <int kTokens, int kGroup>
  void add_rows(const float* const* coefficients, int64_t stride, int code,
                float (*sums)[kCodes][kLanes]) const {
    const FloatLanes table = load_values<kBits>(plane.values);
    FloatLanes acc[kTokens][kGroup];
    for (auto& line : acc)
      for (auto& sum : line) sum = FloatLanes::all(0);
    const uint8_t* row = reinterpret_cast<const uint8_t*>(matrix.codes) + plane.byte + column * kBits / 8;
    for (int64_t k = 0; k < matrix.rows; ++k, row += matrix.row_bytes) {
      __builtin_prefetch(row + kRowsAhead * matrix.row_bytes);
      uint32_t padded[kPieceWords] = {};
      if (bytes < kPieceBytes) std::memcpy(padded, row, static_cast<size_t>(bytes));
      WordLanes words = WordLanes::load(bytes < kPieceBytes ? padded : reinterpret_cast<const uint32_t*>(row))
                            .right(kBits * code);
      FloatLanes factor[kTokens];
      for (int c = 0; c < kGroup; ++c) {
        if (c % kOctet == 0)
          for (int t = 0; t < kTokens; ++t)
            factor[t] = FloatLanes::look_up(WordLanes::load(blocks[(code + c) / kOctet]),
                                            FloatLanes::load(coefficients[t] + k * stride + first_block));
        const FloatLanes value = value_of<kBits>(words, table);
        words = words.right(kBits);
        for (int t = 0; t < kTokens; ++t) acc[t][c] = value.multiply_add(factor[t], acc[t][c]);
      }
    }
    for (int t = 0; t < kTokens; ++t)
      for (int c = 0; c < kGroup; ++c) acc[t][c].store(sums[t][code + c]);
  }

  // Adds to the columns of y of kTokens tokens.
  template <int kTokens>
  void add(const Coefficients& layout, const float* const* coefficients, bool with_zeros, float* const* y,
           const float* factors, int64_t end) const {
    constexpr int kMost = kAccumulators / kTokens, kGroup = kMost < kCodes ? kMost : kCodes;
    float sums[kTokens][kCodes][kLanes];
    for (int code = 0; code < kCodes; code += kGroup)
      add_rows<kTokens, kGroup>(coefficients, layout.stride, code, sums);
    for (int t = 0; t < kTokens; ++t)
      for (int64_t at = column; at < end; ++at) {
        float sum = sums[t][(at - column) % kCodes][(at - column) / kCodes];
        if (with_zeros)
          sum -= coefficients[t][layout.rows * layout.stride + (matrix.block ? at / matrix.block : 0)];
        y[t][at] += factors[t] * sum;
      }
  }
};

// Adds the columns begin .. end - 1 of a combination.
inline void add_columns(const DeltaCombination& one, float* y, const int64_t* places, const float* factors,
                        const float* prepared, int64_t begin, int64_t end) {
  const DeltaMatrix& matrix = one.matrix;
  const Coefficients layout = Coefficients::of(matrix);
  const Planes planes = Planes::of(matrix.columns, matrix.bits, matrix.values);
  for (int p = 0; p < planes.count; ++p)
    with_bits(planes.plane[p].bits, [&]<int kBits>() {
      using Tile = CombinedTile<kBits>;
      const int64_t wide = Tile::columns_of(matrix);
      for (int64_t column = begin; column < end; column += wide) {
        const int64_t stop = column + wide < end ? column + wide : end;
        const Tile tile(matrix, planes.plane[p], column, stop);
        const auto tokens = [&]<int kTokens>(int64_t t) {
          const float* coefficients[kTokens];
          float* to[kTokens];
          for (int i = 0; i < kTokens; ++i) {
            coefficients[i] = prepared + (t + i) * layout.floats;
            to[i] = y + places[one.first_token + t + i] * matrix.columns;
          }
          tile.template add<kTokens>(layout, coefficients, matrix.zeros && p == 0, to,
                                     factors + one.first_token + t, stop);
        };
        int64_t t = 0;
        for (; t + 4 <= one.token_count; t += 4) tokens.template operator()<4>(t);
        if (t + 2 <= one.token_count) {
          tokens.template operator()<2>(t);
          t += 2;
        }
        if (t < one.token_count) tokens.template operator()<1>(t);
      }
    });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
