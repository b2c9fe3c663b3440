#include "core/lossless_delta/delta_stats.h"

#include <stdexcept>

#include "core/lossless_delta/delta_stats.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void delta_stats(const void* base, const void* tuned, int64_t numel, WeightFormat format, int64_t* counts,
                 double* sums, int64_t* histogram, int threads) {
  if (numel > int64_t{1} << 34)
    throw std::invalid_argument("numel must be at most 2^34: counters are narrow");
  with_format(format, [=]<class Format>() {
    delta_stats_of<Format>(base, tuned, numel, counts, sums, histogram, threads);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(delta_stats,
                   (const void* base, const void* tuned, int64_t numel, WeightFormat format, int64_t* counts,
                    double* sums, int64_t* histogram, int threads),
                   (base, tuned, numel, format, counts, sums, histogram, threads))

}  // namespace graftwork
