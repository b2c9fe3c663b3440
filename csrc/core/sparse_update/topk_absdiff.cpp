#include "core/sparse_update/topk_absdiff.h"

#include "core/sparse_update/selection.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void topk_absdiff(const void* const* weights, const void* const* bases, const int64_t* offsets,
                  const int32_t* formats, int64_t tensors, int64_t k, void* indices, int index_bytes,
                  int64_t* counts, float* threshold, int64_t* nan_tensor, uint8_t* workspace,
                  int64_t workspace_bytes, int threads) {
  const ScoredWeights scored{weights, bases, offsets, formats, tensors};
  scored.check_formats();
  for (int64_t t = 0; t < tensors; ++t) counts[t] = 0;
  with_index(index_bytes, [&]<class Index>() {
    *threshold = bit_cast<float>(select_largest<Index>(scored, k, static_cast<Index*>(indices), counts,
                                                       nan_tensor, workspace, workspace_bytes, threads));
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(topk_absdiff,
                   (const void* const* weights, const void* const* bases, const int64_t* offsets,
                    const int32_t* formats, int64_t tensors, int64_t k, void* indices, int index_bytes,
                    int64_t* counts, float* threshold, int64_t* nan_tensor, uint8_t* workspace,
                    int64_t workspace_bytes, int threads),
                   (weights, bases, offsets, formats, tensors, k, indices, index_bytes, counts, threshold,
                    nan_tensor, workspace, workspace_bytes, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t selection_workspace_bytes(int64_t numel, int64_t k, int threads) {
  return baseline::selection_bytes(numel, k, threads);
}
#endif

}  // namespace graftwork
