// How large the differences are, and what is kept of them: sums in 16 lanes, chunk by chunk.
#pragma once

#include "core/merge/merge_tiles.inl"
#include "core/support/lanes.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kNorms = 3;  // sum |d|, sum |kept d|, sum (kept d)^2

inline void add_norm(const float* __restrict values, int count, double* __restrict sums) {
  double lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane];
  for_each_in_lanes(count, [&](int i, int lane) { lanes[lane] += __builtin_fabsf(values[i]); });
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
}

inline void add_squares(const float* __restrict values, int count, double* __restrict sums) {
  double lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane];
  for_each_in_lanes(count, [&](int i, int lane) { lanes[lane] = add_square(lanes[lane], values[i]); });
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
}

// A thread's memory: a room, and lanes for each donor's sums. All chunks' sums come first in the workspace.
inline int64_t norms_chunk_bytes(int64_t donors) { return rounded_up(8 * kMaxChunks * kNorms * donors); }
inline int64_t norms_lane_bytes(int64_t donors) { return 8 * kLanes * kNorms * donors; }

inline int64_t norms_workspace(int64_t donors, SparsifyKind kind, int64_t columns, int threads) {
  const int64_t each = norms_lane_bytes(donors) + MergeRoom::bytes(donors, kind, columns);
  return norms_chunk_bytes(donors) + each * threads;
}

inline void sum_norms(const MergeInputs& in, double* sums, uint8_t* workspace, int threads) {
  const int64_t donors = in.donors.count, columns = in.rule.columns, lane_bytes = norms_lane_bytes(donors);
  double* const partial = reinterpret_cast<double*>(workspace);
  Slots slots{workspace + norms_chunk_bytes(donors),
              lane_bytes + MergeRoom::bytes(donors, in.rule.kind, columns)};
  struct State {
    uint8_t* memory = nullptr;
  };
  const Chunks chunks = in.chunks();
  parallel_chunks<State>(
      chunks, threads,
      [&](State& mine, int chunk) {
        if (mine.memory == nullptr) mine.memory = slots.take();
        double* const lanes = reinterpret_cast<double*>(mine.memory);
        const MergeRoom room = MergeRoom::at(mine.memory + lane_bytes, donors, columns);
        for (int64_t k = 0; k < kLanes * kNorms * donors; ++k) lanes[k] = 0;
        const auto of = [&](int64_t donor, int norm) { return lanes + kLanes * (kNorms * donor + norm); };
        TileReader reader(in.donors);
        for_each_merge_tile(
            in, reader, room, chunks.begin(chunk), chunks.end(chunk), in.numel,
            [&](int64_t donor, bool) {
              add_norm(room.tiles + donor * kTileRoom, reader.count, of(donor, 0));
            },
            [&] {
              for (int64_t donor = 0; donor < donors; ++donor) {
                add_norm(room.tiles + donor * kTileRoom, reader.count, of(donor, 1));
                add_squares(room.tiles + donor * kTileRoom, reader.count, of(donor, 2));
              }
            });
        for (int64_t k = 0; k < kNorms * donors; ++k) {
          double sum = 0;
          for (int lane = 0; lane < kLanes; ++lane) sum += lanes[kLanes * k + lane];
          partial[kNorms * donors * chunk + k] = sum;
        }
      },
      [](const State&) {});
  for (int64_t k = 0; k < kNorms * donors; ++k) {
    sums[k] = 0;
    for (int chunk = 0; chunk < chunks.count; ++chunk) sums[k] += partial[kNorms * donors * chunk + k];
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
