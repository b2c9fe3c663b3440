// What a fine-tune changed, in one pass over base and tuned, on the GPU.
//
// counts, sums and histogram are those of core/lossless_delta/delta_stats.h. counts and histogram are equal
// to the CPU's; sums are added in another fixed order, which depends on numel and format alone: not on the
// device, and not on where the tensors lie.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork::cuda {

// Bytes of device memory, on 8 bytes, that delta_stats uses as scratch.
int64_t delta_stats_workspace_bytes(int64_t numel, WeightFormat format);

// Queues its work on `stream` and returns a CUDA error code: kInvalidArgument for an unknown format.
// Overwrites counts, sums, histogram and workspace, all in device memory. Fastest when base and tuned lie on
// 16 bytes.
int delta_stats(const void* base, const void* tuned, int64_t numel, WeightFormat format, int64_t* counts,
                double* sums, int64_t* histogram, void* workspace, void* stream);

}  // namespace graftwork::cuda
