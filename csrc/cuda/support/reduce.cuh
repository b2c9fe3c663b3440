// Reductions whose order of operations is fixed by the number of threads, so that their bits are too.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/support/simt.h"

namespace graftwork::cuda {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// The value of lane (own lane ^ offset), for any T made of 8-byte words.
template <class T>
SIMT_DEVICE T exchange_lanes(const T& value, int offset) {
  constexpr int kWords = sizeof(T) / 8;
  static_assert(sizeof(T) % 8 == 0);
  unsigned long long word[kWords];
  memcpy(word, &value, sizeof value);
  for (int k = 0; k < kWords; ++k) word[k] = __shfl_xor_sync(kWholeWarp, word[k], offset);
  T other;
  memcpy(&other, word, sizeof other);
  return other;
}

template <class T>
SIMT_DEVICE T warp_reduce(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value.combine(exchange_lanes(value, offset));
  return value;
}

// The sum of the values of this lane and of those before it.
SIMT_DEVICE uint32_t sum_up_to_lane(uint32_t value) {
  const unsigned lane = threadIdx.x % kWarp;
#pragma unroll
  for (unsigned offset = 1; offset < kWarp; offset *= 2) {
    const uint32_t before = __shfl_up_sync(kWholeWarp, value, offset);
    if (lane >= offset) value += before;
  }
  return value;
}

// Words of shared memory, 8 bytes each, that block_reduce needs.
template <class T, int kThreads>
constexpr int kReduceWords = kThreads / kWarp * static_cast<int>(sizeof(T) / 8);

// The combination of every thread's value; thread 0 gets the result. T{} is neutral, T::combine commutes.
// All kThreads threads call it; the barrier at its start lets calls follow each other on the same scratch.
template <int kThreads, class T>
SIMT_DEVICE T block_reduce(T value, unsigned long long* scratch) {
  constexpr int kWarps = kThreads / kWarp, kWords = sizeof(T) / 8;
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  unsigned long long word[kWords];
  value = warp_reduce(value);
  __syncthreads();
  if (lane == 0) {
    memcpy(word, &value, sizeof value);
    for (int k = 0; k < kWords; ++k) simt::store_shared(scratch + k * kWarps + warp, word[k]);
  }
  __syncthreads();
  if (warp == 0) {
    value = T{};
    if (lane < kWarps) {
      for (int k = 0; k < kWords; ++k) word[k] = simt::load_shared(scratch + k * kWarps + lane);
      memcpy(&value, word, sizeof value);
    }
    value = warp_reduce(value);
  }
  return value;
}

}  // namespace graftwork::cuda
