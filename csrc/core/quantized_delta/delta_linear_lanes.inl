// Sixteen lanes, in each of which stands a row or a word of codes, for delta_linear.h. The levels give the same bits, but
// for multiply_add, which rounds once where there is an instruction for it.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/support/lanes.h"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kTileRows = 64;
constexpr int kPieceBytes = 64, kPieceWords = kPieceBytes / 4;  // of a row at a time

}  // namespace graftwork::GRAFTWORK_LEVEL

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/quantized_delta/delta_linear_lanes.avx512.inl"
#elif defined(GRAFTWORK_LEVEL_IS_avx2)
#include "core/quantized_delta/delta_linear_lanes.avx2.inl"
#else
namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kAccumulators = 4;  // vectors of sums that registers hold

struct WordLanes {
  uint32_t v[kLanes];

  // Of words that begin `bytes` bytes later, so that their lowest bits are others.
  static WordLanes load(const uint32_t* from, int bytes = 0) {
    WordLanes lanes;
    std::memcpy(lanes.v, reinterpret_cast<const uint8_t*>(from) + bytes, sizeof lanes.v);
    return lanes;
  }
  WordLanes right(int count) const {
    WordLanes lanes;
    for (int l = 0; l < kLanes; ++l) lanes.v[l] = v[l] >> count;
    return lanes;
  }
};

// Words whose lowest four bits are the second lowest four of these.
inline WordLanes next_digit(WordLanes words) { return words.right(4); }

struct FloatLanes {
  float v[kLanes];

  static FloatLanes all(float value) {
    FloatLanes lanes;
    for (float& lane : lanes.v) lane = value;
    return lanes;
  }
  static FloatLanes load(const float* from) {
    FloatLanes lanes;
    std::memcpy(lanes.v, from, sizeof lanes.v);
    return lanes;
  }
  // Of every word: the entry of the table that its low four bits say; its low byte; its low half, a float16.
  static FloatLanes look_up(WordLanes index, FloatLanes table) {
    FloatLanes lanes;
    for (int l = 0; l < kLanes; ++l) lanes.v[l] = table.v[index.v[l] & 15];
    return lanes;
  }
  static FloatLanes bytes(WordLanes words) {
    FloatLanes lanes;
    for (int l = 0; l < kLanes; ++l) lanes.v[l] = static_cast<float>(static_cast<int32_t>(words.v[l] & 0xff));
    return lanes;
  }
  static FloatLanes halves(WordLanes words) {
    FloatLanes lanes;
    for (int l = 0; l < kLanes; ++l) lanes.v[l] = Float16::value(static_cast<uint16_t>(words.v[l]));
    return lanes;
  }
  FloatLanes operator+(FloatLanes other) const {
    for (int l = 0; l < kLanes; ++l) other.v[l] = v[l] + other.v[l];
    return other;
  }
  FloatLanes multiply_add(FloatLanes factor, FloatLanes sum) const {
    for (int l = 0; l < kLanes; ++l) sum.v[l] += v[l] * factor.v[l];
    return sum;
  }
  void store(float* to) const { std::memcpy(to, v, sizeof v); }
};

// Sixteen rows of 64 bytes as sixteen rows of words: to[w * kTileRows + r] = word w of row r.
inline void transpose_words(const uint8_t* const* rows, int64_t offset, uint32_t* to) {
  for (int r = 0; r < kLanes; ++r) {
    uint32_t line[kPieceWords];
    std::memcpy(line, rows[r] + offset, sizeof line);
    for (int w = 0; w < kPieceWords; ++w) to[w * kTileRows + r] = line[w];
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
#endif
