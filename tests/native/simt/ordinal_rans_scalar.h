// The ordrans bitstream by its definition, word by word and bit by bit: writer, parser and decoder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/entropy_delta/ordinal_rans.cuh"

namespace ordrans {

using graftwork::RansModel;
using graftwork::cuda::RansSegment;
using Bytes = std::vector<uint8_t>;
constexpr int kLanes = 32;

struct Format {
  graftwork::WeightFormat number;
  int word_bytes, exponent_bits;
  const char* name;

  int bits() const { return 8 * word_bytes; }
  int symbols() const { return 2 * bits() + 1; }
  uint64_t mask() const { return (uint64_t{1} << bits()) - 1; }
  uint64_t top() const { return uint64_t{1} << (bits() - 1); }
  uint64_t position(uint64_t word) const { return word & top() ? ~word & mask() : word | top(); }
  uint64_t word(uint64_t position) const { return position & top() ? position ^ top() : ~position & mask(); }
  int exponent_slot(uint64_t base, int first) const {
    const int field = static_cast<int>(base >> (bits() - 1 - exponent_bits)) & ((1 << exponent_bits) - 1);
    return std::clamp(field - first, 0, 15);
  }
  int64_t difference(uint64_t base, uint64_t tuned) const {
    const uint64_t moved = (position(tuned) - position(base)) & mask();
    return static_cast<int64_t>(moved) - (moved & top() ? static_cast<int64_t>(mask()) + 1 : 0);
  }
};

inline int bit_length(uint64_t value) {
  int length = 0;
  while (value >> length != 0) ++length;
  return length;
}

inline int class_of(int64_t difference) {
  const int length = bit_length(static_cast<uint64_t>(std::abs(difference)));
  return difference < 0 ? -length : length;
}

// Bits, least significant first, padded with zeros to a byte.
struct BitWriter {
  Bytes bytes;
  size_t used = 0;

  void put(uint64_t value, int count) {
    for (int k = 0; k < count; ++k, ++used) {
      if (used % 8 == 0) bytes.push_back(0);
      bytes.back() |= static_cast<uint8_t>((value >> k & 1) << used % 8);
    }
  }
};

struct BitReader {
  const uint8_t* bytes;
  size_t size, used = 0;  // bytes, bits

  uint64_t get(int count) {
    uint64_t value = 0;
    for (int k = 0; k < count; ++k, ++used)
      if (used < 8 * size) value |= static_cast<uint64_t>(bytes[used / 8] >> used % 8 & 1) << k;
    return value;
  }
  bool inside() const { return used <= 8 * size; }
  bool used_up() { return inside() && 8 * size - used < 8 && get(static_cast<int>(8 * size - used)) == 0; }
};

template <class T>
void append(Bytes& bytes, T value) {
  const auto* const from = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), from, from + sizeof value);
}

