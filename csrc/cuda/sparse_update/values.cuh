// Words of many tensors at the indices of a support, on the GPU: read, written and put back.
//
// As core/sparse_update/values.h; `dense`, the table of pointers, and `offsets` are in device memory too.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork::cuda {

// All queue their work on `stream` and return a CUDA error code: kInvalidArgument for an unknown format or width.
int gather_values(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                  int64_t tensors, int word_bytes, void* out, int64_t entries, void* stream);

int restore_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                   int64_t tensors, int word_bytes, const void* saved, int64_t entries, void* stream);

int write_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                 int64_t tensors, WeightFormat format, const void* base, const float* values, float scale,
                 int64_t entries, void* stream);

// Bytes of device memory, on 8 bytes, that gather_gradients uses as scratch.
int64_t gather_gradients_workspace_bytes(int64_t entries);

// The squares are added in an order that depends on the number of entries alone.
int gather_gradients(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                     int64_t tensors, WeightFormat format, float scale, float* out, double* sum_of_squares,
                     int64_t* nonfinite, int64_t entries, void* workspace, void* stream);

}  // namespace graftwork::cuda
