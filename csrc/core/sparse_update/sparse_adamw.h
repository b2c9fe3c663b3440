// AdamW on the tuned weights of many tensors; see step.h.
#pragma once

#include "core/sparse_update/step.h"

namespace graftwork {

struct AdamwSettings {
  StepSettings common;
  float lr, beta1, rest1, beta2, rest2, eps;  // rest: 1 - beta
  float first, second;                        // 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t); not used with ages
};

// m = beta1 m + rest1 g, v = beta2 v + rest2 g g, value -= m / denominator * (first * lr). The denominator is
// sqrt(v) * second + eps if eps_corrected, else (sqrt(v) + eps) * second. ages may be null; else every entry's is counted
// up, and corrections are those after so many updates: of m at [age], of v at [corrections_count + age], an age past
// the end has the last.
void sparse_adamw(const StepTensors* tensors, const AdamwSettings* settings, DecayMode decay_mode,
                  bool decay_first, bool eps_corrected, float* exp_avg, float* exp_avg_sq, int32_t* ages,
                  const float* corrections, int64_t corrections_count, int threads);

}  // namespace graftwork
