#include "core/quantized_delta/pack_bits.h"

#include "core/quantized_delta/pack_bits.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void pack_bits(const uint8_t* codes, int64_t rows, int64_t columns, int bits, uint8_t* packed,
               int64_t row_bytes, int threads) {
  with_bits(bits, [=]<int kBits>() { pack_rows<kBits>(codes, rows, columns, packed, row_bytes, threads); });
}

void unpack_bits(const uint8_t* packed, int64_t row_bytes, int64_t rows, int64_t columns, int bits,
                 uint8_t* codes, int threads) {
  with_bits(bits, [=]<int kBits>() { unpack_rows<kBits>(packed, row_bytes, rows, columns, codes, threads); });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(pack_bits,
                   (const uint8_t* codes, int64_t rows, int64_t columns, int bits, uint8_t* packed,
                    int64_t row_bytes, int threads),
                   (codes, rows, columns, bits, packed, row_bytes, threads))
GRAFTWORK_DISPATCH(unpack_bits,
                   (const uint8_t* packed, int64_t row_bytes, int64_t rows, int64_t columns, int bits,
                    uint8_t* codes, int threads),
                   (packed, row_bytes, rows, columns, bits, codes, threads))

}  // namespace graftwork
