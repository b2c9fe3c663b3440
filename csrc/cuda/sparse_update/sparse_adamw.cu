// One launch for all tensors. An entry moves 36 bytes of arrays and two words of its tensor, which lie in sectors
// of their own: memory is the limit, and the modes are chosen at run time, since that costs nothing beside it.
#include "cuda/sparse_update/sparse_adamw.cuh"

#include "cuda/sparse_update/step.cuh"

namespace graftwork::cuda {
namespace {

struct Adamw {
  AdamwSettings numbers;
  DecayMode decay;
  bool decay_first, eps_corrected;
  float *exp_avg, *exp_avg_sq;
  int32_t* ages;
  const float* corrections;
  int32_t length;  // of each half of the corrections

  struct State {
    float exp_avg, exp_avg_sq;
    int32_t age;
  };

  SIMT_DEVICE State load(int64_t entry) const {
    return {simt::load_global(exp_avg + entry), simt::load_global(exp_avg_sq + entry),
            ages == nullptr ? 0 : simt::load_global(ages + entry)};
  }

  SIMT_DEVICE void store(int64_t entry, const State& state) const {
    simt::store_global(exp_avg + entry, state.exp_avg);
    simt::store_global(exp_avg_sq + entry, state.exp_avg_sq);
    if (ages != nullptr) simt::store_global(ages + entry, state.age);
  }

  SIMT_DEVICE void move(State& state, Tuned& tuned) const {
    Rounded first{numbers.first}, second{numbers.second};
    if (ages != nullptr) {
      const int32_t last = length - 1, age = ++state.age;
      const int32_t row = age < 1 ? 1 : age > last ? last : age;
      first.value = simt::load_global(corrections + row);
      second.value = simt::load_global(corrections + length + row);
    }
    const Rounded decay_factor{-numbers.common.decay}, lr{numbers.lr}, eps{numbers.eps};
    if (decay_first) tuned.value = add_decay(decay, tuned.value, decay_factor, tuned);
    const Rounded g = tuned.gradient;
    const Rounded m = Rounded{state.exp_avg} * Rounded{numbers.beta1} + g * Rounded{numbers.rest1};
    const Rounded v = Rounded{state.exp_avg_sq} * Rounded{numbers.beta2} + g * g * Rounded{numbers.rest2};
    state.exp_avg = m.value;
    state.exp_avg_sq = v.value;
    const Rounded root = square_root(v);
    const Rounded denominator = eps_corrected ? root * second + eps : (root + eps) * second;
    tuned.value = tuned.value - m / denominator * (first * lr);
    if (!decay_first) tuned.value = add_decay(decay, tuned.value, decay_factor, tuned);
  }
};

}  // namespace

int sparse_adamw(const StepTensors* tensors, const AdamwSettings* settings, DecayMode decay_mode,
                 bool decay_first, bool eps_corrected, float* exp_avg, float* exp_avg_sq, int32_t* ages,
                 const float* corrections, int64_t corrections_count, int64_t entries, void* stream) {
  const Adamw rule{*settings,     decay_mode,  decay_first,
                   eps_corrected, exp_avg,     exp_avg_sq,
                   ages,          corrections, static_cast<int32_t>(corrections_count)};
  return launch_step(*tensors, entries, settings->common, rule, stream);
}

}  // namespace graftwork::cuda
