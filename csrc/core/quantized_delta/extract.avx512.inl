// See extract.inl: the extent of a block is found while its differences are in registers.
#pragma once

#include <immintrin.h>

#include "core/quantized_delta/weights.avx512.inl"

namespace graftwork::GRAFTWORK_LEVEL {

template <Statistic kStatistic>
struct BlockStatistic;

template <>
struct BlockStatistic<Statistic::magnitude> {
  __m512i largest = _mm512_setzero_si512();

  void add(__m512 delta) { largest = _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(delta))); }
  void end_run() {}
  Extent extent(int) const { return {bit_cast<float>(_mm512_reduce_max_epi32(largest)), 0}; }
};

template <>
struct BlockStatistic<Statistic::range> {
  __m512i high = _mm512_setzero_si512(), low = high;

  void add(__m512 delta) {
    const __m512i bits = _mm512_castps_si512(delta);
    high = _mm512_max_epi32(high, bits);
    low = _mm512_max_epi32(low, _mm512_xor_si512(bits, _mm512_set1_epi32(INT32_MIN)));
  }
  void end_run() {}
  Extent extent(int) const {
    return range_extent({_mm512_reduce_max_epi32(high), _mm512_reduce_max_epi32(low)});
  }
};

template <>
struct BlockStatistic<Statistic::mean> {  // as add_magnitudes() has it
  __m512d first = _mm512_setzero_pd(), second = first;
  __m512 run = _mm512_setzero_ps();

  void add(__m512 delta) { run = _mm512_add_ps(run, _mm512_abs_ps(delta)); }
  void end_run() {
    first = _mm512_add_pd(first, _mm512_cvtps_pd(_mm512_castps512_ps256(run)));
    second = _mm512_add_pd(second, _mm512_cvtps_pd(_mm512_extractf32x8_ps(run, 1)));
    run = _mm512_setzero_ps();
  }
  Extent extent(int count) const {  // added as folded() does
    const __m512d half = _mm512_add_pd(first, second);
    const __m256d quarter = _mm256_add_pd(_mm512_castpd512_pd256(half), _mm512_extractf64x4_pd(half, 1));
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(quarter), _mm256_extractf128_pd(quarter, 1));
    return mean_extent(_mm_cvtsd_f64(pair) + _mm_cvtsd_f64(_mm_unpackhi_pd(pair, pair)), count);
  }
};

template <class Format, Statistic kStatistic, bool kHasBase>
void extract_blocks_of(const typename Format::Word* to, const typename Format::Word* from, int count,
                       int block, float* delta, float* wholes, float* lows) {
  for (int begin = 0, k = 0; begin < count; begin += block, ++k) {
    const int end = begin + block < count ? begin + block : count;
    BlockStatistic<kStatistic> statistic;
    for (int run = begin; run < end; run += kMeanRun) {
      const int stop = run + kMeanRun < end ? run + kMeanRun : end;
      int i = run;
      for (; i + 16 <= stop; i += 16) {
        __builtin_prefetch(to + i + kTile);
        if constexpr (kHasBase) __builtin_prefetch(from + i + kTile);
        __m512 difference = load_weights<Format>(to + i);
        if constexpr (kHasBase) difference = _mm512_sub_ps(difference, load_weights<Format>(from + i));
        _mm512_storeu_ps(delta + i, difference);
        statistic.add(difference);
      }
      if (i < stop) {
        const __mmask16 lanes = static_cast<__mmask16>((1u << (stop - i)) - 1);
        __m512 difference = load_some_weights<Format>(to + i, lanes);
        if constexpr (kHasBase)
          difference = _mm512_sub_ps(difference, load_some_weights<Format>(from + i, lanes));
        _mm512_mask_storeu_ps(delta + i, lanes, difference);
        statistic.add(difference);
      }
      statistic.end_run();
    }
    const Extent extent = statistic.extent(end - begin);
    wholes[k] = extent.whole;
    lows[k] = extent.low;
  }
}

template <class Format, Statistic kStatistic>
void extract_blocks(const void* tuned, const void* base, int64_t at, int count, int block, float* delta,
                    float* wholes, float* lows) {
  using Word = typename Format::Word;
  const Word* const to = static_cast<const Word*>(tuned) + at;
  if (base == nullptr)
    return extract_blocks_of<Format, kStatistic, false>(to, nullptr, count, block, delta, wholes, lows);
  extract_blocks_of<Format, kStatistic, true>(to, static_cast<const Word*>(base) + at, count, block, delta,
                                              wholes, lows);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
