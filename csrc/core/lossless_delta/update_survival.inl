// The loops of update_survival.h: blocks of pairs rounded into the L1 cache, then counted and summed. Bound by
// instructions, not by memory: two roundings in integer arithmetic and three sums in double for each pair.
#pragma once

#include "core/support/lanes.h"
#include "core/support/numeric.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kSurvivalBlock = 1024;  // elements

struct SurvivalCounts {
  int64_t changed, lost, overflow;
};

// A block of pairs as floats: all zeros where a pair is not finite, saved zeros where its update is gone.
struct SurvivalBlock {
  float base[kSurvivalBlock], tuned[kSurvivalBlock], saved_base[kSurvivalBlock], saved_tuned[kSurvivalBlock];
};

template <class Format, class Saved>
void round_block(const typename Format::Word* __restrict base, const typename Format::Word* __restrict tuned,
                 int count, SurvivalBlock& block, SurvivalCounts& counts) {
  int32_t changed = 0, lost = 0, overflow = 0;
  finite_pairs<Format>(base, tuned, count, block.base, block.tuned);
  for (int i = 0; i < count; ++i) {
    const float from = block.base[i], to = block.tuned[i];
    const float saved_from = Saved::round(from), saved_to = Saved::round(to);
    const int32_t to_overflows = is_infinite(saved_to);
    const int32_t gone = is_infinite(saved_from) | to_overflows | (saved_from == saved_to);
    const int32_t moved = from != to;
    changed += moved;
    lost += moved & gone;
    overflow += to_overflows;
    block.saved_base[i] = gone ? 0.0f : saved_from;
    block.saved_tuned[i] = gone ? 0.0f : saved_to;
  }
  counts.changed += changed;
  counts.lost += lost;
  counts.overflow += overflow;
}

// Adds w^2, s^2 and w s of a block to sums.
inline void sum_updates(const SurvivalBlock& block, int count, LaneSums<3>& total) {
  LaneSums<3> sums = total;
  for_each_in_lanes(count, [&](int i, int lane) {
    const double wanted = static_cast<double>(block.tuned[i]) - static_cast<double>(block.base[i]);
    const double saved = static_cast<double>(block.saved_tuned[i]) - static_cast<double>(block.saved_base[i]);
    sums.lanes[0][lane] += wanted * wanted;
    sums.lanes[1][lane] += saved * saved;
    sums.lanes[2][lane] += wanted * saved;
  });
  total = sums;
}

template <class Format, class Saved>
void update_survival_of(const void* base, const void* tuned, int64_t numel, int64_t* counts, double* sums,
                        int threads) {
  using Word = typename Format::Word;
  const Word* const from = static_cast<const Word*>(base);
  const Word* const to = static_cast<const Word*>(tuned);
  for (int k = 0; k < 3; ++k) counts[k] = 0;

  const Chunks chunks = cut(numel);
  ChunkSums<3> partial;
  parallel_chunks<SurvivalCounts>(
      chunks, threads,
      [&](SurvivalCounts& mine, int chunk) {
        const int64_t end = chunks.end(chunk);
        LaneSums<3> lanes{};
        SurvivalBlock block;
        for (int64_t i = chunks.begin(chunk); i < end; i += kSurvivalBlock) {
          const int count = static_cast<int>(end - i < kSurvivalBlock ? end - i : kSurvivalBlock);
          round_block<Format, Saved>(from + i, to + i, count, block, mine);
          sum_updates(block, count, lanes);
        }
        partial.set(chunk, lanes);
      },
      [&](const SurvivalCounts& mine) {
        counts[0] += mine.changed;
        counts[1] += mine.lost;
        counts[2] += mine.overflow;
      });
  partial.total(chunks.count, sums);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
