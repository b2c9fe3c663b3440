// The coder of ordinal_rans.inl on 2 x 16 lanes. The chain from group to group is: state, slot (a gather), activity,
// level, table, next state; all else overlaps with it.
#pragma once

#include "core/entropy_delta/ordinal_rans.inl"
#include "core/support/lanes16.h"

#ifdef GRAFTWORK_HAS_LANES16

namespace graftwork::GRAFTWORK_LEVEL {

template <class Word>
inline Lanes16 load_weights(const Word* words) {
  if constexpr (sizeof(Word) == 2) return Lanes16::load_words(words);
  if constexpr (sizeof(Word) == 4) return Lanes16::load(words);
}

template <class Format>
inline Lanes16 exponent_slots(Lanes16 base, Lanes16 first_exponent) {
  const Lanes16 field = base.right<kMantissaBits<Format>>() & Lanes16::all((1 << Format::kExponentBits) - 1);
  return (field - first_exponent).clamped(Lanes16::all(0), Lanes16::all(kExponentSlots - 1));
}

// For every level the first entry of the table of each exponent slot.
inline void fill_rows(const RansModel& model, uint32_t table_size,
                      uint32_t rows[kMaxLevels][kExponentSlots]) {
  for (int q = 0; q < model.levels; ++q)
    for (int x = 0; x < kExponentSlots; ++x) rows[q][x] = model.table_of[q][x] * table_size;
}

// Position of the words in the order of all words, and back, within 32-bit lanes.
template <class Word>
inline Lanes16 ordinal_lanes(Lanes16 words) {
  if constexpr (sizeof(Word) == 2) {
    const Lanes16 sign = words.left<16>().right_signed<31>();  // all ones where the word's top bit is set
    return words ^ ((sign & Lanes16::all(0x7fff)) ^ Lanes16::all(0x8000));
  } else {
    return words ^ (words.right_signed<31>() | Lanes16::all(0x80000000u));
  }
}

template <class Word>
inline Lanes16 words_of_ordinal(Lanes16 positions) {  // only the low bits of a word count
  if constexpr (sizeof(Word) == 2) {
    const Lanes16 sign = positions.left<16>().right_signed<31>();
    return positions ^ ((sign & Lanes16::all(0x7fff)) ^ Lanes16::all(0xffff));
  } else {
    return positions ^
           ((positions.right_signed<31>() & Lanes16::all(0x7fffffffu)) ^ Lanes16::all(0xffffffffu));
  }
}

// Next symbols of sixteen lanes: their entries, with the states and the words moved on.
inline Lanes16 next_entries(const uint32_t* slots, Lanes16 tables, Lanes16& states, const uint8_t*& words) {
  const Lanes16 low = Lanes16::all(kProbabilityTotal - 1);
  const Lanes16 entries = Lanes16::gather(slots, tables + (states & low));
  const Lanes16 frequency = (entries.right<kProbabilityBits>() & low) + Lanes16::all(1);
  states = frequency * states.right<kProbabilityBits>() + (entries & low);
  const Mask16 empty = states.zero_above(16);
  const Lanes16 refilled = states.left<16>() | Lanes16::spread_words(words, empty);
  states = states.where(empty, refilled);
  words += 2 * empty.count();
  return entries;
}

// The raw bits of sixteen lanes, `lengths` of each.
template <class Word>
inline Lanes16 next_raw(BitReader& raw, Lanes16 lengths) {
  const Lanes16 ends = lengths.running_sum();
  const Lanes16 at = ends - lengths + Lanes16::all(static_cast<uint32_t>(raw.at & 7));
  const uint8_t* const bytes = raw.bytes + (raw.at >> 3);
  const Lanes16 bits = sizeof(Word) == 2 ? Lanes16::short_bits(bytes, at) : Lanes16::long_bits(bytes, at);
  raw.at += ends.last();
  return bits & (Lanes16::all(1).left(lengths) - Lanes16::all(1));
}

template <class Format>
inline void write_weights(Lanes16 classes, Lanes16 magnitudes, Lanes16 base, typename Format::Word* tuned) {
  using Word = typename Format::Word;
  const Lanes16 sign = classes.right_signed<31>();
  const Lanes16 difference = (magnitudes ^ sign) - sign;
  const Lanes16 words = words_of_ordinal<Word>(ordinal_lanes<Word>(base) + difference);
  if constexpr (sizeof(Word) == 2) words.store_words(tuned);
  if constexpr (sizeof(Word) == 4) words.store(tuned);
}

// Decodes whole groups while words and raw bits cannot run out of the segment; how many it did. The last raw bits
// are read from a copy with zeros after them: a segment may have none at all.
template <class Format>
int decode_lanes(const typename Format::Word* base, typename Format::Word* tuned, int groups,
                 const DecodeScratch& scratch, Cursor& cursor) {
  using Word = typename Format::Word;
  constexpr int kMostWords = 2 * kRansLanes + 32, kMostRaw = kWordBits<Word> * kRansLanes / 8 + 128;
  alignas(64) uint32_t rows[kMaxLevels][kExponentSlots];
  fill_rows(scratch.model, kProbabilityTotal, rows);
  const Lanes16 first_exponent = Lanes16::all(static_cast<uint32_t>(scratch.model.first_exponent));
  const uint8_t* const end = cursor.raw.bytes + cursor.raw.size;
  const uint8_t* words = cursor.words;
  BitReader raw = cursor.raw;
  uint8_t last_raw[2 * kMostRaw] = {};
  int64_t before_last = 0;  // raw bytes before the copied ones
  Lanes16 low = Lanes16::load(cursor.states), high = Lanes16::load(cursor.states + 16);
  int activity = cursor.activity, group = 0;
  for (; group < groups; ++group, base += kRansLanes, tuned += kRansLanes) {
    if (end - words < kMostWords) break;
    if (raw.size - (raw.at >> 3) < kMostRaw) {
      if (raw.bytes != last_raw) {
        before_last = raw.at >> 3 < raw.size ? raw.at >> 3 : raw.size;
        raw = {last_raw, raw.size - before_last, raw.at - 8 * before_last};
        std::memcpy(last_raw, cursor.raw.bytes + before_last, raw.size);
      }
      if (raw.at > 8 * raw.size) break;
    }
    const Lanes16 row = Lanes16::load(rows[scratch.level_of[activity]]);
    const Lanes16 base_low = load_weights(base), base_high = load_weights(base + 16);
    const Lanes16 entries_low =
        next_entries(scratch.slots, exponent_slots<Format>(base_low, first_exponent).of(row), low, words);
    const Lanes16 entries_high =
        next_entries(scratch.slots, exponent_slots<Format>(base_high, first_exponent).of(row), high, words);
    const Lanes16 zero = Lanes16::all(kZeroClass<Format>), one = Lanes16::all(1);
    const Lanes16 classes_low = entries_low.right<24>() - zero,
                  classes_high = entries_high.right<24>() - zero;
    const Lanes16 lengths_low = classes_low.magnitude(), lengths_high = classes_high.magnitude();
    activity = (lengths_low + lengths_high).sum();
    // The magnitude of class c has its leading one at bit |c| - 1; none if c is 0.
    Lanes16 magnitudes_low = one.left(lengths_low - one), magnitudes_high = one.left(lengths_high - one);
    if (activity > 0) {
      const Lanes16 below = Lanes16::all(0), most = Lanes16::all(31);
      magnitudes_low = magnitudes_low | next_raw<Word>(raw, (lengths_low - one).clamped(below, most));
      magnitudes_high = magnitudes_high | next_raw<Word>(raw, (lengths_high - one).clamped(below, most));
    }
    write_weights<Format>(classes_low, magnitudes_low, base_low, tuned);
    write_weights<Format>(classes_high, magnitudes_high, base_high, tuned + 16);
  }
  low.store(cursor.states);
  high.store(cursor.states + 16);
  cursor.words = words;
  cursor.raw.at = raw.at + 8 * before_last;
  cursor.activity = activity;
  return group;
}

// Codes whole groups from `last` down to 0; returns where the words begin.
template <class Format>
uint8_t* encode_lanes(const typename Format::Word* base, int last, const EncodeScratch& scratch,
                      uint32_t* states, uint8_t* words) {
  alignas(64) uint32_t rows[kMaxLevels][kExponentSlots];
  fill_rows(scratch.model, kClasses<Format>, rows);
  const Lanes16 first_exponent = Lanes16::all(static_cast<uint32_t>(scratch.model.first_exponent));
  Lanes16 half[2] = {Lanes16::load(states), Lanes16::load(states + 16)};
  for (int g = last; g >= 0; --g) {
    const Lanes16 row = Lanes16::load(rows[scratch.level[g]]);
    for (int side = 1; side >= 0; --side) {
      const int begin = g * kRansLanes + 16 * side;
      const Lanes16 table = exponent_slots<Format>(load_weights(base + begin), first_exponent).of(row);
      const Lanes16 entries =
          Lanes16::gather(scratch.entries, table + Lanes16::load_bytes(scratch.symbols + begin));
      const Lanes16 frequency = entries & Lanes16::all(0xffff);
      Lanes16 state = half[side];
      const Mask16 full = state.right<32 - kProbabilityBits>().at_least(frequency);
      words = state.push_words(words, full);
      state = state.where(full, state.right<16>());
      const Lanes16 quotient = state.divided_by(frequency);
      half[side] = quotient.left<kProbabilityBits>() + (state - quotient * frequency) + entries.right<16>();
    }
  }
  half[0].store(states);
  half[1].store(states + 16);
  return words;
}

}  // namespace graftwork::GRAFTWORK_LEVEL

#endif
