// The loops of merge_deltas.h. Deltas are added into a tile of 4096 weights, one after another, and what the tile then
// has is written out: no branch depends on which delta has the next index, and any number of deltas is one pass.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/sparse_update/union_cut.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// Which of 4096 weights are there: a bit each, and a bit for each word of them.
struct Marks {
  static constexpr int kWords = 64, kWeights = 64 * kWords;
  uint64_t used = 0, words[kWords] = {};

  static bool inside(int64_t at) { return static_cast<uint64_t>(at) < kWeights; }

  // Marks a weight; 1 if it was not marked before, else 0.
  int64_t add(int64_t at) {
    const uint64_t before = words[at >> 6], bit = uint64_t{1} << (at & 63);
    words[at >> 6] = before | bit;
    used |= uint64_t{1} << (at >> 6);
    return (before & bit) == 0;
  }

  // Calls visit(weight) for those that are marked, in order, and takes the marks away.
  template <class Visit>
  void drain(const Visit& visit) {
    for (; used != 0; used &= used - 1) {
      const int64_t word = __builtin_ctzll(used);
      for (uint64_t bits = words[word]; bits != 0; bits &= bits - 1) visit(64 * word + __builtin_ctzll(bits));
      words[word] = 0;
    }
  }
};

// The sums of a tile; a weight that has none is -0, the one number that changes none when it is added.
struct TileSums {
  float of[Marks::kWeights];

  TileSums() {
    for (float& sum : of) sum = -0.0f;
  }
};

// Cuts a piece into tiles: calls add(delta, begin, end, first weight) for a tile's entries of every delta that has any,
// and close(first weight) when it is complete. cursors: a number for each delta.
template <class Index, class Add, class Close>
void for_each_tile(const UnionCut<Index>& cut, int chunk, int64_t tensor, int64_t* cursors, const Add& add,
                   const Close& close) {
  for (int64_t k = 0; k < cut.deltas; ++k) cursors[k] = cut.begin(chunk, tensor, k);
  for (;;) {
    int64_t first = INT64_MAX;
    for (int64_t k = 0; k < cut.deltas; ++k) {
      if (cursors[k] == cut.end(chunk, tensor, k)) continue;
      const int64_t mine = cut.indices[k][cursors[k]];
      first = mine < first ? mine : first;
    }
    if (first == INT64_MAX) return;
    first &= ~int64_t{63};
    for (int64_t k = 0; k < cut.deltas; ++k)
      cursors[k] = add(k, cursors[k], cut.end(chunk, tensor, k), first);
    close(first);
  }
}

// The parts of the workspace.
template <class Index>
struct MergeWorkspace {
  int64_t *cuts, *counts, *cursors;
  int64_t stride;

  MergeWorkspace(int64_t* workspace, int64_t deltas, int64_t tensors)
      : cuts(workspace),
        counts(cuts + UnionCut<Index>::workspace_words(deltas)),
        cursors(counts + kMaxChunks + tensors + 1),
        stride(deltas + 8) {}  // no two chunks' cursors in one line

  static int64_t words(int64_t deltas, int64_t tensors) {
    return UnionCut<Index>::workspace_words(deltas) + kMaxChunks + tensors + 1 + kMaxChunks * (deltas + 8);
  }
};

template <class Index>
void count_union_of(const void* const* indices, const void* const* offsets, int64_t* union_offsets,
                    int64_t* workspace, int64_t deltas, int64_t tensors, int threads) {
  const MergeWorkspace<Index> space(workspace, deltas, tensors);
  UnionCut<Index> cut(indices, offsets, space.cuts, deltas, tensors);
  cut.fill(threads);
  for (int64_t piece = 0; piece <= cut.pieces(); ++piece) space.counts[piece] = 0;
  for (int64_t t = 0; t <= tensors; ++t) union_offsets[t] = 0;
  parallel_chunks(cut.chunks, threads, [&](int chunk) {
    Marks marks;
    cut.for_each_piece(chunk, [&](int64_t piece, int64_t tensor) {
      int64_t count = 0;
      for_each_tile(
          cut, chunk, tensor, space.cursors + chunk * space.stride,
          [&](int64_t k, int64_t entry, int64_t end, int64_t first) {
            const Index* const mine = cut.indices[k];
            for (; entry < end && Marks::inside(mine[entry] - first); ++entry)
              count += marks.add(mine[entry] - first);
            return entry;
          },
          [&](int64_t) { marks = Marks{}; });
      space.counts[piece] = count;
    });
  });
  int64_t sum = 0;
  for (int chunk = 0; chunk < cut.chunks.count; ++chunk)
    cut.for_each_piece(chunk, [&](int64_t piece, int64_t tensor) {
      const int64_t mine = space.counts[piece];
      space.counts[piece] = sum;
      sum += mine;
      union_offsets[tensor + 1] = sum;
    });
  for (int64_t t = 1; t <= tensors; ++t)  // those that no chunk has are empty
    if (union_offsets[t] < union_offsets[t - 1]) union_offsets[t] = union_offsets[t - 1];
}

template <class Index>
void merge_deltas_of(const void* const* indices, const void* const* offsets, const void* const* values,
                     const float* weights, Index* union_indices, float* union_values, int64_t* workspace,
                     int64_t deltas, int64_t tensors, int threads) {
  const MergeWorkspace<Index> space(workspace, deltas, tensors);
  const UnionCut<Index> cut(indices, offsets, space.cuts, deltas, tensors);
  struct State {
    Marks marks;
    TileSums sums;
  };
  parallel_chunks<State>(
      cut.chunks, threads,
      [&](State& state, int chunk) {
        cut.for_each_piece(chunk, [&](int64_t piece, int64_t tensor) {
          int64_t out = space.counts[piece];
          for_each_tile(
              cut, chunk, tensor, space.cursors + chunk * space.stride,
              [&](int64_t k, int64_t entry, int64_t end, int64_t first) {
                const Index* const mine = cut.indices[k];
                const float* const value = static_cast<const float*>(values[k]);
                const float weight = weights[k];
                for (; entry < end && Marks::inside(mine[entry] - first); ++entry) {
                  const int64_t at = mine[entry] - first;
                  state.sums.of[at] += weight * value[entry];
                  state.marks.add(at);
                }
                return entry;
              },
              [&](int64_t first) {
                state.marks.drain([&](int64_t at) {
                  union_indices[out] = static_cast<Index>(first + at);
                  union_values[out++] = state.sums.of[at];
                  state.sums.of[at] = -0.0f;
                });
              });
        });
      },
      [](const State&) {});
}

}  // namespace graftwork::GRAFTWORK_LEVEL
