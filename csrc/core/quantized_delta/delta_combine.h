// Sums of the rows of packed matrices, as the left factors of low-rank deltas ask for.
#pragma once

#include <cstdint>

#include "core/quantized_delta/delta_matrix.h"

namespace graftwork {

struct DeltaCombination {
  DeltaMatrix matrix;
  int64_t inputs;       // address of floats: [token_count][matrix.rows]
  int64_t weights;      // address of floats: [matrix.rows]
  int64_t first_token;  // in places and factors
  int64_t token_count;
  int64_t prepared_at;  // where its bytes begin in the workspace
  int64_t goes_on;      // 1: adds to the same rows of y as the combination before
};

// y[places[i]][o] += factors[i] * sum over k of inputs[i][k] * weights[k] * (scale * (value - zero))[k][o], in float, for
// the tokens i of every combination, and all its columns o. Those that do not go on have no row of y in common. y:
// [..][columns]. workspace: as many bytes as delta_combine_bytes says for each combination, aligned to 64.
void delta_combine(float* y, const DeltaCombination* combinations, const int64_t* places,
                   const float* factors, void* workspace, int64_t count, int64_t columns, int threads);

// `blocks`: scales of a row.
int64_t delta_combine_bytes(int64_t token_count, int64_t rows, int64_t blocks);

}  // namespace graftwork
