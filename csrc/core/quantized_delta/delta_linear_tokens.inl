// What delta_linear.h makes of a row of x, a token, before it meets the codes.
#pragma once

#include <cstdint>

#include "core/quantized_delta/delta_planes.inl"
#include "core/support/lanes.h"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kDigits = 8;  // of four bits, in a word

// A unit of a plane is what is multiplied at once: a digit of codes of 1 or 2 bits, or one wider code.
struct Units {
  int columns, a_word, floats;  // of a unit; units; of a unit in what is prepared

  static constexpr Units of(int bits) {
    return bits <= 2 ? Units{4 / bits, kDigits, kEntries} : Units{1, 32 / bits, 1};
  }
};

// What is prepared of a token: for every plane a table for each digit, or x itself; then the sums of x over octets; then
// nothing up to a multiple of 64 bytes. Past the last column x is zero.
struct TokenLayout {
  int64_t columns, plane_at[2], sums_at, floats;

  static TokenLayout of(int64_t columns, int64_t bits) {
    const Planes planes = Planes::of(columns, bits, 0);
    TokenLayout layout{columns, {}, 0, 0};
    for (int p = 0; p < planes.count; ++p) {
      const Units units = Units::of(planes.plane[p].bits);
      layout.plane_at[p] = layout.sums_at;
      layout.sums_at += divide_up(columns * planes.plane[p].bits, 32) * units.a_word * units.floats;
    }
    layout.floats = divide_up(layout.sums_at + divide_up(columns, kOctet), kLanes) * kLanes;
    return layout;
  }
};

// Of one word's columns of x: tables[d][n] = what the digit n gives with the columns that it stands for; or x itself.
template <int kBits>
inline void prepare_word(const float* x, const float* values, float* __restrict to) {
  if constexpr (kBits > 2) {
    for (int c = 0; c < 32 / kBits; ++c) to[c] = x[c];
  } else {
    constexpr int kColumns = 4 / kBits;
    float lanes[kColumns][kEntries];
    for (int c = 0; c < kColumns; ++c)
      for (int n = 0; n < kEntries; ++n) lanes[c][n] = values[n >> kBits * c];
    for (int d = 0; d < kDigits; ++d, x += kColumns, to += kEntries)
      for (int n = 0; n < kEntries; ++n) {
        float sum = lanes[0][n] * x[0] + lanes[1][n] * x[1];
        if constexpr (kBits == 1) sum += lanes[2][n] * x[2] + lanes[3][n] * x[3];
        to[n] = sum;
      }
  }
}

// The columns begin .. end - 1 of a token; begin is a multiple of 32.
template <class Format>
inline void prepare(const TokenLayout& layout, const Planes& planes, const typename Format::Word* x,
                    int64_t begin, int64_t end, float* floats) {
  constexpr int kMost = 32;
  for (int64_t first = begin; first < end; first += kMost) {
    float values[kMost];
    const int64_t left = layout.columns - first;
    if (left >= kMost)  // a length that is known makes vectors of it
      for (int i = 0; i < kMost; ++i) values[i] = Format::value(x[first + i]);
    else
      for (int i = 0; i < kMost; ++i) values[i] = i < left ? Format::value(x[first + i]) : 0.0f;
    for (int p = 0; p < planes.count; ++p)
      with_bits(planes.plane[p].bits, [&]<int kBits>() {
        constexpr Units units = Units::of(kBits);
        float* to = floats + layout.plane_at[p] + first / units.columns * units.floats;
        for (int i = 0; i < kMost && i < left; i += 32 / kBits, to += units.a_word * units.floats)
          prepare_word<kBits>(values + i, planes.plane[p].values, to);
      });
    for (int i = 0; i < kMost && i < left; i += kOctet) {
      float sum = 0;
      for (int c = 0; c < kOctet; ++c) sum += values[i + c];
      floats[layout.sums_at + (first + i) / kOctet] = sum;
    }
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
