// Entropy-coded payloads written straight from the description of the format, with models that the library's own
// encoder never chooses: what a decoder must take all the same.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "core/entropy_delta/rans_model.h"
#include "target.h"

namespace fuzz {

using graftwork::kProbabilityBits;
using graftwork::kProbabilityTotal;
using graftwork::kStateLow;

inline int bit_length(uint32_t value) { return value == 0 ? 0 : 32 - __builtin_clz(value); }

// Bytes of a payload, and bits, least significant first, padded with zeros to a byte.
class Writer {
 public:
  std::vector<uint8_t> bytes;

  void number(uint32_t value, int count) {
    for (int i = 0; i < count; ++i) bytes.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }

  void bits(uint32_t value, int count) {
    for (int i = 0; i < count; ++i, held_ = (held_ + 1) & 7) {
      if (held_ == 0) bytes.push_back(0);
      bytes.back() |= static_cast<uint8_t>((value >> i & 1) << held_);
    }
  }

  void pad() { held_ = 0; }

 private:
  int held_ = 0;
};

// What is wrong with a payload that is written wrongly on purpose: every decoder must refuse it. Flaws of tables are
// put into a segment's first table.
enum class Flaw {
  none,
  frequencies,
  symbol_beyond,
  spare_word,
  spare_byte,
  frame,
  reserved,
  // of ordinal_rans:
  table_beyond,
  thresholds,
  // of sparse_delta:
  no_gap,
  no_difference,
  place_beyond
};

inline Flaw draw_flaw(Random& random) {
  return static_cast<Flaw>(random.below(static_cast<int>(Flaw::place_beyond) + 1));
}

// The symbols that may occur and their frequencies, which add up to 2^12.
struct Table {
  std::vector<uint16_t> frequency, start;

  // Of `symbols`, without `never`: how many occur and how unequal they are is drawn.
  Table(int symbols, int never, Random& random) : frequency(symbols, 0), start(symbols, 0) {
    std::vector<int> order;
    for (int s = 0; s < symbols; ++s)
      if (s != never) order.push_back(s);
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
    order.resize(1 + random.below(random.below(2) == 0 ? 3 : order.size()));
    uint32_t left = kProbabilityTotal - static_cast<uint32_t>(order.size());
    const bool equal = random.below(2) == 0;
    for (const int s : order) {
      const uint32_t more = equal ? left / static_cast<uint32_t>(order.size()) / 2 : random.below(left + 1);
      frequency[s] = static_cast<uint16_t>(1 + more);
      left -= more;
    }
    frequency[order.front()] = static_cast<uint16_t>(frequency[order.front()] + left);
    for (int s = 0, at = 0; s < symbols; at += frequency[s++]) start[s] = static_cast<uint16_t>(at);
  }

  // A symbol that occurs: mostly as often as its frequency says, else any.
  int draw(Random& random) const {
    if (random.below(8) != 0) {
      const uint32_t slot = random.below(kProbabilityTotal);
      int s = 0;
      while (slot >= uint32_t{start[s]} + frequency[s]) ++s;
      return s;
    }
    int s = static_cast<int>(random.below(frequency.size()));
    while (frequency[s] == 0) s = (s + 1) % static_cast<int>(frequency.size());
    return s;
  }

  void write(Writer& out, Flaw flaw = Flaw::none) const {
    int low = 0, high = static_cast<int>(frequency.size()) - 1;
    while (frequency[low] == 0) ++low;
    while (frequency[high] == 0) --high;
    const int shift = flaw == Flaw::symbol_beyond ? static_cast<int>(frequency.size()) - high : 0;
    out.bits(low + shift, 7);
    out.bits(high + shift, 7);
    for (int s = low; s <= high; ++s) {
      const uint32_t written = frequency[s] + (flaw == Flaw::frequencies && s == high);
      const int length = bit_length(written);
      out.bits(length, 4);
      if (length > 1) out.bits(written, length - 1);
    }
  }
};

// A symbol in its lane, and the bits that follow all symbols.
struct Coded {
  int lane;
  uint16_t frequency, start;
  uint32_t raw;
  int raw_bits;
};

// The states in which decoding begins, the words and the raw bits of `sequence`.
inline void write_coded(const std::vector<Coded>& sequence, int lanes, std::vector<uint32_t>& states,
                        std::vector<uint16_t>& words) {
  states.assign(lanes, kStateLow);
  words.clear();
  for (auto symbol = sequence.rbegin(); symbol != sequence.rend(); ++symbol) {
    uint32_t& state = states[symbol->lane];
    if ((state >> (32 - kProbabilityBits)) >= symbol->frequency) {
      words.push_back(static_cast<uint16_t>(state));
      state >>= 16;
    }
    state = ((state / symbol->frequency) << kProbabilityBits) + state % symbol->frequency + symbol->start;
  }
  std::ranges::reverse(words);
}

inline void write_raw(const std::vector<Coded>& sequence, Writer& out) {
  for (const Coded& symbol : sequence) out.bits(symbol.raw, symbol.raw_bits);
  out.pad();
}

// A difference of class `ordinal_class` (its sign times its bit length), with the bits below the leading one drawn.
inline Coded coded_difference(int lane, const Table& table, int symbol, int ordinal_class, Random& random,
                              uint32_t* difference) {
  const int length = ordinal_class < 0 ? -ordinal_class : ordinal_class;
  Coded coded{lane, table.frequency[symbol], table.start[symbol], 0, length > 0 ? length - 1 : 0};
  coded.raw = static_cast<uint32_t>(random.next()) & ((uint32_t{1} << coded.raw_bits) - 1);
  const uint32_t magnitude = length == 0 ? 0 : (uint32_t{1} << coded.raw_bits) | coded.raw;
  *difference = ordinal_class < 0 ? 0 - magnitude : magnitude;
  return coded;
}

// Changes to a payload, four bytes of the input each: what to do, with which value, where.
inline void edit(std::vector<uint8_t>& payload, Input& input) {
  for (int left = 32; left > 0 && !input.empty() && !payload.empty(); --left) {
    const uint8_t kind = input.byte(), value = input.byte();
    const uint32_t number = input.number(2);
    // Headers are short and hold the most: every other place is near the front.
    const size_t at =
        (kind & 1) != 0 ? number % std::min<size_t>(payload.size(), 64) : number % payload.size();
    switch (kind >> 1 & 7) {
      case 0: payload[at] ^= static_cast<uint8_t>(value | 1); break;
      case 1: payload[at] = value; break;
      case 2: payload[at] = static_cast<uint8_t>(payload[at] + 1); break;
      case 3: payload[at] = static_cast<uint8_t>(payload[at] - 1); break;
      case 4: payload.resize(at); break;
      case 5: payload.insert(payload.begin() + at, value); break;
      case 6: payload.erase(payload.begin() + at); break;
      default: payload.push_back(value);
    }
  }
}

}  // namespace fuzz
