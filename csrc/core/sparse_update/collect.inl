// Keeps those of a tile of scores that are in a range, in their order: what plain code does not vectorise.
#pragma once

#include <cstdint>

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/sparse_update/collect.avx512.inl"
#elif defined(GRAFTWORK_LEVEL_IS_avx2)
#include "core/sparse_update/collect.avx2.inl"
#else

namespace graftwork::GRAFTWORK_LEVEL {

// For every i < count with scores[i] in [least, least + span): first + i and scores[i], one after another. Returns how
// many there are; up to `count` rounded up to a multiple of 16 may be written to.
inline int collect(const uint32_t* scores, int count, uint32_t first, uint32_t least, uint32_t span,
                   uint32_t* positions, uint32_t* found) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    positions[kept] = first + static_cast<uint32_t>(i);
    found[kept] = scores[i];
    kept += scores[i] - least < span;
  }
  return kept;
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif
