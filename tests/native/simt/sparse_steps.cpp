// sparse_adamw and sparse_sgd on the host, bit for bit against the CPU's loops.
#include "supports.h"

#include "core/sparse_update/sparse_adamw.cpp"
#include "core/sparse_update/sparse_sgd.cpp"
#include "cuda/sparse_update/sparse_adamw.cu"
#include "cuda/sparse_update/sparse_sgd.cu"

namespace {

using graftwork::AdamwSettings;
using graftwork::DecayMode;
using graftwork::SgdSettings;
using graftwork::StepTensors;
using harness::Buffer;
using harness::check;
using supports::Support;

// What a step does, in one number: each bit or pair of bits is a choice.
struct Modes {
  bool compact, written, ages, first, second, l1;
  DecayMode decay;
  float soft_threshold;

  explicit Modes(unsigned number)
      : compact(number & 1),
        written(number >> 1 & 1),
        ages(number >> 2 & 1),
        first(number >> 3 & 1),
        second(number >> 4 & 1),
        l1(number >> 5 & 1),
        decay(static_cast<DecayMode>(number % 3)),
        soft_threshold(number % 5 == 0 ? 1e-3f : 0.0f) {}
};

// Everything that a step reads and writes.
struct Model {
  const Support& support;
  int grad_format, weight_format;
  Buffer indices;
  supports::Tensors grads, weights;
  supports::Array<float> compact, values, exp_avg, exp_avg_sq, corrections;
  Buffer base;
  supports::Array<int32_t> ages;

  Model(const Support& of, int grads_are, int weights_are, int index_bytes, bool special)
      : support(of),
        grad_format(grads_are),
        weight_format(weights_are),
        indices(of.indices(index_bytes)),
        grads(of.numels, grads_are, 1, special),
        weights(of.numels, weights_are, 100, special),
        compact(supports::floats(supports::random_words(of.entries(), 2, 2, special))),
        values(supports::floats(supports::random_words(of.entries(), 2, 3, special))),
        exp_avg(supports::floats(supports::random_words(of.entries(), 2, 4))),
        exp_avg_sq(supports::floats(supports::random_words(of.entries(), 2, 5))),
        corrections{0, 10, 5.2f, 3.7f, 1, 0, 31, 22, 18, 1},
        base(supports::random_words(of.entries(), weights_are, 6, special), 0) {
    for (float& v : exp_avg_sq) v = std::abs(v);
    for (size_t k = 0; k < values.size(); ++k) ages.push_back(static_cast<int32_t>(k * 7 % 9) - 1);
  }

