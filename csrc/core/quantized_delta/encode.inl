// Codes and errors of differences that are in the L1 cache, for given scales.
#pragma once

#include "core/quantized_delta/levels.inl"
#include "core/quantized_delta/packing.inl"
#include "core/quantized_delta/rows.inl"
#include "core/support/lanes.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr float kSmallestNormal = 0x1p-126f;

// 1 / scale; 0 where there is no division (a scale of 0), or where differences are to be divided instead, since the
// inverse of a subnormal may be infinite.
inline float inverse_of(float scale) { return scale >= kSmallestNormal ? 1.0f / scale : 0.0f; }

inline bool needs_division(float scale) { return (scale > 0) & (scale < kSmallestNormal); }

// Differences of some blocks side by side, all of `block` elements but the last; a scale and zero for each.
struct Differences {
  const float* delta;
  int count, block;
  const float* scales;
  const uint8_t* zeros;  // null for schemes without

  // One over each scale; whether a block's differences must be divided instead.
  bool invert_scales(float* inverses) const {
    const int blocks = (count + block - 1) / block;
    int32_t divided = 0;
    for (int k = 0; k < blocks; ++k) {
      inverses[k] = inverse_of(scales[k]);
      divided |= needs_division(scales[k]) ? 1 : 0;
    }
    return divided != 0;
  }

  // Calls body(number, begin, end, scale, zero) for each block.
  template <class Body>
  void for_each_block(const Body& body) const {
    int number = 0;
    for (int begin = 0; begin < count; begin += block, ++number)
      body(number, begin, begin + block < count ? begin + block : count, scales[number],
           zeros == nullptr ? 0.0f : static_cast<float>(zeros[number]));
  }
};

// What a difference is in units of its scale.
template <class Body>
inline void with_quotient(float scale, const Body& body) {
  if (needs_division(scale)) return body([scale](float difference) { return difference / scale; });
  const float inverse = inverse_of(scale);
  body([inverse](float difference) { return difference * inverse; });
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/quantized_delta/encode.avx512.inl"
#else

namespace graftwork::GRAFTWORK_LEVEL {

// Codes of one block, a byte each; adds the squares of its errors.
template <class Code>
inline void encode_block(const float* __restrict delta, int count, float scale, float zero,
                         uint8_t* __restrict codes, float* lanes) {
  float squares[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) squares[lane] = lanes[lane];
  if constexpr (Code::scheme == Scheme::sign) {
    for (int i = 0; i < count; ++i) codes[i] = delta[i] > 0 ? 1 : 0;
    for_each_in_lanes(count, [&](int i, int lane) {
      const float error = __builtin_fabsf(delta[i]) - scale;
      squares[lane] += error * error;
    });
  } else {
    with_quotient(scale, [&](const auto& quotient) {
      for (int i = 0; i < count; ++i)
        codes[i] = static_cast<uint8_t>(Code::code_of(quotient(delta[i]), zero));
      for_each_in_lanes(count, [&](int i, int lane) {
        const float error = delta[i] - Code::level_of(quotient(delta[i]), zero) * scale;
        squares[lane] += error * error;
      });
    });
  }
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = squares[lane];
}

// Packs the codes of all blocks, and adds the squared errors: those of a tile are added in float.
template <class Code>
void encode(const Differences& blocks, uint8_t* low, uint8_t* high, LaneSums<1>& errors) {
  uint8_t codes[kTile + 8];
  float lanes[kLanes] = {};
  blocks.for_each_block([&](int, int begin, int end, float scale, float zero) {
    encode_block<Code>(blocks.delta + begin, end - begin, scale, zero, codes + begin, lanes);
  });
  for (int lane = 0; lane < kLanes; ++lane) errors.lanes[0][lane] += lanes[lane];
  std::memset(codes + blocks.count, 0, 8);
  pack_codes<Code::bits>(codes, blocks.count, low, high);
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif
