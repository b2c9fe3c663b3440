#include "core/quantized_delta/dequant_add.h"

#include "core/quantized_delta/dequant_add.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void dequant_add(void* out, WeightFormat out_format, const void* base, WeightFormat base_format, int64_t rows,
                 int64_t columns, const int64_t* table, int packs, int threads) {
  with_format(out_format, [=]<class To>() {
    with_format(base_format, [=]<class From>() {
      dequant_add_of<From, To>(static_cast<typename To::Word*>(out),
                               static_cast<const typename From::Word*>(base), rows, columns, table, packs,
                               threads);
    });
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(dequant_add,
                   (void* out, WeightFormat out_format, const void* base, WeightFormat base_format,
                    int64_t rows, int64_t columns, const int64_t* table, int packs, int threads),
                   (out, out_format, base, base_format, rows, columns, table, packs, threads))

}  // namespace graftwork
