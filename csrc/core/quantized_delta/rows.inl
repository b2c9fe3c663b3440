// Work on the rows of a matrix, cut into chunks that depend on its shape alone.
#pragma once

#include <cstdint>

#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kTile = 2048;  // elements of a row that are worked on in the L1 cache; a multiple of 16

inline Chunks cut_rows(int64_t rows, int64_t columns) {
  const int64_t wanted = columns > 0 ? (kMinChunk + columns - 1) / columns : rows;
  const int64_t share = (rows + kMaxChunks - 1) / kMaxChunks;
  int64_t length = wanted > share ? wanted : share;
  length = length > 0 ? length : 1;
  return {rows, length, static_cast<int>((rows + length - 1) / length)};
}

// Calls body(column, count) for every tile of a row.
template <class Body>
inline void for_each_tile(int64_t columns, const Body& body) {
  for (int64_t column = 0; column < columns; column += kTile)
    body(column, static_cast<int>(columns - column < kTile ? columns - column : kTile));
}

}  // namespace graftwork::GRAFTWORK_LEVEL
