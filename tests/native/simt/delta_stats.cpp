// delta_stats on the host: counts and histogram against the definition word by word, sums within rounding of
// long double and with the same bits under every schedule and at every alignment.
#include "cuda/lossless_delta/delta_stats.cu"

#include <array>
#include <cmath>

#include "harness.h"

namespace {

using graftwork::WeightFormat;
using harness::Buffer;
using harness::check;

struct Case {
  WeightFormat format;
  int word_bytes, exponent_bits;
  const char* name;
};
constexpr Case kCases[] = {{WeightFormat::float16, 2, 5, "float16"},
                           {WeightFormat::bfloat16, 2, 8, "bfloat16"},
                           {WeightFormat::float32, 4, 8, "float32"}};
constexpr double kTolerance = 1e-12;  // relative: far above the rounding of 16 Ki double additions

struct Stats {
  std::array<int64_t, 5> counts{};
  std::array<double, 4> sums{};
  std::vector<int64_t> histogram;
};

size_t bins_of(const Case& of) { return (size_t{1} << of.exponent_bits) * (16 * of.word_bytes + 1); }

long double value_of(uint64_t word, const Case& of) {
  const int mantissa = 8 * of.word_bytes - 1 - of.exponent_bits, bias = (1 << (of.exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(word >> mantissa) & ((1 << of.exponent_bits) - 1);
  const long double fraction = static_cast<long double>(word & ((uint64_t{1} << mantissa) - 1));
  const long double size =
      exponent == 0 ? std::ldexp(fraction, 1 - bias - mantissa)
                    : std::ldexp(fraction + std::ldexp(1.0L, mantissa), exponent - bias - mantissa);
  return word >> (8 * of.word_bytes - 1) & 1 ? -size : size;
}

Stats stats_by_definition(const harness::Words& words, const Case& of) {
  const int bits = 8 * of.word_bytes, mantissa = bits - 1 - of.exponent_bits;
  const int64_t modulus = int64_t{1} << bits, top = modulus / 2;
  const auto field = [&](uint64_t word) {
    return word >> mantissa & ((uint64_t{1} << of.exponent_bits) - 1);
  };
  const auto special = [&](uint64_t word) { return field(word) == (uint64_t{1} << of.exponent_bits) - 1; };
  const auto nan = [&](uint64_t word) {
    return special(word) && (word & ((uint64_t{1} << mantissa) - 1)) != 0;
  };
  const auto position = [&](uint64_t word) {
    const int64_t at = static_cast<int64_t>(word);
    return at & top ? modulus - 1 - at : at + top;
  };
  Stats stats;
  stats.histogram.resize(bins_of(of));
  long double squares[3] = {}, largest = 0;
  for (size_t i = 0; i < words.base.size(); ++i) {
    const uint64_t base = words.base[i], tuned = words.tuned[i];
    int64_t moved = (position(tuned) - position(base)) & (modulus - 1);
    if (moved >= top) moved -= modulus;
    int length = 0;
    while (std::abs(moved) >> length != 0) ++length;
    ++stats.histogram[field(base) * (2 * bits + 1) + bits + (moved < 0 ? -length : length)];
    stats.counts[0] += base != tuned;
    stats.counts[1] += nan(base);
    stats.counts[2] += special(base) && !nan(base);
    stats.counts[3] += nan(tuned);
    stats.counts[4] += special(tuned) && !nan(tuned);
    if (special(base) || special(tuned)) continue;
    const long double x = value_of(base, of), y = value_of(tuned, of), difference = y - x;
    squares[0] += difference * difference, squares[1] += x * x, squares[2] += y * y;
    largest = std::max(largest, std::abs(difference));
  }
  for (int k = 0; k < 3; ++k) stats.sums[k] = static_cast<double>(squares[k]);
  stats.sums[3] = static_cast<double>(largest);
  return stats;
}

Stats run_kernel(const harness::Words& words, const Case& of, size_t offset) {
  const int64_t numel = static_cast<int64_t>(words.base.size());
  const Buffer base(harness::pack(words.base, of.word_bytes), offset);
  const Buffer tuned(harness::pack(words.tuned, of.word_bytes), offset);
  const Buffer counts(5 * sizeof(int64_t)), sums(4 * sizeof(double)),
      histogram(bins_of(of) * sizeof(int64_t));
  const Buffer workspace(static_cast<size_t>(graftwork::cuda::delta_stats_workspace_bytes(numel, of.format)));
  const int error =
      graftwork::cuda::delta_stats(base.data(), tuned.data(), numel, of.format, counts.as<int64_t>(),
                                   sums.as<double>(), histogram.as<int64_t>(), workspace.data(), nullptr);
  check(error == 0, std::string("the launch: ") + of.name);
  Stats stats;
  std::copy_n(counts.as<int64_t>(), 5, stats.counts.begin());
  std::copy_n(sums.as<double>(), 4, stats.sums.begin());
  stats.histogram.assign(histogram.as<int64_t>(), histogram.as<int64_t>() + bins_of(of));
  return stats;
}

void check_case(const Case& of, int64_t numel) {
  const auto words = harness::make_words(numel, of.word_bytes, of.exponent_bits, 2);
  const Stats wanted = stats_by_definition(words, of);
  std::array<double, 4> first{};
  bool is_first = true;
  for (const size_t offset : {size_t{0}, static_cast<size_t>(of.word_bytes)})
    harness::under_each_schedule([&](const std::string& schedule) {
      const std::string what = std::string(of.name) + ", " + std::to_string(numel) + " elements, offset " +
                               std::to_string(offset) + ", " + schedule;
      const Stats got = run_kernel(words, of, offset);
      check(got.counts == wanted.counts, "counts: " + what);
      check(got.histogram == wanted.histogram, "histogram: " + what);
      if (is_first) first = got.sums;
      is_first = false;
      check(std::memcmp(got.sums.data(), first.data(), sizeof first) == 0, "bits of the sums: " + what);
      for (int k = 0; k < 4; ++k)
        check(std::abs(got.sums[k] - wanted.sums[k]) <= kTolerance * wanted.sums[k],
              "sum " + std::to_string(k) + ": " + what);
    });
}

void check_all() {
  for (const Case& of : kCases) {
    for (const int64_t numel : harness::kSizes) check_case(of, numel);
    check_case(of, 3 * graftwork::cuda::kSegment + 5);  // more segments than resident blocks
  }
  check(graftwork::cuda::delta_stats(nullptr, nullptr, 0, static_cast<WeightFormat>(7), nullptr, nullptr,
                                     nullptr, nullptr, nullptr) == graftwork::cuda::kInvalidArgument,
        "an unknown format is refused");
}

void count_all() {
  for (const Case& of : kCases)
    for (const size_t offset : {size_t{0}, static_cast<size_t>(of.word_bytes)})
      run_kernel(harness::make_words(2 * graftwork::cuda::kSegment, of.word_bytes, of.exponent_bits, 2, true),
                 of, offset);
}

}  // namespace

int main(int argc, char** argv) { return harness::run(argc, argv, check_all, count_all); }
