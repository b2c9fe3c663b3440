// Bit patterns of weights as numbers, for kernels: the same maps as core/support/numeric.h, computed on all
// the words that share a register at once (four bytes, two halves, or one word of 4 or 8 bytes).
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/support/simt.h"

namespace graftwork::cuda {

// Arithmetic on the words of kWordBytes that lie side by side in a register: no carry leaves a word.
template <int kWordBytes>
struct Lanes {
  using Register = uint32_t;
  static constexpr Register kFull = kWordBytes == 4 ? ~0u : (1u << (8 * kWordBytes % 32)) - 1;
  static constexpr Register kLow = ~0u / kFull;                   // the lowest bit of every word
  static constexpr Register kTop = kLow << (8 * kWordBytes - 1);  // the highest bit of every word
};
template <>
struct Lanes<8> {
  using Register = uint64_t;
  static constexpr Register kFull = ~uint64_t{0}, kLow = 1, kTop = uint64_t{1} << 63;
};

template <int kWordBytes>
using Register = typename Lanes<kWordBytes>::Register;

// Each word becomes all ones where its top bit is set, else zero.
template <int kWordBytes>
SIMT_DEVICE Register<kWordBytes> top_mask(Register<kWordBytes> words) {
  using W = Lanes<kWordBytes>;
  return ((words >> (8 * kWordBytes - 1)) & W::kLow) * W::kFull;
}

template <int kWordBytes>
SIMT_DEVICE Register<kWordBytes> add_lanes(Register<kWordBytes> x, Register<kWordBytes> y) {
  if constexpr (sizeof(x) == kWordBytes) return x + y;
  constexpr auto kTop = Lanes<kWordBytes>::kTop;
  return ((x & ~kTop) + (y & ~kTop)) ^ ((x ^ y) & kTop);
}

template <int kWordBytes>
SIMT_DEVICE Register<kWordBytes> subtract_lanes(Register<kWordBytes> x, Register<kWordBytes> y) {
  if constexpr (sizeof(x) == kWordBytes) return x - y;
  constexpr auto kTop = Lanes<kWordBytes>::kTop;
  return ((x | kTop) - (y & ~kTop)) ^ ((x ^ ~y) & kTop);
}

// Position of a float in the order of all bit patterns of its type (-NaN ... -0, +0 ... +NaN); a bijection.
template <int kWordBytes>
SIMT_DEVICE Register<kWordBytes> ordinal(Register<kWordBytes> words) {
  return words ^ (top_mask<kWordBytes>(words) | Lanes<kWordBytes>::kTop);
}

template <int kWordBytes>
SIMT_DEVICE Register<kWordBytes> from_ordinal(Register<kWordBytes> positions) {
  return positions ^ (top_mask<kWordBytes>(~positions) | Lanes<kWordBytes>::kTop);
}

// 0, -1, 1, -2, ... as 0, 1, 2, 3, ... on two's complement words; a bijection.
template <int kWordBytes>
SIMT_DEVICE Register<kWordBytes> zigzag(Register<kWordBytes> differences) {
  constexpr auto kLow = Lanes<kWordBytes>::kLow;
  return ((differences << 1) & ~kLow) ^ top_mask<kWordBytes>(differences);
}

template <int kWordBytes>
SIMT_DEVICE Register<kWordBytes> from_zigzag(Register<kWordBytes> codes) {
  using W = Lanes<kWordBytes>;
  return ((codes >> 1) & ~W::kTop) ^ ((codes & W::kLow) * W::kFull);
}

// ---- Weight formats: a word's exponent field, and the value of a finite word. ----

struct Float32 {
  using Word = uint32_t;
  static constexpr int kExponentBits = 8;
  static SIMT_DEVICE float value(Word word) {
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
  }
};

struct BFloat16 {
  using Word = uint16_t;
  static constexpr int kExponentBits = 8;
  static SIMT_DEVICE float value(Word word) { return Float32::value(static_cast<uint32_t>(word) << 16); }
};

struct Float16 {
  using Word = uint16_t;
  static constexpr int kExponentBits = 5;
  // Shifted into place, the exponent is too small by the difference of the biases, 127 - 15; subnormals too.
  static SIMT_DEVICE float value(Word word) {
    return Float32::value((word & 0x8000u) << 16 | (word & 0x7fffu) << 13) * 0x1p112f;
  }
};

}  // namespace graftwork::cuda
