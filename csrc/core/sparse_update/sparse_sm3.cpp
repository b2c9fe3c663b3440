#include "core/sparse_update/sparse_sm3.h"

#include <cstring>

#include "core/sparse_update/step.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

// Where the accumulators of a tile's entries are.
struct Sm3Places {
  int64_t row[kEntryTile], column[kEntryTile];
};

// A quotient in double is off by one at most, since indices are below 2^53.
template <class Index>
inline void find_places(const Index* __restrict index, int count, const Sm3Shape& shape, Sm3Places& places) {
  const int64_t columns = shape.columns;
  const double inverse = 1.0 / static_cast<double>(columns);
  for (int i = 0; i < count; ++i) {
    const int64_t at = index[i];
    int64_t row = static_cast<int64_t>(static_cast<double>(at) * inverse);
    int64_t column = at - row * columns;
    const int64_t low = column < 0, high = column >= columns;
    row += high - low;
    column += low ? columns : high ? -columns : 0;
    places.row[i] = shape.first_row + row;
    places.column[i] = shape.first_column + column;
  }
}

// *accumulator = the larger of itself and u, whichever thread comes first. Floats that are not negative are in the order
// of their bits, with NaN above all, so that a NaN stays.
inline void raise_to(float* accumulator, float u) {
  uint32_t* const word = reinterpret_cast<uint32_t*>(accumulator);
  const uint32_t wanted = bit_cast<uint32_t>(u);
  uint32_t held = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (held < wanted &&
         !__atomic_compare_exchange_n(word, &held, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// u of every entry, and the gradient becomes g / sqrt(u + eps).
inline void precondition(float* __restrict gradient, const float* __restrict row_max,
                         const float* __restrict column_max, const Sm3Places& places, int count, float eps,
                         float* __restrict second) {
  for (int i = 0; i < count; ++i) {
    const float row = row_max[places.row[i]], column = column_max[places.column[i]];
    second[i] = row < column || row != row ? row : column;
  }
  for (int i = 0; i < count; ++i) {
    second[i] += gradient[i] * gradient[i];
    gradient[i] = gradient[i] / __builtin_sqrtf(second[i] + eps);
  }
}

inline void apply_momentum(float* __restrict update, float* __restrict buffer, int count,
                           const Sm3Settings& settings) {
  const float momentum = settings.momentum, rest = settings.rest;
  for (int i = 0; i < count; ++i) update[i] = buffer[i] = buffer[i] * momentum + update[i] * rest;
}

void sparse_sm3(const StepTensors* tensors, const Sm3Settings* settings, DecayMode decay_mode,
                const Sm3Shape* shapes, float* row_max, float* column_max, int64_t rows, int64_t columns,
                float* momentum_buffer, float* workspace, int threads) {
  const Sm3Settings& numbers = *settings;
  float *const new_rows = workspace, *const new_columns = workspace + rows;
  std::memcpy(new_rows, row_max, rows * sizeof(float));
  std::memcpy(new_columns, column_max, columns * sizeof(float));
  with_index(static_cast<int>(tensors->index_bytes), [&]<class Index>() {
    const StepLoop<Index> loop(*tensors, numbers.common);
    loop.run(threads, [&](StepTile<Index>& tile) {
      Sm3Places places;
      float second[kEntryTile];
      find_places(tile.index, tile.count, shapes[tile.tensor], places);
      precondition(tile.gradient, row_max, column_max, places, tile.count, numbers.eps, second);
      for (int i = 0; i < tile.count; ++i) {
        raise_to(new_rows + places.row[i], second[i]);
        raise_to(new_columns + places.column[i], second[i]);
      }
      if (momentum_buffer != nullptr)
        apply_momentum(tile.gradient, momentum_buffer + tile.at, tile.count, numbers);
      subtract(tile.values, tile.gradient, numbers.lr, tile.count);
      add_decay(decay_mode, -numbers.common.decay, tile, tile.values);
    });
  });
  std::memcpy(row_max, new_rows, rows * sizeof(float));
  std::memcpy(column_max, new_columns, columns * sizeof(float));
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(sparse_sm3,
                   (const StepTensors* tensors, const Sm3Settings* settings, DecayMode decay_mode,
                    const Sm3Shape* shapes, float* row_max, float* column_max, int64_t rows, int64_t columns,
                    float* momentum_buffer, float* workspace, int threads),
                   (tensors, settings, decay_mode, shapes, row_max, column_max, rows, columns,
                    momentum_buffer, workspace, threads))

}  // namespace graftwork
