#include "core/merge/merge_gram.h"

#include "core/merge/merge_gram.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void merge_gram(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel, int64_t rows,
                double* gram, uint8_t* workspace, int threads) {
  const Donors all{words, formats, donors, false};
  all.check_formats();
  gram_into(all, numel, rows, gram, workspace, threads);
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(merge_gram,
                   (const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                    int64_t rows, double* gram, uint8_t* workspace, int threads),
                   (words, formats, donors, numel, rows, gram, workspace, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t gram_workspace_bytes(int64_t donors, int64_t numel, int64_t rows, int threads) {
  return baseline::gram_workspace(donors, numel, rows, threads);
}
#endif

}  // namespace graftwork
