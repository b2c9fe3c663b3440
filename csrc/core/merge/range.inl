// Which scores of a tile of differences are in a range: what plain code does not vectorise.
#pragma once

#include "core/merge/donors.inl"

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/merge/range.avx512.inl"
#else

#include "core/sparse_update/collect.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// found: score - least of every score in [least, least + span), 0 < span <= 2^31 - least, one after another; up to 16
// more may be written to. Returns how many there are, and in *above how many scores are larger.
inline int collect_range(const float* __restrict values, int count, uint32_t least, uint32_t span,
                         uint32_t* __restrict found, int32_t* above) {
  alignas(64) uint32_t scores[kMergeTile + 16], positions[kMergeTile + 16];
  int32_t reached = 0;
  for (int i = 0; i < count; ++i) {
    scores[i] = score_of(values[i]) - least;
    reached += static_cast<int32_t>(scores[i]) >= 0;
  }
  const int kept = collect(scores, count, 0, 0, span, positions, found);
  *above = reached - kept;
  return kept;
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif
