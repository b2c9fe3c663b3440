// Scales as they are stored: rounded before codes are found, so that both ways of the code agree.
#pragma once

#include "core/sparse_update/tile.inl"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

// The powers of two that float16 scales may be divided by: a product with them is never lost.
constexpr int kLeastExponent = -120, kLargestExponent = 113;

inline float power_of_two(int exponent) {
  return bit_cast<float>(static_cast<uint32_t>(127 + exponent) << 23);
}

enum class Rounding { none, bfloat16, eleven_bits, float16 };

// Positive scales stay positive. `exponent` is that of float16.
template <Rounding kRounding>
inline float rounded_scale(float scale, int exponent) {
  float rounded = scale, smallest = 0x1p-149f;
  if constexpr (kRounding == Rounding::none) return scale;
  if constexpr (kRounding == Rounding::bfloat16) {
    rounded = BFloat16::round(scale);
    smallest = 0x1p-133f;
  }
  if constexpr (kRounding == Rounding::eleven_bits) {
    const uint32_t bits = bit_cast<uint32_t>(scale);
    rounded = bit_cast<float>((bits + 0xfff + ((bits >> 13) & 1)) & ~0x1fffu);
  }
  if constexpr (kRounding == Rounding::float16) {
    rounded = Float16::round(scale * power_of_two(-exponent)) * power_of_two(exponent);
    smallest = 0x1p-24f * power_of_two(exponent);
  }
  const bool lost = (scale > 0) & (rounded == 0);
  return lost ? smallest : rounded;
}

// How scales are rounded. Float16 has a power of two for the whole matrix, known when all scales are: until then they are
// rounded to eleven significant bits, which is the same unless a scale is 2^28 times smaller than the largest.
struct ScaleRule {
  Rounding rounding;
  int exponent;

  explicit ScaleRule(WeightFormat format)
      : rounding(format == WeightFormat::float32    ? Rounding::none
                 : format == WeightFormat::bfloat16 ? Rounding::bfloat16
                                                    : Rounding::eleven_bits),
        exponent(0) {}
  explicit ScaleRule(int known) : rounding(Rounding::float16), exponent(known) {}

  void round(float* scales, int count) const {
    switch (rounding) {
      case Rounding::none: return;
      case Rounding::bfloat16: return round_all<Rounding::bfloat16>(scales, count);
      case Rounding::eleven_bits: return round_all<Rounding::eleven_bits>(scales, count);
      case Rounding::float16: return round_all<Rounding::float16>(scales, count);
    }
  }
  float round(float scale) const {
    round(&scale, 1);
    return scale;
  }

 private:
  template <Rounding kRounding>
  void round_all(float* scales, int count) const {
    const int power = exponent;
    for (int i = 0; i < count; ++i) scales[i] = rounded_scale<kRounding>(scales[i], power);
  }
};

// What is known of all rounded scales, none of which is negative: their bits are in their order.
struct ScaleRange {
  float largest;
  float least;         // of the positive ones, or infinity
  int64_t unstorable;  // the first that is not finite, or -1

  ScaleRange(const float* scales, int64_t count) : unstorable(-1) {
    int32_t high = 0;
    uint32_t low = 0x7f7fffff;  // the least positive one's bits, less one: 0 is beyond all others
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = bit_cast<uint32_t>(scales[i]), less = bits - 1;
      high = static_cast<int32_t>(bits) > high ? static_cast<int32_t>(bits) : high;
      low = less < low ? less : low;
    }
    largest = bit_cast<float>(high);
    least = bit_cast<float>(low + 1);
    if (high < 0x7f800000) return;
    for (unstorable = 0; scales[unstorable] < __builtin_inff();) ++unstorable;
  }

  // The largest is then in [2^14, 2^15).
  int exponent() const {
    if (largest == 0) return 0;
    const int field = static_cast<int>(bit_cast<uint32_t>(largest) >> 23);
    const int wanted = field == 0 ? kLeastExponent : field - 126 - 15;
    return wanted < kLeastExponent ? kLeastExponent : wanted > kLargestExponent ? kLargestExponent : wanted;
  }

  bool exact_in_float16(int power) const { return least * power_of_two(-power) >= 0x1p-14f; }
};

inline void store_scales(const float* room, int64_t count, WeightFormat format, int exponent, void* scales) {
  const float power = power_of_two(format == WeightFormat::float16 ? -exponent : 0);
  with_format(format, [=]<class Format>() {
    typename Format::Word* const words = static_cast<typename Format::Word*>(scales);
    for (int64_t i = 0; i < count; ++i) words[i] = word_of<Format>(room[i] * power);
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
