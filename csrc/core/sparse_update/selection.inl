// The k largest scores of several tensors, exactly: those of equal score in the order of the weights.
//
// The common way reads the weights once: a sample gives a score that a few more than k reach, those are kept as
// candidates, and the k-th largest of them is found. Candidates are above that score; weights that have the score itself
// are only counted, since there may be very many of them, as where many weights did not change. If some of these are
// among the k, the chunks where the first of them are read once more.
#pragma once

#include "core/sparse_update/candidates.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int64_t kSampled = int64_t{1} << 18;  // scores, in runs as long as a cache line
constexpr int kRun = 16;

// How far down the sample the k-th largest may be. Neighbours resemble each other, so that a sample of runs is worth
// less than one of single weights: twice the six standard deviations that those would take.
struct SampleRanks {
  int64_t most, least;

  static SampleRanks of(int64_t numel, int64_t k) {
    const double share = static_cast<double>(k) / static_cast<double>(numel);
    const double rank = share * kSampled;
    const double margin = 12 * __builtin_sqrt(rank * (1 - share)) + 16;
    return {static_cast<int64_t>(rank + margin), static_cast<int64_t>(rank - margin)};
  }
};

// Blocks for the candidates; 0 where so many are chosen, or there are so few weights, that reading again is better.
inline int64_t candidate_blocks(int64_t numel, int64_t k, int threads) {
  if (numel <= kSampled || k <= 0) return 0;
  const int64_t most = SampleRanks::of(numel, k).most;
  const double reached = static_cast<double>(most) + 6 * __builtin_sqrt(static_cast<double>(most));
  const double expected = reached / kSampled * static_cast<double>(numel);
  if (expected > static_cast<double>(numel) / 4) return 0;
  return static_cast<int64_t>(expected) / (kCandidateBlock - kScoreTile) + 1 + threads;
}

inline void sample_scores(const ScoredWeights& weights, int threads, uint32_t* sample) {
  constexpr int64_t kRuns = kSampled / kRun, kPiece = kRuns / 16;
  const int64_t numel = weights.numel();
  parallel_chunks(Chunks{kRuns, kPiece, 16}, threads, [&](int piece) {
    int64_t tensor = 0;
    for (int64_t run = piece * kPiece; run < (piece + 1) * kPiece; ++run) {
      // Somewhere in the run's share of the weights: no row length keeps step with it.
      const int64_t begin = numel / kRuns * run + numel % kRuns * run / kRuns;
      const uint64_t dice = (static_cast<uint64_t>(run) + 1) * 0x9e3779b97f4a7c15ull >> 40;
      int64_t at = begin + static_cast<int64_t>(dice) % (numel / kRuns);
      while (weights.offsets[tensor + 1] <= at) ++tensor;
      const int64_t first = weights.offsets[tensor], last = weights.offsets[tensor + 1];
      if (at + kRun > last) at = last - kRun > first ? last - kRun : first;
      const int count = static_cast<int>(last - at < kRun ? last - at : kRun);
      uint32_t* const scores = sample + run * kRun;
      weights.score(tensor, at - first, count, scores);
      for (int i = count; i < kRun; ++i) scores[i] = scores[i - count];  // a tensor shorter than a run
    }
  });
}

// Between which scores the k-th largest is likely to be: above `low`, and below `limit`.
struct Bracket {
  uint32_t low, limit;
};

inline Bracket sample_bracket(const ScoredWeights& weights, int64_t k, int threads, uint32_t* sample) {
  sample_scores(weights, threads, sample);
  const ScoreArray scores{sample, kSampled, threads};
  const SampleRanks ranks = SampleRanks::of(weights.numel(), k);
  const Threshold low = find_threshold(scores, ranks.most < kSampled ? ranks.most : kSampled);
  const Threshold high = ranks.least > 0 ? find_threshold(scores, ranks.least) : Threshold{false, 0};
  const bool bounded = high.found && high.score < kInfiniteScore;
  return {low.score < kInfiniteScore ? low.score : kInfiniteScore, bounded ? high.score + 1 : kScoreLimit};
}

// Writes the chosen weights of one chunk.
template <class Index>
struct ChunkWriter {
  const int64_t* offsets;
  int64_t* counts;  // chosen weights of every tensor
  int64_t begin;    // of the chunk
  int64_t tensor;
  Index* out;
  int64_t quota, ties;  // ties to take, of those that the chunk has
  uint32_t threshold;

  uint32_t least() const { return quota == 0 ? threshold + 1 : threshold; }

  // Takes the scores from least() on, at these positions; few chunks have ties of which some are left out.
  void take(uint32_t* positions, const uint32_t* scores, int count) {
    if (quota < ties) {
      int kept = 0;
      for (int i = 0; i < count; ++i) {
        const bool tie = scores[i] == threshold;
        positions[kept] = positions[i];
        kept += !tie || quota > 0;
        if (tie && quota > 0) --quota, --ties;
      }
      count = kept;
    }
    for (int i = 0; i < count;) {
      while (offsets[tensor + 1] <= begin + positions[i]) ++tensor;
      const int64_t stop = offsets[tensor + 1] - begin, shift = begin - offsets[tensor];
      int end = count;
      if (positions[count - 1] >= stop)
        for (end = i; positions[end] < stop;) ++end;
      for (int at = i; at < end; ++at) out[at - i] = static_cast<Index>(positions[at] + shift);
      out += end - i;
#pragma omp atomic
      counts[tensor] += end - i;
      i = end;
    }
  }

