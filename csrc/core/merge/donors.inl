// The tensors of one merge, a tile at a time: a base and donors of any formats, their differences in float32.
#pragma once

#include <cstdint>

#include "core/sparse_update/scores.inl"
#include "core/support/numeric.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kMergeTile = 1024;  // elements: the tiles of a few donors stay in the L1 cache
constexpr int kTileRoom =
    kMergeTile + 3 * 16;  // for one tile: 4 KiB apart, addresses would be taken for each other
constexpr uint32_t kInfinity32 = 0x7f800000;
constexpr uint32_t kNan32 = 0x7fc00000;

inline uint32_t absolute_bits(float x) { return bit_cast<uint32_t>(x) & 0x7fffffffu; }

// The magnitude's bits, in the order of the magnitudes; every NaN is alike.
inline uint32_t score_of(float x) {
  const uint32_t bits = absolute_bits(x);
  return bits > kInfinity32 ? kNan32 : bits;
}

constexpr int kFetchedTogether = 256;  // words whose lines are fetched before they are looked at
constexpr int kFetchedBefore =
    3072;  // bytes: a tile and a half of 16-bit words; other tensors are read meanwhile

// Has the lines fetched that come a little later, past the end too, where it does nothing.
template <class Word>
inline void fetch_lines(const Word* from) {
  constexpr int kLine = 64 / sizeof(Word);
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + kFetchedBefore;
  for (int i = 0; i < kFetchedTogether; i += kLine)
    __builtin_prefetch(reinterpret_cast<const void*>(at + i * sizeof(Word)), 0, 2);
}

// use(i, value) for every word, a stretch at a time. Returns whether all are finite.
template <class Format, class Use>
inline bool for_each_word(const typename Format::Word* words, int count, const Use& use) {
  int32_t largest = 0;
  for (int begin = 0; begin < count; begin += kFetchedTogether) {
    const int end = begin + kFetchedTogether < count ? begin + kFetchedTogether : count;
    fetch_lines(words + begin);
    for (int i = begin; i < end; ++i) {
      const float value = Format::value(words[i]);
      const int32_t magnitude = static_cast<int32_t>(absolute_bits(value));
      largest = magnitude > largest ? magnitude : largest;
      use(i, value);
    }
  }
  return largest < static_cast<int32_t>(kInfinity32);
}

// values[i] = word i as a float, less[i] taken away where `less` is given. Returns whether all words are finite.
template <class Format>
inline bool load_words(const typename Format::Word* __restrict words, const float* __restrict less, int count,
                       float* __restrict values) {
  if (less == nullptr)
    return for_each_word<Format>(words, count, [=](int i, float value) { values[i] = value; });
  return for_each_word<Format>(words, count, [=](int i, float value) { values[i] = value - less[i]; });
}

// sums[i] = product, or sums[i] + product: word i as a float, less[i] taken away, times a coefficient.
template <class Format, bool kLess, bool kFirst>
inline bool add_words(const typename Format::Word* __restrict words, const float* __restrict less,
                      float coefficient, int count, float* __restrict sums) {
  return for_each_word<Format>(words, count, [=](int i, float value) {
    const float product = (kLess ? value - less[i] : value) * coefficient;
    sums[i] = kFirst ? product : sums[i] + product;
  });
}

// The donors, and the base after them, which may be missing (nullptr).
struct Donors {
  const void* const* words;
  const int32_t* formats;
  int64_t count;
  bool zero_nonfinite;

  bool has_base() const { return words[count] != nullptr; }

  void check_formats() const {  // the loops must not throw
    for (int64_t t = 0; t <= count; ++t)
      with_format(static_cast<WeightFormat>(formats[t]), []<class Format>() {});
  }

  bool load(int64_t tensor, int64_t begin, int elements, const float* less, float* values) const {
    bool finite = true;
    with_format(static_cast<WeightFormat>(formats[tensor]), [&]<class Format>() {
      using Word = typename Format::Word;
      finite = load_words<Format>(static_cast<const Word*>(words[tensor]) + begin, less, elements, values);
    });
    return finite;
  }
};

// The same with what is not known before.
inline bool add_donor(const Donors& donors, int64_t donor, int64_t begin, const float* less,
                      float coefficient, bool first, int count, float* sums) {
  bool finite = true;
  with_format(static_cast<WeightFormat>(donors.formats[donor]), [&]<class Format>() {
    const auto* const words = static_cast<const typename Format::Word*>(donors.words[donor]) + begin;
    if (less == nullptr)
      finite = first ? add_words<Format, false, true>(words, less, coefficient, count, sums)
                     : add_words<Format, false, false>(words, less, coefficient, count, sums);
    else
      finite = first ? add_words<Format, true, true>(words, less, coefficient, count, sums)
                     : add_words<Format, true, false>(words, less, coefficient, count, sums);
  });
  return finite;
}

// One tile: the base's values, once for all donors.
struct TileReader {
  const Donors& donors;
  int64_t begin = 0;
  int count = 0;
  bool base_finite = true;
  alignas(64) float base[kTileRoom];

  explicit TileReader(const Donors& of) : donors(of) {}

  void move_to(int64_t at, int elements) {
    begin = at;
    count = elements;
    base_finite = !donors.has_base() || donors.load(donors.count, begin, count, nullptr, base);
  }

  // The differences of a donor's tile; false where one of the donor's own elements is not finite.
  bool difference(int64_t donor, float* __restrict values) const {
    const bool finite = donors.load(donor, begin, count, donors.has_base() ? base : nullptr, values);
    if (donors.zero_nonfinite && !(finite && base_finite)) zero_where_not_finite(donor, values);
    return finite;
  }

  // What the differences are added to: the base, or what stands for its elements that are not finite.
  void settle_base() {
    if (!donors.zero_nonfinite || base_finite) return;
    for (int i = 0; i < count; ++i) base[i] = absolute_bits(base[i]) < kInfinity32 ? base[i] : 0.0f;
  }

 private:
  void zero_where_not_finite(int64_t donor, float* __restrict values) const {
    alignas(64) float own[kTileRoom];
    donors.load(donor, begin, count, nullptr, own);
    for (int i = 0; i < count; ++i) {
      const bool finite =
          absolute_bits(own[i]) < kInfinity32 && (base_finite || absolute_bits(base[i]) < kInfinity32);
      values[i] = finite ? values[i] : 0.0f;
    }
  }
};

// A thread's part of a workspace, taken when it first needs it.
struct Slots {
  uint8_t* workspace;
  int64_t bytes;  // of each
  int64_t taken = 0;

  uint8_t* take() { return workspace + bytes * __atomic_fetch_add(&taken, int64_t{1}, __ATOMIC_RELAXED); }
};

inline int64_t rounded_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The population variance of `donors` tiles of differences, kTileRoom apart.
inline void variance_of(const float* __restrict differences, int64_t donors, int count,
                        float* __restrict variance) {
  alignas(64) float mean[kTileRoom];
  const float number = static_cast<float>(donors);
  for (int i = 0; i < count; ++i) mean[i] = variance[i] = 0;
  for (int64_t donor = 0; donor < donors; ++donor) {
    const float* const mine = differences + donor * kTileRoom;
    for (int i = 0; i < count; ++i) mean[i] += mine[i];
  }
  for (int i = 0; i < count; ++i) mean[i] /= number;
  for (int64_t donor = 0; donor < donors; ++donor) {
    const float* const mine = differences + donor * kTileRoom;
    for (int i = 0; i < count; ++i) {
      const float apart = mine[i] - mean[i];
      variance[i] += apart * apart;
    }
  }
  for (int i = 0; i < count; ++i) variance[i] /= number;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
