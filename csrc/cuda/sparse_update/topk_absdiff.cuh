// The k weights of several tensors that are furthest from their base, exactly, on the GPU.
#pragma once

#include <cstdint>

namespace graftwork::cuda {

// Weights of a tile: a tensor has numel / selection_tile of them, rounded up.
int64_t selection_tile();

// Bytes of device memory, on 8 bytes, that topk_absdiff uses as scratch.
int64_t topk_absdiff_workspace_bytes(int64_t tile_count);

// Chooses as core/sparse_update/topk_absdiff.h does. Tables are in device memory and have one element for
// each tensor: pointers (bases may be null as a whole: the score is |x| then), numbers of elements,
// WeightFormats; and tiles, which says where each tensor's tiles begin among all, and has their number,
// tile_count, at its end.
//
// indices[k] is as there. report is int64 [2 tensors + 1]: how many of each tensor are chosen, how many NaN
// scores each has (if any has one, the rest is undefined), and the bits of the threshold, 0 for k = 0.
//
// Queues its work on `stream`, never waits for it, and returns a CUDA error code: kInvalidArgument for an
// unknown width of indices. Fastest where tensors lie on four words.
int topk_absdiff(const void* const* weights, const void* const* bases, const int64_t* numels,
                 const int64_t* tiles, const int64_t* formats, int64_t tensors, int64_t tile_count, int64_t k,
                 void* indices, int index_bytes, int64_t* report, void* workspace, void* stream);

}  // namespace graftwork::cuda
