// Weighted sums of sparse deltas of the same tensors, by streaming over their sorted indices.
#pragma once

#include <cstdint>

namespace graftwork {

// int64 numbers that both functions share.
int64_t merge_workspace_words(int64_t deltas, int64_t tensors);

// Counts the union of the supports. indices, offsets: of each delta, as in arena.h; every support has tensors + 1
// offsets. union_offsets: the union's. workspace: read by merge_deltas.
void count_union(const void* const* indices, const void* const* offsets, int64_t* union_offsets,
                 int64_t* workspace, int64_t deltas, int64_t tensors, int index_bytes, int threads);

// Writes the union and at each of its entries the sum of weights[k] * values[k], in the order of the deltas: products
// and sums are rounded to float.
void merge_deltas(const void* const* indices, const void* const* offsets, const void* const* values,
                  const float* weights, void* union_indices, float* union_values, int64_t* workspace,
                  int64_t deltas, int64_t tensors, int index_bytes, int threads);

}  // namespace graftwork
