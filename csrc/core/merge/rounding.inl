// From float32 to the words of a format, to the nearest or at random; every NaN becomes the same one.
#pragma once

#include "core/merge/donors.inl"
#include "core/merge/philox.inl"
#include "core/sparse_update/tile.inl"

namespace graftwork::GRAFTWORK_LEVEL {

// A choice without a branch: the compiler makes one of a conditional whose sides it can tell apart.
inline uint32_t choose(bool first, uint32_t one, uint32_t other) {
  const uint32_t mask = 0u - static_cast<uint32_t>(first);
  return (one & mask) | (other & ~mask);
}

template <class Format>
inline typename Format::Word nearest_word(float x) {
  const uint32_t bits = choose(absolute_bits(x) > kInfinity32, kNan32, bit_cast<uint32_t>(x));
  return word_of<Format>(bit_cast<float>(bits));
}

template <>
inline uint32_t nearest_word<Float32>(float x) {
  return choose(absolute_bits(x) > kInfinity32, kNan32, bit_cast<uint32_t>(x));
}

template <>
inline uint16_t nearest_word<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(choose(absolute_bits(x) > kInfinity32, kNan32 >> 16, rounded));
}

// Up where the bits that are cut off, as a share of the spacing, exceed those of the random word. From the largest
// finite number on to the nearest.
template <class Format>
inline typename Format::Word random_word(float x, uint32_t random);

template <>
inline uint32_t random_word<Float32>(float x, uint32_t) {
  return nearest_word<Float32>(x);
}

template <>
inline uint16_t random_word<BFloat16>(float x, uint32_t random) {
  const uint32_t magnitude = absolute_bits(x), sign = bit_cast<uint32_t>(x) >> 16 & 0x8000u;
  const uint32_t rounded = (magnitude + (random & 0xffffu)) >> 16;
  return static_cast<uint16_t>(choose(magnitude >= 0x7f7f0000u, nearest_word<BFloat16>(x), rounded | sign));
}

template <>
inline uint16_t random_word<Float16>(float x, uint32_t random) {
  const uint32_t magnitude = absolute_bits(x), sign = bit_cast<uint32_t>(x) >> 16 & 0x8000u;
  const uint32_t normal = (magnitude + (random & 0x1fffu) - (112u << 23)) >> 13;
  const bool small = magnitude < 0x38800000u;
  // Below 2^-14 the spacing is 2^-24: whole steps, and the share of one that is left, both exact.
  const float steps = bit_cast<float>(choose(small, magnitude, 0)) * 0x1p24f;
  const int32_t whole = static_cast<int32_t>(steps);
  const float left = steps - static_cast<float>(whole);
  const bool up = static_cast<float>(static_cast<int32_t>(random >> 8)) * 0x1p-24f < left;
  const uint32_t rounded = choose(small, static_cast<uint32_t>(whole + up), normal);
  return static_cast<uint16_t>(choose(magnitude >= 0x477fe000u, nearest_word<Float16>(x), rounded | sign));
}

// Where a merge goes, and how.
struct Output {
  void* words;
  WeightFormat format;
  float* residual;  // may be nullptr
  bool stochastic;
  PhiloxKey key;

  void check_format() const {
    with_format(format, []<class Format>() {});
  }
};

struct WrittenCounts {
  int64_t changed, lost, overflowed;
};

// How a tile's values are made: `moved` itself, with or without a start that it is compared with, or start + moved.
enum class Values { moved, moved_from_start, start_and_moved };

// The start itself where nothing is added, since adding +0 would make a start of -0 positive.
template <Values values>
inline float moved_value(float start, float moved) {
  if constexpr (values == Values::start_and_moved) return moved == 0 ? start : start + moved;
  return moved;
}

// Rounds a tile, and counts what became of the updates.
template <class Format, Values values, bool kRandom>
inline void round_words(const float* __restrict start, const float* __restrict moved,
                        const uint32_t* __restrict random, int count, typename Format::Word* __restrict words,
                        WrittenCounts& counts) {
  int32_t changed = 0, lost = 0, overflowed = 0;
  for (int i = 0; i < count; ++i) {
    const float value = moved_value<values>(start[i], moved[i]);
    const typename Format::Word word =
        kRandom ? random_word<Format>(value, random[i]) : nearest_word<Format>(value);
    words[i] = word;
    const float kept = Format::value(word);
    const int32_t finite = absolute_bits(value) < kInfinity32;
    overflowed += finite & static_cast<int32_t>(absolute_bits(kept) >= kInfinity32);
    if constexpr (values != Values::moved) {
      const int32_t same = word == nearest_word<Format>(start[i]);
      const int32_t update = values == Values::start_and_moved ? moved[i] != 0 : value != start[i];
      changed += 1 - same;
      lost += same & update & finite;
    }
  }
  counts.changed += changed;
  counts.lost += lost;
  counts.overflowed += overflowed;
}

// The same to the nearest, where the format holds the starts and these are finite: what is not moved is the same, so
// that lost is what is the same and moved; nothing overflows unless a word is infinite, which few tiles have.
template <class Format>
inline void round_exactly(const float* __restrict start, const float* __restrict moved, int count,
                          typename Format::Word* __restrict words, WrittenCounts& counts) {
  int32_t unmoved = 0, unchanged = 0, largest = 0;
  for (int i = 0; i < count; ++i) {
    const float value = moved_value<Values::start_and_moved>(start[i], moved[i]);
    words[i] = nearest_word<Format>(value);
    const uint32_t kept = bit_cast<uint32_t>(Format::value(words[i]));
    unmoved += moved[i] == 0;
    unchanged += kept == bit_cast<uint32_t>(start[i]);
    const int32_t magnitude = static_cast<int32_t>(kept & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
  }
  counts.changed += count - unchanged;
  counts.lost += unchanged - unmoved;
  if (largest < static_cast<int32_t>(kInfinity32)) return;
  for (int i = 0; i < count; ++i) {
    const int32_t finite =
        absolute_bits(moved_value<Values::start_and_moved>(start[i], moved[i])) < kInfinity32;
    counts.overflowed += finite & static_cast<int32_t>(absolute_bits(Format::value(words[i])) >= kInfinity32);
  }
}

template <class Format, Values values>
inline void write_words(const Output& out, int64_t begin, int count, const float* __restrict start,
                        bool exact, const float* __restrict moved, WrittenCounts& counts) {
  using Word = typename Format::Word;
  Word* const words = static_cast<Word*>(out.words) + begin;
  if (out.stochastic) {
    PhiloxTile<kMergeTile> tile;
    const uint32_t* const random = tile.fill(out.key, begin, count);
    round_words<Format, values, true>(start, moved, random, count, words, counts);
  } else if (values == Values::start_and_moved && exact) {
    round_exactly<Format>(start, moved, count, words, counts);
  } else {
    round_words<Format, values, false>(start, moved, nullptr, count, words, counts);
  }
  if (out.residual == nullptr) return;
  float* __restrict const residual = out.residual + begin;
  for (int i = 0; i < count; ++i) {
    const float kept = Format::value(words[i]);
    const float left = moved_value<values>(start[i], moved[i]) - kept;
    residual[i] = absolute_bits(kept) < kInfinity32 ? left : 0.0f;
  }
}

// Writes one tile; `start` is not read for Values::moved.
template <Values values>
inline void write_tile(const Output& out, int64_t begin, int count, const float* start, bool exact,
                       const float* moved, WrittenCounts& counts) {
  with_format(out.format, [&]<class Format>() {
    write_words<Format, values>(out, begin, count, start, exact, moved, counts);
  });
}

}  // namespace graftwork::GRAFTWORK_LEVEL
