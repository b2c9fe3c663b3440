// The k weights of several tensors that are furthest from their base, exactly, in one reading of both.
//
// The score of a weight is the float32 |x - base|; of equal scores the first tensor's come first, and in it the lowest
// index's. Weights are contiguous, offsets[t] .. offsets[t + 1] of all of them are tensor t's, formats[t] is its
// WeightFormat. indices[k] becomes the flat indices of one tensor's chosen weights after the other's, sorted, with
// index_bytes 4 or 8; counts[t] how many are tensor t's; *threshold the smallest chosen score, infinity for k = 0;
// *nan_tensor the first tensor with a NaN score, and then the rest is undefined, or -1.
#pragma once

#include <cstdint>

namespace graftwork {

// Bytes of workspace for k of numel weights, for both operations.
int64_t selection_workspace_bytes(int64_t numel, int64_t k, int threads);

void topk_absdiff(const void* const* weights, const void* const* bases, const int64_t* offsets,
                  const int32_t* formats, int64_t tensors, int64_t k, void* indices, int index_bytes,
                  int64_t* counts, float* threshold, int64_t* nan_tensor, uint8_t* workspace,
                  int64_t workspace_bytes, int threads);

}  // namespace graftwork
