// The loops of sparse_delta.h that find the changes; gap_code.inl codes them.
#pragma once

#include <cstdint>

#include "core/entropy_delta/gap_code.inl"
#include "core/entropy_delta/segment_frame.inl"
#include "core/support/numeric.h"
#include "core/support/unequal.h"

namespace graftwork::GRAFTWORK_LEVEL {

template <class Word, bool is_float>
inline Word sparse_position(Word word) {
  return is_float ? ordinal(word) : word;
}

// The changes of a segment, or -1 if there are more than `most`.
template <class Word, bool is_float>
int64_t find_changes(const Word* base, const Word* tuned, int64_t count, int64_t most, Change* changes) {
  int64_t found = 0, last = -1;
  const auto add = [&](int64_t i) {
    const Word difference = static_cast<Word>(sparse_position<Word, is_float>(tuned[i]) -
                                              sparse_position<Word, is_float>(base[i]));
    changes[found++] = {static_cast<uint32_t>(i - last), difference};
    last = i;
  };
  int64_t begin = 0;
  for (; begin + 64 <= count; begin += 64) {
    uint64_t unequal = unequal_words(base + begin, tuned + begin);
    if (found + __builtin_popcountll(unequal) > most) return -1;
    for (; unequal != 0; unequal &= unequal - 1) add(begin + __builtin_ctzll(unequal));
  }
  for (; begin < count; ++begin) {
    if (base[begin] == tuned[begin]) continue;
    if (found == most) return -1;
    add(begin);
  }
  return found;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
