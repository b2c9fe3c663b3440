// Stochastic gradient descent on the tuned weights of many tensors; see step.h.
#pragma once

#include "core/sparse_update/step.h"

namespace graftwork {

struct SgdSettings {
  StepSettings common;
  float lr, momentum, rest;  // rest: 1 - dampening
};

// g += decay * (base + value, or value); b = g if first, else momentum b + rest g; value -= lr (g + momentum b if
// nesterov, else b). momentum_buffer may be null: value -= lr g.
void sparse_sgd(const StepTensors* tensors, const SgdSettings* settings, DecayMode decay_mode, bool nesterov,
                bool first, float* momentum_buffer, int threads);

}  // namespace graftwork
