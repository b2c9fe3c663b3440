// Products of a few rows with the packed deltas of many fine-tunes over one weight.
#pragma once

#include <cstdint>

#include "core/quantized_delta/delta_matrix.h"
#include "core/support/weight_format.h"

namespace graftwork {

struct DeltaProduct {
  DeltaMatrix matrix;
  int64_t result;       // address of floats: [..][matrix.rows]
  int64_t first_token;  // in tokens, places and factors
  int64_t token_count;  // at most kMaxTokens
  int64_t prepared_at;  // where its tokens' bytes begin in the workspace
};

constexpr int kMaxTokens = 16;

// result[p][o] += factors[i] * sum over j of scale[o][j / block] * (value[code[o][j]] - zero[o][j / block]) * x[t][j], in
// float, for t = tokens[i], p = places[i] of every product, and all rows o of its matrix. x: [..][columns]. No two
// products have a result's row in common. workspace: as many bytes as delta_linear_token_bytes says for each token,
// aligned to 64.
void delta_linear(const void* x, WeightFormat format, const DeltaProduct* products, const int64_t* tokens,
                  const int64_t* places, const float* factors, void* workspace, int64_t product_count,
                  int64_t columns, int threads);

int64_t delta_linear_token_bytes(int64_t columns, int64_t bits);

}  // namespace graftwork
