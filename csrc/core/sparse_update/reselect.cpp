#include "core/sparse_update/reselect.h"

#include "core/sparse_update/reselect.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void reselect(const float* values, const void* indices, const int64_t* offsets, const float* growth,
              const void* candidates, const int64_t* candidate_offsets, const int64_t* drops, int64_t tensors,
              int index_bytes, void* new_indices, int64_t* source, int64_t* nan, uint32_t* workspace,
              int threads) {
  uint32_t* const grow_keys = workspace + offsets[tensors];
  nan[0] = nan[1] = 0;
  struct State {
    bool nan_value = false, nan_growth = false;
  };
  with_index(index_bytes, [&]<class Index>() {
    parallel_chunks<State>(
        Chunks{tensors, 1, static_cast<int>(tensors)}, threads,
        [&](State& state, int t) {
          const int64_t begin = offsets[t], first = candidate_offsets[t];
          const DropAndGrow<Index> one{static_cast<const Index*>(indices) + begin,
                                       offsets[t + 1] - begin,
                                       static_cast<const Index*>(candidates) + first,
                                       candidate_offsets[t + 1] - first,
                                       drops[t],
                                       workspace + begin,
                                       grow_keys + first};
          const bool values_ok = one.mark_drops(values + begin), growth_ok = one.mark_grows(growth + first);
          state.nan_value |= !values_ok;
          state.nan_growth |= !growth_ok;
          if (!values_ok || !growth_ok) return;
          one.cancel();
          one.write(begin, first, static_cast<Index*>(new_indices) + begin, source + begin);
        },
        [&](const State& state) {
          nan[0] |= state.nan_value;
          nan[1] |= state.nan_growth;
        });
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(reselect,
                   (const float* values, const void* indices, const int64_t* offsets, const float* growth,
                    const void* candidates, const int64_t* candidate_offsets, const int64_t* drops,
                    int64_t tensors, int index_bytes, void* new_indices, int64_t* source, int64_t* nan,
                    uint32_t* workspace, int threads),
                   (values, indices, offsets, growth, candidates, candidate_offsets, drops, tensors,
                    index_bytes, new_indices, source, nan, workspace, threads))

}  // namespace graftwork
