// The probability model of the entropy-coded differences: fixed limits that every device shares.
//
// Asymmetric numeral systems (rANS) with 12-bit probabilities and 32-bit states that are renormalised by 16 bits: a
// state in [2^16, 2^32) is refilled at most once a symbol.
#pragma once

#include <cstdint>

namespace graftwork {

constexpr int kRansLanes = 32;  // interleaved states of ordinal_rans: a warp, two AVX-512 vectors
constexpr int kProbabilityBits = 12;
constexpr uint32_t kProbabilityTotal = 1u << kProbabilityBits;
constexpr uint32_t kStateLow = 1u << 16;
constexpr int kMaxTables = 16;      // 16 tables of 2^12 slots: 256 KiB, within an L2 cache
constexpr int kExponentSlots = 16;  // exponents that are told apart: one vector permutation
constexpr int kMaxLevels = 8;
constexpr int kMaxSymbols = 65;  // classes -32 .. 32
constexpr int kMinSegmentLog2 = 16, kMaxSegmentLog2 = 20;

// What a segment's header says, checked: frequencies of every table add up to 2^12.
struct RansModel {
  int levels, tables, first_exponent;
  uint16_t thresholds[kMaxLevels - 1];  // ascending
  uint8_t table_of[kMaxLevels][kExponentSlots];
  uint16_t frequency[kMaxTables][kMaxSymbols];
};

}  // namespace graftwork
