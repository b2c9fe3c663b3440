// Differences of a piece of a row, and what a scale is made of: the mean or the range of a block.
#pragma once

#include "core/quantized_delta/rows.inl"
#include "core/sparse_update/tile.inl"
#include "core/support/lanes.h"

namespace graftwork::GRAFTWORK_LEVEL {

// tuned - base as floats.
template <class Format>
inline void extract(const void* tuned, const void* base, int64_t at, int count, float* __restrict delta) {
  using Word = typename Format::Word;
  const Word* __restrict const to = static_cast<const Word*>(tuned) + at;
  if (base == nullptr) return values_of<Format>(to, count, delta);
  const Word* __restrict const from = static_cast<const Word*>(base) + at;
  for (int i = 0; i < count; ++i) delta[i] = Format::value(to[i]) - Format::value(from[i]);
}

// Sixteen sums as one: a tree, whatever the level.
inline double folded(const double* lanes) {
  double half[8], quarter[4];
  for (int i = 0; i < 8; ++i) half[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) quarter[i] = half[i] + half[i + 4];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Adds magnitudes to 16 sums: those of up to 128 differences in float, eight in a row, which are then added in double.
// Pieces begin at multiples of 128.
constexpr int kMeanRun = 8 * kLanes;

inline void add_magnitudes(const float* __restrict delta, int count, double* lanes) {
  for (int begin = 0; begin < count; begin += kMeanRun) {
    const int length = count - begin < kMeanRun ? count - begin : kMeanRun;
    float sums[kLanes] = {};
    for_each_in_lanes(length, [&](int i, int lane) { sums[lane] += __builtin_fabsf(delta[begin + i]); });
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += sums[lane];
  }
}

// The bits of the largest and the lowest of floats and 0, without the sign. A NaN is beyond an infinity.
struct Range {
  int32_t high, low;

  void widen(const float* __restrict delta, int count) {
    int32_t most = high, least = low;
    for (int i = 0; i < count; ++i) {
      const int32_t bits = bit_cast<int32_t>(delta[i]), negated = bits ^ INT32_MIN;
      most = bits > most ? bits : most;
      least = negated > least ? negated : least;
    }
    high = most;
    low = least;
  }
  void widen(const Range& other) {
    high = other.high > high ? other.high : high;
    low = other.low > low ? other.low : low;
  }
};

constexpr int32_t kInfinityBits = 0x7f800000;

// The bits of the largest magnitude.
inline int32_t largest_magnitude(const float* __restrict delta, int count, int32_t largest) {
  for (int i = 0; i < count; ++i) {
    const int32_t bits = bit_cast<int32_t>(delta[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// What the scale of a block is made of.
struct Extent {
  float whole;  // the mean magnitude, the range, or the largest magnitude
  float low;    // the lowest, for asym
};

enum class Statistic { mean, range, magnitude };

// A mean that is not zero stays so as a float.
inline Extent mean_extent(double total, int64_t count) {
  const float mean = static_cast<float>(count > 0 ? total / static_cast<double>(count) : 0);
  return {total > 0 && mean == 0 ? 0x1p-149f : mean, 0};
}

inline Extent range_extent(const Range& range) {
  const float high = bit_cast<float>(range.high), low = -bit_cast<float>(range.low);
  return {high - low, low};
}

inline int first_nonfinite(const float* delta, int count) {
  for (int i = 0; i < count; ++i)
    if ((bit_cast<uint32_t>(delta[i]) & 0x7f800000u) == 0x7f800000u) return i;
  return -1;
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/quantized_delta/extract.avx512.inl"
#else

namespace graftwork::GRAFTWORK_LEVEL {

// Differences of some blocks side by side, and their extents.
template <class Format, Statistic kStatistic>
void extract_blocks(const void* tuned, const void* base, int64_t at, int count, int block, float* delta,
                    float* wholes, float* lows) {
  extract<Format>(tuned, base, at, count, delta);
  for (int begin = 0, k = 0; begin < count; begin += block, ++k) {
    const int length = begin + block < count ? block : count - begin;
    Extent extent{0, 0};
    if constexpr (kStatistic == Statistic::mean) {
      double lanes[kLanes] = {};
      add_magnitudes(delta + begin, length, lanes);
      extent = mean_extent(folded(lanes), length);
    } else if constexpr (kStatistic == Statistic::range) {
      Range range{0, 0};
      range.widen(delta + begin, length);
      extent = range_extent(range);
    } else {
      extent.whole = bit_cast<float>(largest_magnitude(delta + begin, length, 0));
    }
    wholes[k] = extent.whole;
    lows[k] = extent.low;
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif
