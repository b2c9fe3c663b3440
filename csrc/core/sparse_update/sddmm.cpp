#include "core/sparse_update/sddmm.h"

#include <stdexcept>

#include "core/sparse_update/arena.h"
#include "core/sparse_update/sddmm.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void sddmm(const void* x, const void* dy, const void* indices, float* gradients, int64_t* outside,
           void* workspace, int64_t batch, int64_t columns, int64_t rows, int64_t entries,
           WeightFormat format, int index_bytes, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    const Index* const sorted = static_cast<const Index*>(indices);
    *outside = any_outside(sorted, entries, rows * columns, threads);
    if (*outside) return;
    with_format(format, [=]<class Format>() {
      using Word = typename Format::Word;
      sddmm_of<Format>(static_cast<const Word*>(x), static_cast<const Word*>(dy), sorted, gradients,
                       static_cast<float*>(workspace), batch, columns, rows, entries, threads);
    });
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(sddmm,
                   (const void* x, const void* dy, const void* indices, float* gradients, int64_t* outside,
                    void* workspace, int64_t batch, int64_t columns, int64_t rows, int64_t entries,
                    WeightFormat format, int index_bytes, int threads),
                   (x, dy, indices, gradients, outside, workspace, batch, columns, rows, entries, format,
                    index_bytes, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t sddmm_workspace_bytes(int64_t columns, int64_t rows) {
  return static_cast<int64_t>(sizeof(float)) * baseline::sddmm_workspace_floats(columns, rows);
}
#endif

}  // namespace graftwork
