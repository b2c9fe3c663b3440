// Where the largest scores of a merge's donors end, exactly; of equal scores those with the lowest index are larger.
//
// Tensors are given as in merge_many.h. A score is the bits of the float32 |difference|, or of the variance of the
// differences over the donors; every NaN is the largest. A threshold is three numbers, {bits, ties, cut}: exactly `keep`
// elements have a score above `bits`, or one of `bits` and an index below `cut`; of these there are `ties`. For keep = 0
// it is {2^32 - 1, 0, 0}.
#pragma once

#include <cstdint>

namespace graftwork {

// Bytes of workspace for the thresholds of `donors` differences, or for the variance of `donors`.
int64_t threshold_workspace_bytes(int64_t donors, int64_t numel, int threads);

// found[donors][3]: the threshold of each donor's keeps[donor] largest differences, 0 <= keep <= numel.
void magnitude_thresholds(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                          const int64_t* keeps, int zero_nonfinite, int64_t* found, uint8_t* workspace,
                          int threads);

// *nonzero: how many variances are not 0.
void count_variance(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                    int zero_nonfinite, int64_t* nonzero, uint8_t* workspace, int threads);

// found[3]: the threshold of the `keep` largest variances.
void variance_threshold(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                        int64_t keep, int zero_nonfinite, int64_t* found, uint8_t* workspace, int threads);

}  // namespace graftwork
