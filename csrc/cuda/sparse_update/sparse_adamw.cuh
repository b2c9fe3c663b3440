// AdamW on the tuned weights of many tensors, on the GPU.
#pragma once

#include <cstdint>

#include "core/sparse_update/sparse_adamw.h"

namespace graftwork::cuda {

// As core/sparse_update/sparse_adamw.h. `tensors` and `settings` are on the host; what `tensors` points to (the
// tables of pointers and offsets too), the optimizer's state and `corrections` are in device memory. Queues its
// work on `stream` and returns a CUDA error code: kInvalidArgument for an unknown format or width of indices.
int sparse_adamw(const StepTensors* tensors, const AdamwSettings* settings, DecayMode decay_mode,
                 bool decay_first, bool eps_corrected, float* exp_avg, float* exp_avg_sq, int32_t* ages,
                 const float* corrections, int64_t corrections_count, int64_t entries, void* stream);

}  // namespace graftwork::cuda
