// The drop-and-grow of one tensor, as merges of two sorted lists. See reselect.h.
#pragma once

#include "core/sparse_update/threshold.inl"

namespace graftwork::GRAFTWORK_LEVEL {

inline uint32_t magnitude_bits(float x) { return bit_cast<uint32_t>(x) & 0x7fffffffu; }

// Sets all keys to zero but the k largest, of equal ones the first; k is at most the number of keys that are not zero.
inline void keep_largest(uint32_t* keys, int64_t count, int64_t k) {
  const uint32_t threshold = k == 0 ? kScoreLimit : find_threshold(ScoreArray{keys, count, 1}, k).score;
  int64_t ties = k;
  for (int64_t i = 0; i < count; ++i) ties -= keys[i] > threshold;
  for (int64_t i = 0; i < count; ++i) {
    const bool tie = keys[i] == threshold && ties > 0;
    ties -= tie;
    keys[i] = keys[i] > threshold || tie ? keys[i] : 0;
  }
}

// Calls body(i, j) for every number that is in both of two sorted lists, first[i] and second[j].
template <class Index, class Body>
inline void for_each_shared(const Index* first, int64_t count, const Index* second, int64_t second_count,
                            const Body& body) {
  for (int64_t i = 0, j = 0; i < count && j < second_count;) {
    const Index a = first[i], b = second[j];
    if (a == b) body(i, j);
    i += a <= b;
    j += b <= a;
  }
}

template <class Index>
struct DropAndGrow {
  const Index* active;  // sorted
  int64_t actives;
  const Index* candidates;  // sorted
  int64_t count, drop;
  uint32_t *drops, *grows;  // keys of both; zero: not dropped, not grown

  // False if a value is NaN. The smaller the value, the larger the key.
  bool mark_drops(const float* values) const {
    uint32_t largest = 0;
    for (int64_t i = 0; i < actives; ++i) {
      const uint32_t bits = magnitude_bits(values[i]);
      largest = bits > largest ? bits : largest;
      drops[i] = kInfiniteScore + 1 - bits;
    }
    if (largest > kInfiniteScore) return false;
    keep_largest(drops, actives, drop);
    return true;
  }

  // False if a growth is NaN.
  bool mark_grows(const float* growth) const {
    uint32_t largest = 0;
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t bits = magnitude_bits(growth[j]);
      largest = bits > largest ? bits : largest;
      grows[j] = bits + 1;
    }
    if (largest > kInfiniteScore) return false;
    int64_t valid = count;
    for_each_shared(active, actives, candidates, count, [&](int64_t i, int64_t j) {
      if (drops[i] != 0) return;
      grows[j] = 0;
      --valid;
    });
    keep_largest(grows, count, drop < valid ? drop : valid);
    return true;
  }

  // What is dropped and grown stays; of the rest, no more is dropped than grows.
  void cancel() const {
    for_each_shared(active, actives, candidates, count, [&](int64_t i, int64_t j) {
      if (grows[j] != 0) drops[i] = grows[j] = 0;
    });
    int64_t dropped = 0, grown = 0;
    for (int64_t i = 0; i < actives; ++i) dropped += drops[i] != 0;
    for (int64_t j = 0; j < count; ++j) grown += grows[j] != 0;
    if (dropped > grown) keep_largest(drops, actives, grown);
  }

  // source: `first_active` + i, or -1 - (`first_candidate` + j).
  void write(int64_t first_active, int64_t first_candidate, Index* indices, int64_t* source) const {
    int64_t i = 0, j = 0;
    for (int64_t out = 0; out < actives; ++out) {
      while (i < actives && drops[i] != 0) ++i;
      while (j < count && grows[j] == 0) ++j;
      const bool old = j == count || (i < actives && active[i] < candidates[j]);
      indices[out] = old ? active[i] : candidates[j];
      source[out] = old ? first_active + i : -1 - (first_candidate + j);
      i += old;
      j += !old;
    }
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
