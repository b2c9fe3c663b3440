// Positions in a segment of 2^20 by their gaps, with or without a difference at each, entropy coded: what sparse_delta
// and the "rans" code of sorted indices share. docs/store-format.md describes the bytes; without differences a segment
// has the one table of the gaps, and gap i is in state i mod 4.
//
// A gap and a difference are coded alike: sign and bit length by rANS, four interleaved states that the symbols take in
// turn, the bits below the leading one as they are.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/entropy_delta/rans_table.inl"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kSparseLanes = 4;
constexpr int kGapSymbols = kMaxSegmentLog2 + 2;                      // bit lengths of 1 .. 2^20
constexpr int64_t kSparseHeadBytes = 8 + 2 * 160 + 4 * kSparseLanes;  // upper bound

struct NoDifference {};  // the Word of positions alone

template <class Word>
constexpr bool kHasDifference = true;
template <>
inline constexpr bool kHasDifference<NoDifference> = false;

template <class Word>
constexpr int kDifferenceSymbols = kHasDifference<Word> ? 2 * kWordBits<Word> + 1 : 1;
template <class Word>
constexpr int kDifferenceBits = kHasDifference<Word> ? kWordBits<Word> : 0;

struct Change {
  uint32_t gap;  // from the change before, or from the word before the first: at least 1
  uint32_t difference;
};

template <class Word>
inline int class_symbol(Word difference) {
  const Word sign = top_mask(difference);
  const int length = bits_of(static_cast<Word>(static_cast<Word>(difference ^ sign) - sign));
  return kWordBits<Word> + (sign ? -length : length);
}

inline void put_symbol(uint32_t& state, uint32_t frequency, uint32_t start, uint8_t*& words) {
  if ((state >> (32 - kProbabilityBits)) >= frequency) {
    words -= 2;
    const uint16_t word = static_cast<uint16_t>(state);
    std::memcpy(words, &word, 2);
    state >>= 16;
  }
  state = ((state / frequency) << kProbabilityBits) + state % frequency + start;
}

template <class Word>
constexpr int64_t sparse_segment_bound(int64_t changes) {
  return kSparseHeadBytes + (kHasDifference<Word> ? 4 : 2) * changes +
         (kMaxSegmentLog2 + kDifferenceBits<Word>)*changes / 8 + 16;
}

// Writes a segment's changes[0] .. changes[count - 1], each of them a Change; returns the end.
template <class Word, class Changes>
uint8_t* write_changes(const Changes& changes, int64_t count, uint8_t* out) {
  constexpr int kSymbols = kDifferenceSymbols<Word>;
  uint8_t* const words_end = out + sparse_segment_bound<Word>(count);
  const uint32_t number = static_cast<uint32_t>(count);
  std::memcpy(out, &number, 4);
  std::memset(out + 4, 0, 4);
  if (count == 0) return out + 8;
  uint32_t gap_counts[kGapSymbols] = {}, class_counts[kSymbols] = {};
  for (int64_t i = 0; i < count; ++i) {
    ++gap_counts[bits_of(changes[i].gap)];
    if constexpr (kHasDifference<Word>)
      ++class_counts[class_symbol(static_cast<Word>(changes[i].difference))];
  }
  uint16_t gaps[kGapSymbols], classes[kSymbols];
  normalise(gap_counts, kGapSymbols, gaps);
  normalise(class_counts, kSymbols, classes);
  uint16_t gap_starts[kGapSymbols], class_starts[kSymbols];
  for (int s = 0, at = 0; s < kGapSymbols; at += gaps[s++]) gap_starts[s] = static_cast<uint16_t>(at);
  for (int s = 0, at = 0; s < kSymbols; at += classes[s++]) class_starts[s] = static_cast<uint16_t>(at);
  uint32_t states[kSparseLanes];
  for (uint32_t& state : states) state = kStateLow;
  uint8_t* words = words_end;
  for (int64_t i = count - 1; i >= 0;
       --i) {  // change i is in the lanes 2i and 2i + 1, or a gap alone in lane i
    const int lane = kHasDifference<Word> ? 2 * (i & 1) : i & 3, gap = bits_of(changes[i].gap);
    if constexpr (kHasDifference<Word>) {
      const int symbol = class_symbol(static_cast<Word>(changes[i].difference));
      put_symbol(states[lane + 1], classes[symbol], class_starts[symbol], words);
    }
    put_symbol(states[lane], gaps[gap], gap_starts[gap], words);
  }
  const uint32_t used = static_cast<uint32_t>((words_end - words) / 2);
  std::memcpy(out + 4, &used, 4);
  BitWriter head(out + 8);
  write_table(head, gaps, kGapSymbols);
  if constexpr (kHasDifference<Word>) write_table(head, classes, kSymbols);
  uint8_t* end = head.finish();
  std::memcpy(end, states, sizeof states);
  end += sizeof states;
  std::memmove(end, words, 2 * used);
  BitWriter raw(end + 2 * used);
  for (int64_t i = 0; i < count; ++i) {
    const int gap = bits_of(changes[i].gap) - 1;
    raw.put(changes[i].gap & ((1u << gap) - 1), gap);
    if constexpr (kHasDifference<Word>) {
      const Word difference = static_cast<Word>(changes[i].difference), sign = top_mask(difference);
      const Word magnitude = static_cast<Word>(static_cast<Word>(difference ^ sign) - sign);
      const int length = bits_of(magnitude) - 1;
      raw.put(magnitude & ((uint32_t{1} << length) - 1), length);
    }
  }
  return raw.finish();
}

