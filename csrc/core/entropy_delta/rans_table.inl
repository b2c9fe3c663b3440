// Frequency tables: how counts become frequencies that add up to 2^12, and how they are written and read.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/entropy_delta/rans_model.h"

namespace graftwork::GRAFTWORK_LEVEL {

inline int bits_of(uint32_t value) { return value == 0 ? 0 : 32 - __builtin_clz(value); }

// Bits, least significant first. Every put writes eight bytes and has no branch, so the buffer needs eight to spare.
struct BitWriter {
  uint8_t* bytes;
  uint64_t pending = 0;
  int held = 0;

  explicit BitWriter(uint8_t* target) : bytes(target) {}

  void put(uint64_t value, int count) {  // count < 64
    pending |= value << held;
    std::memcpy(bytes, &pending, 8);
    const int total = held + count;
    const uint64_t rest = (value >> 1) >> (63 - held);  // what did not fit
    pending = total >= 64 ? rest : pending;
    bytes += total >> 6 << 3;
    held = total & 63;
  }

  // The end of the written bytes, padded with zeros to a byte.
  uint8_t* finish() {
    std::memcpy(bytes, &pending, 8);
    return bytes + ((held + 7) >> 3);
  }
};

// Bits, least significant first; what lies past the end reads as zero and makes `used_up` false.
struct BitReader {
  const uint8_t* bytes;
  int64_t size;
  int64_t at = 0;

  // The next 57 bits at least, without moving on.
  uint64_t peek() const {
    uint64_t word = 0;
    const int64_t byte = at >> 3, left = size - byte;
    if (left >= 8)
      std::memcpy(&word, bytes + byte, 8);
    else if (left > 0)
      std::memcpy(&word, bytes + byte, static_cast<size_t>(left));
    return word >> (at & 7);
  }

  uint32_t get(int count) {  // count <= 32
    const uint64_t word = peek();
    at += count;
    return static_cast<uint32_t>(word & ((uint64_t{1} << count) - 1));
  }

  bool inside() const { return at <= 8 * size; }

  // Whether everything was read but for fewer than eight bits of padding, which are zero.
  bool used_up() const {
    if (at > 8 * size || 8 * size - at >= 8) return false;
    return (at & 7) == 0 || bytes[at >> 3] >> (at & 7) == 0;
  }
};

// Frequencies in proportion to the counts that add up to 2^12, at least one for every symbol that occurs.
inline void normalise(const uint32_t* counts, int symbols, uint16_t* frequency) {
  uint64_t total = 0;
  for (int s = 0; s < symbols; ++s) total += counts[s];
  if (total == 0) {  // a table that nothing uses
    std::memset(frequency, 0, 2 * symbols);
    frequency[0] = kProbabilityTotal;
    return;
  }
  int sum = 0;
  for (int s = 0; s < symbols; ++s) {
    const uint32_t share = static_cast<uint32_t>((uint64_t{counts[s]} << kProbabilityBits) / total);
    frequency[s] = static_cast<uint16_t>(counts[s] != 0 && share == 0 ? 1 : share);
    sum += frequency[s];
  }
  // What is left goes where the code gets shortest, what is over is taken where it gets longer the least:
  // one more of f saves about count / (f + 1/2).
  for (; sum < static_cast<int>(kProbabilityTotal); ++sum) {
    int best = -1;
    for (int s = 0; s < symbols; ++s)
      if (counts[s] != 0 && (best < 0 || uint64_t{counts[s]} * (2u * frequency[best] + 1) >
                                             uint64_t{counts[best]} * (2u * frequency[s] + 1)))
        best = s;
    ++frequency[best];
  }
  for (; sum > static_cast<int>(kProbabilityTotal); --sum) {
    int best = -1;
    for (int s = 0; s < symbols; ++s)
      if (frequency[s] > 1 && (best < 0 || uint64_t{counts[s]} * (2u * frequency[best] - 1) <
                                               uint64_t{counts[best]} * (2u * frequency[s] - 1)))
        best = s;
    --frequency[best];
  }
}

inline void write_table(BitWriter& bits, const uint16_t* frequency, int symbols) {
  int low = 0, high = symbols - 1;
  while (frequency[low] == 0) ++low;
  while (frequency[high] == 0) --high;
  bits.put(low, 7);
  bits.put(high, 7);
  for (int s = low; s <= high; ++s) {
    const int length = bits_of(frequency[s]);
    bits.put(length, 4);
    if (length > 1) bits.put(frequency[s] & ((1u << (length - 1)) - 1), length - 1);
  }
}

// False if the table is malformed; its frequencies add up to 2^12 otherwise.
inline bool read_table(BitReader& bits, uint16_t* frequency, int symbols) {
  std::memset(frequency, 0, 2 * symbols);
  const int low = bits.get(7), high = bits.get(7);
  if (low > high || high >= symbols) return false;
  uint32_t sum = 0;
  for (int s = low; s <= high; ++s) {
    const int length = bits.get(4);
    if (length > kProbabilityBits + 1) return false;
    const uint32_t value = length == 0 ? 0 : (1u << (length - 1)) | bits.get(length - 1);
    if (value > kProbabilityTotal) return false;
    frequency[s] = static_cast<uint16_t>(value);
    sum += value;
  }
  return sum == kProbabilityTotal && bits.inside() && frequency[low] != 0 && frequency[high] != 0;
}

// One entry a slot: symbol << 24 | (frequency - 1) << 12 | slot - start.
inline void fill_slots(const uint16_t* frequency, int symbols, uint32_t* slots) {
  for (int s = 0; s < symbols; ++s) {
    const uint32_t entry = static_cast<uint32_t>(s) << 24 | (frequency[s] - 1u) << kProbabilityBits;
    for (uint32_t i = 0; i < frequency[s]; ++i) *slots++ = entry + i;
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
