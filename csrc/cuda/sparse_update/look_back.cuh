// The sum of what the tiles before this one have, in one pass: decoupled look-back (Merrill & Garland 2016).
//
// A tile publishes what it has as soon as it knows, and the sum up to its end when it knows that. Tiles are
// taken by ticket, so that those before it have started: they publish without waiting for anything, and none
// waits forever.
#pragma once

#include <cstdint>

#include "cuda/support/reduce.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {

// A tile's word: two bits that say what is there, and a number. Zeroed memory says that nothing is.
constexpr uint64_t kOwn = uint64_t{1} << 62, kSumToEnd = uint64_t{2} << 62, kNumber = kOwn - 1;

SIMT_DEVICE uint64_t warp_sum(uint64_t value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

// The sum of the numbers of the tiles before `tile`, which has `own`; every lane gets it. One warp calls it, with
// all of its lanes.
SIMT_DEVICE int64_t look_back(uint64_t* tiles, int64_t tile, int64_t own) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto mine = static_cast<uint64_t>(own);
  if (lane == 0) simt::publish_global(tiles + tile, (tile == 0 ? kSumToEnd : kOwn) | mine);
  if (tile == 0) return 0;
  uint64_t sum = 0;
  for (int64_t last = tile - 1;; last -= kWarp) {
    uint64_t word = kSumToEnd;  // of what is before the first tile
    do {
      if (last - lane >= 0) word = simt::peek_global(tiles + last - lane);
    } while (__ballot_sync(kWholeWarp, (word & ~kNumber) == 0) != 0);
    const uint32_t ends = __ballot_sync(kWholeWarp, (word & kSumToEnd) != 0);
    const int needed =
        ends == 0 ? kWarp - 1 : simt::bit_count((ends & (0u - ends)) - 1);  // the nearest of them
    sum += warp_sum(lane <= needed ? word & kNumber : 0);
    if (ends != 0) break;
  }
  if (lane == 0) simt::publish_global(tiles + tile, kSumToEnd | (sum + mine));
  return static_cast<int64_t>(sum);
}

// The number of the next tile; the whole block calls it. shared: a word that the block does not use before
// the next barrier.
SIMT_DEVICE int64_t take_ticket(uint32_t* tickets, uint32_t* shared) {
  if (threadIdx.x == 0) simt::store_shared(shared, simt::fetch_add_global(tickets, 1));
  __syncthreads();
  return simt::load_shared(shared);
}

}  // namespace graftwork::cuda
