// How the entries of many tensors are shared out, so that one launch does for a whole model.
//
// Entries offsets[t] .. offsets[t + 1] belong to tensor t; offsets and tables of pointers are in device memory.
// A warp has kEach rows of 32 entries that follow each other: whatever has one element an entry is read and
// written in whole sectors, and all of a thread's loads are on their way before the first is used.
#pragma once

#include <cstdint>

#include "cuda/support/reduce.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {

constexpr int kEntryThreads = 256;
constexpr int kEach = 4;  // entries of a thread
constexpr int64_t kEntryTile = kEntryThreads * kEach;

template <int kBytes>
struct IndexOf {
  using Type = int32_t;
};
template <>
struct IndexOf<8> {
  using Type = int64_t;
};
template <int kBytes>
using Index = typename IndexOf<kBytes>::Type;

// Calls body(k) for each of a thread's entries. Written out, and not a loop: a compiler makes a copy of a loop for
// every choice in it that all lanes make alike, and those of an optimizer's modes are hundreds.
template <int k = 0, class Body>
SIMT_DEVICE void for_each_row(const Body& body) {
  body(k);
  if constexpr (k + 1 < kEach) for_each_row<k + 1>(body);
}

struct Arena {
  const void* indices;
  const int64_t* offsets;
  int64_t tensors, entries;

  int64_t blocks() const { return (entries + kEntryTile - 1) / kEntryTile; }
};

// The last tensor in [first, tensors) that starts at or before `at`, which the first one does.
SIMT_DEVICE int64_t find_from(const int64_t* offsets, int64_t first, int64_t tensors, int64_t at) {
  while (tensors - first > 1) {
    const int64_t middle = first + (tensors - first) / 2;
    if (simt::load_global(offsets + middle) <= at)
      first = middle;
    else
      tensors = middle;
  }
  return first;
}

// The same for a warp that asks for one place: a step looks at 32 tensors at once, and two do for a thousand.
SIMT_DEVICE int64_t find_tensor(const int64_t* offsets, int64_t tensors, int64_t at) {
  const int64_t lane = threadIdx.x % kWarp;
  int64_t first = 0;
  for (int64_t stride = tensors; stride > 1;) {
    stride = (tensors - first + kWarp - 1) / kWarp;
    const int64_t probe = first + lane * stride;
    const bool starts_before = probe < tensors && simt::load_global(offsets + probe) <= at;
    first += (simt::bit_count(__ballot_sync(kWholeWarp, starts_before)) - 1) * stride;
    tensors = first + stride < tensors ? first + stride : tensors;
  }
  return first;
}

// A thread's entries.
template <int kIndexBytes>
struct Share {
  int64_t first;  // the others follow a warp apart
  int count;
  int32_t tensor[kEach];
  Index<kIndexBytes> index[kEach];

  SIMT_DEVICE explicit Share(const Arena& arena) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t begin = blockIdx.x * kEntryTile + (static_cast<int>(threadIdx.x) - lane) * kEach;
    const int64_t left = arena.entries - begin - lane;
    first = begin + lane;
    count = left <= 0 ? 0 : left > (kEach - 1) * kWarp ? kEach : static_cast<int>((left - 1) / kWarp) + 1;
    if (begin >= arena.entries) return;
    const auto* const indices = static_cast<const Index<kIndexBytes>*>(arena.indices);
    for_each_row([&](int k) {
      if (has(k)) index[k] = simt::load_global(indices + entry(k));
    });
    const int64_t owner = find_tensor(arena.offsets, arena.tensors, begin);
    const int64_t end = simt::load_global(arena.offsets + owner + 1);
    for_each_row([&](int k) {
      tensor[k] = static_cast<int32_t>(owner);
      if (has(k) && entry(k) >= end)
        tensor[k] = static_cast<int32_t>(find_from(arena.offsets, owner + 1, arena.tensors, entry(k)));
    });
  }

  // Where the tensor of each entry starts.
  template <class T>
  SIMT_DEVICE void look_up(T* const* table, T* (&starts)[kEach]) const {
    for_each_row([&](int k) {
      if (has(k)) starts[k] = simt::load_global(table + tensor[k]);
    });
  }

  SIMT_DEVICE bool has(int k) const { return k < count; }
  SIMT_DEVICE int64_t entry(int k) const { return first + k * kWarp; }
};

// Calls call(IndexBytes<...>) with the width of the indices; returns its error code.
template <int kBytes>
struct IndexBytes {
  static constexpr int value = kBytes;
};
template <class Call>
int with_index_bytes(int64_t bytes, int refused, const Call& call) {
  if (bytes == 4) return call(IndexBytes<4>{});
  return bytes == 8 ? call(IndexBytes<8>{}) : refused;
}

}  // namespace graftwork::cuda
