// Sampled dense-dense matrix product: the gradient of chosen weights of a linear layer.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

int64_t sddmm_workspace_bytes(int64_t columns, int64_t rows);

// gradients[j] = sum over b of dy[b][indices[j] / columns] * x[b][indices[j] % columns], in float. x: [batch][columns],
// dy: [batch][rows]. *outside becomes 1 if an index is none of the rows * columns weights, else 0; no gradient is
// written then. workspace: as many bytes as sddmm_workspace_bytes says, aligned to 64.
void sddmm(const void* x, const void* dy, const void* indices, float* gradients, int64_t* outside,
           void* workspace, int64_t batch, int64_t columns, int64_t rows, int64_t entries,
           WeightFormat format, int index_bytes, int threads);

}  // namespace graftwork
