// Three histograms find the k-th largest score, 11, 11 and 9 of its bits each; a fourth pass writes what is
// above it and the first of what equals it, in order, with decoupled look-back. The host waits for nothing:
// what a pass finds stays in device memory, where the next one reads it.
//
// Unchanged weights all fall into one bin. Adding the constant 1 compiles to ATOMS.POPC.INC, which serves all
// lanes with equal addresses at once. The later histograms count only what has the bits found so far, a few
// percent.
#include "cuda/sparse_update/topk_absdiff.cuh"

#include <algorithm>

#include "cuda/sparse_update/look_back.cuh"
#include "cuda/sparse_update/scores.cuh"
#include "cuda/support/device.cuh"
#include "cuda/support/reduce.cuh"

namespace graftwork::cuda {
namespace {

constexpr int kPasses = 3;
constexpr int kBins = 2048;
constexpr int kDigitBits[kPasses] = {11, 11, 9};
constexpr int kShift[kPasses] = {20, 9, 0};
constexpr int kChooseThreads = 1024;
static_assert(kChooseThreads * 2 == kBins);

// What is known so far: the first bits of the k-th largest score, and how many of those that have them are chosen.
struct Selection {
  int64_t prefix, left;
};

__global__ void __launch_bounds__(kScoreThreads)
    count_scores_kernel(ScoredTensors tensors, int64_t tile_count, const Selection* selection, int shift,
                        int bits, int64_t* histogram, int64_t* nans) {
  auto* const bins = simt::dynamic_shared<uint32_t>();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kScoreThreads)
    simt::store_shared(bins + bin, 0u);
  const bool is_first = selection == nullptr;
  const auto prefix = is_first ? 0u : static_cast<uint32_t>(simt::load_global(&selection->prefix));
  __syncthreads();
  for (int64_t number = blockIdx.x; number < tile_count; number += gridDim.x) {
    const ScoreTile tile(tensors, number);
    uint32_t nan = 0;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const uint32_t score = tile.scores[i];
      if (score >> shift >> bits == prefix)
        simt::add_shared(bins + (score >> shift & ((1u << bits) - 1)), 1u);
      nan += score > kInfiniteScore && score != kNoScore;
    }
    if (!is_first) continue;
    nan = __reduce_add_sync(kWholeWarp, nan);
    if (nan != 0 && threadIdx.x % kWarp == 0) simt::add_global(nans + tile.tensor, nan);
  }
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kScoreThreads) {
    const uint32_t count = simt::load_shared(bins + bin);
    if (count != 0) simt::add_global(histogram + bin, count);
  }
}

struct alignas(16) BinPair {
  int64_t low, high;
};

// The sum of the values of this thread and of those before it in the block.
SIMT_DEVICE int64_t sum_up_to_thread(int64_t value, int64_t* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  static_assert(kChooseThreads / kWarp == kWarp);
  const auto within_warp = [lane](int64_t sum) {
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int64_t before = __shfl_up_sync(kWholeWarp, sum, offset);
      if (lane >= offset) sum += before;
    }
    return sum;
  };
  value = within_warp(value);
  if (lane == kWarp - 1) simt::store_shared(scratch + warp, value);
  __syncthreads();
  const int64_t warps = within_warp(simt::load_shared(scratch + lane));
  const int64_t before = __shfl_sync(kWholeWarp, warps, warp == 0 ? 0 : warp - 1);
  return warp == 0 ? value : value + before;
}

// Finds the bin of the k-th largest score; each thread looks at two, the first at the highest.
__global__ void __launch_bounds__(kChooseThreads)
    choose_digit_kernel(const int64_t* histogram, int64_t k, int bits, Selection* selection,
                        int64_t* threshold) {
  const bool is_first = k > 0;
  const int64_t prefix = is_first ? 0 : simt::load_global(&selection->prefix);
  const int64_t left = is_first ? k : simt::load_global(&selection->left);
  const int pair = kChooseThreads - 1 - static_cast<int>(threadIdx.x);
  const BinPair mine = simt::load_global(reinterpret_cast<const BinPair*>(histogram) + pair);
  const int64_t up_to = sum_up_to_thread(mine.low + mine.high, simt::dynamic_shared<int64_t>());
  const int64_t above = up_to - mine.low - mine.high;
  if (left <= above || left > up_to) return;  // all threads but one
  const bool is_high = left <= above + mine.high;
  const int64_t found = prefix << bits | (2 * pair + is_high);
  simt::store_global(&selection->prefix, found);
  simt::store_global(&selection->left, left - above - (is_high ? 0 : mine.high));
  simt::store_global(threshold, found);
}

