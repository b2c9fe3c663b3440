#include "core/merge/thresholds.h"

#include "core/merge/thresholds.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

void magnitude_thresholds(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                          const int64_t* keeps, int zero_nonfinite, int64_t* found, uint8_t* workspace,
                          int threads) {
  const Donors all{words, formats, donors, zero_nonfinite != 0};
  all.check_formats();
  for (int64_t first = 0; first < donors; first += kMaxStreams) {
    const int streams = static_cast<int>(donors - first < kMaxStreams ? donors - first : kMaxStreams);
    find_thresholds(DifferenceStreams{all, first, streams}, numel, keeps + first, found + 3 * first,
                    workspace, threads);
  }
}

void count_variance(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                    int zero_nonfinite, int64_t* nonzero, uint8_t* workspace, int threads) {
  const Donors all{words, formats, donors, zero_nonfinite != 0};
  all.check_formats();
  *nonzero = 0;
  struct State {
    uint8_t* memory = nullptr;
    int64_t count = 0;
  };
  Slots slots{workspace, VarianceStream::room_bytes(donors)};
  const Chunks chunks = cut(numel);
  parallel_chunks<State>(
      chunks, threads,
      [&](State& mine, int chunk) {
        if (mine.memory == nullptr) mine.memory = slots.take();
        read_streams(VarianceStream{all}, chunks.begin(chunk), chunks.end(chunk), 1,
                     reinterpret_cast<float*>(mine.memory),
                     [&](int, const float* values, int64_t, int count) {
                       int32_t some = 0;
                       for (int i = 0; i < count; ++i) some += score_of(values[i]) != 0;
                       mine.count += some;
                     });
      },
      [&](const State& mine) { *nonzero += mine.count; });
}

void variance_threshold(const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                        int64_t keep, int zero_nonfinite, int64_t* found, uint8_t* workspace, int threads) {
  const Donors all{words, formats, donors, zero_nonfinite != 0};
  all.check_formats();
  find_thresholds(VarianceStream{all}, numel, &keep, found, workspace, threads);
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(magnitude_thresholds,
                   (const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                    const int64_t* keeps, int zero_nonfinite, int64_t* found, uint8_t* workspace,
                    int threads),
                   (words, formats, donors, numel, keeps, zero_nonfinite, found, workspace, threads))
GRAFTWORK_DISPATCH(count_variance,
                   (const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                    int zero_nonfinite, int64_t* nonzero, uint8_t* workspace, int threads),
                   (words, formats, donors, numel, zero_nonfinite, nonzero, workspace, threads))
GRAFTWORK_DISPATCH(variance_threshold,
                   (const void* const* words, const int32_t* formats, int64_t donors, int64_t numel,
                    int64_t keep, int zero_nonfinite, int64_t* found, uint8_t* workspace, int threads),
                   (words, formats, donors, numel, keep, zero_nonfinite, found, workspace, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t threshold_workspace_bytes(int64_t donors, int64_t numel, int threads) {
  return baseline::threshold_workspace(donors, numel, threads);
}
#endif

}  // namespace graftwork
