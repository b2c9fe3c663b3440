// taken[i] = old[source[i]] where source[i] >= 0, else fresh[-1 - source[i]].
#pragma once

#include <cstdint>

namespace graftwork {

// Elements have element_bytes 1, 2, 4 or 8. With fresh_step 0 all that is fresh is fresh[0], with 1 it is an array of
// fresh_count. *outside becomes 1 if a source is outside old or fresh (what is taken for it is undefined), else 0.
void take_entries(const int64_t* source, int64_t entries, const void* old, int64_t old_count,
                  const void* fresh, int64_t fresh_count, int fresh_step, int element_bytes, void* taken,
                  int64_t* outside, int threads);

}  // namespace graftwork
