#include "core/quantized_delta/mark_kept.h"

#include "core/quantized_delta/mark_kept.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void mark_kept(const void* tuned, const void* base, int64_t numel, WeightFormat format, KeepRule rule,
               float least, uint32_t key_low, uint32_t key_high, int64_t below, uint8_t* bitmap,
               int64_t* report, int threads) {
  const Keeping keeping{rule, least, {key_low, key_high}, static_cast<uint32_t>(below)};
  with_format(format, [&]<class Format>() {
    mark_kept_of<Format>(tuned, base, numel, keeping, bitmap, report, threads);
  });
}

void mark_drawn(int64_t numel, uint32_t key_low, uint32_t key_high, int64_t below, uint8_t* bitmap,
                int threads) {
  const Keeping keeping{KeepRule::drawn, 0, {key_low, key_high}, static_cast<uint32_t>(below)};
  mark_drawn_of(numel, keeping, bitmap, threads);
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(mark_kept,
                   (const void* tuned, const void* base, int64_t numel, WeightFormat format, KeepRule rule,
                    float least, uint32_t key_low, uint32_t key_high, int64_t below, uint8_t* bitmap,
                    int64_t* report, int threads),
                   (tuned, base, numel, format, rule, least, key_low, key_high, below, bitmap, report,
                    threads))
GRAFTWORK_DISPATCH(mark_drawn,
                   (int64_t numel, uint32_t key_low, uint32_t key_high, int64_t below, uint8_t* bitmap,
                    int threads),
                   (numel, key_low, key_high, below, bitmap, threads))

}  // namespace graftwork
