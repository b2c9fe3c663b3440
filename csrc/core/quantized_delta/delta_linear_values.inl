// What the codes of a plane stand for, sixteen at a time.
#pragma once

#include "core/quantized_delta/delta_linear_lanes.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// The `values` of a plane of kBits: a table, or what is added to a code of 8 bits.
template <int kBits>
inline FloatLanes load_values(const float* values) {
  if constexpr (kBits <= 4)
    return FloatLanes::load(values);
  else
    return FloatLanes::all(kBits == 8 ? values[0] : 0.0f);
}

// The value of the code in the low bits of every word.
template <int kBits>
inline FloatLanes value_of(WordLanes words, FloatLanes values) {
  if constexpr (kBits <= 4)
    return FloatLanes::look_up(words, values);
  else if constexpr (kBits == 8)
    return FloatLanes::bytes(words) + values;
  else
    return FloatLanes::halves(words);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