// How many scores are above the threshold, and how many equal it, in the halves of a number: at most a tile's.
struct Chosen {
  uint32_t counts;

  SIMT_DEVICE int above() const { return static_cast<int>(counts & 0xffff); }
  SIMT_DEVICE int ties() const { return static_cast<int>(counts >> 16); }
};
constexpr uint32_t kOneAbove = 1, kOneTie = 1 << 16;

SIMT_DEVICE uint32_t count_of(uint32_t score, int32_t threshold) {
  const auto signed_score = static_cast<int32_t>(score);
  return signed_score > threshold ? kOneAbove : signed_score == threshold ? kOneTie : 0;
}

// Shared memory of a block that writes.
struct Desk {
  uint16_t position[kScoreTile];  // in the tile, of what is chosen
  uint32_t warps[kScoreThreads / kWarp];
  uint32_t ticket;
  int64_t above, ties;  // of the tiles before this one
};

// What is before each of a thread's groups in the tile, and in the whole tile.
SIMT_DEVICE Chosen count_before(const ScoreTile& tile, int32_t threshold, Desk* desk,
                                uint32_t (&before)[kGroups]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  uint32_t of_warp = 0;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) mine += count_of(tile.scores[group * kGroup + i], threshold);
    const uint32_t up_to = sum_up_to_lane(mine);
    before[group] = of_warp + up_to - mine;
    of_warp += __shfl_sync(kWholeWarp, up_to, kWarp - 1);
  }
  if (lane == 0) simt::store_shared(desk->warps + warp, of_warp);
  __syncthreads();
  uint32_t of_tile = 0;
#pragma unroll
  for (int other = 0; other < kScoreThreads / kWarp; ++other) {
    if (other == warp) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) before[group] += of_tile;
    }
    of_tile += simt::load_shared(desk->warps + other);
  }
  return {of_tile};
}

// Two warps find out what the tiles before this one have.
SIMT_DEVICE void look_back_for_both(uint64_t* tile_sums, int64_t tile_count, int64_t tile, Chosen mine,
                                    Desk* desk) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (warp < 2) {
    const int64_t before =
        look_back(tile_sums + warp * tile_count, tile, warp == 0 ? mine.above() : mine.ties());
    if (threadIdx.x % kWarp == 0) simt::store_shared(warp == 0 ? &desk->above : &desk->ties, before);
  }
  __syncthreads();
}

// Lists the tile's chosen weights in order; of those that equal the threshold, the first `quota`.
SIMT_DEVICE void list_chosen(const ScoreTile& tile, int32_t threshold, int quota,
                             const uint32_t (&before)[kGroups], Desk* desk) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    Chosen rank{before[group]};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t count = count_of(tile.scores[group * kGroup + i], threshold);
      const int ties = rank.ties() < quota ? rank.ties() : quota;
      if (count == kOneAbove || (count == kOneTie && rank.ties() < quota))
        simt::store_shared(desk->position + rank.above() + ties,
                           static_cast<uint16_t>(group_begin(group) + i));
      rank.counts += count;
    }
  }
  __syncthreads();
}