  StepTensors tensors(const Modes& modes) {
    const bool based = modes.written || modes.decay == DecayMode::weight;
    const auto entries = static_cast<size_t>(support.entries());
    const auto index_bytes = static_cast<int64_t>(indices.content().size() / std::max<size_t>(entries, 1));
    return {indices.data(),
            entries == 0 ? 4 : index_bytes,
            support.offsets.data(),
            support.tensors(),
            modes.compact ? nullptr : grads.sources(),
            compact.data(),
            grad_format,
            values.data(),
            based ? base.data() : nullptr,
            modes.written ? weights.table.data() : nullptr,
            weight_format};
  }
};

AdamwSettings adamw_settings(const Modes& modes) {
  return {{0.5f, modes.l1 ? 1e-2f : 0.0f, modes.soft_threshold, 1e-3f},
          1e-2f,
          0.9f,
          0.1f,
          0.999f,
          0.001f,
          1e-8f,
          5.26f,
          22.4f};
}

SgdSettings sgd_settings(const Modes& modes) {
  return {{0.5f, modes.l1 ? 1e-2f : 0.0f, modes.soft_threshold, 1e-3f}, 1e-2f, 0.9f, 0.9f};
}

void adamw(Model& model, const Modes& modes, bool on_gpu) {
  const StepTensors tensors = model.tensors(modes);
  const AdamwSettings settings = adamw_settings(modes);
  int32_t* const ages = modes.ages ? model.ages.data() : nullptr;
  float *const m = model.exp_avg.data(), *const v = model.exp_avg_sq.data();
  const float* const table = model.corrections.data();
  if (on_gpu)
    check(graftwork::cuda::sparse_adamw(&tensors, &settings, modes.decay, modes.first, modes.second, m, v,
                                        ages, table, 5, model.support.entries(), nullptr) == 0,
          "AdamW starts");
  else
    graftwork::sparse_adamw(&tensors, &settings, modes.decay, modes.first, modes.second, m, v, ages, table, 5,
                            1);
}

void sgd(Model& model, const Modes& modes, bool on_gpu) {
  const StepTensors tensors = model.tensors(modes);
  const SgdSettings settings = sgd_settings(modes);
  float* const buffer = modes.ages ? model.exp_avg.data() : nullptr;
  if (on_gpu)
    check(graftwork::cuda::sparse_sgd(&tensors, &settings, modes.decay, modes.first, modes.second, buffer,
                                      model.support.entries(), nullptr) == 0,
          "SGD starts");
  else
    graftwork::sparse_sgd(&tensors, &settings, modes.decay, modes.first, modes.second, buffer, 1);
}

using Step = void (*)(Model&, const Modes&, bool);

void compare(Step step, const Modes& modes, const Support& support, int grad_format, int weight_format,
             int index_bytes, const std::string& what) {
  Model wanted(support, grad_format, weight_format, index_bytes, true);
  step(wanted, modes, false);
  harness::under_each_schedule([&](const std::string& schedule) {
    Model got(support, grad_format, weight_format, index_bytes, true);
    step(got, modes, true);
    check(supports::same(got.values, wanted.values), "values: " + what + schedule);
    check(supports::same(got.exp_avg, wanted.exp_avg), "first moment: " + what + schedule);
    check(supports::same(got.exp_avg_sq, wanted.exp_avg_sq), "second moment: " + what + schedule);
    check(got.ages == wanted.ages, "ages: " + what + schedule);
    check(supports::same(got.weights, wanted.weights, support.numels, weight_format),
          "weights: " + what + schedule);
  });
}

void check_all() {
  unsigned number = 0;
  for (const int64_t entries : harness::kSizes)
    for (const int tensors : {1, 3, 70}) {
      const Support support = supports::make_support(entries, tensors, 7);
      for (int of = 0; of < 3; ++of, number += 13) {
        const int grad_format = static_cast<int>(number % 3), weight_format = (grad_format + of) % 3;
        const std::string what = std::to_string(entries) + " entries of " + std::to_string(tensors) +
                                 " tensors, modes " + std::to_string(number) + ", ";
        for (const int bytes : supports::kIndexBytes) {
          compare(adamw, Modes(number), support, grad_format, weight_format, bytes, "AdamW, " + what);
          compare(sgd, Modes(number), support, grad_format, weight_format, bytes, "SGD, " + what);
        }
      }
    }
  const Support small = supports::make_support(33, 2, 8);
  for (number = 0; number < 192; ++number) {  // every choice with every other
    compare(adamw, Modes(number), small, number % 3, number / 3 % 3, 4,
            "AdamW, modes " + std::to_string(number) + ", ");
    compare(sgd, Modes(number), small, number % 3, number / 3 % 3, 4,
            "SGD, modes " + std::to_string(number) + ", ");
  }
  StepTensors wrong{};
  wrong.index_bytes = 3;
  const SgdSettings settings{};
  check(graftwork::cuda::sparse_sgd(&wrong, &settings, DecayMode::none, false, false, nullptr, 1, nullptr) ==
            graftwork::cuda::kInvalidArgument,
        "indices of 3 bytes are refused");
  wrong.index_bytes = 4;
  wrong.grad_format = 3;
  check(graftwork::cuda::sparse_sgd(&wrong, &settings, DecayMode::none, false, false, nullptr, 1, nullptr) ==
            graftwork::cuda::kInvalidArgument,
        "an unknown format is refused");
}

void count_all() {
  const Support support = supports::whole_tensors(2, 2 * graftwork::cuda::kEntryTile);
  for (const int bytes : supports::kIndexBytes)
    for (const int format : supports::kFormats)
      for (const unsigned number : {4u, 6u, 3u}) {
        Model model(support, format, format, bytes, false);
        adamw(model, Modes(number), true);
        sgd(model, Modes(number), true);
      }
}

}  // namespace

int main(int argc, char** argv) { return harness::run(argc, argv, check_all, count_all); }
