#include "core/sparse_update/topk_abs.h"

#include "core/sparse_update/selection.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void topk_abs(const void* const* tensors, const int64_t* offsets, const int32_t* formats, int64_t count,
              const int64_t* ks, void* indices, int index_bytes, int64_t* nan_tensor, uint8_t* workspace,
              int64_t workspace_bytes, int threads) {
  ScoredWeights{tensors, nullptr, offsets, formats, count}.check_formats();
  *nan_tensor = -1;
  with_index(index_bytes, [&]<class Index>() {
    Index* out = static_cast<Index*>(indices);
    for (int64_t t = 0; t < count; out += ks[t], ++t) {
      const int64_t bounds[2] = {0, offsets[t + 1] - offsets[t]};
      const ScoredWeights one{tensors + t, nullptr, bounds, formats + t, 1};
      int64_t chosen = 0, nan = -1;
      select_largest<Index>(one, ks[t], out, &chosen, &nan, workspace, workspace_bytes, threads);
      if (nan < 0) continue;
      *nan_tensor = t;
      return;
    }
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(topk_abs,
                   (const void* const* tensors, const int64_t* offsets, const int32_t* formats, int64_t count,
                    const int64_t* ks, void* indices, int index_bytes, int64_t* nan_tensor,
                    uint8_t* workspace, int64_t workspace_bytes, int threads),
                   (tensors, offsets, formats, count, ks, indices, index_bytes, nan_tensor, workspace,
                    workspace_bytes, threads))

}  // namespace graftwork
