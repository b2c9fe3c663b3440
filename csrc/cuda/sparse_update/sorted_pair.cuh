// Two supports of the same tensors as one sorted list, cut into tiles of equal work (merge path).
//
// One small kernel finds where each tile begins in both; the tiles' keys then lie in shared memory, where an entry
// finds its place in the other support by a search. An index that both have is never parted.
#pragma once

#include <cstdint>

#include "cuda/sparse_update/arena.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {

struct SortedPair {
  const void *before_indices, *after_indices;
  const int64_t *before_offsets, *after_offsets;  // [tensors + 1]
  int64_t tensors, entries;                       // of both together

  int64_t tiles() const { return (entries + kEntryTile - 1) / kEntryTile; }
};

// Where tiles begin: numbers [tiles + 1], of entries of both supports and of tensors.
struct Cuts {
  int64_t *before, *after, *tensor;

  static int64_t bytes(int64_t tiles) { return 3 * (tiles + 1) * static_cast<int64_t>(sizeof(int64_t)); }
  Cuts(int64_t* memory, int64_t tiles)
      : before(memory), after(memory + tiles + 1), tensor(memory + 2 * (tiles + 1)) {}
};

constexpr int kMostKeys = kEntryTile + 1;  // of a tile: one more where an index would be parted

// The last tensor in [0, tensors) that starts at or before `at` of the list of both.
SIMT_DEVICE int64_t find_in_pair(const SortedPair& pair, int64_t at) {
  int64_t first = 0;
  for (int64_t end = pair.tensors; end - first > 1;) {
    const int64_t middle = first + (end - first) / 2;
    if (simt::load_global(pair.before_offsets + middle) + simt::load_global(pair.after_offsets + middle) <=
        at)
      first = middle;
    else
      end = middle;
  }
  return first;
}

// How many of the first `merged` entries of two sorted lists are of `before`; of equal ones, those come first.
template <class T>
SIMT_DEVICE int64_t merge_path(const T* before, int64_t before_count, const T* after, int64_t after_count,
                               int64_t merged) {
  int64_t low = merged > after_count ? merged - after_count : 0;
  int64_t high = merged < before_count ? merged : before_count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (simt::load_global(before + middle) <= simt::load_global(after + merged - middle - 1))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads) cut_pair_kernel(SortedPair pair, int64_t tiles, Cuts cuts) {
  using I = Index<kIndexBytes>;
  const int64_t tile = blockIdx.x * int64_t{kEntryThreads} + threadIdx.x;
  if (tile > tiles) return;
  const int64_t at = tile * kEntryTile < pair.entries ? tile * kEntryTile : pair.entries;
  const int64_t tensor = find_in_pair(pair, at);
  const int64_t before_begin = simt::load_global(pair.before_offsets + tensor);
  const int64_t after_begin = simt::load_global(pair.after_offsets + tensor);
  const int64_t before_count = simt::load_global(pair.before_offsets + tensor + 1) - before_begin;
  const int64_t after_count = simt::load_global(pair.after_offsets + tensor + 1) - after_begin;
  const I* const before = static_cast<const I*>(pair.before_indices) + before_begin;
  const I* const after = static_cast<const I*>(pair.after_indices) + after_begin;
  const int64_t merged = at - before_begin - after_begin;
  const int64_t taken = merge_path(before, before_count, after, after_count, merged);
  int64_t other = merged - taken;
  if (taken > 0 && other < after_count &&
      simt::load_global(before + taken - 1) == simt::load_global(after + other))
    ++other;
  simt::store_global(cuts.before + tile, before_begin + taken);
  simt::store_global(cuts.after + tile, after_begin + other);
  simt::store_global(cuts.tensor + tile, tensor);
}

// A weight of all tensors: in the order of tensors, then of indices. No tensor has 2^40 elements.
constexpr int kKeyBits = 40;

SIMT_DEVICE int64_t tensor_of(uint64_t key) { return static_cast<int64_t>(key >> kKeyBits); }
SIMT_DEVICE int64_t index_of(uint64_t key) {
  return static_cast<int64_t>(key & ((uint64_t{1} << kKeyBits) - 1));
}

// The keys that a block has of both supports, those of `after` behind those of `before`.
struct PairTile {
  int64_t before_begin, after_begin;
  int before_count, after_count;
  const uint64_t* keys;

  SIMT_DEVICE const uint64_t* before() const { return keys; }
  SIMT_DEVICE const uint64_t* after() const { return keys + before_count; }
};

template <int kIndexBytes>
SIMT_DEVICE void load_keys(const void* indices, const int64_t* offsets, int64_t tensor, int64_t tensors,
                           int64_t begin, int count, uint64_t* keys) {
  const auto* const mine = static_cast<const Index<kIndexBytes>*>(indices) + begin;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kEntryThreads) {
    const auto index = static_cast<uint64_t>(simt::load_global(mine + i));
    const int64_t owner = find_from(offsets, tensor, tensors, begin + i);
    simt::store_shared(keys + i, static_cast<uint64_t>(owner) << kKeyBits | index);
  }
}

// keys: shared memory for kMostKeys. The whole block calls it.
template <int kIndexBytes>
SIMT_DEVICE PairTile load_tile(const SortedPair& pair, const Cuts& cuts, int64_t tile, uint64_t* keys) {
  const int64_t before = simt::load_global(cuts.before + tile), after = simt::load_global(cuts.after + tile);
  const auto before_count = static_cast<int>(simt::load_global(cuts.before + tile + 1) - before);
  const auto after_count = static_cast<int>(simt::load_global(cuts.after + tile + 1) - after);
  const int64_t tensor = simt::load_global(cuts.tensor + tile);
  const int64_t end = simt::load_global(cuts.tensor + tile + 1) + 1;
  load_keys<kIndexBytes>(pair.before_indices, pair.before_offsets, tensor, end, before, before_count, keys);
  load_keys<kIndexBytes>(pair.after_indices, pair.after_offsets, tensor, end, after, after_count,
                         keys + before_count);
  __syncthreads();
  return {before, after, before_count, after_count, keys};
}

// How many of sorted keys in shared memory are below `key`.
SIMT_DEVICE int count_below(const uint64_t* keys, int count, uint64_t key) {
  int first = 0;
  while (count > 0) {
    const int half = count / 2;
    if (simt::load_shared(keys + first + half) < key) {
      first += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return first;
}

SIMT_DEVICE bool is_at(const uint64_t* keys, int count, int place, uint64_t key) {
  return place < count && simt::load_shared(keys + place) == key;
}

template <int kIndexBytes>
int launch_cut_pair(const SortedPair& pair, const Cuts& cuts, void* stream) {
  const int64_t tiles = pair.tiles();
  return simt::launch<cut_pair_kernel<kIndexBytes>>(tiles / kEntryThreads + 1, kEntryThreads, 0, stream, pair,
                                                    tiles, cuts);
}

}  // namespace graftwork::cuda