template <int kIndexBytes>
__global__ void __launch_bounds__(kScoreThreads)
    write_chosen_kernel(ScoredTensors tensors, int64_t tile_count, const Selection* selection, void* indices,
                        int64_t* counts, uint64_t* tile_sums, uint32_t* tickets) {
  Desk* const desk = simt::dynamic_shared<Desk>();
  const int64_t number = take_ticket(tickets, &desk->ticket);
  const auto threshold = static_cast<int32_t>(simt::load_global(&selection->prefix));
  const int64_t quota = simt::load_global(&selection->left);
  const ScoreTile tile(tensors, number);
  uint32_t before[kGroups];
  const Chosen all = count_before(tile, threshold, desk, before);
  look_back_for_both(tile_sums, tile_count, number, all, desk);
  const int64_t ties = simt::load_shared(&desk->ties), above = simt::load_shared(&desk->above);
  const int64_t left = quota > ties ? quota - ties : 0;
  const int taken = left < all.ties() ? static_cast<int>(left) : all.ties();
  list_chosen(tile, threshold, taken, before, desk);
  const int count = all.above() + taken;
  auto* const out = static_cast<Index<kIndexBytes>*>(indices) + above + (ties < quota ? ties : quota);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kScoreThreads)
    simt::store_global(out + i,
                       static_cast<Index<kIndexBytes>>(tile.begin + simt::load_shared(desk->position + i)));
  if (threadIdx.x == 0 && count != 0) simt::add_global(counts + tile.tensor, count);
}

// Device memory: histograms, tickets, and two words for each tile, all of which start as zero; the selection.
struct Workspace {
  int64_t* memory;
  int64_t tile_count;

  int64_t* histogram(int pass) const { return memory + pass * kBins; }
  Selection* selection() const { return reinterpret_cast<Selection*>(histogram(kPasses)); }
  uint32_t* tickets() const { return reinterpret_cast<uint32_t*>(selection() + 1); }
  uint64_t* tile_sums() const { return reinterpret_cast<uint64_t*>(selection() + 1) + 1; }
  int64_t bytes() const {
    return kPasses * kBins * static_cast<int64_t>(sizeof(int64_t)) + static_cast<int64_t>(sizeof(Selection)) +
           (1 + 2 * tile_count) * static_cast<int64_t>(sizeof(uint64_t));
  }
};

int find_threshold(const ScoredTensors& tensors, int64_t k, const Workspace& space, int64_t* nans,
                   int64_t* threshold, void* stream) {
  constexpr size_t kBinBytes = kBins * sizeof(uint32_t), kSumBytes = kWarp * sizeof(int64_t);
  int64_t resident = 0;
  int error = simt::resident_blocks<count_scores_kernel>(kScoreThreads, kBinBytes, &resident);
  for (int pass = 0; error == 0 && pass < (k == 0 ? 1 : kPasses); ++pass) {
    const Selection* const known = pass == 0 ? nullptr : space.selection();
    error = simt::launch<count_scores_kernel>(std::min(space.tile_count, resident), kScoreThreads, kBinBytes,
                                              stream, tensors, space.tile_count, known, kShift[pass],
                                              kDigitBits[pass], space.histogram(pass), nans);
    if (error != 0 || k == 0) return error;
    error = simt::launch<choose_digit_kernel>(
        int64_t{1}, kChooseThreads, kSumBytes, stream, static_cast<const int64_t*>(space.histogram(pass)),
        pass == 0 ? k : 0, kDigitBits[pass], space.selection(), threshold);
  }
  return error;
}

}  // namespace

int64_t selection_tile() { return kScoreTile; }

int64_t topk_absdiff_workspace_bytes(int64_t tile_count) { return Workspace{nullptr, tile_count}.bytes(); }

int topk_absdiff(const void* const* weights, const void* const* bases, const int64_t* numels,
                 const int64_t* tiles, const int64_t* formats, int64_t tensors, int64_t tile_count, int64_t k,
                 void* indices, int index_bytes, int64_t* report, void* workspace, void* stream) {
  return with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    const ScoredTensors scored{weights, bases, numels, tiles, formats, tensors};
    const Workspace space{static_cast<int64_t*>(workspace), tile_count};
    int error = simt::fill_zero(report, static_cast<size_t>(2 * tensors + 1) * sizeof *report, stream);
    if (error != 0 || tile_count == 0) return error;
    error = simt::fill_zero(workspace, static_cast<size_t>(space.bytes()), stream);
    if (error == 0) error = find_threshold(scored, k, space, report + tensors, report + 2 * tensors, stream);
    if (error != 0 || k == 0) return error;
    return simt::launch<write_chosen_kernel<decltype(bytes)::value>>(
        tile_count, kScoreThreads, sizeof(Desk), stream, scored, tile_count,
        static_cast<const Selection*>(space.selection()), indices, report, space.tile_sums(),
        space.tickets());
  });
}

}  // namespace graftwork::cuda
