// One reading of all weights: where the scores are that may be among the largest, in memory that goes with them alone.
#pragma once

#include "core/sparse_update/threshold.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kCandidateBlock = 1 << 14;  // candidates; a thread takes a block at a time

struct CandidateBlock {
  uint32_t positions[kCandidateBlock], scores[kCandidateBlock];
  int32_t used;
  int32_t next;  // block of the same thread
};

// What was seen of one chunk. Its candidates follow one another from a place in a block on.
struct ChunkRecord {
  int64_t candidates, ties;  // scores from `least` on; scores of `least` - 1
  int32_t block, offset;
};

struct Candidates {
  CandidateBlock* blocks;
  int64_t room;  // blocks; 0: candidates are counted, not kept
  Chunks chunks;
  int threads;
  uint32_t least;
  int64_t taken, count, ties;
  int64_t nan_tensor;  // the first with a NaN, or -1
  bool overflow;
  ChunkRecord records[kMaxChunks];

  // Calls body(positions, scores, count) for the candidates of a chunk, a block at a time.
  template <class Body>
  void for_each_run(int chunk, const Body& body) const {
    const ChunkRecord& record = records[chunk];
    int64_t left = record.candidates;
    for (int32_t block = record.block, offset = record.offset; left > 0; offset = 0) {
      const CandidateBlock& from = blocks[block];
      const int64_t here = from.used - offset < left ? from.used - offset : left;
      body(from.positions + offset, from.scores + offset, here);
      left -= here;
      block = from.next;
    }
  }

  // As a source of scores; see threshold.inl.
  void count_scores(const ScoreRange& range, ScoreBins& bins) const {
    const Chunks each{taken, 1, static_cast<int>(taken)};
    parallel_chunks<ScoreBins>(
        each, threads,
        [&](ScoreBins& mine, int block) { mine.add(range, blocks[block].scores, blocks[block].used); },
        [&](ScoreBins& mine) { bins.merge(mine); });
  }
};

struct CandidateScores {
  const Candidates& candidates;
  void count(const ScoreRange& range, ScoreBins& bins) const { candidates.count_scores(range, bins); }
};

// All scores, made anew for every count.
struct AllScores {
  const ScoredWeights& weights;
  int threads;

  void count(const ScoreRange& range, ScoreBins& bins) const {
    const Chunks chunks = cut(weights.numel());
    parallel_chunks<ScoreBins>(
        chunks, threads,
        [&](ScoreBins& mine, int chunk) {
          weights.for_each_tile(chunks, chunk, [&](int64_t, uint32_t, const uint32_t* scores, int count) {
            mine.add_tile(range, scores, count);
          });
        },
        [&](ScoreBins& mine) { bins.merge(mine); });
  }
};

// What one thread keeps while it reads.
struct CandidateWriter {
  CandidateBlock* block = nullptr;
  int64_t first_nan = INT64_MAX;

  // Room for one more tile; nullptr where there is none.
  CandidateBlock* make_room(Candidates& all) {
    if (block != nullptr && block->used + kScoreTile <= kCandidateBlock) return block;
    const int64_t number = __atomic_fetch_add(&all.taken, 1, __ATOMIC_RELAXED);
    if (number >= all.room) return nullptr;
    if (block != nullptr) block->next = static_cast<int32_t>(number);
    block = all.blocks + number;
    block->used = 0;
    return block;
  }
};

// What a tile has of candidates (scores from `least` on) and of scores of `least` - 1.
struct FoundInTile {
  int kept;
  int32_t ties;
  bool nan;
};

// The same of scores that are made already.
inline FoundInTile count_in_tile(const uint32_t* __restrict scores, int count, uint32_t least) {
  int32_t kept = 0, ties = 0, most = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t score = static_cast<int32_t>(scores[i]);
    most = score > most ? score : most;
    kept += scores[i] >= least;
    ties += scores[i] == least - 1;
  }
  return {kept, ties, static_cast<uint32_t>(most) > kInfiniteScore};
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/sparse_update/candidates.avx512.inl"
#else

namespace graftwork::GRAFTWORK_LEVEL {

// Finds the candidates of a tile, and keeps their positions, from `position` on, and scores; up to `count` rounded up to
// a multiple of 16 may be written to.
template <class Format>
inline FoundInTile find_in_tile(const typename Format::Word* x, const typename Format::Word* base, int count,
                                uint32_t position, uint32_t least, uint32_t* positions, uint32_t* found) {
  alignas(64) uint32_t scores[kScoreTile];
  score_tile<Format>(x, base, count, scores);
  collect(scores, count, position, least, kScoreLimit - least, positions, found);
  return count_in_tile(scores, count, least);
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif

namespace graftwork::GRAFTWORK_LEVEL {

// The candidates of one chunk; false where there is no room.
inline bool find_in_chunk(const ScoredWeights& weights, Candidates& all, CandidateWriter& writer, int chunk) {
  ChunkRecord& record = all.records[chunk];
  record = {0, 0, 0, 0};
  if (all.room > 0) {
    const CandidateBlock* const block = writer.make_room(all);
    if (block == nullptr) return false;
    record.block = static_cast<int32_t>(block - all.blocks);
    record.offset = block->used;
  }
  bool roomy = true;
  const uint32_t least = all.least;
  alignas(64) uint32_t scores[kScoreTile];
  weights.for_each_piece(all.chunks, chunk, [&](int64_t tensor, int64_t at, uint32_t position, int count) {
    CandidateBlock* const block = all.room > 0 && roomy ? writer.make_room(all) : nullptr;
    roomy = roomy && (block != nullptr || all.room == 0);
    FoundInTile tile;
    if (block != nullptr) {
      uint32_t *const positions = block->positions + block->used, *const found = block->scores + block->used;
      weights.with_words(
          tensor, at, [&]<class Format>(const typename Format::Word* x, const typename Format::Word* base) {
            tile = find_in_tile<Format>(x, base, count, position, least, positions, found);
          });
      block->used += tile.kept;
    } else {
      weights.score(tensor, at, count, scores);
      tile = count_in_tile(scores, count, least);
    }
    record.candidates += tile.kept;
    record.ties += tile.ties;
    if (tile.nan && tensor < writer.first_nan) writer.first_nan = tensor;
  });
  return roomy;
}

inline void find_candidates(const ScoredWeights& weights, uint32_t least, Candidates& all) {
  all.least = least;
  all.taken = all.count = all.ties = 0;
  all.nan_tensor = INT64_MAX;
  all.overflow = false;
  struct State {
    CandidateWriter writer;
    bool roomy = true;
  };
  parallel_chunks<State>(
      all.chunks, all.threads,
      [&](State& state, int chunk) {
        state.roomy = state.roomy && find_in_chunk(weights, all, state.writer, chunk);
      },
      [&](State& state) {
        all.overflow |= !state.roomy;
        if (state.writer.first_nan < all.nan_tensor) all.nan_tensor = state.writer.first_nan;
      });
  if (all.taken > all.room) all.taken = all.room;
  if (all.nan_tensor == INT64_MAX) all.nan_tensor = -1;
  for (int chunk = 0; chunk < all.chunks.count; ++chunk) {
    all.count += all.records[chunk].candidates;
    all.ties += all.records[chunk].ties;
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
