// Several fine-tunes of one base into one tensor, in one streaming pass; and the sums that are asked for before.
//
// words[donors + 1]: the donors, then the base or nullptr, of `numel` elements each; formats[donors + 1] are their
// WeightFormats. A donor's differences are float32; those that its sparsification drops are 0 (see sparsify.inl for
// limits[donors][4]). out = round(base + scale * sum), the sum over the donors, in their order, of coefficient times
// difference, of those that agree with the vote where there is one, divided by their weights if that is wanted.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

// kind: SparsifyKind of sparsify.inl. columns: elements of a row.
int64_t merge_workspace_bytes(int64_t donors, int kind, int64_t columns, int threads);

// coefficients[rows][donors], rows dividing numel: those of each stretch of numel / rows elements. weights[donors].
// options[9] = {kind, columns, by_probability, consensus (0 none, 1 sum, 2 count, 3 unweighted sum), normalize,
// zero_nonfinite, stochastic, key low, key high}. residual may be nullptr. counts[2 donors + 5] = {elements that are
// not finite, first of them or -1} of each donor and the base, {changed, lost, overflowed}.
void merge_many(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                const float* coefficients, int64_t rows, const float* weights, const int64_t* limits,
                double scale, const int64_t* options, void* out, WeightFormat out_format, float* residual,
                int64_t* counts, uint8_t* workspace, int threads);

// sums[donors][3] = {sum |d|, sum |d| of what is kept, sum d^2 of what is kept}, with all factors 1.
void sparsify_norms(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel, int kind,
                    const int64_t* limits, int64_t columns, int zero_nonfinite, double* sums,
                    uint8_t* workspace, int threads);

}  // namespace graftwork
