// The kernel around every optimizer step: gradient, optimizer state, value and weight in one pass over the
// entries.
//
// The order of its operations is that of core/sparse_update/step.inl, each rounded once: the bits are the CPU's,
// the payload of NaN aside.
#pragma once

#include "core/sparse_update/step.h"
#include "cuda/sparse_update/arena.cuh"
#include "cuda/sparse_update/words.cuh"
#include "cuda/support/device.cuh"

namespace graftwork::cuda {

// What moves one value: a rule's move() may change all of it.
struct Tuned {
  Rounded gradient, value, base;
};

// x + factor * (base + value, or value)
SIMT_DEVICE Rounded add_decay(DecayMode mode, Rounded x, Rounded factor, const Tuned& tuned) {
  if (mode == DecayMode::none) return x;
  return x + (mode == DecayMode::weight ? tuned.base + tuned.value : tuned.value) * factor;
}

// sign(value) * max(|value| - threshold, 0)
SIMT_DEVICE Rounded shrink(Rounded value, float threshold) {
  if (threshold == 0) return value;
  const uint32_t bits = bits_of(value.value), sign = bits & 0x80000000u;
  const float rest = __fsub_rn(float_of(bits ^ sign), threshold);
  return {float_of(bits_of(rest < 0 ? 0.0f : rest) | sign)};
}

// grad_scale * gradient + l1 * sign(value)
SIMT_DEVICE Rounded finish_gradient(float gradient, float value, const StepSettings& settings) {
  const Rounded sign{value > 0 ? 1.0f : value < 0 ? -1.0f : 0.0f};
  return Rounded{gradient} * Rounded{settings.grad_scale} + sign * Rounded{settings.l1};
}

// A Rule has a State of each entry: load(entry), move(state, tuned), store(entry, state).
template <class Rule, int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads)
    step_kernel(StepTensors tensors, int64_t entries, StepSettings settings, Rule rule) {
  const Share<kIndexBytes> mine({tensors.indices, tensors.offsets, tensors.tensors, entries});
  const auto grad_format = static_cast<WeightFormat>(tensors.grad_format);
  const auto weight_format = static_cast<WeightFormat>(tensors.weight_format);
  uint32_t gradient[kEach], base[kEach] = {};
  float value[kEach];
  typename Rule::State state[kEach];
  const void* grads[kEach];
  if (tensors.grads != nullptr) mine.look_up(tensors.grads, grads);
  for_each_row([&](int k) {
    if (!mine.has(k)) return;
    const int64_t entry = mine.entry(k);
    if (tensors.grads == nullptr)
      gradient[k] = load_word(tensors.compact_grads, entry, true);
    else
      gradient[k] = load_word(grads[k], mine.index[k], is_wide(grad_format));
    if (tensors.base != nullptr) base[k] = load_word(tensors.base, entry, is_wide(weight_format));
    value[k] = simt::load_global(tensors.values + entry);
    state[k] = rule.load(entry);
  });
  void* weights[kEach];
  if (tensors.weights != nullptr) mine.look_up(tensors.weights, weights);
  for_each_row([&](int k) {
    if (!mine.has(k)) return;
    const int64_t entry = mine.entry(k);
    const float raw = tensors.grads == nullptr ? float_of(gradient[k]) : value_of(gradient[k], grad_format);
    Tuned tuned{finish_gradient(raw, value[k], settings), {value[k]}, {value_of(base[k], weight_format)}};
    rule.move(state[k], tuned);
    tuned.value = shrink(tuned.value, settings.soft_threshold);
    rule.store(entry, state[k]);
    simt::store_global(tensors.values + entry, tuned.value.value);
    if (tensors.weights != nullptr)
      store_word(weights[k], mine.index[k], word_of((tuned.base + tuned.value).value, weight_format),
                 is_wide(weight_format));
  });
}

template <class Rule>
int launch_step(const StepTensors& tensors, int64_t entries, const StepSettings& settings, const Rule& rule,
                void* stream) {
  if (!is_format(tensors.grad_format) || !is_format(tensors.weight_format)) return kInvalidArgument;
  return with_index_bytes(tensors.index_bytes, kInvalidArgument, [&](auto bytes) {
    if (entries == 0) return 0;
    const Arena arena{tensors.indices, tensors.offsets, tensors.tensors, entries};
    return simt::launch<step_kernel<Rule, decltype(bytes)::value>>(arena.blocks(), kEntryThreads, 0, stream,
                                                                   tensors, entries, settings, rule);
  });
}

}  // namespace graftwork::cuda
