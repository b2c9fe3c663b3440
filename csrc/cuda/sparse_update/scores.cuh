// The scores of the weights of several tensors, |x| or |x - base|, as the bits of a float32: in the order of
// the scores, with NaN above infinity. They are made where they are used and never stored.
//
// A tile belongs to one tensor, so that all lanes read one format, and each tensor's tiles start at its first
// weight, so that reads are as aligned as the tensor. A thread has four groups of four neighbours, a warp's
// groups follow each other.
#pragma once

#include <cstdint>

#include "cuda/sparse_update/arena.cuh"
#include "cuda/sparse_update/words.cuh"
#include "cuda/support/reduce.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {

constexpr int kScoreThreads = 256;
constexpr int kGroups = 4, kGroup = 4;  // of a thread, and scores of each
constexpr int kScores = kGroups * kGroup;
constexpr int kWarpScores = kWarp * kScores;
constexpr int64_t kScoreTile = kScoreThreads * kScores;
constexpr uint32_t kInfiniteScore = 0x7f800000;
constexpr uint32_t kNoScore = 0xffffffff;  // past the tensor's end; below every score if taken as signed

// Tables of one number for each tensor, in device memory.
struct ScoredTensors {
  const void* const* weights;
  const void* const* bases;  // null: the score is |x|
  const int64_t* numels;
  const int64_t* tiles;  // where each tensor's begin, and their number
  const int64_t* formats;
  int64_t tensors;
};

// Neighbours, as one access moves them.
template <class Word>
struct alignas(kGroup * sizeof(Word)) Group {
  Word word[kGroup];
};

template <class Word>
SIMT_DEVICE Group<Word> load_group(const Word* words, int at, int count, bool aligned) {
  if (aligned && at + kGroup <= count)
    return simt::load_global(reinterpret_cast<const Group<Word>*>(words + at));
  Group<Word> group{};
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (at + i < count) group.word[i] = simt::load_global(words + at + i);
  return group;
}

// Where a thread's group begins in its tile.
SIMT_DEVICE int group_begin(int group) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  return warp * kWarpScores + group * kWarp * kGroup + lane * kGroup;
}

template <WeightFormat kFormat, class Word>
SIMT_DEVICE void score_words(const Word* x, const Word* base, int count, uint32_t (&scores)[kScores]) {
  const auto places = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(base);
  const bool aligned = places % sizeof(Group<Word>) == 0;
  Group<Word> from[kGroups] = {}, to[kGroups];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    to[group] = load_group(x, group_begin(group), count, aligned);
    if (base != nullptr) from[group] = load_group(base, group_begin(group), count, aligned);
  }
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const float tuned = value_of(to[i / kGroup].word[i % kGroup], kFormat);
    const float origin = value_of(from[i / kGroup].word[i % kGroup], kFormat);  // +0 without a base
    const uint32_t score = bits_of(__fsub_rn(tuned, origin)) & 0x7fffffffu;
    scores[i] = group_begin(i / kGroup) + i % kGroup < count ? score : kNoScore;
  }
}

// A thread's share of a tile.
struct ScoreTile {
  int64_t tensor, begin;  // the tile's first weight in its tensor
  uint32_t scores[kScores];

  // The whole block calls it.
  SIMT_DEVICE ScoreTile(const ScoredTensors& of, int64_t tile) {
    tensor = find_tensor(of.tiles, of.tensors, tile);
    begin = (tile - simt::load_global(of.tiles + tensor)) * kScoreTile;
    const int64_t left = simt::load_global(of.numels + tensor) - begin;
    const int count = left < kScoreTile ? static_cast<int>(left) : static_cast<int>(kScoreTile);
    const void* const x = simt::load_global(of.weights + tensor);
    const void* const base = of.bases == nullptr ? nullptr : simt::load_global(of.bases + tensor);
    switch (static_cast<WeightFormat>(simt::load_global(of.formats + tensor))) {
      case WeightFormat::float16: score<WeightFormat::float16, uint16_t>(x, base, count); break;
      case WeightFormat::bfloat16: score<WeightFormat::bfloat16, uint16_t>(x, base, count); break;
      case WeightFormat::float32: score<WeightFormat::float32, uint32_t>(x, base, count); break;
    }
  }

  template <WeightFormat kFormat, class Word>
  SIMT_DEVICE void score(const void* x, const void* base, int count) {
    const auto* const under = base == nullptr ? nullptr : static_cast<const Word*>(base) + begin;
    score_words<kFormat>(static_cast<const Word*>(x) + begin, under, count, scores);
  }
};

}  // namespace graftwork::cuda
