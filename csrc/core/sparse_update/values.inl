// The loops of values.h.
#pragma once

#include "core/sparse_update/tile.inl"
#include "core/support/lanes.h"

namespace graftwork::GRAFTWORK_LEVEL {

template <class Word, class Index>
void gather_words_of(const void* const* dense, const Index* indices, const int64_t* offsets, int64_t tensors,
                     Word* out, int threads) {
  const int tile = entry_tile(offsets[tensors]);
  parallel_spans(offsets, tensors, threads, [=](int64_t tensor, int64_t begin, int64_t end) {
    const Word* const words = static_cast<const Word*>(dense[tensor]);
    for_each_entry_tile(
        begin, end, tile,
        [=](int64_t at, int count) { prefetch_words(words, sizeof(Word) / 2, indices + at, count); },
        [=](int64_t at, int count) { gather_words(words, indices + at, count, out + at); });
  });
}

template <class Word, class Index>
void restore_words_of(void* const* dense, const Index* indices, const int64_t* offsets, int64_t tensors,
                      const Word* saved, int threads) {
  const int tile = entry_tile(offsets[tensors]);
  parallel_spans(offsets, tensors, threads, [=](int64_t tensor, int64_t begin, int64_t end) {
    Word* const words = static_cast<Word*>(dense[tensor]);
    for_each_entry_tile(
        begin, end, tile,
        [=](int64_t at, int count) { prefetch_words(words, sizeof(Word) / 2, indices + at, count); },
        [=](int64_t at, int count) { scatter_words(words, indices + at, count, saved + at); });
  });
}

// base + scale * value, the sum that is rounded to a weight.
inline void add_scaled(const float* __restrict base, const float* __restrict values, float scale, int count,
                       float* __restrict sums) {
  for (int i = 0; i < count; ++i) sums[i] = base[i] + values[i] * scale;
}

template <class Index>
void write_values_of(void* const* dense, const Index* indices, const int64_t* offsets, int64_t tensors,
                     WeightFormat format, const void* base, const float* values, float scale, int threads) {
  const WordReader<Index> reader(format);
  const WordWriter<Index> writer(format);
  const int tile = entry_tile(offsets[tensors]);
  parallel_spans(offsets, tensors, threads, [=](int64_t tensor, int64_t begin, int64_t end) {
    void* const words = dense[tensor];
    for_each_entry_tile(
        begin, end, tile,
        [=](int64_t at, int count) { prefetch_words(words, writer.log2_bytes, indices + at, count); },
        [=](int64_t at, int count) {
          float sums[kEntryTile];
          float under[kEntryTile];
          reader.load(base, at, count, under);
          add_scaled(under, values + at, scale, count, sums);
          writer.scatter(words, indices + at, count, sums);
        });
  });
}

// Scales a tile of gradients; returns how many are not finite, and adds the squares of all.
inline int64_t scale_gradients(float* values, float scale, int count, LaneSums<1>& total) {
  int32_t nonfinite = 0;
  for (int i = 0; i < count; ++i) {
    values[i] *= scale;
    nonfinite += (bit_cast<uint32_t>(values[i]) & 0x7f800000u) == 0x7f800000u;
  }
  LaneSums<1> sums = total;
  for_each_in_lanes(
      count, [&](int i, int lane) { sums.lanes[0][lane] = add_square(sums.lanes[0][lane], values[i]); });
  total = sums;
  return nonfinite;
}

template <class Index>
void gather_gradients_of(const void* const* dense, const Index* indices, const int64_t* offsets,
                         int64_t tensors, WeightFormat format, float scale, float* out,
                         double* sum_of_squares, int64_t* nonfinite, int threads) {
  const WordReader<Index> reader(format);
  const int tile = entry_tile(offsets[tensors]);
  const Chunks chunks = cut_entries(offsets[tensors]);
  ChunkSums<1> partial;
  struct State {
    int64_t nonfinite;
  };
  *nonfinite = 0;
  parallel_chunks<State>(
      chunks, threads,
      [&](State& mine, int chunk) {
        LaneSums<1> lanes{};
        for_each_span(chunks, chunk, offsets, tensors, [&](int64_t tensor, int64_t begin, int64_t end) {
          const void* const words = dense[tensor];
          for_each_entry_tile(
              begin, end, tile,
              [=](int64_t at, int count) { prefetch_words(words, reader.log2_bytes, indices + at, count); },
              [&](int64_t at, int count) {
                reader.gather(words, indices + at, count, out + at);
                mine.nonfinite += scale_gradients(out + at, scale, count, lanes);
              });
        });
        partial.set(chunk, lanes);
      },
      [&](const State& mine) { *nonfinite += mine.nonfinite; });
  partial.total(chunks.count, sum_of_squares);
}

// Two sorted lists of indices, and a place in them both.
template <class Index>
struct SortedPair {
  const Index* before;
  const Index* after;
  int64_t before_count, after_count;

