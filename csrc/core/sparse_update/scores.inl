// The scores of the weights of several tensors, |x| or |x - base|, as the bits of a float32: in the order of the
// scores, with NaN above infinity. They are made a tile at a time and stay in the L1 cache.
#pragma once

#include "core/sparse_update/arena.h"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kScoreTile = 1024;   // scores; a multiple of 16
constexpr int kFetched = 64;       // weights whose lines are fetched together
constexpr int kFetchAhead = 2048;  // bytes, where a tile is scored before anything else is done with it
constexpr uint32_t kInfiniteScore = 0x7f800000;
constexpr uint32_t kScoreLimit = 0x80000000;  // above every score, NaN too

// Has the cache lines fetched that come a little later, past the end too, where it does nothing.
template <int kAhead = kFetchAhead, class Word>
inline void fetch_ahead(const Word* from, int words) {
  constexpr int kLine = 64 / sizeof(Word);
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + kAhead;
  for (int i = 0; i < words; i += kLine)
    __builtin_prefetch(reinterpret_cast<const void*>(at + i * sizeof(Word)));
}

template <class Format>
inline void score_tile(const typename Format::Word* __restrict x,
                       const typename Format::Word* __restrict base, int count, uint32_t* __restrict scores) {
  for (int begin = 0; begin < count; begin += kFetched) {
    const int end = begin + kFetched < count ? begin + kFetched : count;
    fetch_ahead(x + begin, kFetched);
    if (base == nullptr) {
      for (int i = begin; i < end; ++i) scores[i] = bit_cast<uint32_t>(Format::value(x[i])) & 0x7fffffffu;
    } else {
      fetch_ahead(base + begin, kFetched);
      for (int i = begin; i < end; ++i)
        scores[i] = bit_cast<uint32_t>(Format::value(x[i]) - Format::value(base[i])) & 0x7fffffffu;
    }
  }
}

// Weights in all offsets[tensors], of which those from offsets[t] on are tensor t's.
struct ScoredWeights {
  const void* const* weights;
  const void* const* bases;  // nullptr: the score is |x|
  const int64_t* offsets;
  const int32_t* formats;
  int64_t tensors;

  int64_t numel() const { return offsets[tensors]; }

  void check_formats() const {  // the loops must not throw
    for (int64_t t = 0; t < tensors; ++t)
      with_format(static_cast<WeightFormat>(formats[t]), []<class Format>() {});
  }

  // Calls body.operator()<Format>(x, base) with a tensor's words from weight `at` of it on.
  template <class Body>
  void with_words(int64_t tensor, int64_t at, const Body& body) const {
    with_format(static_cast<WeightFormat>(formats[tensor]), [&]<class Format>() {
      using Word = typename Format::Word;
      const Word* const base = bases == nullptr ? nullptr : static_cast<const Word*>(bases[tensor]) + at;
      body.template operator()<Format>(static_cast<const Word*>(weights[tensor]) + at, base);
    });
  }

  // The scores of `count` weights of a tensor from weight `at` of it on.
  void score(int64_t tensor, int64_t at, int count, uint32_t* scores) const {
    with_words(tensor, at,
               [&]<class Format>(const typename Format::Word* x, const typename Format::Word* base) {
                 score_tile<Format>(x, base, count, scores);
               });
  }

  // Calls body(tensor, at, position, count) for every tile of a chunk: `count` weights of a tensor from weight `at` of it
  // on; the position is from the chunk's begin on.
  template <class Body>
  void for_each_piece(const Chunks& chunks, int chunk, const Body& body) const {
    for_each_span(chunks, chunk, offsets, tensors, [&](int64_t tensor, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += kScoreTile) {
        const int count = static_cast<int>(end - i < kScoreTile ? end - i : kScoreTile);
        body(tensor, i - offsets[tensor], static_cast<uint32_t>(i - chunks.begin(chunk)), count);
      }
    });
  }

  // The same with the tile's scores: body(tensor, position, scores, count).
  template <class Body>
  void for_each_tile(const Chunks& chunks, int chunk, const Body& body) const {
    alignas(64) uint32_t scores[kScoreTile];
    for_each_piece(chunks, chunk, [&](int64_t tensor, int64_t at, uint32_t position, int count) {
      score(tensor, at, count, scores);
      body(tensor, position, scores, count);
    });
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
