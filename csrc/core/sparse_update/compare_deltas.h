// What two sparse deltas of the same tensors have in common.
#pragma once

#include <cstdint>

namespace graftwork {

// int64 numbers that compare_deltas needs beside its arguments.
int64_t compare_workspace_words(int64_t tensors);

// indices, offsets, values: of the two deltas, as merge_deltas takes them. counts: [3][tensors], shared, union and
// agreeing; sums: [3][tensors], the product of both, the squares of each.
void compare_deltas(const void* const* indices, const void* const* offsets, const void* const* values,
                    int64_t* counts, double* sums, int64_t* workspace, int64_t tensors, int index_bytes,
                    int threads);

}  // namespace graftwork
