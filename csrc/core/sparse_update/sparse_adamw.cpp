#include "core/sparse_update/sparse_adamw.h"

#include "core/sparse_update/step.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

// The bias corrections of a tile.
struct AdamwCorrections {
  float first[kEntryTile], second[kEntryTile];

  void fill(float first_of_all, float second_of_all) {
    for (int i = 0; i < kEntryTile; ++i) first[i] = first_of_all, second[i] = second_of_all;
  }

  // Counts the ages up.
  void look_up(int32_t* __restrict ages, int count, const float* __restrict table, int32_t length) {
    for (int i = 0; i < count; ++i) {
      const int32_t age = ages[i] + 1, last = length - 1;
      const int32_t row = age < 1 ? 1 : age > last ? last : age;
      ages[i] = age;
      first[i] = table[row];
      second[i] = table[length + row];
    }
  }
};

inline void update_moments(const float* __restrict gradient, float* __restrict exp_avg,
                           float* __restrict exp_avg_sq, int count, const AdamwSettings& settings) {
  const float beta1 = settings.beta1, rest1 = settings.rest1, beta2 = settings.beta2, rest2 = settings.rest2;
  for (int i = 0; i < count; ++i) {
    const float g = gradient[i];
    exp_avg[i] = exp_avg[i] * beta1 + g * rest1;
    exp_avg_sq[i] = exp_avg_sq[i] * beta2 + g * g * rest2;
  }
}

template <bool eps_corrected>
inline void move_values(float* __restrict values, const float* __restrict exp_avg,
                        const float* __restrict exp_avg_sq, const AdamwCorrections& corrections, int count,
                        float lr, float eps) {
  for (int i = 0; i < count; ++i) {
    const float root = __builtin_sqrtf(exp_avg_sq[i]), second = corrections.second[i];
    const float denominator = eps_corrected ? root * second + eps : (root + eps) * second;
    values[i] -= exp_avg[i] / denominator * (corrections.first[i] * lr);
  }
}

void sparse_adamw(const StepTensors* tensors, const AdamwSettings* settings, DecayMode decay_mode,
                  bool decay_first, bool eps_corrected, float* exp_avg, float* exp_avg_sq, int32_t* ages,
                  const float* corrections, int64_t corrections_count, int threads) {
  const AdamwSettings& numbers = *settings;
  const auto move = eps_corrected ? move_values<true> : move_values<false>;
  with_index(static_cast<int>(tensors->index_bytes), [&]<class Index>() {
    const StepLoop<Index> loop(*tensors, numbers.common);
    loop.run(threads, [&](StepTile<Index>& tile) {
      AdamwCorrections mine;
      if (ages == nullptr)
        mine.fill(numbers.first, numbers.second);
      else
        mine.look_up(ages + tile.at, tile.count, corrections, static_cast<int32_t>(corrections_count));
      if (decay_first) add_decay(decay_mode, -numbers.common.decay, tile, tile.values);
      float *const m = exp_avg + tile.at, *const v = exp_avg_sq + tile.at;
      update_moments(tile.gradient, m, v, tile.count, numbers);
      move(tile.values, m, v, mine, tile.count, numbers.lr, numbers.eps);
      if (!decay_first) add_decay(decay_mode, -numbers.common.decay, tile, tile.values);
    });
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(sparse_adamw,
                   (const StepTensors* tensors, const AdamwSettings* settings, DecayMode decay_mode,
                    bool decay_first, bool eps_corrected, float* exp_avg, float* exp_avg_sq, int32_t* ages,
                    const float* corrections, int64_t corrections_count, int threads),
                   (tensors, settings, decay_mode, decay_first, eps_corrected, exp_avg, exp_avg_sq, ages,
                    corrections, corrections_count, threads))

}  // namespace graftwork
