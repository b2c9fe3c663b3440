// Weighted sums of two sparse deltas of the same tensors, on the GPU. Several are added one after the other:
// the sum so far has the weight 1, which changes no value.
#pragma once

#include <cstdint>

namespace graftwork::cuda {

// Bytes of device memory, on 8 bytes, that both functions share; entries are those of both supports.
int64_t merge_deltas_workspace_bytes(int64_t entries);

// shared[t] becomes the number of weights of tensor t that both deltas have. Offsets are in device memory;
// the limits of sizes are those of swap_values.cuh. Both queue their work on `stream` and return a CUDA error
// code: kInvalidArgument for an unknown width of indices.
int count_shared(const void* a_indices, const int64_t* a_offsets, const void* b_indices,
                 const int64_t* b_offsets, int64_t tensors, int64_t entries, int index_bytes, int64_t* shared,
                 void* workspace, void* stream);

// Writes the union, one entry less for each shared one, and at each of its entries a_weight * a + b_weight *
// b: the products and the sum are rounded to float. workspace: as count_shared left it.
int merge_deltas(const void* a_indices, const int64_t* a_offsets, const float* a_values, float a_weight,
                 const void* b_indices, const int64_t* b_offsets, const float* b_values, float b_weight,
                 int64_t tensors, int64_t entries, int index_bytes, void* union_indices, float* union_values,
                 void* workspace, void* stream);

}  // namespace graftwork::cuda
