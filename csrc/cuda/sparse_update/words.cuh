// Words of weights as numbers and back, in formats that are known at run time, and arithmetic with the bits of
// the CPU's: the same as in core/support/numeric.h and core/sparse_update/tile.inl.
//
// A format is the same for all lanes of a warp, so that a choice of it costs an instruction and no divergence.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/support/weight_format.h"
#include "cuda/support/simt.h"

namespace graftwork::cuda {

SIMT_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SIMT_DEVICE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// A float whose operations are rounded one by one, where the compiler would fuse a product with a sum.
struct Rounded {
  float value;

  SIMT_DEVICE friend Rounded operator+(Rounded x, Rounded y) { return {__fadd_rn(x.value, y.value)}; }
  SIMT_DEVICE friend Rounded operator-(Rounded x, Rounded y) { return {__fsub_rn(x.value, y.value)}; }
  SIMT_DEVICE friend Rounded operator*(Rounded x, Rounded y) { return {__fmul_rn(x.value, y.value)}; }
  SIMT_DEVICE friend Rounded operator/(Rounded x, Rounded y) { return {__fdiv_rn(x.value, y.value)}; }
};

SIMT_DEVICE Rounded square_root(Rounded x) { return {__fsqrt_rn(x.value)}; }

SIMT_DEVICE float float16_value(uint32_t word) {
  // Shifted into place, the exponent is too small by the difference of the biases, 127 - 15; subnormals too.
  const uint32_t magnitude = (word & 0x7fffu) << 13;
  const uint32_t size = (word & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u
                                                    : bits_of(__fmul_rn(float_of(magnitude), 0x1p112f));
  return float_of(size | (word & 0x8000u) << 16);
}

SIMT_DEVICE float value_of(uint32_t word, WeightFormat format) {
  if (format == WeightFormat::float32) return float_of(word);
  return format == WeightFormat::bfloat16 ? float_of(word << 16) : float16_value(word);
}

// The nearest words, ties to even; past the largest they are infinite, and a NaN stays one.
SIMT_DEVICE uint32_t bfloat16_word(float x) {
  const uint32_t bits = bits_of(x);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return is_nan ? bits >> 16 | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

SIMT_DEVICE uint32_t float16_word(float x) {
  const uint32_t bits = bits_of(x), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  // Below 2^-14 the spacing is 2^-24, that of floats from 1/2 on.
  const uint32_t subnormal = bits_of(__fadd_rn(float_of(magnitude), 0.5f)) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - ((127 - 15) << 23)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t bounded = magnitude >= 0x477ff000u ? 0x7c00u : finite;  // from 65520 on
  return (magnitude > 0x7f800000u ? 0x7e00u : bounded) | sign >> 16;
}

SIMT_DEVICE uint32_t word_of(float x, WeightFormat format) {
  if (format == WeightFormat::float32) return bits_of(x);
  return format == WeightFormat::bfloat16 ? bfloat16_word(x) : float16_word(x);
}

SIMT_DEVICE uint32_t load_word(const void* words, int64_t at, bool wide) {
  return wide ? simt::load_global(static_cast<const uint32_t*>(words) + at)
              : simt::load_global(static_cast<const uint16_t*>(words) + at);
}

SIMT_DEVICE void store_word(void* words, int64_t at, uint32_t word, bool wide) {
  if (wide)
    simt::store_global(static_cast<uint32_t*>(words) + at, word);
  else
    simt::store_global(static_cast<uint16_t*>(words) + at, static_cast<uint16_t>(word));
}

inline bool is_format(int64_t format) { return 0 <= format && format <= 2; }

SIMT_DEVICE bool is_wide(WeightFormat format) { return format == WeightFormat::float32; }

}  // namespace graftwork::cuda
