// See sparse_adamw.cu.
#include "cuda/sparse_update/sparse_sgd.cuh"

#include "cuda/sparse_update/step.cuh"

namespace graftwork::cuda {
namespace {

struct Sgd {
  SgdSettings numbers;
  DecayMode decay;
  bool nesterov, first;
  float* momentum_buffer;

  struct State {
    float momentum;
  };

  SIMT_DEVICE State load(int64_t entry) const {
    return {momentum_buffer == nullptr || first ? 0.0f : simt::load_global(momentum_buffer + entry)};
  }

  SIMT_DEVICE void store(int64_t entry, const State& state) const {
    if (momentum_buffer != nullptr) simt::store_global(momentum_buffer + entry, state.momentum);
  }

  SIMT_DEVICE void move(State& state, Tuned& tuned) const {
    Rounded update = add_decay(decay, tuned.gradient, Rounded{numbers.common.decay}, tuned);
    if (momentum_buffer != nullptr) {
      const Rounded momentum{numbers.momentum}, rest{numbers.rest};
      const Rounded buffer = first ? update : Rounded{state.momentum} * momentum + update * rest;
      update = nesterov ? update + buffer * momentum : buffer;
      state.momentum = buffer.value;
    }
    tuned.value = tuned.value - update * Rounded{numbers.lr};
  }
};

}  // namespace

int sparse_sgd(const StepTensors* tensors, const SgdSettings* settings, DecayMode decay_mode, bool nesterov,
               bool first, float* momentum_buffer, int64_t entries, void* stream) {
  const Sgd rule{*settings, decay_mode, nesterov, first, momentum_buffer};
  return launch_step(*tensors, entries, settings->common, rule, stream);
}

}  // namespace graftwork::cuda