  void take_candidates(const uint32_t* positions, const uint32_t* scores, int64_t count) {
    for (int64_t i = 0; i < count; i += kScoreTile) {
      const int here = static_cast<int>(count - i < kScoreTile ? count - i : kScoreTile);
      uint32_t chosen[kScoreTile], found[kScoreTile];
      const int kept = collect(scores + i, here, 0, least(), kScoreLimit - least(), chosen, found);
      for (int k = 0; k < kept; ++k) chosen[k] = positions[i + chosen[k]];
      take(chosen, found, kept);
    }
  }

  void take_tile(uint32_t position, const uint32_t* scores, int count) {
    uint32_t chosen[kScoreTile], found[kScoreTile];
    take(chosen, found, collect(scores, count, position, least(), kScoreLimit - least(), chosen, found));
  }
};

// Where the chosen weights of each chunk go, and how many of its ties are chosen.
struct ChunkShares {
  int64_t begin[kMaxChunks + 1], ties[kMaxChunks], quota[kMaxChunks];

  // Chosen are all above the threshold, and of those that have it the first, k in all.
  void divide(const Candidates& all, uint32_t threshold, int64_t k) {
    int64_t above[kMaxChunks], left = k;
    parallel_chunks(all.chunks, all.threads, [&](int chunk) {
      const ChunkRecord& record = all.records[chunk];
      above[chunk] = record.candidates;
      ties[chunk] = record.ties;
      if (threshold < all.least) return;
      int64_t more = 0, equal = 0;
      all.for_each_run(chunk, [&](const uint32_t*, const uint32_t* scores, int64_t count) {
        for (int64_t i = 0; i < count; ++i) more += scores[i] > threshold;
        for (int64_t i = 0; i < count; ++i) equal += scores[i] == threshold;
      });
      above[chunk] = more;
      ties[chunk] = equal;
    });
    for (int chunk = 0; chunk < all.chunks.count; ++chunk) left -= above[chunk];
    begin[0] = 0;
    for (int chunk = 0; chunk < all.chunks.count; ++chunk) {
      quota[chunk] = ties[chunk] < left ? ties[chunk] : left;
      left -= quota[chunk];
      begin[chunk + 1] = begin[chunk] + above[chunk] + quota[chunk];
    }
  }
};

template <class Index>
void write_chosen(const ScoredWeights& weights, const Candidates& all, uint32_t threshold, int64_t k,
                  Index* indices, int64_t* counts) {
  ChunkShares shares;
  shares.divide(all, threshold, k);
  parallel_chunks(all.chunks, all.threads, [&](int chunk) {
    if (shares.begin[chunk] == shares.begin[chunk + 1]) return;
    ChunkWriter<Index> writer{weights.offsets,
                              counts,
                              all.chunks.begin(chunk),
                              0,
                              indices + shares.begin[chunk],
                              shares.quota[chunk],
                              shares.ties[chunk],
                              threshold};
    if (all.room > 0 && (threshold >= all.least || writer.quota == 0)) {
      all.for_each_run(chunk, [&](const uint32_t* positions, const uint32_t* scores, int64_t count) {
        writer.take_candidates(positions, scores, count);
      });
    } else {
      weights.for_each_tile(all.chunks, chunk,
                            [&](int64_t, uint32_t position, const uint32_t* scores, int count) {
                              writer.take_tile(position, scores, count);
                            });
    }
  });
}

inline int64_t selection_bytes(int64_t numel, int64_t k, int threads) {
  const int64_t blocks = candidate_blocks(numel, k, threads);
  return blocks == 0 ? 0 : 4 * kSampled + blocks * static_cast<int64_t>(sizeof(CandidateBlock));
}

// The k-th largest score and the candidates that were found on the way; 0 < k.
inline uint32_t search(const ScoredWeights& weights, int64_t k, uint32_t* sample, Candidates& all) {
  if (all.room > 0) {
    const Bracket bracket = sample_bracket(weights, k, all.threads, sample);
    find_candidates(weights, bracket.low + 1, all);
    if (all.nan_tensor >= 0) return 0;
    if (!all.overflow && all.count < k && all.count + all.ties >= k) return bracket.low;
    if (!all.overflow && all.count >= k) {
      const Threshold likely = find_threshold(CandidateScores{all}, k, all.least, bracket.limit);
      return likely.found ? likely.score : find_threshold(CandidateScores{all}, k, all.least).score;
    }
  }
  const uint32_t threshold = find_threshold(AllScores{weights, all.threads}, k).score;
  find_candidates(weights, threshold + 1, all);  // fewer than k
  return threshold;
}

// Writes indices[k], the chosen weights of one tensor after the other, and adds how many there are to counts. Returns
// the k-th largest score (infinity for k = 0); *nan_tensor becomes the first tensor with a NaN, or -1.
template <class Index>
uint32_t select_largest(const ScoredWeights& weights, int64_t k, Index* indices, int64_t* counts,
                        int64_t* nan_tensor, uint8_t* workspace, int64_t workspace_bytes, int threads) {
  const int64_t numel = weights.numel(), sample_bytes = 4 * kSampled;
  const bool roomy = candidate_blocks(numel, k, threads) > 0;
  Candidates all;
  all.blocks = reinterpret_cast<CandidateBlock*>(workspace + sample_bytes);
  all.room = roomy ? (workspace_bytes - sample_bytes) / static_cast<int64_t>(sizeof(CandidateBlock)) : 0;
  all.chunks = cut(numel);
  all.threads = threads;
  uint32_t threshold = kInfiniteScore;
  if (k == 0)
    find_candidates(weights, kScoreLimit, all);
  else
    threshold = search(weights, k, reinterpret_cast<uint32_t*>(workspace), all);
  *nan_tensor = all.nan_tensor;
  if (k > 0 && all.nan_tensor < 0) write_chosen(weights, all, threshold, k, indices, counts);
  return threshold;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
