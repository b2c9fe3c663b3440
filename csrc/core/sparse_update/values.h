// Words of many tensors at the indices of a support: read, written and swapped.
//
// index_bytes is 4 (int32) or 8 (int64); entries offsets[t] .. offsets[t + 1] are those of tensor t (see arena.h).
// Results do not depend on threads or ISA level.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

// out[j] = tensor[index[j]], words of word_bytes, which is 2 or 4.
void gather_values(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                   int64_t tensors, int word_bytes, void* out, int threads);

// out[j] = scale * gradient[index[j]] as floats; *sum_of_squares of all, in double, and how many are not finite.
void gather_gradients(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                      int64_t tensors, WeightFormat format, float scale, float* out, double* sum_of_squares,
                      int64_t* nonfinite, int threads);

// weight[index[j]] = round(base[j] + scale * values[j]); the sum is in float.
void write_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                  int64_t tensors, WeightFormat format, const void* base, const float* values, float scale,
                  int threads);

// weight[index[j]] = saved[j], words of word_bytes, which is 2 or 4.
void restore_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                    int64_t tensors, int word_bytes, const void* saved, int threads);

// restore_values of `before`, gather_values of `after` into after_base, write_values of `after`: one pass over both.
// The indices of both have index_bytes. offsets[t] = before_offsets[t] + after_offsets[t].
void swap_values(void* const* dense, int64_t tensors, WeightFormat format, int index_bytes,
                 const void* before_indices, const int64_t* before_offsets, const void* before_base,
                 const void* after_indices, const int64_t* after_offsets, const float* after_values,
                 float scale, void* after_base, const int64_t* offsets, int threads);

}  // namespace graftwork
