#include "core/sparse_update/sparse_sgd.h"

#include "core/sparse_update/step.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

// The gradient becomes what the values move by.
inline void apply_momentum(float* __restrict gradient, float* __restrict buffer, int count, bool nesterov,
                           bool first, const SgdSettings& settings) {
  const float momentum = settings.momentum, rest = settings.rest;
  for (int i = 0; i < count; ++i) buffer[i] = first ? gradient[i] : buffer[i] * momentum + gradient[i] * rest;
  for (int i = 0; i < count; ++i) gradient[i] = nesterov ? gradient[i] + buffer[i] * momentum : buffer[i];
}

void sparse_sgd(const StepTensors* tensors, const SgdSettings* settings, DecayMode decay_mode, bool nesterov,
                bool first, float* momentum_buffer, int threads) {
  const SgdSettings& numbers = *settings;
  with_index(static_cast<int>(tensors->index_bytes), [&]<class Index>() {
    const StepLoop<Index> loop(*tensors, numbers.common);
    loop.run(threads, [&](StepTile<Index>& tile) {
      add_decay(decay_mode, numbers.common.decay, tile, tile.gradient);
      if (momentum_buffer != nullptr)
        apply_momentum(tile.gradient, momentum_buffer + tile.at, tile.count, nesterov, first, numbers);
      subtract(tile.values, tile.gradient, numbers.lr, tile.count);
    });
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(sparse_sgd,
                   (const StepTensors* tensors, const SgdSettings* settings, DecayMode decay_mode,
                    bool nesterov, bool first, float* momentum_buffer, int threads),
                   (tensors, settings, decay_mode, nesterov, first, momentum_buffer, threads))

}  // namespace graftwork
