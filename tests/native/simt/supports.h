// Supports of several tensors and what goes with them, for programs that compare kernels with the CPU's loops.
#pragma once

#include <array>
#include <cmath>
#include <numeric>

#include "harness.h"

// The CPU's loops are compiled into the program as the baseline level, on one thread.
#define GRAFTWORK_LEVEL baseline
#define GRAFTWORK_LEVEL_IS_baseline

namespace supports {

using harness::Buffer;

// Arrays start on a sector, as a GPU's allocator has it.
template <class T>
struct OnSectors {
  using value_type = T;
  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(256)));
  }
  void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t(256)); }
  bool operator==(const OnSectors&) const { return true; }
};
template <class T>
using Array = std::vector<T, OnSectors<T>>;

constexpr int kFormats[] = {0, 1, 2};  // float16, bfloat16, float32
constexpr int kIndexBytes[] = {4, 8};

inline int word_bytes(int format) { return format == 2 ? 4 : 2; }

// Some of the weights of several tensors.
struct Support {
  std::vector<int64_t> numels, index;
  Array<int64_t> offsets{0};

  int64_t tensors() const { return static_cast<int64_t>(numels.size()); }
  int64_t entries() const { return offsets.back(); }

  void add(int64_t numel, const std::vector<int64_t>& chosen) {
    numels.push_back(numel);
    index.insert(index.end(), chosen.begin(), chosen.end());
    offsets.push_back(static_cast<int64_t>(index.size()));
  }

  // Takes the entries of all other tensors away.
  void keep_tensor(int64_t tensor) {
    index.assign(index.begin() + offsets[tensor], index.begin() + offsets[tensor + 1]);
    for (int64_t t = 0; t <= tensors(); ++t)
      offsets[t] = t <= tensor ? 0 : static_cast<int64_t>(index.size());
  }

  Buffer indices(int bytes) const {
    std::vector<uint8_t> packed(index.size() * bytes);
    for (size_t k = 0; k < index.size(); ++k) std::memcpy(packed.data() + k * bytes, &index[k], bytes);
    return Buffer(packed, 0);
  }
};

// About so many entries: one or all of a tensor in some, none in others, a third of the weights in the rest.
inline Support make_support(int64_t entries, int tensors, unsigned seed) {
  std::mt19937_64 random(seed);
  Support support;
  for (int t = 0; t < tensors; ++t) {
    const int64_t left = entries - support.entries();
    const int64_t share = t + 1 == tensors ? left : t % 4 == 1 ? 0 : t % 4 == 2 ? 1 : left / 2;
    const int64_t count = std::min(share, left), numel = t % 3 == 0 ? count : 3 * count + 7;
    std::vector<int64_t> all(numel);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    all.resize(count);
    std::sort(all.begin(), all.end());
    support.add(numel, all);
  }
  return support;
}

// Another support of the same tensors, which has about half of this one's entries and some of its own; seed
// 0: none.
inline Support other_support(const Support& support, unsigned seed) {
  std::mt19937_64 random(seed);
  Support other;
  for (int64_t t = 0; t < support.tensors(); ++t) {
    std::vector<bool> is_there(support.numels[t]);
    for (int64_t k = support.offsets[t]; k < support.offsets[t + 1]; ++k) is_there[support.index[k]] = true;
    std::vector<int64_t> chosen;
    for (int64_t k = 0; k < support.numels[t]; ++k)
      if (seed != 0 && random() % (is_there[k] ? 2 : 5) == 0) chosen.push_back(k);
    other.add(support.numels[t], chosen);
  }
  return other;
}

// All weights of tensors whose sizes are whole tiles: what a kernel then reads and writes lies together.
inline Support whole_tensors(int tensors, int64_t numel) {
  Support support;
  std::vector<int64_t> all(numel);
  std::iota(all.begin(), all.end(), 0);
  for (int t = 0; t < tensors; ++t) support.add(numel, all);
  return support;
}

// Words of a format: numbers of many sizes, and with `special` zeros, subnormal numbers, infinities and NaN too.
inline std::vector<uint8_t> random_words(int64_t count, int format, unsigned seed, bool special = false) {
  std::mt19937_64 random(seed);
  const int bytes = word_bytes(format), mantissa = format == 0 ? 10 : format == 1 ? 7 : 23;
  const uint64_t exponents = format == 0 ? 32 : 256, sign = uint64_t{1} << (8 * bytes - 1);
  std::vector<uint64_t> words(count);
  for (uint64_t& word : words) {
    const uint64_t exponent = exponents / 2 - 8 + random() % 9;
    word = exponent << mantissa | (random() & ((uint64_t{1} << mantissa) - 1)) | (random() & sign);
    if (special && random() % 4 == 0) word = random() & ((sign << 1) - 1);
    if (special && random() % 16 == 0) word = random() % 2 ? 0 : (exponents - 1) << mantissa;
  }
  return harness::pack(words, bytes);
}

// Tensors of words, each in memory of its own, and the table of where they are.
struct Tensors {
  std::vector<Buffer> words;
  Array<void*> table;

  Tensors(const std::vector<int64_t>& numels, int format, unsigned seed, bool special = false) {
    for (size_t t = 0; t < numels.size(); ++t)
      words.emplace_back(random_words(numels[t], format, seed + static_cast<unsigned>(t), special), 0);
    for (const Buffer& buffer : words) table.push_back(buffer.data());
  }

  const void* const* sources() const { return table.data(); }
};

inline Array<float> floats(const std::vector<uint8_t>& words) {
  Array<float> values(words.size() / sizeof(float));
  if (!words.empty()) std::memcpy(values.data(), words.data(), words.size());
  return values;
}

// Whether words are equal, all NaN being one: which of two payloads is kept is not defined.
inline bool same(const uint8_t* x, const uint8_t* y, int64_t count, int format) {
  const int bytes = word_bytes(format);
  const uint32_t infinity = format == 0 ? 0x7c00u : format == 1 ? 0x7f80u : 0x7f800000u;
  for (int64_t k = 0; k < count; ++k) {
    uint32_t a = 0, b = 0;
    std::memcpy(&a, x + k * bytes, bytes);
    std::memcpy(&b, y + k * bytes, bytes);
    const uint32_t magnitude = (1u << (8 * bytes - 1)) - 1;
    if (a != b && ((a & magnitude) <= infinity || (b & magnitude) <= infinity)) return false;
  }
  return true;
}

inline bool same(const Array<float>& x, const Array<float>& y) {
  return same(reinterpret_cast<const uint8_t*>(x.data()), reinterpret_cast<const uint8_t*>(y.data()),
              static_cast<int64_t>(x.size()), 2);
}

inline bool same(const Tensors& x, const Tensors& y, const std::vector<int64_t>& numels, int format) {
  for (size_t t = 0; t < numels.size(); ++t)
    if (!same(x.words[t].data(), y.words[t].data(), numels[t], format)) return false;
  return true;
}

}  // namespace supports
