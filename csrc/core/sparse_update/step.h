// What the optimizer steps on the tuned weights alone share: where gradients come from and where weights go.
//
// A tuned weight is its base's word plus a float value; a step moves the value, and the weight becomes
// round(base + value). Every step gives the same bits for any number of threads and at every ISA level; the order of
// its operations is that of python/graftwork/reference/sparse_update/step.py.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"

namespace graftwork {

// What is drawn to zero by weight decay.
enum class DecayMode : int { none = 0, delta = 1, weight = 2 };

// The tensors of a step; Python fills it as int64 numbers. Entries offsets[t] .. offsets[t + 1] are those of tensor t.
struct StepTensors {
  const void* indices;
  int64_t index_bytes;  // 4 or 8
  const int64_t* offsets;
  int64_t tensors;
  const void* const* grads;    // dense, one for each tensor; or null
  const float* compact_grads;  // one for each entry, if grads is null
  int64_t grad_format;
  float* values;
  const void* base;      // may be null; then weights is null, and decay is not DecayMode::weight
  void* const* weights;  // may be null
  int64_t weight_format;
};

// The numbers that the steps share.
struct StepSettings {
  float grad_scale, l1, soft_threshold;
  float decay;  // the factor of what is drawn to zero
};

}  // namespace graftwork
