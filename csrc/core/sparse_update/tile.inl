// Entries a tile at a time: their words read from the tensors and written back, their values as floats. What is next
// is prefetched, since the addresses are known long before: sorted indices touch each line once.
#pragma once

#include <cstdint>

#include "core/sparse_update/arena.h"
#include "core/support/numeric.h"

#if defined(GRAFTWORK_LEVEL_IS_avx512)
#include "core/sparse_update/gather.avx512.inl"
#define GRAFTWORK_HAS_GATHER_LANES
#elif defined(GRAFTWORK_LEVEL_IS_avx2)
#include "core/sparse_update/gather.avx2.inl"
#define GRAFTWORK_HAS_GATHER_LANES
#endif

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kEntryTile = 128;  // entries, at most: a tile's arrays stay in the L1 cache

// Entries of a tile. Few entries lie on a page each: what is fetched must be used before its page is forgotten.
inline int entry_tile(int64_t entries) { return entries < int64_t{1} << 18 ? 16 : kEntryTile; }

// Calls body(begin, count) for the tiles of a span, and prefetch(begin, count) for each entry two tiles before.
template <class Prefetch, class Body>
inline void for_each_entry_tile(int64_t begin, int64_t end, int tile, const Prefetch& prefetch,
                                const Body& body) {
  const auto some = [&](int64_t from, int64_t until) {
    if (from < end) prefetch(from, static_cast<int>((until < end ? until : end) - from));
  };
  some(begin, begin + 2 * tile);
  for (; begin < end; begin += tile) {
    some(begin + 2 * tile, begin + 3 * tile);
    body(begin, static_cast<int>(end - begin < tile ? end - begin : tile));
  }
}

// Whether most cache lines from the first index to the last have a word that is wanted.
template <class Index>
inline bool is_dense(const Index* index, int count, int log2_bytes) {
  constexpr int64_t kLine = 64;
  return (static_cast<int64_t>(index[count - 1] - index[0]) << log2_bytes) <= count * kLine / 2;
}

// Into the second cache: it has room for many more lines on their way than the first. All lines where most are wanted:
// they are fewer than the words.
template <class Index>
inline void prefetch_words(const void* dense, int log2_bytes, const Index* index, int count) {
  constexpr int64_t kLine = 64;
  asm volatile("");  // else GCC takes the function for one without effect, and leaves its calls out
  if (count == 0) return;
  const char* const words = static_cast<const char*>(dense);
  const auto prefetch = [words](int64_t at) { __builtin_prefetch(words + at, 0, 2); };
  if (is_dense(index, count, log2_bytes)) {
    const int64_t last = static_cast<int64_t>(index[count - 1]) << log2_bytes;
    for (int64_t at = static_cast<int64_t>(index[0]) << log2_bytes; at < last + kLine; at += kLine)
      prefetch(at);
  } else {
    for (int i = 0; i < count; ++i) prefetch(static_cast<int64_t>(index[i]) << log2_bytes);
  }
}

template <class Word, class Index>
inline void gather_words(const Word* __restrict dense, const Index* __restrict index, int count,
                         Word* __restrict out) {
#ifdef GRAFTWORK_HAS_GATHER_LANES
  // Lanes wait for several lines at once; where the lines are at hand, words one by one are faster.
  if constexpr (sizeof(Word) == 4)
    if (count > 0 && !is_dense(index, count, 2)) return gather_lanes(dense, index, count, out);
#endif
  for (int i = 0; i < count; ++i) out[i] = dense[index[i]];
}

template <class Word, class Index>
inline void scatter_words(Word* __restrict dense, const Index* __restrict index, int count,
                          const Word* __restrict words) {
  for (int i = 0; i < count; ++i) dense[index[i]] = words[i];
}

// The nearest word of the format, ties to even; past the largest it is infinite, and a NaN stays one.
template <class Format>
inline typename Format::Word word_of(float x);

template <>
inline uint32_t word_of<Float32>(float x) {
  return bit_cast<uint32_t>(x);
}

template <>
inline uint16_t word_of<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40 : rounded);
}

template <>
inline uint16_t word_of<Float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  // Below 2^-14 the spacing is 2^-24, that of floats from 1/2 on.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - ((127 - 15) << 23)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t bounded = magnitude >= 0x477ff000u ? 0x7c00u : finite;  // from 65520 on
  return static_cast<uint16_t>((magnitude > 0x7f800000u ? 0x7e00u : bounded) | sign >> 16);
}

template <class Format>
inline void values_of(const typename Format::Word* __restrict words, int count, float* __restrict values) {
  for (int i = 0; i < count; ++i) values[i] = Format::value(words[i]);
}

template <class Format>
inline void words_of(const float* __restrict values, int count, typename Format::Word* __restrict words) {
  for (int i = 0; i < count; ++i) words[i] = word_of<Format>(values[i]);
}

template <class Format>
constexpr int kLog2Bytes = sizeof(typename Format::Word) == 2 ? 1 : 2;

// The same for formats that are known at run time: one choice for each tile, not for each entry.

template <class Index>
struct WordReader {
  int log2_bytes;
  void (*gather)(const void* dense, const Index* index, int count, float* values);
  void (*load)(const void* words, int64_t begin, int count, float* values);

  explicit WordReader(WeightFormat format) {
    with_format(format, [this]<class Format>() {
      using Word = typename Format::Word;
      log2_bytes = kLog2Bytes<Format>;
      gather = [](const void* dense, const Index* index, int count, float* values) {
        if constexpr (sizeof(Word) == sizeof(float)) {
          gather_words(static_cast<const Word*>(dense), index, count, reinterpret_cast<Word*>(values));
        } else {
          Word words[kEntryTile];
          gather_words(static_cast<const Word*>(dense), index, count, words);
          values_of<Format>(words, count, values);
        }
      };
      load = [](const void* words, int64_t begin, int count, float* values) {
        values_of<Format>(static_cast<const Word*>(words) + begin, count, values);
      };
    });
  }
};

template <class Index>
struct WordWriter {
  int log2_bytes;
  void (*scatter)(void* dense, const Index* index, int count, const float* values);

  explicit WordWriter(WeightFormat format) {
    with_format(format, [this]<class Format>() {
      using Word = typename Format::Word;
      log2_bytes = kLog2Bytes<Format>;
      scatter = [](void* dense, const Index* index, int count, const float* values) {
        Word words[kEntryTile];
        words_of<Format>(values, count, words);
        scatter_words(static_cast<Word*>(dense), index, count, words);
      };
    });
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
