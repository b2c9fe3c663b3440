#include "core/quantized_delta/delta_combine.h"

#include "core/quantized_delta/delta_combine.inl"
#include "core/support/isa.h"
#include "core/support/numeric.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

static float* prepared_of(const DeltaCombination& one, void* workspace) {
  return reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + one.prepared_at);
}

static void prepare(const DeltaCombination& one, int64_t t, float* floats) {
  const Coefficients layout = Coefficients::of(one.matrix);
  const float* const inputs = reinterpret_cast<const float*>(one.inputs) + t * one.matrix.rows;
  const float* const weights = reinterpret_cast<const float*>(one.weights);
  with_format(static_cast<WeightFormat>(one.matrix.scale_format), [&]<class Format>() {
    layout.fill<Format>(one.matrix, inputs, weights, floats + t * layout.floats);
  });
}

void delta_combine(float* y, const DeltaCombination* combinations, const int64_t* places,
                   const float* factors, void* workspace, int64_t count, int64_t columns, int threads) {
  int64_t tokens = 0, chains = 0;
  for (int64_t c = 0; c < count; ++c) {
    tokens += combinations[c].token_count;
    chains += combinations[c].goes_on == 0;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t token = 0; token < tokens; ++token) {
    const DeltaCombination* one = combinations;
    int64_t t = token;
    for (; t >= one->token_count; ++one) t -= one->token_count;
    prepare(*one, t, prepared_of(*one, workspace));
  }
  const int64_t runs = divide_up(columns, kColumnsTogether);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t run = 0; run < runs * chains; ++run) {
    const DeltaCombination* const end = combinations + count;
    const DeltaCombination* one = combinations;
    for (int64_t chain = run / runs; chain > 0;) chain -= (++one)->goes_on == 0;
    const int64_t first = run % runs * kColumnsTogether;
    const int64_t last = first + kColumnsTogether < columns ? first + kColumnsTogether : columns;
    do {
      add_columns(*one, y, places, factors, prepared_of(*one, workspace), first, last);
      ++one;
    } while (one != end && one->goes_on);
  }
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(delta_combine,
                   (float* y, const DeltaCombination* combinations, const int64_t* places,
                    const float* factors, void* workspace, int64_t count, int64_t columns, int threads),
                   (y, combinations, places, factors, workspace, count, columns, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t delta_combine_bytes(int64_t token_count, int64_t rows, int64_t blocks) {
  return static_cast<int64_t>(sizeof(float)) * token_count * baseline::Coefficients::of(rows, blocks).floats;
}
#endif

}  // namespace graftwork
