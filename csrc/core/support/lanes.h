// Sums in a fixed order: 16 partial sums side by side at every ISA level, folded chunk by chunk.
#pragma once

#include <cstdint>

#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kLanes = 16;

// add(i, lane) for every i < count, with lane = i mod 16: independent sums, so that the loop vectorises.
template <class Add>
inline void for_each_in_lanes(int count, const Add& add) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  for (int lane = 0; i + lane < count; ++lane) add(i + lane, lane);
}

// The sums of one chunk.
template <int kSums>
struct LaneSums {
  double lanes[kSums][kLanes];
};

// The sums of a whole tensor: each chunk's are kept apart until all are there.
template <int kSums>
struct ChunkSums {
  double chunks[kMaxChunks][kSums];

  void set(int chunk, const LaneSums<kSums>& sums) {
    for (int k = 0; k < kSums; ++k) {
      chunks[chunk][k] = 0;
      for (int lane = 0; lane < kLanes; ++lane) chunks[chunk][k] += sums.lanes[k][lane];
    }
  }

  void total(int count, double* totals) const {
    for (int k = 0; k < kSums; ++k) {
      totals[k] = 0;
      for (int chunk = 0; chunk < count; ++chunk) totals[k] += chunks[chunk][k];
    }
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
