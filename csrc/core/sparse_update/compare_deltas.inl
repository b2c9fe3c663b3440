// The loops of compare_deltas.h: a merge without branches, and sums in a fixed order.
#pragma once

#include <cstdint>

#include "core/sparse_update/union_cut.inl"
#include "core/support/lanes.h"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

// What the entries of one piece give.
struct DeltaTally {
  int64_t shared = 0, agreeing = 0;
  double dot = 0, squares[2] = {};
};
constexpr int64_t kTallyWords = sizeof(DeltaTally) / sizeof(int64_t);

inline double sum_squares(const float* values, int64_t count) {
  double lanes[kLanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = add_square(lanes[lane], values[i + lane]);
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] = add_square(lanes[lane], values[i + lane]);
  for (const double lane : lanes) sum += lane;
  return sum;
}

template <class Index>
DeltaTally tally_shared(const Index* a, const Index* a_end, const float* a_values, const Index* b,
                        const Index* b_end, const float* b_values) {
  DeltaTally tally;
  while (a < a_end && b < b_end) {
    const Index x = *a, y = *b;
    const bool equal = x == y;
    const float p = *a_values, q = *b_values;
    const double product = static_cast<double>(p) * static_cast<double>(q);  // exact
    tally.dot += equal ? product : 0.0;
    tally.shared += equal;
    tally.agreeing += equal & (((p > 0) & (q > 0)) | ((p < 0) & (q < 0)));
    const bool a_moves = x <= y, b_moves = y <= x;
    a += a_moves;
    a_values += a_moves;
    b += b_moves;
    b_values += b_moves;
  }
  return tally;
}

template <class Index>
void compare_deltas_of(const void* const* indices, const void* const* offsets, const void* const* values,
                       int64_t* counts, double* sums, int64_t* workspace, int64_t tensors, int threads) {
  UnionCut<Index> cut(indices, offsets, workspace, 2, tensors);
  cut.fill(threads);
  DeltaTally* const pieces = reinterpret_cast<DeltaTally*>(workspace + UnionCut<Index>::workspace_words(2));
  parallel_chunks(cut.chunks, threads, [&](int chunk) {
    cut.for_each_piece(chunk, [&](int64_t piece, int64_t tensor) {
      int64_t begin[2], end[2];
      const float* mine[2];
      for (int k = 0; k < 2; ++k) {
        begin[k] = cut.begin(chunk, tensor, k);
        end[k] = cut.end(chunk, tensor, k);
        mine[k] = static_cast<const float*>(values[k]) + begin[k];
      }
      DeltaTally tally = tally_shared(cut.indices[0] + begin[0], cut.indices[0] + end[0], mine[0],
                                      cut.indices[1] + begin[1], cut.indices[1] + end[1], mine[1]);
      for (int k = 0; k < 2; ++k) tally.squares[k] = sum_squares(mine[k], end[k] - begin[k]);
      pieces[piece] = tally;
    });
  });
  for (int64_t i = 0; i < 3 * tensors; ++i) counts[i] = 0;
  for (int64_t i = 0; i < 3 * tensors; ++i) sums[i] = 0;
  for (int chunk = 0; chunk < cut.chunks.count; ++chunk)
    cut.for_each_piece(chunk, [&](int64_t piece, int64_t tensor) {
      const DeltaTally& tally = pieces[piece];
      counts[tensor] += tally.shared;
      counts[2 * tensors + tensor] += tally.agreeing;
      sums[tensor] += tally.dot;
      for (int k = 0; k < 2; ++k) sums[(k + 1) * tensors + tensor] += tally.squares[k];
    });
  for (int64_t t = 0; t < tensors; ++t)
    counts[tensors + t] = cut.entries_before(t + 1) - cut.entries_before(t) - counts[t];
}

}  // namespace graftwork::GRAFTWORK_LEVEL
