// The loops of delta_stats.h. A block is read twice while it is in the L1 cache: once as integers, for its
// bins, once as numbers, for its sums; NaN and infinity are looked for only where a block has any. Bound by
// instructions: the histogram's increments are scalar (about a cycle an element), and the sums are doubles.
#pragma once

#include "core/support/lanes.h"
#include "core/support/numeric.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kStatsBlock = 1024;  // elements
constexpr int kTables = 4;  // of one histogram, taking turns: equal bins in a row wait for no other's store

template <class Format>
constexpr int kHistogramRows = 1 << Format::kExponentBits;
template <class Format>
constexpr int kHistogramColumns = 2 * kWordBits<typename Format::Word> + 1;

// What one thread gathers; the order does not matter.
template <class Format>
struct DeltaTally {
  static constexpr int kBins = kHistogramRows<Format> * kHistogramColumns<Format>;
  uint32_t histogram[kTables][kBins];  // delta_stats.cpp bounds the number of elements
  int64_t specials[4];                 // base NaN, base Inf, tuned NaN, tuned Inf
  double largest_square[kLanes];
};

template <class Format>
constexpr typename Format::Word kMagnitudeMask =
    static_cast<typename Format::Word>(~kTopBit<typename Format::Word>);
template <class Format>
constexpr typename Format::Word kInfinity = static_cast<typename Format::Word>(
    ((typename Format::Word{1} << Format::kExponentBits) - 1) << kMantissaBits<Format>);

// Fills in the bins of a block; returns whether all its words are finite.
template <class Format>
bool bin_block(const typename Format::Word* __restrict base, const typename Format::Word* __restrict tuned,
               int count, uint16_t* __restrict bins) {
  using Word = typename Format::Word;
  Word largest = 0;
  for (int i = 0; i < count; ++i) {
    const Word from = base[i], to = tuned[i];
    const Word from_magnitude = from & kMagnitudeMask<Format>, to_magnitude = to & kMagnitudeMask<Format>;
    largest = from_magnitude > largest ? from_magnitude : largest;
    largest = to_magnitude > largest ? to_magnitude : largest;
    const Word difference = static_cast<Word>(ordinal(to) - ordinal(from));
    const Word negative = top_mask(difference);
    const Word magnitude = static_cast<Word>(static_cast<Word>(difference ^ negative) - negative);
    const int32_t length = bit_length(magnitude);
    const int32_t column = kWordBits<Word> + (negative ? -length : length);
    bins[i] = static_cast<uint16_t>(exponent_field<Format>(from) * kHistogramColumns<Format> + column);
  }
  return largest < kInfinity<Format>;
}

// Counts NaN and infinity in a block that has any.
template <class Format>
void count_specials(const typename Format::Word* __restrict base,
                    const typename Format::Word* __restrict tuned, int count, int64_t* specials) {
  int32_t base_nan = 0, base_inf = 0, tuned_nan = 0, tuned_inf = 0;
  for (int i = 0; i < count; ++i) {
    base_nan += (base[i] & kMagnitudeMask<Format>) > kInfinity<Format>;
    base_inf += (base[i] & kMagnitudeMask<Format>) == kInfinity<Format>;
    tuned_nan += (tuned[i] & kMagnitudeMask<Format>) > kInfinity<Format>;
    tuned_inf += (tuned[i] & kMagnitudeMask<Format>) == kInfinity<Format>;
  }
  specials[0] += base_nan;
  specials[1] += base_inf;
  specials[2] += tuned_nan;
  specials[3] += tuned_inf;
}

template <class Format>
void tally_block(const uint16_t* bins, int count, DeltaTally<Format>& tally) {
  int k = 0;
  for (; k + kTables <= count; k += kTables)
    for (int table = 0; table < kTables; ++table) ++tally.histogram[table][bins[k + table]];
  for (; k < count; ++k) ++tally.histogram[0][bins[k]];
}

// The words of a block as floats, zero where either of a pair is not finite; fp32 that is finite stays in place.
template <class Format>
struct BlockValues {
  const float *base, *tuned;
  float base_room[kStatsBlock], tuned_room[kStatsBlock];

