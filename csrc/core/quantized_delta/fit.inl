// The scale (and zero) of a block: of its largest magnitude, or the one of least squared error that a search finds. The
// block comes as a Pieces, which knows where its differences are:
//   template sums<k>(add, totals)   calls add(delta, count, lanes) for all of them; totals of k sums in a fixed order
//   range(kSigned, low, high)       the bits of the largest magnitude, or of the largest below and above 0
//   count()
#pragma once

#include "core/quantized_delta/encode.inl"
#include "core/quantized_delta/extract.inl"
#include "core/quantized_delta/scales.inl"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kTrials = 16;

// The fractions of the largest magnitude that are tried.
constexpr float trial_part(int trial) { return static_cast<float>(0.3 + 0.05 * trial); }

// The whole is divided by it.
template <class Code>
constexpr float kReach = Code::scheme == Scheme::sym       ? Code::half - 1
                         : Code::scheme == Scheme::midrise ? Code::half
                         : Code::scheme == Scheme::asym    ? Code::count - 1
                                                           : 1;

inline float positive_part(float whole, float scale) { return whole > 0 && scale == 0 ? 0x1p-149f : scale; }

template <class Code>
inline float scale_before_rounding(const Extent& extent, float part) {
  if constexpr (Code::scheme == Scheme::sign) return extent.whole;
  return positive_part(extent.whole, extent.whole / kReach<Code> * part);
}

template <class Code>
inline float zero_of(float low, float scale) {
  if constexpr (Code::scheme != Scheme::asym) return 0;
  float x = 0;
  with_quotient(scale, [&](const auto& quotient) { x = quotient(-low); });
  return to_nearest(clipped(x, 0, Code::count - 1));
}

template <class Code>
constexpr Statistic kStatistic = Code::scheme == Scheme::sign   ? Statistic::mean
                                 : Code::scheme == Scheme::asym ? Statistic::range
                                                                : Statistic::magnitude;

template <class Code, class Pieces>
Extent extent_of(const Pieces& pieces) {
  if constexpr (kStatistic<Code> == Statistic::mean) {
    double total;
    pieces.template sums<1>([](const float* delta, int count,
                               double (*lanes)[kLanes]) { add_magnitudes(delta, count, lanes[0]); },
                            &total);
    return mean_extent(total, pieces.count());
  } else {
    constexpr bool kSigned = kStatistic<Code> == Statistic::range;
    const Range range = pieces.template range<kSigned>();
    return kSigned ? range_extent(range) : Extent{bit_cast<float>(range.high), 0};
  }
}

struct Fitted {
  float scale, zero;
  double error;
};

// Adds the squared errors of a piece at a scale.
template <class Code>
inline void add_errors(const float* __restrict delta, int count, float scale, float zero, double* lanes) {
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  with_quotient(scale, [&](const auto& quotient) {
    for_each_in_lanes(count, [&](int i, int lane) {
      const float error = delta[i] - Code::level_of(quotient(delta[i]), zero) * scale;
      sums[lane] = add_square(sums[lane], error);
    });
  });
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane];
}

// Adds difference * level and level^2: their quotient is the best scale for these levels.
template <class Code>
inline void add_products(const float* __restrict delta, int count, float scale, float zero,
                         double (*lanes)[kLanes]) {
  double products[kLanes], squares[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) products[lane] = lanes[0][lane];
  for (int lane = 0; lane < kLanes; ++lane) squares[lane] = lanes[1][lane];
  with_quotient(scale, [&](const auto& quotient) {
    for_each_in_lanes(count, [&](int i, int lane) {
      const float level = Code::level_of(quotient(delta[i]), zero);
      products[lane] += static_cast<double>(delta[i]) * static_cast<double>(level);
      squares[lane] = add_square(squares[lane], level);
    });
  });
  for (int lane = 0; lane < kLanes; ++lane) lanes[0][lane] = products[lane];
  for (int lane = 0; lane < kLanes; ++lane) lanes[1][lane] = squares[lane];
}

template <class Code, class Pieces>
Fitted search(const Extent& extent, const ScaleRule& rule, int iterations, const Pieces& pieces) {
  float scales[kTrials], zeros[kTrials];
  for (int trial = 0; trial < kTrials; ++trial) {
    const float part = trial_part(trial);
    scales[trial] = rule.round(scale_before_rounding<Code>(extent, part));
    zeros[trial] = zero_of<Code>(extent.low * part, scales[trial]);
  }
  double errors[kTrials];
  pieces.template sums<kTrials>(
      [&](const float* delta, int count, double (*lanes)[kLanes]) {
        for (int trial = 0; trial < kTrials; ++trial)
          add_errors<Code>(delta, count, scales[trial], zeros[trial], lanes[trial]);
      },
      errors);
  Fitted best{scales[0], zeros[0], errors[0]};
  for (int trial = 1; trial < kTrials; ++trial)
    if (errors[trial] < best.error) best = {scales[trial], zeros[trial], errors[trial]};
  for (int iteration = 0; iteration < iterations; ++iteration) {
    double totals[2];
    pieces.template sums<2>(
        [&](const float* delta, int count, double (*lanes)[kLanes]) {
          add_products<Code>(delta, count, best.scale, best.zero, lanes);
        },
        totals);
    if (!(totals[1] > 0) || !(totals[0] > 0)) break;
    const float wanted = static_cast<float>(totals[0] / totals[1]);
    if (!(wanted > 0)) break;
    Fitted refit{rule.round(wanted), best.zero, 0};
    pieces.template sums<1>(
        [&](const float* delta, int count, double (*lanes)[kLanes]) {
          add_errors<Code>(delta, count, refit.scale, refit.zero, lanes[0]);
        },
        &refit.error);
    if (!(refit.error < best.error)) break;  // the next would be the same
    best = refit;
  }
  return best;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
