// The k-th largest of many scores, exactly: histograms of ever narrower ranges, three of them for all of float32.
#pragma once

#include "core/sparse_update/collect.inl"
#include "core/sparse_update/scores.inl"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kScoreBins = 2048;

// The scores from `least` on, below least + span, by (score - least) >> shift.
struct ScoreRange {
  uint32_t least, span;
  int shift;
};

// What one thread counts.
struct ScoreBins {
  static constexpr int kTables = 4;  // taking turns: equal scores in a row wait for no other's store
  int64_t above;                     // of the range
  int64_t bins[kScoreBins];
  int64_t pending;
  uint32_t tables[kTables][kScoreBins];

  void add_tile(const ScoreRange& range, const uint32_t* scores, int count) {
    uint32_t positions[kScoreTile], inside[kScoreTile];
    const int kept = collect(scores, count, 0, range.least, range.span, positions, inside);
    const uint32_t limit = range.least + range.span;
    int32_t over = 0;
    for (int i = 0; i < count; ++i) over += scores[i] >= limit;
    above += over;
    int i = 0;
    for (; i + kTables <= kept; i += kTables)
      for (int table = 0; table < kTables; ++table)
        ++tables[table][(inside[i + table] - range.least) >> range.shift];
    for (; i < kept; ++i) ++tables[0][(inside[i] - range.least) >> range.shift];
    pending += kept;
    if (pending >= int64_t{1} << 30) flush();
  }

  void add(const ScoreRange& range, const uint32_t* scores, int64_t count) {
    for (int64_t i = 0; i < count; i += kScoreTile)
      add_tile(range, scores + i, static_cast<int>(count - i < kScoreTile ? count - i : kScoreTile));
  }

  void flush() {
    for (auto& table : tables)
      for (int bin = 0; bin < kScoreBins; ++bin) {
        bins[bin] += table[bin];
        table[bin] = 0;
      }
    pending = 0;
  }

  void merge(ScoreBins& other) {
    other.flush();
    above += other.above;
    for (int bin = 0; bin < kScoreBins; ++bin) bins[bin] += other.bins[bin];
  }
};

// A source of scores counts them: count(range, bins). Here one that has them in an array.
struct ScoreArray {
  const uint32_t* scores;
  int64_t numel;
  int threads;

  void count(const ScoreRange& range, ScoreBins& bins) const {
    constexpr int64_t kPiece = int64_t{1} << 15;
    if (threads == 1 || numel <= kPiece) {
      bins.add(range, scores, numel);
      bins.flush();
      return;
    }
    const Chunks pieces{numel, kPiece, static_cast<int>((numel + kPiece - 1) / kPiece)};
    parallel_chunks<ScoreBins>(
        pieces, threads,
        [&](ScoreBins& mine, int i) {
          mine.add(range, scores + pieces.begin(i), pieces.end(i) - pieces.begin(i));
        },
        [&](ScoreBins& mine) { bins.merge(mine); });
  }
};

struct Threshold {
  bool found;
  uint32_t score;
};

// The k-th largest score, 0 < k, if it is in [least, limit).
template <class Source>
Threshold find_threshold(const Source& source, int64_t k, uint32_t least = 0, uint32_t limit = kScoreLimit) {
  ScoreRange range{least, limit - least, 0};
  for (;;) {
    range.shift = 0;
    while ((range.span - 1) >> range.shift >= kScoreBins) ++range.shift;
    ScoreBins bins{};
    source.count(range, bins);
    int64_t above = bins.above;
    if (above >= k) return {false, 0};
    int bin = kScoreBins - 1;
    for (; bin >= 0 && above + bins.bins[bin] < k; --bin) above += bins.bins[bin];
    if (bin < 0) return {false, 0};
    const uint32_t begin = static_cast<uint32_t>(bin) << range.shift, width = uint32_t{1} << range.shift;
    range.least += begin;
    range.span = range.span - begin < width ? range.span - begin : width;
    if (range.shift == 0) return {true, range.least};
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