template <class T>
T read(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// How the writer of a test makes its models: any choice is legal.
struct Choice {
  int levels = 1, tables = 1, first_exponent = 0;
  std::vector<int> thresholds = {};
};

// A segment's words, with what each is coded as.
struct Coded {
  std::vector<int> classes, table;
  std::vector<uint64_t> raw;
};

inline Coded classify(const uint64_t* base, const uint64_t* tuned, size_t count, const Format& of,
                      RansModel& model) {
  Coded coded;
  int activity = 0, level = 0;
  for (size_t i = 0; i < count; ++i) {
    if (i % kLanes == 0) {
      level = 0;
      for (int k = 0; k + 1 < model.levels; ++k) level += model.thresholds[k] <= activity;
      activity = 0;
    }
    const int64_t difference = of.difference(base[i], tuned[i]);
    coded.classes.push_back(class_of(difference));
    coded.raw.push_back(static_cast<uint64_t>(std::abs(difference)));
    coded.table.push_back(model.table_of[level][of.exponent_slot(base[i], model.first_exponent)]);
    activity += std::abs(coded.classes.back());
  }
  return coded;
}

// Some model: tables are spread over the contexts, frequencies follow the symbols.
inline RansModel make_model(const Choice& choice) {
  RansModel model{};
  model.levels = choice.levels;
  model.tables = choice.tables;
  model.first_exponent = choice.first_exponent;
  std::copy(choice.thresholds.begin(), choice.thresholds.end(), model.thresholds);
  for (int q = 0; q < model.levels; ++q)
    for (int x = 0; x < 16; ++x) model.table_of[q][x] = static_cast<uint8_t>((3 * q + x) % model.tables);
  return model;
}

inline void count_frequencies(const Coded& coded, const Format& of, RansModel& model) {
  std::vector<std::vector<int>> counts(model.tables, std::vector<int>(of.symbols()));
  for (size_t i = 0; i < coded.classes.size(); ++i) ++counts[coded.table[i]][coded.classes[i] + of.bits()];
  for (int t = 0; t < model.tables; ++t) {
    uint16_t* const frequency = model.frequency[t];
    int total = 0, sum = 0;
    for (const int count : counts[t]) total += count;
    for (int s = 0; s < of.symbols(); ++s) {
      frequency[s] = counts[t][s] == 0 ? 0 : static_cast<uint16_t>(std::max(1, 4000 * counts[t][s] / total));
      sum += frequency[s];
    }
    *std::max_element(frequency, frequency + of.symbols()) += static_cast<uint16_t>(4096 - sum);
  }
}

inline Bytes write_model(const RansModel& model, const Format& of, size_t words) {
  Bytes bytes = {static_cast<uint8_t>(bit_length(model.levels) - 1), static_cast<uint8_t>(model.tables),
                 static_cast<uint8_t>(model.first_exponent), 0};
  append(bytes, static_cast<uint32_t>(words));
  for (int k = 0; k + 1 < model.levels; ++k) append(bytes, model.thresholds[k]);
  BitWriter bits;
  for (int x = 0; x < 16; ++x)
    for (int q = 0; q < model.levels; ++q) bits.put(model.table_of[q][x], 4);
  for (int t = 0; t < model.tables; ++t) {
    int low = 0, high = of.symbols() - 1;
    while (model.frequency[t][low] == 0) ++low;
    while (model.frequency[t][high] == 0) --high;
    bits.put(low, 7);
    bits.put(high, 7);
    for (int s = low; s <= high; ++s) {
      const int length = bit_length(model.frequency[t][s]);
      bits.put(length, 4);
      if (length > 1) bits.put(model.frequency[t][s], length - 1);
    }
  }
  bytes.insert(bytes.end(), bits.bytes.begin(), bits.bytes.end());
  return bytes;
}

inline uint32_t start_of(const uint16_t* frequency, int symbol) {
  uint32_t start = 0;
  for (int s = 0; s < symbol; ++s) start += frequency[s];
  return start;
}

inline Bytes encode_segment(const uint64_t* base, const uint64_t* tuned, size_t count, const Format& of,
                            const Choice& choice) {
  RansModel model = make_model(choice);
  const Coded coded = classify(base, tuned, count, of, model);
  count_frequencies(coded, of, model);
  uint32_t states[kLanes];
  std::fill_n(states, kLanes, 1u << 16);
  std::vector<uint16_t> words;  // backwards
  for (size_t i = count; i-- > 0;) {
    const uint16_t* const table = model.frequency[coded.table[i]];
    const int symbol = coded.classes[i] + of.bits();
    const uint32_t frequency = table[symbol];
    uint32_t& state = states[i % kLanes];
    if (state >= uint64_t{frequency} << 20) {
      words.push_back(static_cast<uint16_t>(state));
      state >>= 16;
    }
    state = (state / frequency << 12) + state % frequency + start_of(table, symbol);
  }
  Bytes bytes = write_model(model, of, words.size());
  for (const uint32_t state : states) append(bytes, state);
  for (size_t k = words.size(); k-- > 0;) append(bytes, words[k]);
  BitWriter raw;
  for (size_t i = 0; i < count; ++i) raw.put(coded.raw[i], std::max(0, std::abs(coded.classes[i]) - 1));
  bytes.insert(bytes.end(), raw.bytes.begin(), raw.bytes.end());
  return bytes;
}

// The payload of all words, in segments of 2^log2_segment (which may be fewer than the format's 2^16 here).
inline Bytes encode(const std::vector<uint64_t>& base, const std::vector<uint64_t>& tuned, const Format& of,
                    const Choice& choice, int log2_segment) {
  Bytes payload = {static_cast<uint8_t>(log2_segment), 0, 0, 0}, segments;
  const size_t each = size_t{1} << log2_segment;
  for (size_t begin = 0; begin < base.size(); begin += each) {
    const Bytes one =
        encode_segment(&base[begin], &tuned[begin], std::min(each, base.size() - begin), of, choice);
    append(payload, static_cast<uint32_t>(one.size()));
    segments.insert(segments.end(), one.begin(), one.end());
  }
  payload.insert(payload.end(), segments.begin(), segments.end());
  return payload;
}

inline bool parse_tables(BitReader& bits, const Format& of, RansModel& model) {
  for (int t = 0; t < model.tables; ++t) {
    const int low = static_cast<int>(bits.get(7)), high = static_cast<int>(bits.get(7));
    if (low > high || high >= of.symbols()) return false;
    uint64_t sum = 0;
    for (int s = low; s <= high; ++s) {
      const int length = static_cast<int>(bits.get(4));
      const uint64_t frequency = length == 0 ? 0 : uint64_t{1} << (length - 1) | bits.get(length - 1);
      if (frequency > 4096) return false;
      model.frequency[t][s] = static_cast<uint16_t>(frequency);
      sum += frequency;
    }
    if (sum != 4096 || model.frequency[t][low] == 0 || model.frequency[t][high] == 0) return false;
  }
  return bits.inside();
}

// The segment in bytes [at, at + size) of the payload.
inline std::optional<RansSegment> parse_segment(const Bytes& payload, size_t at, size_t size,
                                                const Format& of) {
  RansSegment segment{};
  RansModel& model = segment.model;
  const uint8_t* const bytes = payload.data() + at;
  if (size < 8 || bytes[0] > 3 || bytes[1] < 1 || bytes[1] > 16 || bytes[3] != 0) return {};
  model.levels = 1 << bytes[0];
  model.tables = bytes[1];
  model.first_exponent = bytes[2];
  const size_t fixed = 8 + 2 * (model.levels - 1), words = read<uint32_t>(bytes + 4);
  if (size < fixed) return {};
  for (int k = 0; k + 1 < model.levels; ++k) {
    model.thresholds[k] = read<uint16_t>(bytes + 8 + 2 * k);
    if (k > 0 && model.thresholds[k] < model.thresholds[k - 1]) return {};
  }
  BitReader bits{bytes + fixed, size - fixed};
  for (int x = 0; x < 16; ++x)
    for (int q = 0; q < model.levels; ++q) {
      model.table_of[q][x] = static_cast<uint8_t>(bits.get(4));
      if (model.table_of[q][x] >= model.tables) return {};
    }
  if (!parse_tables(bits, of, model)) return {};
  const size_t states = fixed + (bits.used + 7) / 8, raw = states + 4 * kLanes + 2 * words;
  if (raw > size) return {};
  segment.states = static_cast<int64_t>(at + states);
  segment.rans_words = static_cast<int32_t>(words);
  segment.raw_bytes = static_cast<int32_t>(size - raw);
  return segment;
}

inline std::optional<std::vector<RansSegment>> parse(const Bytes& payload, size_t numel, const Format& of,
                                                     int least_log2 = 0) {
  if (payload.size() < 4 || payload[0] < least_log2 || payload[0] > 20) return {};
  if (payload[1] != 0 || payload[2] != 0 || payload[3] != 0) return {};
  const size_t each = size_t{1} << payload[0], count = (numel + each - 1) / each;
  if (payload.size() < 4 + 4 * count) return {};
  std::vector<RansSegment> segments;
  size_t at = 4 + 4 * count;
  for (size_t k = 0; k < count; ++k) {
    const size_t size = read<uint32_t>(&payload[4 + 4 * k]);
    if (size > payload.size() - at) return {};
    auto segment = parse_segment(payload, at, size, of);
    if (!segment) return {};
    segment->first_word = static_cast<int64_t>(k * each);
    segment->words = static_cast<int32_t>(std::min(each, numel - k * each));
    segments.push_back(*segment);
    at += size;
  }
  if (at != payload.size()) return {};
  return segments;
}

// What is left of a segment's three streams.
struct Cursor {
  uint32_t states[kLanes];
  BitReader words, raw;
};

inline uint64_t decode_word(uint64_t base, const uint16_t* table, uint32_t& state, Cursor& at,
                            const Format& of, int* activity) {
  const uint32_t slot = state & 4095;
  int symbol = 0;
  uint32_t start = 0;
  while (slot >= start + table[symbol]) start += table[symbol++];
  state = table[symbol] * (state >> 12) + slot - start;
  if (state < 1u << 16) state = state << 16 | static_cast<uint32_t>(at.words.get(16));
  const int length = std::abs(symbol - of.bits());
  *activity += length;
  if (length == 0) return base;
  const uint64_t distance = uint64_t{1} << (length - 1) | at.raw.get(length - 1);
  const uint64_t position = of.position(base);
  return of.word((symbol < of.bits() ? position - distance : position + distance) & of.mask());
}

// The words of a segment, or nothing if it is malformed.
inline std::optional<std::vector<uint64_t>> decode_segment(const Bytes& payload, const RansSegment& segment,
                                                           const uint64_t* base, const Format& of) {
  const uint8_t* const states = payload.data() + segment.states;
  const uint8_t* const words = states + 4 * kLanes;
  const size_t word_bytes = 2 * static_cast<size_t>(segment.rans_words);
  Cursor at{{}, {words, word_bytes}, {words + word_bytes, static_cast<size_t>(segment.raw_bytes)}};
  std::memcpy(at.states, states, sizeof at.states);
  std::vector<uint64_t> tuned;
  int activity = 0, level = 0;
  for (int i = 0; i < segment.words; ++i) {
    if (i % kLanes == 0) {
      level = 0;
      for (int k = 0; k + 1 < segment.model.levels; ++k) level += segment.model.thresholds[k] <= activity;
      activity = 0;
    }
    const int table = segment.model.table_of[level][of.exponent_slot(base[i], segment.model.first_exponent)];
    tuned.push_back(
        decode_word(base[i], segment.model.frequency[table], at.states[i % kLanes], at, of, &activity));
  }
  for (const uint32_t state : at.states)
    if (state != 1u << 16) return {};
  if (at.words.used != 8 * word_bytes || !at.raw.used_up()) return {};
  return tuned;
}

}  // namespace ordrans
