// Which differences of a tile are kept; the kinds and their limits are those of the Python side.
#pragma once

#include "core/merge/philox.inl"
#include "core/merge/rank.inl"

namespace graftwork::GRAFTWORK_LEVEL {

enum class SparsifyKind : int { none = 0, band = 1, random = 2, ranked = 3, variance = 4 };

constexpr int kLimits = 4;  // numbers for each donor

struct Sparsifier {
  SparsifyKind kind;
  const int64_t* limits;  // [donors][kLimits]
  int64_t columns;        // of a row, for `ranked`
  bool by_probability;    // for `ranked`

  const int64_t* of(int64_t donor) const { return limits + donor * kLimits; }
};

// Scores of at least this are above a threshold, for positions all before its cut, or all behind it.
inline int32_t least_above(int64_t bits, bool before_cut) {
  const int64_t least = before_cut ? bits : bits + 1;
  return static_cast<int32_t>(least < 0x7fffffff ? least : 0x7fffffff);  // which no score reaches
}

// Zeros the values whose score is below the lower threshold or above the upper one; score(i) is element i's.
template <class Score>
inline void keep_band(const int64_t* limits, int64_t begin, int count, float* __restrict values,
                      const Score& score) {
  for (int from = 0; from < count;) {
    int to = count;  // cut the tile where a threshold's cut is in it
    for (int side = 1; side < kLimits; side += 2)
      if (begin + from < limits[side] && limits[side] < begin + to)
        to = static_cast<int>(limits[side] - begin);
    const int32_t least = least_above(limits[0], begin + from < limits[1]);
    const int32_t limit = least_above(limits[2], begin + from < limits[3]);
    for (int i = from; i < to; ++i) {
      const int32_t mine = static_cast<int32_t>(score(i));
      values[i] = (mine >= least) & (mine < limit) ? values[i] : 0.0f;
    }
    from = to;
  }
}

inline void keep_random(const int64_t* limits, int64_t begin, int count, float* __restrict values) {
  const int64_t below = limits[0];
  if (below >= int64_t{1} << 32) return;
  if (below == 0) {
    for (int i = 0; i < count; ++i) values[i] = 0;
    return;
  }
  PhiloxTile<kMergeTile> tile;
  const PhiloxKey key{static_cast<uint32_t>(limits[1]), static_cast<uint32_t>(limits[2])};
  const uint32_t* __restrict const words = tile.fill(key, begin, count);
  const uint32_t last = static_cast<uint32_t>(below - 1);
  for (int i = 0; i < count; ++i) values[i] = words[i] <= last ? values[i] : 0.0f;
}

inline void keep_factors(const float* __restrict factors, int count, float* __restrict values) {
  for (int i = 0; i < count; ++i) values[i] = factors[i] > 0 ? values[i] * factors[i] : 0.0f;
}

// The tiles of all donors, kTileRoom apart; `factors` of each donor from the tile's begin on, `stride` apart.
inline void keep_tile(const Sparsifier& rule, int64_t donors, int64_t begin, int count, float* values,
                      const float* factors, int64_t stride) {
  alignas(64) float variance[kTileRoom];
  if (rule.kind == SparsifyKind::variance) variance_of(values, donors, count, variance);
  for (int64_t donor = 0; donor < donors; ++donor) {
    float* const mine = values + donor * kTileRoom;
    switch (rule.kind) {
      case SparsifyKind::none: break;
      case SparsifyKind::band:
        keep_band(rule.of(donor), begin, count, mine, [=](int i) { return score_of(mine[i]); });
        break;
      case SparsifyKind::random: keep_random(rule.of(donor), begin, count, mine); break;
      case SparsifyKind::ranked: keep_factors(factors + donor * stride, count, mine); break;
      case SparsifyKind::variance: {
        const int64_t limits[kLimits] = {rule.limits[0], rule.limits[1], 0xffffffff, 0};
        keep_band(limits, begin, count, mine, [&](int i) { return score_of(variance[i]); });
        break;
      }
    }
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
