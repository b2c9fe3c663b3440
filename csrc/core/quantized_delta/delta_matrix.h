// A matrix of codes as delta_linear.h reads it.
#pragma once

#include <cstdint>

namespace graftwork {

// Addresses, and numbers, as Python passes them. Codes are in the canonical order of bits; 16 bits are float16 numbers.
struct DeltaMatrix {
  int64_t codes;  // address: [rows][row_bytes]
  int64_t rows, columns, row_bytes;
  int64_t bits;  // 1, 2, 4, 8, 16; or 3: a plane of 2 bits, then one of 1 bit
  int64_t
      values;  // address of floats. Up to 4 bits: 16 for every plane, entry n for the code n mod 2^bits of the
               // plane; 8 bits: what is added to a code
  int64_t scales;        // address: [rows][blocks]
  int64_t scale_format;  // a WeightFormat
  int64_t scale_stride;  // scales a row; 0 where one stands for the whole matrix
  int64_t block;         // columns that a scale stands for, a multiple of 8; 0: a row
  int64_t zeros;         // address: [rows][blocks] of bytes; 0: none
  int64_t zero_centre;   // what `values` take off a code; a zero counts from there, too
};

}  // namespace graftwork
