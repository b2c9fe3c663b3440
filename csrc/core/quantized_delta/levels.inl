// The levels of each scheme, and the level nearest to a number, as branch-free arithmetic that vectorises.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "core/quantized_delta/scheme.h"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr float kNf4Levels[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// Between level k and the next; exact in double, so rounded once.
constexpr float nf4_middle(int k) {
  return static_cast<float>((static_cast<double>(kNf4Levels[k]) + static_cast<double>(kNf4Levels[k + 1])) /
                            2);
}

// Adding it to a number below 2^22 rounds that to a whole number, ties to even, in the lowest bits.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

inline float clipped(float x, float low, float high) {
  x = x > low ? x : low;
  return x < high ? x : high;
}

inline float to_nearest(float x) { return (x + kRounder) - kRounder; }

inline float to_floor(float x) {
  const int32_t whole = static_cast<int32_t>(x);  // integers: a conditional float would not vectorise
  return static_cast<float>(whole - static_cast<int32_t>(x < static_cast<float>(whole)));
}

// A scheme and a width as types.
template <Scheme kScheme, int kBits>
struct Code {
  static constexpr Scheme scheme = kScheme;
  static constexpr int bits = kBits;
  static constexpr int half = 1 << (kBits - 1);
  static constexpr int count = 1 << kBits;

  // The level nearest to x, a difference divided by its scale; zero is that of asym. x may be anything, NaN too.
  static float level_of(float x, float zero) {
    if constexpr (kScheme == Scheme::sign) return x > 0 ? 1.0f : -1.0f;
    if constexpr (kScheme == Scheme::sym) return to_nearest(clipped(x, 1 - half, half - 1));
    if constexpr (kScheme == Scheme::midrise) return to_floor(clipped(x, -half, half - 1)) + 0.5f;
    if constexpr (kScheme == Scheme::asym) return to_nearest(clipped(x, -zero, count - 1 - zero));
    float level = kNf4Levels[0];
    for (int k = 0; k < 15; ++k) level = x > nf4_middle(k) ? kNf4Levels[k + 1] : level;
    return level;
  }

  // The code of the level nearest to x.
  static int32_t code_of(float x, float zero) {
    if constexpr (kScheme == Scheme::nf4) {
      int32_t code = 0;
      for (int k = 0; k < 15; ++k) code += x > nf4_middle(k) ? 1 : 0;
      return code;
    }
    if constexpr (kScheme == Scheme::sign) return x > 0 ? 1 : 0;
    const float offset = kScheme == Scheme::asym ? zero : kScheme == Scheme::midrise ? half - 0.5f : half;
    return static_cast<int32_t>(level_of(x, zero) + offset);
  }

  // The level that a code stands for.
  static constexpr float level(int32_t code, float zero) {
    if constexpr (kScheme == Scheme::sign) return static_cast<float>(2 * code - 1);
    if constexpr (kScheme == Scheme::asym) return static_cast<float>(code) - zero;
    if constexpr (kScheme == Scheme::nf4) return kNf4Levels[code & 15];
    return static_cast<float>(code - half) + (kScheme == Scheme::midrise ? 0.5f : 0.0f);
  }
};

// Calls call.template operator()<Code<scheme, bits>>().
template <class Call>
inline void with_code(Scheme scheme, int bits, const Call& call) {
  switch (static_cast<int>(scheme) * 16 + bits) {
    case 0 * 16 + 1: return call.template operator()<Code<Scheme::sign, 1>>();
    case 1 * 16 + 2: return call.template operator()<Code<Scheme::sym, 2>>();
    case 1 * 16 + 3: return call.template operator()<Code<Scheme::sym, 3>>();
    case 1 * 16 + 4: return call.template operator()<Code<Scheme::sym, 4>>();
    case 1 * 16 + 8: return call.template operator()<Code<Scheme::sym, 8>>();
    case 2 * 16 + 1: return call.template operator()<Code<Scheme::midrise, 1>>();
    case 2 * 16 + 2: return call.template operator()<Code<Scheme::midrise, 2>>();
    case 2 * 16 + 3: return call.template operator()<Code<Scheme::midrise, 3>>();
    case 2 * 16 + 4: return call.template operator()<Code<Scheme::midrise, 4>>();
    case 2 * 16 + 8: return call.template operator()<Code<Scheme::midrise, 8>>();
    case 3 * 16 + 1: return call.template operator()<Code<Scheme::asym, 1>>();
    case 3 * 16 + 2: return call.template operator()<Code<Scheme::asym, 2>>();
    case 3 * 16 + 3: return call.template operator()<Code<Scheme::asym, 3>>();
    case 3 * 16 + 4: return call.template operator()<Code<Scheme::asym, 4>>();
    case 3 * 16 + 8: return call.template operator()<Code<Scheme::asym, 8>>();
    case 4 * 16 + 4: return call.template operator()<Code<Scheme::nf4, 4>>();
    default: throw std::invalid_argument("no codes of this scheme and width");
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
