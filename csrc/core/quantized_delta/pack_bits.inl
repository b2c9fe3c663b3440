// The loops of pack_bits.h.
#pragma once

#include <stdexcept>

#include "core/quantized_delta/packing.inl"
#include "core/quantized_delta/rows.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// Calls call.template operator()<bits>().
template <class Call>
inline void with_bits(int bits, const Call& call) {
  switch (bits) {
    case 1: return call.template operator()<1>();
    case 2: return call.template operator()<2>();
    case 3: return call.template operator()<3>();
    case 4: return call.template operator()<4>();
    case 8: return call.template operator()<8>();
    default: throw std::invalid_argument("bits must be 1, 2, 3, 4 or 8");
  }
}

template <int kBits>
void pack_rows(const uint8_t* codes, int64_t rows, int64_t columns, uint8_t* packed, int64_t row_bytes,
               int threads) {
  const Planes<kBits> planes(columns);
  const int64_t used = planes.low_bytes + (kBits == 3 ? (columns + 7) / 8 : 0);
  const Chunks chunks = cut_rows(rows, columns);
  parallel_chunks(chunks, threads, [=](int chunk) {
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      uint8_t* const out = packed + row * row_bytes;
      for_each_tile(columns, [=](int64_t column, int count) {
        const uint8_t* from = codes + row * columns + column;
        uint8_t padded[kTile];
        if (count % 8 != 0) {  // no byte beyond the row is read
          std::memset(padded + count / 8 * 8, 0, 8);
          std::memcpy(padded, from, count);
          from = padded;
        }
        pack_codes<kBits>(from, count, planes.low(out, column), planes.high(out, column));
      });
      std::memset(out + used, 0, row_bytes - used);
    }
  });
}

template <int kBits>
void unpack_rows(const uint8_t* packed, int64_t row_bytes, int64_t rows, int64_t columns, uint8_t* codes,
                 int threads) {
  const Planes<kBits> planes(columns);
  const Chunks chunks = cut_rows(rows, columns);
  parallel_chunks(chunks, threads, [=](int chunk) {
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      const uint8_t* const in = packed + row * row_bytes;
      for_each_tile(columns, [=](int64_t column, int count) {
        uint8_t* const out = codes + row * columns + column;
        uint8_t padded[kTile];
        const bool whole = count % 8 == 0;
        unpack_codes<kBits>(planes.low(in, column), planes.high(in, column), count, whole ? out : padded);
        if (!whole) std::memcpy(out, padded, count);
      });
    }
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
