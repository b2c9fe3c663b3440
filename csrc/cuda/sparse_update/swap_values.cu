// Each weight is written by one thread: one that both deltas have by that of the new delta, whose base is then the
// word that the old one has kept, not what is in the tensor.
#include "cuda/sparse_update/swap_values.cuh"

#include "cuda/sparse_update/sorted_pair.cuh"
#include "cuda/sparse_update/words.cuh"
#include "cuda/support/device.cuh"

namespace graftwork::cuda {
namespace {

struct Swap {
  void* const* dense;
  WeightFormat format;
  const void* before_base;
  const float* after_values;
  float scale;
  void* after_base;
};

SIMT_DEVICE void take_off(const PairTile& tile, int i, const Swap& swap) {
  const uint64_t key = simt::load_shared(tile.before() + i);
  const bool wide = is_wide(swap.format);
  const uint32_t word = load_word(swap.before_base, tile.before_begin + i, wide);
  if (is_at(tile.after(), tile.after_count, count_below(tile.after(), tile.after_count, key), key)) return;
  store_word(simt::load_global(swap.dense + tensor_of(key)), index_of(key), word, wide);
}

SIMT_DEVICE void put_on(const PairTile& tile, int i, const Swap& swap) {
  const uint64_t key = simt::load_shared(tile.after() + i);
  const bool wide = is_wide(swap.format);
  void* const words = simt::load_global(swap.dense + tensor_of(key));
  const float value = simt::load_global(swap.after_values + tile.after_begin + i);
  const int place = count_below(tile.before(), tile.before_count, key);
  const uint32_t base = is_at(tile.before(), tile.before_count, place, key)
                            ? load_word(swap.before_base, tile.before_begin + place, wide)
                            : load_word(words, index_of(key), wide);
  store_word(swap.after_base, tile.after_begin + i, base, wide);
  const Rounded sum = Rounded{value_of(base, swap.format)} + Rounded{value} * Rounded{swap.scale};
  store_word(words, index_of(key), word_of(sum.value, swap.format), wide);
}

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads) swap_values_kernel(SortedPair pair, Cuts cuts, Swap swap) {
  const PairTile tile = load_tile<kIndexBytes>(pair, cuts, blockIdx.x, simt::dynamic_shared<uint64_t>());
  for (int i = static_cast<int>(threadIdx.x); i < tile.before_count; i += kEntryThreads)
    take_off(tile, i, swap);
  for (int i = static_cast<int>(threadIdx.x); i < tile.after_count; i += kEntryThreads) put_on(tile, i, swap);
}

}  // namespace

int64_t swap_values_workspace_bytes(int64_t entries) {
  return Cuts::bytes(SortedPair{nullptr, nullptr, nullptr, nullptr, 0, entries}.tiles());
}

int swap_values(void* const* dense, int64_t tensors, WeightFormat format, int index_bytes,
                const void* before_indices, const int64_t* before_offsets, const void* before_base,
                const void* after_indices, const int64_t* after_offsets, const float* after_values,
                float scale, void* after_base, int64_t entries, void* workspace, void* stream) {
  if (!is_format(static_cast<int>(format))) return kInvalidArgument;
  const SortedPair pair{before_indices, after_indices, before_offsets, after_offsets, tensors, entries};
  const Swap swap{dense, format, before_base, after_values, scale, after_base};
  return with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    constexpr int kBytes = decltype(bytes)::value;
    if (entries == 0) return 0;
    const Cuts cuts(static_cast<int64_t*>(workspace), pair.tiles());
    const int error = launch_cut_pair<kBytes>(pair, cuts, stream);
    if (error != 0) return error;
    return simt::launch<swap_values_kernel<kBytes>>(pair.tiles(), kEntryThreads, kMostKeys * sizeof(uint64_t),
                                                    stream, pair, cuts, swap);
  });
}

}  // namespace graftwork::cuda
