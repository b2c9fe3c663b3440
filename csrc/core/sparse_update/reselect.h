// Drops tuned weights that moved little, and takes in as many candidates, in every tensor.
//
// Entries offsets[t] .. offsets[t + 1] are tensor t's, and candidates likewise; both are sorted and unique within a
// tensor. What is dropped and grown is said in ops/sparse_update/reselection.py. new_indices and source get one element
// for each entry: where it is, and the entry's old number or -1 - c for candidate c. nan[0] and nan[1] become 1 if a
// value or a growth is NaN, and then the rest is undefined, else 0. The workspace has four bytes for every entry and
// candidate.
#pragma once

#include <cstdint>

namespace graftwork {

void reselect(const float* values, const void* indices, const int64_t* offsets, const float* growth,
              const void* candidates, const int64_t* candidate_offsets, const int64_t* drops, int64_t tensors,
              int index_bytes, void* new_indices, int64_t* source, int64_t* nan, uint32_t* workspace,
              int threads);

}  // namespace graftwork
