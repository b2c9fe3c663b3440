#include "core/merge/elementwise.h"

#include "core/merge/elementwise.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void add_diff(const void* const* words, const int32_t* formats, int64_t numel, double scale, void* out,
              WeightFormat out_format, int threads) {
  const Donors three{words, formats, 3, false};
  const Output to{out, out_format, nullptr, false, {0, 0}};
  three.check_formats();
  to.check_format();
  const Chunks chunks = cut(numel);
  parallel_chunks(chunks, threads, [&](int chunk) {
    add_diff_chunk(three, static_cast<float>(scale), to, chunks.begin(chunk), chunks.end(chunk));
  });
}

void nearswap(const void* const* words, const int32_t* formats, int64_t numel, double t,
              const int64_t* options, void* out, WeightFormat out_format, float* residual, int64_t* counts,
              int threads) {
  const Donors two{words, formats, 1, options[5] != 0};
  const PhiloxKey key{static_cast<uint32_t>(options[7]), static_cast<uint32_t>(options[8])};
  const Output to{out, out_format, residual, options[6] != 0, key};
  two.check_formats();
  to.check_format();
  const NonfiniteCounts nonfinite{two, counts};
  nonfinite.clear();
  for (int k = 4; k < 7; ++k) counts[k] = 0;
  const Chunks chunks = cut(numel);
  parallel_chunks<WrittenCounts>(
      chunks, threads,
      [&](WrittenCounts& mine, int chunk) {
        nearswap_chunk(two, static_cast<float>(t), to, nonfinite, chunks.begin(chunk), chunks.end(chunk),
                       mine);
      },
      [&](const WrittenCounts& mine) {
        counts[4] += mine.changed;
        counts[5] += mine.lost;
        counts[6] += mine.overflowed;
      });
}

void philox_uniform(float* out, int64_t numel, uint32_t key_low, uint32_t key_high, int64_t start,
                    int threads) {
  const Chunks chunks = cut(numel);
  parallel_chunks(chunks, threads, [&](int chunk) {
    uniform_chunk({key_low, key_high}, start, chunks.begin(chunk), chunks.end(chunk), out);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(add_diff,
                   (const void* const* words, const int32_t* formats, int64_t numel, double scale, void* out,
                    WeightFormat out_format, int threads),
                   (words, formats, numel, scale, out, out_format, threads))
GRAFTWORK_DISPATCH(nearswap,
                   (const void* const* words, const int32_t* formats, int64_t numel, double t,
                    const int64_t* options, void* out, WeightFormat out_format, float* residual,
                    int64_t* counts, int threads),
                   (words, formats, numel, t, options, out, out_format, residual, counts, threads))
GRAFTWORK_DISPATCH(philox_uniform,
                   (float* out, int64_t numel, uint32_t key_low, uint32_t key_high, int64_t start,
                    int threads),
                   (out, numel, key_low, key_high, start, threads))

}  // namespace graftwork