  struct Place {
    int64_t before, after;
  };

  // The place after the first `merged` entries of both lists in one order, one more where that would part an index
  // from itself: each index then belongs to one piece of work. It is not before `from`.
  Place cut(int64_t merged, Place from) const {
    int64_t low = merged - after_count > from.before ? merged - after_count : from.before;
    int64_t high = merged - from.after < before_count ? merged - from.after : before_count;
    while (low < high) {  // the fewest of `before` such that its others come after what is taken of `after`
      const int64_t middle = low + (high - low) / 2;
      if (before[middle] <= after[merged - middle - 1])
        low = middle + 1;
      else
        high = middle;
    }
    Place place{low, merged - low};
    if (place.before > 0 && place.after < after_count && before[place.before - 1] == after[place.after])
      ++place.after;
    return place;
  }
};

constexpr int kSwapTile = 256;  // entries of both lists: finding a place costs as much as some tens of them

// One piece of a swap in one tensor: all words of `before` there, then those of `after`, while they are in the cache.
template <class Format, class Index>
void swap_piece(typename Format::Word* words, const Index* before, const typename Format::Word* before_base,
                int before_count, const Index* after, const float* after_values, int after_count, float scale,
                typename Format::Word* after_base) {
  scatter_words(words, before, before_count, before_base);
  gather_words(words, after, after_count, after_base);
  float under[kSwapTile + 1], sums[kSwapTile + 1];
  typename Format::Word put[kSwapTile + 1];
  values_of<Format>(after_base, after_count, under);
  add_scaled(under, after_values, scale, after_count, sums);
  words_of<Format>(sums, after_count, put);
  scatter_words(words, after, after_count, put);
}

template <class Format, class Index>
void swap_values_of(void* const* dense, int64_t tensors, const Index* before_indices,
                    const int64_t* before_offsets, const void* before_base, const Index* after_indices,
                    const int64_t* after_offsets, const float* after_values, float scale, void* after_base,
                    const int64_t* offsets, int threads) {
  using Word = typename Format::Word;
  const Word* const saved = static_cast<const Word*>(before_base);
  Word* const under = static_cast<Word*>(after_base);
  parallel_spans(offsets, tensors, threads, [=](int64_t tensor, int64_t begin, int64_t end) {
    Word* const words = static_cast<Word*>(dense[tensor]);
    const int64_t before = before_offsets[tensor], after = after_offsets[tensor], origin = offsets[tensor];
    const SortedPair<Index> pair{before_indices + before, after_indices + after,
                                 before_offsets[tensor + 1] - before, after_offsets[tensor + 1] - after};
    auto here = pair.cut(begin - origin, {0, 0}), ahead = here;
    for_each_entry_tile(
        begin, end, kSwapTile,
        [&](int64_t at, int count) {
          const auto to = pair.cut(at + count - origin, ahead);
          prefetch_words(words, kLog2Bytes<Format>, pair.before + ahead.before,
                         static_cast<int>(to.before - ahead.before));
          prefetch_words(words, kLog2Bytes<Format>, pair.after + ahead.after,
                         static_cast<int>(to.after - ahead.after));
          ahead = to;
        },
        [&](int64_t at, int count) {
          const auto to = pair.cut(at + count - origin, here);
          swap_piece<Format>(words, pair.before + here.before, saved + before + here.before,
                             static_cast<int>(to.before - here.before), pair.after + here.after,
                             after_values + after + here.after, static_cast<int>(to.after - here.after),
                             scale, under + after + here.after);
          here = to;
        });
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
