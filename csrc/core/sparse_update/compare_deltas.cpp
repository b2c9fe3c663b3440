#include "core/sparse_update/compare_deltas.h"

#include <stdexcept>

#include "core/sparse_update/compare_deltas.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void compare_deltas(const void* const* indices, const void* const* offsets, const void* const* values,
                    int64_t* counts, double* sums, int64_t* workspace, int64_t tensors, int index_bytes,
                    int threads) {
  with_index(index_bytes, [=]<class Index>() {
    compare_deltas_of<Index>(indices, offsets, values, counts, sums, workspace, tensors, threads);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(compare_deltas,
                   (const void* const* indices, const void* const* offsets, const void* const* values,
                    int64_t* counts, double* sums, int64_t* workspace, int64_t tensors, int index_bytes,
                    int threads),
                   (indices, offsets, values, counts, sums, workspace, tensors, index_bytes, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t compare_workspace_words(int64_t tensors) {
  return baseline::UnionCut<int32_t>::workspace_words(2) +
         (baseline::kMaxChunks + tensors) * baseline::kTallyWords;
}
#endif

}  // namespace graftwork
