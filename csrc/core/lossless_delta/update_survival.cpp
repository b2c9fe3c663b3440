#include "core/lossless_delta/update_survival.h"

#include <stdexcept>

#include "core/lossless_delta/update_survival.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void update_survival(const void* base, const void* tuned, int64_t numel, WeightFormat format,
                     WeightFormat save_format, int64_t* counts, double* sums, int threads) {
  with_format(format, [=]<class Format>() {
    switch (save_format) {
      case WeightFormat::float16:
        return update_survival_of<Format, Float16>(base, tuned, numel, counts, sums, threads);
      case WeightFormat::bfloat16:
        return update_survival_of<Format, BFloat16>(base, tuned, numel, counts, sums, threads);
      default: throw std::invalid_argument("save_format must be float16 or bfloat16");
    }
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(update_survival,
                   (const void* base, const void* tuned, int64_t numel, WeightFormat format,
                    WeightFormat save_format, int64_t* counts, double* sums, int threads),
                   (base, tuned, numel, format, save_format, counts, sums, threads))

}  // namespace graftwork
