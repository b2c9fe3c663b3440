// SM3 on the tuned weights of many matrices; see step.h.
#pragma once

#include "core/sparse_update/step.h"

namespace graftwork {

struct Sm3Settings {
  StepSettings common;
  float lr, momentum, rest, eps;  // rest: 1 - momentum
};

// One matrix: its columns, and where its rows and columns start among the accumulators.
struct Sm3Shape {
  int64_t columns, first_row, first_column;
};

// u = min(row_max[row], column_max[column]) + g g, from the accumulators before the step; p = g / sqrt(u + eps);
// b = momentum b + rest p stands for p if momentum_buffer is not null; value -= lr p; decay. Then each accumulator is
// the largest of itself and its entries' u. workspace: rows + columns floats.
void sparse_sm3(const StepTensors* tensors, const Sm3Settings* settings, DecayMode decay_mode,
                const Sm3Shape* shapes, float* row_max, float* column_max, int64_t rows, int64_t columns,
                float* momentum_buffer, float* workspace, int threads);

}  // namespace graftwork
