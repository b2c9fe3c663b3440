#include "core/merge/merge_many.h"

#include <stdexcept>

#include "core/merge/merge_many.inl"
#include "core/merge/sparsify_norms.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

inline MergeInputs merge_inputs(const void* const* words, const int32_t* formats, int64_t donors,
                                int64_t numel, int64_t kind, const int64_t* limits, int64_t columns,
                                bool by_probability, bool zero_nonfinite) {
  if (kind < 0 || kind > 4) throw std::invalid_argument("kind must be 0 to 4");
  const Sparsifier rule{static_cast<SparsifyKind>(kind), limits, columns < 1 ? 1 : columns, by_probability};
  const MergeInputs in{{words, formats, donors, zero_nonfinite}, rule, numel};
  in.donors.check_formats();
  return in;
}

void merge_many(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                const float* coefficients, int64_t rows, const float* weights, const int64_t* limits,
                double scale, const int64_t* options, void* out, WeightFormat out_format, float* residual,
                int64_t* counts, uint8_t* workspace, int threads) {
  const MergeInputs in = merge_inputs(words, formats, donors, numel, options[0], limits, options[1],
                                      options[2] != 0, options[5] != 0);
  const MixPlan plan{coefficients,
                     weights,
                     rows < 1 || numel < 1 ? 1 : rows,
                     static_cast<Consensus>(options[3]),
                     options[4] != 0,
                     static_cast<float>(scale)};
  const PhiloxKey key{static_cast<uint32_t>(options[7]), static_cast<uint32_t>(options[8])};
  const Output to{out, out_format, residual, options[6] != 0, key};
  to.check_format();
  merge_into(in, plan, to, counts, workspace, threads);
}

void sparsify_norms(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel, int kind,
                    const int64_t* limits, int64_t columns, int zero_nonfinite, double* sums,
                    uint8_t* workspace, int threads) {
  const MergeInputs in =
      merge_inputs(words, formats, donors, numel, kind, limits, columns, false, zero_nonfinite != 0);
  sum_norms(in, sums, workspace, threads);
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(merge_many,
                   (const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                    const float* coefficients, int64_t rows, const float* weights, const int64_t* limits,
                    double scale, const int64_t* options, void* out, WeightFormat out_format, float* residual,
                    int64_t* counts, uint8_t* workspace, int threads),
                   (words, formats, donors, numel, coefficients, rows, weights, limits, scale, options, out,
                    out_format, residual, counts, workspace, threads))
GRAFTWORK_DISPATCH(sparsify_norms,
                   (const void* const* words, const int32_t* formats, int64_t donors, int64_t numel, int kind,
                    const int64_t* limits, int64_t columns, int zero_nonfinite, double* sums,
                    uint8_t* workspace, int threads),
                   (words, formats, donors, numel, kind, limits, columns, zero_nonfinite, sums, workspace,
                    threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t merge_workspace_bytes(int64_t donors, int kind, int64_t columns, int threads) {
  return baseline::norms_workspace(donors, static_cast<baseline::SparsifyKind>(kind),
                                   columns < 1 ? 1 : columns, threads);
}
#endif

}  // namespace graftwork
