// The loop around every optimizer step, and what the steps have in common, on tiles that stay in the L1 cache.
#pragma once

#include "core/sparse_update/step.h"
#include "core/sparse_update/tile.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// Entries at .. at + count of the arena, those of one tensor, with their gradients and the values of their base.
template <class Index>
struct StepTile {
  int64_t tensor, at;
  int count;
  const Index* index;
  float* values;
  float gradient[kEntryTile], base[kEntryTile];
};

// gradient = grad_scale * gradient + l1 * sign(value)
inline void finish_gradient(float* gradient, const float* source, const float* values, int count,
                            const StepSettings& settings) {
  const float scale = settings.grad_scale, l1 = settings.l1;
  for (int i = 0; i < count; ++i) {
    const float sign = values[i] > 0 ? 1.0f : values[i] < 0 ? -1.0f : 0.0f;
    gradient[i] = source[i] * scale + sign * l1;
  }
}

// target += factor * (base + value, or value): what weight decay adds to a gradient, or with a factor below zero to the
// values themselves.
template <class Index>
inline void add_decay(DecayMode mode, float factor, const StepTile<Index>& tile, float* target) {
  const float* const values = tile.values;
  switch (mode) {
    case DecayMode::none: return;
    case DecayMode::delta:
      for (int i = 0; i < tile.count; ++i) target[i] += values[i] * factor;
      return;
    case DecayMode::weight:
      for (int i = 0; i < tile.count; ++i) target[i] += (tile.base[i] + values[i]) * factor;
      return;
  }
}

// value = sign(value) * max(|value| - threshold, 0)
inline void shrink_values(float* __restrict values, int count, float threshold) {
  if (threshold == 0) return;
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = bit_cast<uint32_t>(values[i]), sign = bits & 0x80000000u;
    const float rest = bit_cast<float>(bits ^ sign) - threshold;
    values[i] = bit_cast<float>(bit_cast<uint32_t>(rest < 0 ? 0.0f : rest) | sign);
  }
}

inline void subtract(float* __restrict values, const float* __restrict update, float rate, int count) {
  for (int i = 0; i < count; ++i) values[i] -= update[i] * rate;
}

template <class Index>
struct StepLoop {
  const StepTensors& tensors;
  const StepSettings& settings;
  const Index* indices;
  WordReader<Index> grads, words;
  WordWriter<Index> weights;

  StepLoop(const StepTensors& all, const StepSettings& numbers)
      : tensors(all),
        settings(numbers),
        indices(static_cast<const Index*>(all.indices)),
        grads(static_cast<WeightFormat>(all.grad_format)),
        words(static_cast<WeightFormat>(all.weight_format)),
        weights(static_cast<WeightFormat>(all.weight_format)) {}

  // Calls update(tile) for all entries: it moves tile.values.
  template <class Update>
  void run(int threads, const Update& update) const {
    parallel_spans(tensors.offsets, tensors.tensors, threads,
                   [&](int64_t tensor, int64_t begin, int64_t end) {
                     for_each_entry_tile(
                         begin, end, kEntryTile, [&](int64_t at, int count) { prefetch(tensor, at, count); },
                         [&](int64_t at, int count) { step(tensor, at, count, update); });
                   });
  }

  void prefetch(int64_t tensor, int64_t at, int count) const {
    if (tensors.grads != nullptr)
      prefetch_words(tensors.grads[tensor], grads.log2_bytes, indices + at, count);
    if (tensors.weights != nullptr)
      prefetch_words(tensors.weights[tensor], weights.log2_bytes, indices + at, count);
  }

  template <class Update>
  void step(int64_t tensor, int64_t at, int count, const Update& update) const {
    StepTile<Index> tile;
    tile.tensor = tensor, tile.at = at, tile.count = count;
    tile.index = indices + at, tile.values = tensors.values + at;
    if (tensors.grads != nullptr) {
      grads.gather(tensors.grads[tensor], tile.index, count, tile.gradient);
      finish_gradient(tile.gradient, tile.gradient, tile.values, count, settings);
    } else {
      finish_gradient(tile.gradient, tensors.compact_grads + at, tile.values, count, settings);
    }
    if (tensors.base != nullptr) words.load(tensors.base, at, count, tile.base);
    update(tile);
    shrink_values(tile.values, count, settings.soft_threshold);
    if (tensors.weights == nullptr) return;
    for (int i = 0; i < count; ++i) tile.base[i] += tile.values[i];
    weights.scatter(tensors.weights[tensor], tile.index, count, tile.base);
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
