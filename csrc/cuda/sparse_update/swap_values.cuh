// One delta off and another on in one pass over both, on the GPU.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork::cuda {

// Bytes of device memory, on 8 bytes, that swap_values uses as scratch; entries are those of both supports.
int64_t swap_values_workspace_bytes(int64_t entries);

// As core/sparse_update/values.h; `dense` and the offsets are in device memory too. A tensor has less than 2^40
// elements, and there are less than 2^23 tensors. Queues its work on `stream` and returns a CUDA error code:
// kInvalidArgument for an unknown format or width of indices.
int swap_values(void* const* dense, int64_t tensors, WeightFormat format, int index_bytes,
                const void* before_indices, const int64_t* before_offsets, const void* before_base,
                const void* after_indices, const int64_t* after_offsets, const float* after_values,
                float scale, void* after_base, int64_t entries, void* workspace, void* stream);

}  // namespace graftwork::cuda
