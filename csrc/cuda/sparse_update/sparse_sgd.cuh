// Stochastic gradient descent on the tuned weights of many tensors, on the GPU.
#pragma once

#include <cstdint>

#include "core/sparse_update/sparse_sgd.h"

namespace graftwork::cuda {

// As core/sparse_update/sparse_sgd.h; what is where, and the result, as in sparse_adamw.cuh.
int sparse_sgd(const StepTensors* tensors, const SgdSettings* settings, DecayMode decay_mode, bool nesterov,
               bool first, float* momentum_buffer, int64_t entries, void* stream);

}  // namespace graftwork::cuda
