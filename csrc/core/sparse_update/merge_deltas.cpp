#include "core/sparse_update/merge_deltas.h"

#include <stdexcept>

#include "core/sparse_update/merge_deltas.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void count_union(const void* const* indices, const void* const* offsets, int64_t* union_offsets,
                 int64_t* workspace, int64_t deltas, int64_t tensors, int index_bytes, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    count_union_of<Index>(indices, offsets, union_offsets, workspace, deltas, tensors, threads);
  });
}

void merge_deltas(const void* const* indices, const void* const* offsets, const void* const* values,
                  const float* weights, void* union_indices, float* union_values, int64_t* workspace,
                  int64_t deltas, int64_t tensors, int index_bytes, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    merge_deltas_of<Index>(indices, offsets, values, weights, static_cast<Index*>(union_indices),
                           union_values, workspace, deltas, tensors, threads);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(count_union,
                   (const void* const* indices, const void* const* offsets, int64_t* union_offsets,
                    int64_t* workspace, int64_t deltas, int64_t tensors, int index_bytes, int threads),
                   (indices, offsets, union_offsets, workspace, deltas, tensors, index_bytes, threads))

GRAFTWORK_DISPATCH(merge_deltas,
                   (const void* const* indices, const void* const* offsets, const void* const* values,
                    const float* weights, void* union_indices, float* union_values, int64_t* workspace,
                    int64_t deltas, int64_t tensors, int index_bytes, int threads),
                   (indices, offsets, values, weights, union_indices, union_values, workspace, deltas,
                    tensors, index_bytes, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t merge_workspace_words(int64_t deltas, int64_t tensors) {
  return baseline::MergeWorkspace<int32_t>::words(deltas, tensors);
}
#endif

}  // namespace graftwork
