// The loops of gptq_block.h. Rows are independent, so a tile of them is turned over and lies side by side in the lanes.
// The sums run over the columns before in their order and without fused products: the same bits at every level.
#pragma once

#include <cstdint>

#include "core/quantized_delta/levels.inl"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kGptqColumns = 128;
constexpr int kGptqRows =
    64;  // of a tile: four vectors of 16, so that a sum need not wait for the one before it

struct GptqBlock {
  const float* weights;
  int64_t weight_stride;
  const float* corrected;
  int64_t corrected_stride;
  const float* feedback;
  const float* scales;
  const uint8_t* zeros;
  const int32_t* groups;
  int64_t group_count;
  const float* diagonal;
  double damping;
  int64_t rows, columns;
  uint8_t* codes;
  float* errors;
  double* losses;
};

// A column of a tile, and the scales of its group.
struct GptqLanes {
  float target[kGptqRows], scale[kGptqRows], inverse[kGptqRows], zero[kGptqRows], residual[kGptqRows];
  uint8_t code[kGptqRows];
};

// What the columns before pass on to this one.
inline void add_feedback(const float (*errors)[kGptqRows], const float* feedback, int64_t column,
                         float* target) {
  constexpr int kWide = 16;
  float sums[kGptqRows / kWide][kWide];
  for (int v = 0; v < kGptqRows / kWide; ++v)
    for (int l = 0; l < kWide; ++l) sums[v][l] = target[v * kWide + l];
  for (int64_t i = 0; i < column; ++i) {
    const float factor = feedback[i];
    for (int v = 0; v < kGptqRows / kWide; ++v)
      for (int l = 0; l < kWide; ++l) sums[v][l] += errors[i][v * kWide + l] * factor;
  }
  for (int v = 0; v < kGptqRows / kWide; ++v)
    for (int l = 0; l < kWide; ++l) target[v * kWide + l] = sums[v][l];
}

inline void take_scales(const GptqBlock& block, int64_t row, int count, int32_t group, GptqLanes& lanes) {
  for (int r = 0; r < count; ++r) {
    const int64_t at = (row + r) * block.group_count + group;
    lanes.scale[r] = block.scales[at];
    lanes.zero[r] = block.zeros ? static_cast<float>(block.zeros[at]) : 0.0f;
  }
  for (int r = 0; r < kGptqRows; ++r) lanes.inverse[r] = lanes.scale[r] > 0 ? 1.0f / lanes.scale[r] : 0.0f;
}

// Codes and values of a column; `errors` holds its weights and becomes their errors. In loops of their own, since together
// they do not vectorise.
template <class Coded>
inline void quantise_lanes(GptqLanes& lanes, float* errors) {
  float divided[kGptqRows], levels[kGptqRows];
  for (int r = 0; r < kGptqRows; ++r) {
    const float target = lanes.target[r], scale = lanes.scale[r];
    const float quotient = target / scale, product = target * lanes.inverse[r];
    const bool subnormal = (scale > 0) & (scale < 0x1p-126f);  // its inverse may be infinite
    divided[r] = Coded::scheme == Scheme::sign ? target : subnormal ? quotient : product;
  }
  for (int r = 0; r < kGptqRows; ++r) levels[r] = Coded::level_of(divided[r], lanes.zero[r]);
  for (int r = 0; r < kGptqRows; ++r)
    lanes.code[r] = static_cast<uint8_t>(Coded::code_of(divided[r], lanes.zero[r]));
  for (int r = 0; r < kGptqRows; ++r) {
    const float value = levels[r] * lanes.scale[r];
    lanes.residual[r] = lanes.target[r] - value;
    errors[r] -= value;
  }
}

template <class Coded>
void gptq_tile(const GptqBlock& block, int64_t row, int count) {
  float errors[kGptqColumns][kGptqRows];
  double loss[kGptqRows] = {};
  GptqLanes lanes = {};
  int32_t group = -1;
  for (int64_t column = 0; column < block.columns; ++column) {
    if (block.groups[column] != group) {
      group = block.groups[column];
      take_scales(block, row, count, group, lanes);
    }
    float* const own = errors[column];
    for (int r = 0; r < kGptqRows; ++r) own[r] = lanes.target[r] = 0;
    for (int r = 0; r < count; ++r) {
      own[r] = block.weights[(row + r) * block.weight_stride + column];
      lanes.target[r] = block.corrected[(row + r) * block.corrected_stride + column];
    }
    add_feedback(errors, block.feedback + column * block.columns, column, lanes.target);
    quantise_lanes<Coded>(lanes, own);
    const double weight = block.diagonal[column];
    for (int r = 0; r < kGptqRows && weight > 0; ++r) {
      const double mine = lanes.residual[r] * weight, error = own[r];
      loss[r] += mine * mine - error * error * block.damping;
    }
    for (int r = 0; r < count; ++r) {
      block.codes[(row + r) * block.columns + column] = lanes.code[r];
      block.errors[(row + r) * block.columns + column] = own[r];
    }
  }
  for (int r = 0; r < count; ++r) block.losses[row + r] += loss[r];
}

template <class Coded>
void gptq_block_of(const GptqBlock& block, int threads) {
  const int64_t tiles = (block.rows + kGptqRows - 1) / kGptqRows,
                together = (tiles + kMaxChunks - 1) / kMaxChunks;
  if (tiles == 0) return;
  const Chunks chunks{tiles, together, static_cast<int>((tiles + together - 1) / together)};
  parallel_chunks(chunks, threads, [&](int chunk) {
    for (int64_t tile = chunks.begin(chunk); tile < chunks.end(chunk); ++tile) {
      const int64_t row = tile * kGptqRows;
      gptq_tile<Coded>(block, row,
                       static_cast<int>(block.rows - row < kGptqRows ? block.rows - row : kGptqRows));
    }
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