// A segment's payload, taken apart and checked as far as that goes without decoding it.
struct SparseSegment {
  uint32_t count, gap_slots[kProbabilityTotal], class_slots[kProbabilityTotal];
  uint32_t states[kSparseLanes];
  const uint8_t* words;
  const uint8_t* words_end;
  BitReader raw;

  template <class Word>
  bool open(const uint8_t* in, int64_t size) {
    if (size < 8) return false;
    uint32_t used;
    std::memcpy(&count, in, 4);
    std::memcpy(&used, in + 4, 4);
    if (count == 0) return size == 8 && used == 0;
    BitReader head{in + 8, size - 8};
    uint16_t gaps[kGapSymbols];
    if (!read_table(head, gaps, kGapSymbols) || gaps[0] != 0) return false;  // no gap
    fill_slots(gaps, kGapSymbols, gap_slots);
    if constexpr (kHasDifference<Word>) {
      uint16_t classes[kDifferenceSymbols<Word>];
      if (!read_table(head, classes, kDifferenceSymbols<Word>) || classes[kWordBits<Word>] != 0) return false;
      fill_slots(classes, kDifferenceSymbols<Word>, class_slots);
    }
    const int64_t at = 8 + ((head.at + 7) >> 3);
    words = in + at + sizeof states;
    if (size - at < static_cast<int64_t>(sizeof states) + 2 * static_cast<int64_t>(used)) return false;
    std::memcpy(states, in + at, sizeof states);
    words_end = words + 2 * static_cast<int64_t>(used);
    raw = {words_end, in + size - words_end};
    return true;
  }
};

// Whether a state needs a word is as good as chance: there is no branch on it.
inline int take_symbol(uint32_t& state, const uint32_t* slots, const uint8_t*& words, const uint8_t* end) {
  constexpr uint32_t kLow = kProbabilityTotal - 1;
  const uint32_t entry = slots[state & kLow];
  uint16_t word = 0;
  if (words < end) std::memcpy(&word, words, 2);
  const uint32_t next =
      (((entry >> kProbabilityBits) & kLow) + 1) * (state >> kProbabilityBits) + (entry & kLow);
  const bool empty = next < kStateLow;
  words += 2 * empty;
  state = empty ? next << 16 | word : next;
  return static_cast<int>(entry >> 24);
}

// Calls apply(index, difference) for every change, in order; false if the segment is malformed. Indices are below
// `count`, whatever the bytes are.
template <class Word, class Apply>
bool for_each_change(SparseSegment& segment, int64_t count, const Apply& apply) {
  uint32_t states[kSparseLanes];
  std::memcpy(states, segment.states, sizeof states);
  const uint8_t* words = segment.words;
  BitReader raw = segment.raw;
  int64_t at = -1;
  const auto take_change = [&](int lane) {
    const int gap = take_symbol(states[lane], segment.gap_slots, words, segment.words_end) - 1;
    int symbol = 0, length = 1;
    if constexpr (kHasDifference<Word>) {
      symbol = take_symbol(states[lane + 1], segment.class_slots, words, segment.words_end) - kWordBits<Word>;
      length = symbol < 0 ? -symbol : symbol;
    }
    const uint64_t bits = raw.peek();  // of both: at most 20 and 31
    raw.at += gap + length - 1;
    at += static_cast<int64_t>((uint64_t{1} << gap) | (bits & ((uint64_t{1} << gap) - 1)));
    if (at >= count) return false;
    if constexpr (kHasDifference<Word>) {
      const uint64_t leading = uint64_t{1} << (length - 1);
      const Word magnitude = static_cast<Word>(leading | (bits >> gap & (leading - 1)));
      apply(at, static_cast<Word>(symbol < 0 ? Word{0} - magnitude : magnitude));
    } else {
      apply(at, NoDifference{});
    }
    return true;
  };
  uint32_t left = segment.count;
  if constexpr (kHasDifference<Word>) {
    for (; left >= 2; left -= 2)  // lanes that are known keep their states in registers
      if (!take_change(0) || !take_change(2)) return false;
    if (left == 1 && !take_change(0)) return false;
  } else {
    for (; left >= 4; left -= 4)
      if (!take_change(0) || !take_change(1) || !take_change(2) || !take_change(3)) return false;
    for (uint32_t lane = 0; lane < left; ++lane)
      if (!take_change(static_cast<int>(lane))) return false;
  }
  if (segment.count == 0) return true;
  bool whole = words == segment.words_end && raw.used_up();
  for (const uint32_t state : states) whole &= state == kStateLow;
  return whole;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
