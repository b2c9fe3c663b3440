// The inner products of a merge's donors, or of their differences from the base.
//
// Tensors are given as in merge_many.h. gram[rows][donors][donors]: for each of `rows` stretches of numel / rows
// elements the sums of the products of float32 differences, in double, in 16 lanes and a fixed order.
#pragma once

#include <cstdint>

namespace graftwork {

int64_t gram_workspace_bytes(int64_t donors, int64_t numel, int64_t rows, int threads);

void merge_gram(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel, int64_t rows,
                double* gram, uint8_t* workspace, int threads);

}  // namespace graftwork