  BlockValues(const typename Format::Word* from, const typename Format::Word* to, int count, bool all_finite)
      : base(base_room), tuned(tuned_room) {
    if (!all_finite) {
      finite_pairs<Format>(from, to, count, base_room, tuned_room);
    } else if constexpr (sizeof(typename Format::Word) == sizeof(float)) {
      base = reinterpret_cast<const float*>(from);
      tuned = reinterpret_cast<const float*>(to);
    } else {
      for (int i = 0; i < count; ++i) base_room[i] = Format::value(from[i]);
      for (int i = 0; i < count; ++i) tuned_room[i] = Format::value(to[i]);
    }
  }
};

// Adds d^2, base^2 and tuned^2 of a block to total, and raises largest_square to its largest d^2. Squares of
// floats are exact in double, so fused and separate additions of them agree; those of d are never fused.
inline void sum_block(const float* __restrict base, const float* __restrict tuned, int count,
                      LaneSums<3>& total, double* largest_square) {
  LaneSums<3> sums = total;
  double largest[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) largest[lane] = largest_square[lane];
  for_each_in_lanes(count, [&](int i, int lane) {
    const double difference = static_cast<double>(tuned[i]) - static_cast<double>(base[i]);
    const double square = difference * difference;
    sums.lanes[0][lane] += square;
    sums.lanes[1][lane] = add_square(sums.lanes[1][lane], base[i]);
    sums.lanes[2][lane] = add_square(sums.lanes[2][lane], tuned[i]);
    largest[lane] = square > largest[lane] ? square : largest[lane];
  });
  total = sums;
  for (int lane = 0; lane < kLanes; ++lane) largest_square[lane] = largest[lane];
}

template <class Format>
void delta_stats_of(const void* base, const void* tuned, int64_t numel, int64_t* counts, double* sums,
                    int64_t* histogram, int threads) {
  using Word = typename Format::Word;
  using Tally = DeltaTally<Format>;
  const Word* const from = static_cast<const Word*>(base);
  const Word* const to = static_cast<const Word*>(tuned);
  for (int k = 0; k < 5; ++k) counts[k] = 0;
  for (int k = 0; k < Tally::kBins; ++k) histogram[k] = 0;
  double largest_square = 0;

  const Chunks chunks = cut(numel);
  ChunkSums<3> partial;
  parallel_chunks<Tally>(
      chunks, threads,
      [&](Tally& tally, int chunk) {
        const int64_t end = chunks.end(chunk);
        LaneSums<3> lanes{};
        for (int64_t i = chunks.begin(chunk); i < end; i += kStatsBlock) {
          const int count = static_cast<int>(end - i < kStatsBlock ? end - i : kStatsBlock);
          uint16_t bins[kStatsBlock];
          const bool all_finite = bin_block<Format>(from + i, to + i, count, bins);
          tally_block(bins, count, tally);
          if (!all_finite) count_specials<Format>(from + i, to + i, count, tally.specials);
          const BlockValues<Format> values(from + i, to + i, count, all_finite);
          sum_block(values.base, values.tuned, count, lanes, tally.largest_square);
        }
        partial.set(chunk, lanes);
      },
      [&](const Tally& tally) {
        for (int k = 0; k < 4; ++k) counts[k + 1] += tally.specials[k];
        for (const double square : tally.largest_square)
          largest_square = square > largest_square ? square : largest_square;
        for (const auto& table : tally.histogram)
          for (int k = 0; k < Tally::kBins; ++k) histogram[k] += table[k];
      });
  partial.total(chunks.count, sums);
  sums[3] =
      __builtin_sqrt(largest_square);  // exactly max |d|: neither the square nor the root leaves the range
  counts[0] = numel;                   // a difference of zero is a word that did not change
  for (int row = 0; row < kHistogramRows<Format>; ++row)
    counts[0] -= histogram[row * kHistogramColumns<Format> + kWordBits<Word>];
}

}  // namespace graftwork::GRAFTWORK_LEVEL
