// Bit patterns of weights as numbers, for the operations of one ISA level. Every function is branch-free and
// works on plain integers and floats, so that loops over it vectorise at every level.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "core/support/weight_format.h"

namespace graftwork::GRAFTWORK_LEVEL {

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// A Word is the unsigned integer that holds a weight's bits; its top bit is a float's sign.

template <class Word>
constexpr int kWordBits = 8 * static_cast<int>(sizeof(Word));
template <class Word>
constexpr Word kTopBit = static_cast<Word>(Word{1} << (kWordBits<Word> - 1));

// All ones where the top bit is set, else zero.
template <class Word>
inline Word top_mask(Word word) {
  return static_cast<Word>(Word{0} - static_cast<Word>(word >> (kWordBits<Word> - 1)));
}

// Position of a float in the order of all bit patterns of its type (-NaN ... -0, +0 ... +NaN); a bijection.
template <class Word>
inline Word ordinal(Word word) {
  return static_cast<Word>(word ^ static_cast<Word>(top_mask(word) | kTopBit<Word>));
}

template <class Word>
inline Word from_ordinal(Word position) {
  return static_cast<Word>(position ^
                           static_cast<Word>(static_cast<Word>(~top_mask(position)) | kTopBit<Word>));
}

// 0, -1, 1, -2, ... as 0, 1, 2, 3, ... on two's complement words; a bijection.
template <class Word>
inline Word zigzag(Word difference) {
  return static_cast<Word>(static_cast<Word>(difference << 1) ^ top_mask(difference));
}

template <class Word>
inline Word from_zigzag(Word code) {
  return static_cast<Word>(static_cast<Word>(code >> 1) ^
                           static_cast<Word>(Word{0} - static_cast<Word>(code & 1)));
}

// Number of bits of a magnitude in [0, 2^31]: the exponent of its conversion to float. Dropping every bit
// that follows a set one keeps the conversion from rounding up to the next power of two; 2^31 converts as a
// negative number, whose exponent is the same.
inline int32_t bit_length(uint32_t magnitude) {
#ifdef __AVX512CD__
  return magnitude == 0 ? 0 : 32 - __builtin_clz(magnitude);  // one instruction for 16 of them
#else
  const uint32_t head = magnitude & ~(magnitude >> 1);
  const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(head)));
  const int32_t length = static_cast<int32_t>((bits >> 23) & 0xff) - 126;
  return length > 0 ? length : 0;
#endif
}

// sum + x^2. The product of two floats is exact in double: fused or not, the result has the same bits.
inline double add_square(double sum, float x) {
  const double wide = x;
#ifdef __FMA__
  return __builtin_fma(wide, wide, sum);
#else
  return sum + wide * wide;
#endif
}

// The weight formats: a word's exponent field, its value as a float, and a float rounded to the format.

struct Float32 {
  using Word = uint32_t;
  static constexpr int kExponentBits = 8;
  static float value(Word word) { return bit_cast<float>(word); }
};

struct BFloat16 {
  using Word = uint16_t;
  static constexpr int kExponentBits = 8;
  static float value(Word word) { return bit_cast<float>(static_cast<uint32_t>(word) << 16); }
  // The nearest bfloat16, ties to even, of a finite float.
  static float round(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    return bit_cast<float>((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
  }
};

struct Float16 {
  using Word = uint16_t;
  static constexpr int kExponentBits = 5;
  static float value(Word word) {
    const uint32_t magnitude = word & 0x7fffu;
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    const uint32_t rebias = magnitude >= 0x7c00 ? (255 - 31) << 23 : (127 - 15) << 23;
    const uint32_t normal = (magnitude << 13) + rebias;
    const uint32_t bits = magnitude < 0x400 ? bit_cast<uint32_t>(subnormal) : normal;
    return bit_cast<float>(bits | static_cast<uint32_t>(word & 0x8000) << 16);
  }
  // The nearest float16, ties to even, of a finite float. Below 2^-14 the spacing is 2^-24, that of floats
  // around 1/2; from 65520 on the result is infinite.
  static float round(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x), sign = bits & 0x80000000u, magnitude = bits ^ sign;
    const uint32_t subnormal = bit_cast<uint32_t>((bit_cast<float>(magnitude) + 0.5f) - 0.5f);
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1)) & 0xffffe000u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    return bit_cast<float>((finite >= 0x47800000u ? 0x7f800000u : finite) | sign);
  }
};

template <class Format>
constexpr int kMantissaBits = kWordBits<typename Format::Word> - 1 - Format::kExponentBits;

template <class Format>
inline int32_t exponent_field(typename Format::Word word) {
  return static_cast<int32_t>(word >> kMantissaBits<Format>) & ((1 << Format::kExponentBits) - 1);
}

inline bool is_infinite(float x) { return (bit_cast<uint32_t>(x) & 0x7fffffffu) == 0x7f800000u; }

// Pairs of words as floats; both are zero where either is not finite.
template <class Format>
inline void finite_pairs(const typename Format::Word* __restrict first,
                         const typename Format::Word* __restrict second, int count,
                         float* __restrict first_values, float* __restrict second_values) {
  constexpr int32_t kSpecial = (1 << Format::kExponentBits) - 1;
  for (int i = 0; i < count; ++i) {
    const uint32_t finite =
        (exponent_field<Format>(first[i]) != kSpecial) & (exponent_field<Format>(second[i]) != kSpecial);
    const uint32_t kept = 0u - finite;
    first_values[i] = bit_cast<float>(bit_cast<uint32_t>(Format::value(first[i])) & kept);
    second_values[i] = bit_cast<float>(bit_cast<uint32_t>(Format::value(second[i])) & kept);
  }
}

// Calls call.template operator()<Format>() with the format that the number stands for.
template <class Call>
inline void with_format(WeightFormat format, const Call& call) {
  switch (format) {
    case WeightFormat::float16: return call.template operator()<Float16>();
    case WeightFormat::bfloat16: return call.template operator()<BFloat16>();
    case WeightFormat::float32: return call.template operator()<Float32>();
  }
  throw std::invalid_argument("a weight format must be 0 (float16), 1 (bfloat16) or 2 (float32)");
}

}  // namespace graftwork::GRAFTWORK_LEVEL
