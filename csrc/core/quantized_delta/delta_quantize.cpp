#include "core/quantized_delta/delta_quantize.h"

#include "core/quantized_delta/delta_quantize.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void delta_quantize(const void* tuned, const void* base, int64_t rows, int64_t columns, WeightFormat format,
                    int bits, Scheme scheme, int64_t block, int iterations, uint8_t* codes, int64_t row_bytes,
                    void* scales, WeightFormat scale_format, uint8_t* zeros, float* room, double* error,
                    int64_t* report, int threads) {
  Matrix matrix{tuned, base, rows, columns, nullptr, nullptr};
  Packing packing{block, iterations, ScaleRule(scale_format), codes, row_bytes, room, zeros};
  packing.block = block == 0 ? (columns > 0 ? columns : 1) : block < 0 ? columns + 1 : block;
  const bool per_matrix = block < 0;
  if (!per_matrix && packing.block > columns) packing.block = columns > 0 ? columns : 1;
  int64_t (*pack)(const Matrix&, const Packing&, double*, int) = nullptr;
  with_code(scheme, bits, [&]<class Code>() {
    pack = pack_matrix<Code>;
    with_format(format, [&]<class Format>() {
      matrix.load = extract<Format>;
      matrix.load_blocks = extract_blocks<Format, kStatistic<Code>>;
    });
  });

  const int64_t count = per_matrix    ? 1
                        : columns > 0 ? rows * ((columns + packing.block - 1) / packing.block)
                                      : 0;
  report[1] = -1;
  report[2] = 0;
  report[0] = pack(matrix, packing, error, threads);
  if (report[0] >= 0) return;
  const ScaleRange range(room, count);
  report[1] = range.unstorable;
  if (report[1] >= 0) return;
  if (scale_format == WeightFormat::float16) {
    const int exponent = range.exponent();
    report[2] = exponent;
    if (!range.exact_in_float16(exponent)) {
      packing.rule = ScaleRule(exponent);
      report[0] = pack(matrix, packing, error, threads);
    }
  }
  store_scales(room, count, scale_format, static_cast<int>(report[2]), scales);
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(delta_quantize,
                   (const void* tuned, const void* base, int64_t rows, int64_t columns, WeightFormat format,
                    int bits, Scheme scheme, int64_t block, int iterations, uint8_t* codes, int64_t row_bytes,
                    void* scales, WeightFormat scale_format, uint8_t* zeros, float* room, double* error,
                    int64_t* report, int threads),
                   (tuned, base, rows, columns, format, bits, scheme, block, iterations, codes, row_bytes,
                    scales, scale_format, zeros, room, error, report, threads))

}  // namespace graftwork
