// The loops of delta_stats.h. A block is read twice while it is in the L1 cache: once as integers, for its
// bins and counts, once as numbers, for its sums. Only the histogram's increments are scalar.
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
  int64_t counts[5];
  double largest[kLanes];
};

template <class Format>
void bin_block(const typename Format::Word* __restrict base, const typename Format::Word* __restrict tuned,
               int count, uint16_t* __restrict bins, int64_t* counts) {
  using Word = typename Format::Word;
  constexpr Word kMagnitude = static_cast<Word>(~kTopBit<Word>);
  constexpr Word kInfinity =
      static_cast<Word>(((Word{1} << Format::kExponentBits) - 1) << kMantissaBits<Format>);
  int32_t changed = 0, base_nan = 0, base_inf = 0, tuned_nan = 0, tuned_inf = 0;
  for (int i = 0; i < count; ++i) {
    const Word from = base[i], to = tuned[i];
    const Word from_magnitude = from & kMagnitude, to_magnitude = to & kMagnitude;
    changed += from != to;
    base_nan += from_magnitude > kInfinity;
    base_inf += from_magnitude == kInfinity;
    tuned_nan += to_magnitude > kInfinity;
    tuned_inf += to_magnitude == kInfinity;
    const Word difference = static_cast<Word>(ordinal(to) - ordinal(from));
    const Word negative = top_mask(difference);
    const Word magnitude = static_cast<Word>(static_cast<Word>(difference ^ negative) - negative);
    const int32_t length = bit_length(magnitude);
    const int32_t column = kWordBits<Word> + (negative ? -length : length);
    bins[i] = static_cast<uint16_t>(exponent_field<Format>(from) * kHistogramColumns<Format> + column);
  }
  counts[0] += changed;
  counts[1] += base_nan;
  counts[2] += base_inf;
  counts[3] += tuned_nan;
  counts[4] += tuned_inf;
}

template <class Format>
void tally_block(const uint16_t* bins, int count, DeltaTally<Format>& tally) {
  int k = 0;
  for (; k + kTables <= count; k += kTables)
    for (int table = 0; table < kTables; ++table) ++tally.histogram[table][bins[k + table]];
  for (; k < count; ++k) ++tally.histogram[0][bins[k]];
}

// Adds base^2, tuned^2 and d^2 of a block to sums, and raises largest to its max |d|.
inline void sum_block(const float* __restrict base, const float* __restrict tuned, int count,
                      LaneSums<3>& total, double* largest_of_lane) {
  LaneSums<3> sums = total;
  double largest[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) largest[lane] = largest_of_lane[lane];
  for_each_in_lanes(count, [&](int i, int lane) {
    const double from = base[i], to = tuned[i];
    const double difference = to - from;
    const double size = difference < 0 ? -difference : difference;
    sums.lanes[0][lane] += difference * difference;
    sums.lanes[1][lane] += from * from;
    sums.lanes[2][lane] += to * to;
    largest[lane] = size > largest[lane] ? size : largest[lane];
  });
  total = sums;
  for (int lane = 0; lane < kLanes; ++lane) largest_of_lane[lane] = largest[lane];
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
  double& largest = sums[3] = 0;

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
          float from_values[kStatsBlock], to_values[kStatsBlock];
          bin_block<Format>(from + i, to + i, count, bins, tally.counts);
          tally_block(bins, count, tally);
          finite_pairs<Format>(from + i, to + i, count, from_values, to_values);
          sum_block(from_values, to_values, count, lanes, tally.largest);
        }
        partial.set(chunk, lanes);
      },
      [&](const Tally& tally) {
        for (int k = 0; k < 5; ++k) counts[k] += tally.counts[k];
        for (const double candidate : tally.largest) largest = candidate > largest ? candidate : largest;
        for (const auto& table : tally.histogram)
          for (int k = 0; k < Tally::kBins; ++k) histogram[k] += table[k];
      });
  partial.total(chunks.count, sums);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
