// The planes that the codes of a matrix are in.
#pragma once

#include <cstdint>

#include "core/quantized_delta/delta_matrix.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kEntries = 16;  // of a table that four bits look up
constexpr int kOctet = 8;     // columns: no scale ends within

inline int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

struct Plane {
  int bits;
  int64_t byte;         // where it begins in a row
  const float* values;  // of its codes
};

struct Planes {
  Plane plane[2];
  int count;

  static Planes of(int64_t columns, int64_t bits, int64_t values) {
    const float* const table = reinterpret_cast<const float*>(values);
    if (bits != 3) return {{{static_cast<int>(bits), 0, table}, {}}, 1};
    return {{{2, 0, table}, {1, divide_up(2 * columns, 8), table + kEntries}}, 2};
  }
};

// Calls call.template operator()<kBits>() with the width of a plane.
template <class Call>
inline void with_bits(int bits, const Call& call) {
  switch (bits) {
    case 1: return call.template operator()<1>();
    case 2: return call.template operator()<2>();
    case 4: return call.template operator()<4>();
    case 8: return call.template operator()<8>();
    default: return call.template operator()<16>();
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
