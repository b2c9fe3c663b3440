// The scales and the zeros of a tile of rows, block by block, with a row in every lane.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/quantized_delta/delta_linear_lanes.inl"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

// Where the rows of a tile begin; those past its end are the last once more. Returns how many sixteens are in use.
inline int row_pointers(int64_t address, int64_t row, int64_t row_count, int64_t stride,
                        const uint8_t** pointers) {
  for (int64_t r = 0; r < kTileRows; ++r)
    pointers[r] =
        reinterpret_cast<const uint8_t*>(address) + (row + (r < row_count ? r : row_count - 1)) * stride;
  return static_cast<int>((row_count + kLanes - 1) / kLanes);
}

// `bytes` bytes of the rows from `offset` on, between zeros, transposed. A number of them that is known when this is
// compiled, kBytes, spares a call for each row.
template <int kBytes>
inline void transpose_part(const uint8_t* const* rows, int64_t offset, int64_t bytes, int groups,
                           uint32_t* to) {
  for (int g = 0; g < groups; ++g) {
    alignas(64) uint8_t padded[kLanes][kPieceBytes] = {};
    const uint8_t* lines[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const uint8_t* const from = rows[kLanes * g + r] + offset;
      if (bytes == kBytes)
        std::memcpy(padded[r], from, kBytes);
      else
        std::memcpy(padded[r], from, static_cast<size_t>(bytes));
      lines[r] = padded[r];
    }
    transpose_words(lines, 0, to + kLanes * g);
  }
}

class BlockValues {
 public:
  // `stride` values a row, or 0 where one stands for all rows; of `size` bytes.
  void begin(int64_t address, int64_t row, int64_t row_count, int64_t stride, int64_t size) {
    groups_ = row_pointers(address, row, row_count, stride * size, rows_);
    blocks_ = stride == 0 ? 1 : stride;
    first_ = -kBlocks;
  }

  const float* scales(WeightFormat format, int64_t block) {
    if (format == WeightFormat::float16) return at<2>(block, FloatLanes::halves);
    if (format == WeightFormat::bfloat16)
      return at<2>(block, [](WordLanes words) {
        float values[kLanes];
        uint32_t bits[kLanes];
        std::memcpy(bits, &words, sizeof bits);
        for (int r = 0; r < kLanes; ++r) values[r] = BFloat16::value(static_cast<uint16_t>(bits[r]));
        return FloatLanes::load(values);
      });
    return at<4>(block, [](WordLanes words) {
      FloatLanes values;
      static_assert(sizeof values == sizeof words);
      std::memcpy(&values, &words, sizeof values);
      return values;
    });
  }
  const float* zeros(int64_t block) { return at<1>(block, FloatLanes::bytes); }

 private:
  static constexpr int kBlocks = 16;  // at a time

  // Those of a block, of kSize bytes each; convert: of the lowest ones in words.
  template <int kSize, class Convert>
  const float* at(int64_t block, const Convert& convert) {
    constexpr int kEach = 4 / kSize;
    if (block < first_ || block >= first_ + kBlocks) {
      first_ = block / kBlocks * kBlocks;
      const int64_t left = blocks_ - first_, count = left < kBlocks ? left : kBlocks;
      uint32_t words[kPieceWords][kTileRows];
      transpose_part<kSize * kBlocks>(rows_, first_ * kSize, count * kSize, groups_, words[0]);
      for (int i = 0; i < count; ++i)
        for (int r = 0; r < kLanes * groups_; r += kLanes)
          convert(WordLanes::load(words[i / kEach] + r).right(8 * kSize * (i % kEach))).store(values_[i] + r);
    }
    return values_[block - first_];
  }

  const uint8_t* rows_[kTileRows];
  int64_t blocks_, first_;
  int groups_;
  float values_[kBlocks][kTileRows];
};

}  // namespace graftwork::GRAFTWORK_LEVEL
