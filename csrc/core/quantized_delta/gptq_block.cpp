#include "core/quantized_delta/gptq_block.h"

#include <stdexcept>

#include "core/quantized_delta/gptq_block.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void gptq_block(const float* weights, int64_t weight_stride, const float* corrected, int64_t corrected_stride,
                const float* feedback, const float* scales, const uint8_t* zeros, const int32_t* groups,
                int64_t group_count, const float* diagonal, double damping, int bits, Scheme scheme,
                int64_t rows, int64_t columns, uint8_t* codes, float* errors, double* losses, int threads) {
  if (columns > kGptqColumns) throw std::invalid_argument("a block has at most 128 columns");
  const GptqBlock block{weights, weight_stride, corrected, corrected_stride, feedback, scales,  zeros,
                        groups,  group_count,   diagonal,  damping,          rows,     columns, codes,
                        errors,  losses};
  with_code(scheme, bits, [&]<class Coded>() { gptq_block_of<Coded>(block, threads); });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(gptq_block,
                   (const float* weights, int64_t weight_stride, const float* corrected,
                    int64_t corrected_stride, const float* feedback, const float* scales,
                    const uint8_t* zeros, const int32_t* groups, int64_t group_count, const float* diagonal,
                    double damping, int bits, Scheme scheme, int64_t rows, int64_t columns, uint8_t* codes,
                    float* errors, double* losses, int threads),
                   (weights, weight_stride, corrected, corrected_stride, feedback, scales, zeros, groups,
                    group_count, diagonal, damping, bits, scheme, rows, columns, codes, errors, losses,
                    threads))

}  // namespace graftwork
