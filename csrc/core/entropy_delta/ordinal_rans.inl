// The loops of ordinal_rans.h that are plain at every level: classes, counts, and the coder in scalars, which is also
// what ends a segment at the wider levels (ordinal_rans_lanes.inl).
#pragma once

#include <cstdint>
#include <cstring>

#include "core/entropy_delta/rans_model.inl"
#include "core/entropy_delta/segment_frame.inl"
#include "core/support/numeric.h"

namespace graftwork::GRAFTWORK_LEVEL {

template <class Format>
constexpr int kClasses = 2 * kWordBits<typename Format::Word> + 1;
template <class Format>
constexpr int kZeroClass = kWordBits<typename Format::Word>;  // symbol of class 0

constexpr int kMaxActivity = kRansLanes * 32;
constexpr int64_t kModelBytes = 2304;  // upper bound of a segment's header
constexpr int64_t kStateBytes = 4 * kRansLanes;

template <class Word>
constexpr int64_t segment_bound(int64_t words) {
  return kModelBytes + kStateBytes + 2 * words + (kWordBits<Word> - 1) * words / 8 + 16;
}

struct EncodeScratch {
  ModelScratch model_scratch;
  ContextCounts counts, merged;
  uint16_t tile[2][kMaxLevels * kExponentSlots * kMaxSymbols];
  RansModel model, other;
  uint32_t activities[kMaxActivity + 1];
  uint8_t level_of[kMaxActivity + 1];
  uint32_t entries[kMaxTables * kMaxSymbols];  // start << 16 | frequency
  uint16_t activity[(1 << kMaxSegmentLog2) / kRansLanes];
  uint8_t level[(1 << kMaxSegmentLog2) / kRansLanes];
  uint8_t symbols[1 << kMaxSegmentLog2];
};

struct DecodeScratch {
  RansModel model;
  uint8_t level_of[kMaxActivity + 1];
  uint32_t slots[kMaxTables << kProbabilityBits];
};

template <class Format>
inline int exponent_slot(typename Format::Word base, int first_exponent) {
  const int slot = exponent_field<Format>(base) - first_exponent;
  return slot < 0 ? 0 : slot >= kExponentSlots ? kExponentSlots - 1 : slot;
}

// The level of every activity: the number of thresholds that it reaches.
inline void fill_levels(const RansModel& model, uint8_t* level_of) {
  for (int activity = 0; activity <= kMaxActivity; ++activity) {
    int level = 0;
    for (int i = 0; i + 1 < model.levels; ++i) level += model.thresholds[i] <= activity;
    level_of[activity] = static_cast<uint8_t>(level);
  }
}

// ---- encoding ----

// Symbols of the words, and of every group of 32 how much it changes: the sum of its |class|.
template <class Format>
void classify(const typename Format::Word* __restrict base, const typename Format::Word* __restrict tuned,
              int count, uint8_t* __restrict symbols, uint16_t* __restrict activity) {
  using Word = typename Format::Word;
  for (int begin = 0; begin < count; begin += kRansLanes) {
    const int lanes = count - begin < kRansLanes ? count - begin : kRansLanes;
    int32_t sum = 0;
    for (int i = begin; i < begin + lanes; ++i) {
      const Word difference = static_cast<Word>(ordinal(tuned[i]) - ordinal(base[i]));
      const Word sign = top_mask(difference);
      const int32_t length = bit_length(static_cast<Word>(static_cast<Word>(difference ^ sign) - sign));
      sum += length;
      symbols[i] = static_cast<uint8_t>(kZeroClass<Format> + (sign ? -length : length));
    }
    activity[begin / kRansLanes] = static_cast<uint16_t>(sum);
  }
}

// The first of sixteen exponents that most words have, judged from every 16th.
template <class Format>
int choose_first_exponent(const typename Format::Word* base, int count, uint32_t* seen) {
  constexpr int kExponents = 1 << Format::kExponentBits;
  std::memset(seen, 0, 4 * kExponents);
  for (int i = 0; i < count; i += 16) ++seen[exponent_field<Format>(base[i])];
  int best = 0;
  uint32_t inside = 0, most = 0;
  for (int last = 0; last < kExponents; ++last) {
    inside += seen[last];
    if (last >= kExponentSlots) inside -= seen[last - kExponentSlots];
    if (inside >= most) {  // of equal windows the last: small exponents are rarer than they are many
      most = inside;
      best = last - kExponentSlots + 1;
    }
  }
  while (best + kExponentSlots - 1 > 0 && best > 0 && seen[best + kExponentSlots - 1] == 0) --best;
  return best < 0 ? 0 : best;
}

// Thresholds that part the groups into kMaxLevels equal shares by the activity before them.
inline void choose_thresholds(const uint16_t* activity, int groups, EncodeScratch& scratch) {
  std::memset(scratch.activities, 0, sizeof scratch.activities);
  for (int g = 0; g < groups; ++g) ++scratch.activities[activity[g]];
  int at = 0;
  int64_t below = 0;  // groups whose activity is below `at`
  for (int i = 1; i < kMaxLevels; ++i) {
    while (at < kMaxActivity && kMaxLevels * below < int64_t{i} * groups) below += scratch.activities[at++];
    scratch.model.thresholds[i - 1] = static_cast<uint16_t>(at);
  }
}

// Counts of the contexts of up to 2^15 words. Neighbouring words often are alike: two sets of counters that take
// turns keep an increment from waiting for the one before.
template <class Format>
void count_tile(const typename Format::Word* base, int begin, int end, EncodeScratch& scratch) {
  constexpr int kRow = kClasses<Format>, kLevel = kExponentSlots * kRow;
  const int first = scratch.model.first_exponent;
  std::memset(scratch.tile, 0, sizeof scratch.tile);
  const auto count_group = [&](int lanes) {
    uint32_t at[kRansLanes];
    const uint32_t level = scratch.level[begin / kRansLanes] * kLevel;
    for (int i = 0; i < lanes; ++i)
      at[i] = level + exponent_slot<Format>(base[begin + i], first) * kRow + scratch.symbols[begin + i];
    for (int i = 0; i < lanes; ++i) ++scratch.tile[i & 1][at[i]];
  };
  for (; begin + kRansLanes <= end; begin += kRansLanes) count_group(kRansLanes);
  if (begin < end) count_group(end - begin);
  for (int q = 0; q < kMaxLevels; ++q)
    for (int x = 0; x < kExponentSlots; ++x)
      for (int s = 0; s < kRow; ++s)
        scratch.counts.counts[q][x][s] +=
            scratch.tile[0][q * kLevel + x * kRow + s] + scratch.tile[1][q * kLevel + x * kRow + s];
}

template <class Format>
void count_contexts(const typename Format::Word* base, int count, EncodeScratch& scratch) {
  constexpr int kTile = 1 << 15;  // no counter of 16 bits overflows
  scratch.level[0] = scratch.level_of[0];
  for (int g = 1; g * kRansLanes < count; ++g) scratch.level[g] = scratch.level_of[scratch.activity[g - 1]];
  std::memset(&scratch.counts, 0, sizeof scratch.counts);
  for (int begin = 0; begin < count; begin += kTile)
    count_tile<Format>(base, begin, count - begin < kTile ? count : begin + kTile, scratch);
}

// Eight levels of activity or none, whichever costs less. Returns what header and symbols cost, in bits.
template <class Format>
int64_t choose_model(const typename Format::Word* base, int count, EncodeScratch& scratch) {
  constexpr int kSymbols = kClasses<Format>;
  RansModel& model = scratch.model;
  model.first_exponent = choose_first_exponent<Format>(base, count, scratch.activities);
  model.levels = kMaxLevels;
  choose_thresholds(scratch.activity, (count + kRansLanes - 1) / kRansLanes, scratch);
  fill_levels(model, scratch.level_of);
  count_contexts<Format>(base, count, scratch);
  std::memset(&scratch.merged, 0, sizeof scratch.merged);
  for (int q = 0; q < kMaxLevels; ++q)
    for (int x = 0; x < kExponentSlots; ++x)
      for (int s = 0; s < kSymbols; ++s) scratch.merged.counts[0][x][s] += scratch.counts.counts[q][x][s];
  scratch.other.first_exponent = model.first_exponent;
  const int64_t alone = choose_tables(scratch.merged, 1, kSymbols, scratch.other, scratch.model_scratch);
  const int64_t split = choose_tables(scratch.counts, kMaxLevels, kSymbols, model, scratch.model_scratch);
  if (split < alone) return split;
  model = scratch.other;
  std::memset(scratch.level, 0, (count + kRansLanes - 1) / kRansLanes);
  return alone;
}

template <class Format>
void fill_entries(const RansModel& model, uint32_t* entries) {
  for (int t = 0; t < model.tables; ++t)
    for (uint32_t s = 0, start = 0; s < kClasses<Format>; ++s) {
      entries[t * kClasses<Format> + s] = start << 16 | model.frequency[t][s];
      start += model.frequency[t][s];
    }
}

// Codes the groups from `last` down to `first` and returns where the words, written backwards, begin.
template <class Format>
uint8_t* encode_groups(const typename Format::Word* base, int count, int first, int last,
                       const EncodeScratch& scratch, uint32_t* states, uint8_t* words) {
  const RansModel& model = scratch.model;
  for (int g = last; g >= first; --g) {
    const int begin = g * kRansLanes;
    for (int lane = (count - begin < kRansLanes ? count - begin : kRansLanes) - 1; lane >= 0; --lane) {
      const int i = begin + lane;
      const int table =
          model.table_of[scratch.level[g]][exponent_slot<Format>(base[i], model.first_exponent)];
      const uint32_t entry = scratch.entries[table * kClasses<Format> + scratch.symbols[i]];
      const uint32_t frequency = entry & 0xffff;
      uint32_t state = states[lane];
      if ((state >> (32 - kProbabilityBits)) >= frequency) {
        words -= 2;
        const uint16_t word = static_cast<uint16_t>(state);
        std::memcpy(words, &word, 2);
        state >>= 16;
      }
      states[lane] = ((state / frequency) << kProbabilityBits) + state % frequency + (entry >> 16);
    }
  }
  return words;
}

// The bits below the leading one of every difference. Returns the end. Words of 16 bits have at most 15 of them, of 32
// bits at most 31: four or two words are joined, side by side in vectors, before they are written.
template <class Format>
uint8_t* write_raw_bits(const typename Format::Word* base, const typename Format::Word* tuned, int count,
                        uint8_t* out) {
  using Word = typename Format::Word;
  constexpr int kBlock = 512;
  uint32_t raw[kBlock];
  uint64_t pairs[kBlock / 2];
  int32_t lengths[kBlock], pair_lengths[kBlock / 2];
  BitWriter bits(out);
  for (int begin = 0; begin < count; begin += kBlock) {
    const int block = count - begin < kBlock ? count - begin : kBlock;
    for (int i = 0; i < block; ++i) {
      const Word difference = static_cast<Word>(ordinal(tuned[begin + i]) - ordinal(base[begin + i]));
      const Word sign = top_mask(difference);
      const Word magnitude = static_cast<Word>(static_cast<Word>(difference ^ sign) - sign);
      const int32_t length = bit_length(magnitude) - 1;
      lengths[i] = length > 0 ? length : 0;
      raw[i] = magnitude & ((uint32_t{1} << lengths[i]) - 1);
    }
    for (int i = block; i % 4 != 0; ++i) lengths[i] = 0, raw[i] = 0;
    const int joined = (block + 3) / 4 * 2;
    for (int i = 0; i < joined; ++i) {
      pairs[i] = raw[2 * i] | static_cast<uint64_t>(raw[2 * i + 1]) << lengths[2 * i];
      pair_lengths[i] = lengths[2 * i] + lengths[2 * i + 1];
    }
    if constexpr (sizeof(Word) == 4) {
      for (int i = 0; i < joined; ++i) bits.put(pairs[i], pair_lengths[i]);
    } else {
      for (int i = 0; i < joined; i += 2)
        bits.put(pairs[i] | pairs[i + 1] << pair_lengths[i], pair_lengths[i] + pair_lengths[i + 1]);
    }
  }
  return bits.finish();
}

// ---- decoding ----

// Where the decoder of a segment is. `words` may run past the last word, into the raw bits, in a malformed segment:
// what was used is compared in the end.
struct Cursor {
  uint32_t states[kRansLanes];
  const uint8_t* words;
  const uint8_t* words_end;
  BitReader raw;
  int activity = 0;
};

template <class Format>
void decode_group(const typename Format::Word* base, typename Format::Word* tuned, int lanes,
                  const DecodeScratch& scratch, Cursor& cursor) {
  using Word = typename Format::Word;
  const RansModel& model = scratch.model;
  const uint8_t* const table_of = model.table_of[scratch.level_of[cursor.activity]];
  cursor.activity = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const uint32_t table = table_of[exponent_slot<Format>(base[lane], model.first_exponent)];
    uint32_t& state = cursor.states[lane];
    const uint32_t entry = scratch.slots[(table << kProbabilityBits) + (state & (kProbabilityTotal - 1))];
    state = (((entry >> kProbabilityBits) & (kProbabilityTotal - 1)) + 1) * (state >> kProbabilityBits) +
            (entry & (kProbabilityTotal - 1));
    if (state < kStateLow) {
      uint16_t word = 0;
      if (cursor.words + 2 <= cursor.words_end) std::memcpy(&word, cursor.words, 2);
      cursor.words += 2;
      state = state << 16 | word;
    }
    const int ordinal_class = static_cast<int>(entry >> 24) - kZeroClass<Format>;
    const int length = ordinal_class < 0 ? -ordinal_class : ordinal_class;
    cursor.activity += length;
    Word magnitude = 0;
    if (length > 0) magnitude = static_cast<Word>((uint32_t{1} << (length - 1)) | cursor.raw.get(length - 1));
    const Word difference = static_cast<Word>(ordinal_class < 0 ? Word{0} - magnitude : magnitude);
    tuned[lane] = from_ordinal(static_cast<Word>(ordinal(base[lane]) + difference));
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
