// Merge path cuts the work, look-back says where a tile's part of the union begins, and a tile is put in order in
// shared memory, so that it leaves in whole sectors.
#include "cuda/sparse_update/merge_deltas.cuh"

#include "cuda/sparse_update/look_back.cuh"
#include "cuda/sparse_update/sorted_pair.cuh"
#include "cuda/sparse_update/words.cuh"
#include "cuda/support/device.cuh"
#include "cuda/support/reduce.cuh"

namespace graftwork::cuda {
namespace {

constexpr int kWords = static_cast<int>(kEntryTile) / kWarp;  // of a bit for each entry of a

struct Count {
  int64_t value = 0;

  SIMT_DEVICE void combine(const Count& other) { value += other.value; }
};

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads)
    count_shared_kernel(SortedPair pair, Cuts cuts, int64_t* shared) {
  auto* const keys = simt::dynamic_shared<uint64_t>();
  const PairTile tile = load_tile<kIndexBytes>(pair, cuts, blockIdx.x, keys);
  const int64_t tensor = simt::load_global(cuts.tensor + blockIdx.x);
  Count first;  // of the tile's first tensor, which is its only one almost always
  for (int i = static_cast<int>(threadIdx.x); i < tile.before_count; i += kEntryThreads) {
    const uint64_t key = simt::load_shared(tile.before() + i);
    const int place = count_below(tile.after(), tile.after_count, key);
    if (!is_at(tile.after(), tile.after_count, place, key)) continue;
    if (tensor_of(key) == tensor)
      ++first.value;
    else
      simt::add_global(shared + tensor_of(key), 1);
  }
  auto* const scratch = reinterpret_cast<unsigned long long*>(keys + kMostKeys);
  first = block_reduce<kEntryThreads>(first, scratch);
  if (threadIdx.x == 0 && first.value != 0) simt::add_global(shared + tensor, first.value);
}

struct Addends {
  const float *a_values, *b_values;
  float a_weight, b_weight;
};

// Shared memory of a block that merges.
struct Desk {
  uint64_t keys[kMostKeys];
  uint64_t merged[kMostKeys];
  float sums[kMostKeys];
  uint32_t marks[kWords];       // of the entries of a that b has too
  uint32_t marked[kWords + 1];  // how many are before each word of them
  uint32_t ticket;
  int64_t begin;  // of the tile's part of the union
};

// Marks the entries of a that b has too, and counts them.
SIMT_DEVICE void mark_shared(const PairTile& tile, Desk* desk) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kEntryTile; i += kEntryThreads) {
    bool both = false;
    if (i < tile.before_count) {
      const uint64_t key = simt::load_shared(tile.before() + i);
      both = is_at(tile.after(), tile.after_count, count_below(tile.after(), tile.after_count, key), key);
    }
    const uint32_t marks = __ballot_sync(kWholeWarp, both);
    if (thread % kWarp == 0) simt::store_shared(desk->marks + i / kWarp, marks);
  }
  __syncthreads();
  if (thread < kWarp) {
    static_assert(kWords == kWarp);
    const auto mine = static_cast<uint32_t>(simt::bit_count(simt::load_shared(desk->marks + thread)));
    const uint32_t up_to = sum_up_to_lane(mine);
    simt::store_shared(desk->marked + thread + 1, up_to);
    if (thread == 0) simt::store_shared(desk->marked, 0u);
  }
  __syncthreads();
}

// How many of the first i entries of a are shared.
SIMT_DEVICE int shared_before(const Desk* desk, int i) {
  const uint32_t before = simt::load_shared(desk->marked + i / kWarp);
  if (i % kWarp == 0) return static_cast<int>(before);
  const uint32_t below = simt::load_shared(desk->marks + i / kWarp) & ((1u << i % kWarp) - 1);
  return static_cast<int>(before) + simt::bit_count(below);
}

SIMT_DEVICE void place_entry(Desk* desk, int at, uint64_t key, Rounded sum) {
  simt::store_shared(desk->merged + at, key);
  simt::store_shared(desk->sums + at, sum.value);
}

// Puts the tile's union in order.
SIMT_DEVICE void merge_tile(const PairTile& tile, const Addends& add, Desk* desk) {
  for (int i = static_cast<int>(threadIdx.x); i < tile.before_count; i += kEntryThreads) {
    const uint64_t key = simt::load_shared(tile.before() + i);
    const float value = simt::load_global(add.a_values + tile.before_begin + i);
    const int place = count_below(tile.after(), tile.after_count, key);
    Rounded sum = Rounded{add.a_weight} * Rounded{value};
    if (is_at(tile.after(), tile.after_count, place, key)) {
      const float other = simt::load_global(add.b_values + tile.after_begin + place);
      sum = sum + Rounded{add.b_weight} * Rounded{other};
    }
    place_entry(desk, i + place - shared_before(desk, i), key, sum);
  }
  for (int i = static_cast<int>(threadIdx.x); i < tile.after_count; i += kEntryThreads) {
    const uint64_t key = simt::load_shared(tile.after() + i);
    const int place = count_below(tile.before(), tile.before_count, key);
    if (is_at(tile.before(), tile.before_count, place, key)) continue;
    const float value = simt::load_global(add.b_values + tile.after_begin + i);
    place_entry(desk, i + place - shared_before(desk, place), key, Rounded{add.b_weight} * Rounded{value});
  }
}

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads)
    merge_deltas_kernel(SortedPair pair, Cuts cuts, Addends add, void* union_indices, float* union_values,
                        uint64_t* tile_sums, uint32_t* tickets) {
  Desk* const desk = simt::dynamic_shared<Desk>();
  const int64_t number = take_ticket(tickets, &desk->ticket);
  const PairTile tile = load_tile<kIndexBytes>(pair, cuts, number, desk->keys);
  mark_shared(tile, desk);
  const int count =
      tile.before_count + tile.after_count - static_cast<int>(simt::load_shared(desk->marked + kWords));
  if (threadIdx.x < kWarp) {
    const int64_t begin = look_back(tile_sums, number, count);
    if (threadIdx.x == 0) simt::store_shared(&desk->begin, begin);
  }
  merge_tile(tile, add, desk);
  __syncthreads();
  const int64_t begin = simt::load_shared(&desk->begin);
  using I = Index<kIndexBytes>;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kEntryThreads) {
    const int64_t index = index_of(simt::load_shared(desk->merged + i));
    simt::store_global(static_cast<I*>(union_indices) + begin + i, static_cast<I>(index));
    simt::store_global(union_values + begin + i, simt::load_shared(desk->sums + i));
  }
}

// Device memory: the cuts, a word for each tile, and the tickets.
struct Workspace {
  int64_t tiles;
  int64_t* memory;

  Cuts cuts() const { return {memory, tiles}; }
  uint64_t* tile_sums() const {
    return reinterpret_cast<uint64_t*>(memory) + Cuts::bytes(tiles) / static_cast<int64_t>(sizeof(uint64_t));
  }
  uint32_t* tickets() const { return reinterpret_cast<uint32_t*>(tile_sums() + tiles); }
  int64_t cleared() const { return (tiles + 1) * static_cast<int64_t>(sizeof(uint64_t)); }
};

}  // namespace

int64_t merge_deltas_workspace_bytes(int64_t entries) {
  const int64_t tiles = SortedPair{nullptr, nullptr, nullptr, nullptr, 0, entries}.tiles();
  return Cuts::bytes(tiles) + Workspace{tiles, nullptr}.cleared();
}

int count_shared(const void* a_indices, const int64_t* a_offsets, const void* b_indices,
                 const int64_t* b_offsets, int64_t tensors, int64_t entries, int index_bytes, int64_t* shared,
                 void* workspace, void* stream) {
  const SortedPair pair{a_indices, b_indices, a_offsets, b_offsets, tensors, entries};
  return with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    constexpr int kBytes = decltype(bytes)::value;
    int error = simt::fill_zero(shared, static_cast<size_t>(tensors) * sizeof *shared, stream);
    if (error != 0 || entries == 0) return error;
    const Cuts cuts = Workspace{pair.tiles(), static_cast<int64_t*>(workspace)}.cuts();
    error = launch_cut_pair<kBytes>(pair, cuts, stream);
    if (error != 0) return error;
    constexpr size_t kSharedBytes =
        kMostKeys * sizeof(uint64_t) + kReduceWords<Count, kEntryThreads> * sizeof(unsigned long long);
    return simt::launch<count_shared_kernel<kBytes>>(pair.tiles(), kEntryThreads, kSharedBytes, stream, pair,
                                                     cuts, shared);
  });
}

int merge_deltas(const void* a_indices, const int64_t* a_offsets, const float* a_values, float a_weight,
                 const void* b_indices, const int64_t* b_offsets, const float* b_values, float b_weight,
                 int64_t tensors, int64_t entries, int index_bytes, void* union_indices, float* union_values,
                 void* workspace, void* stream) {
  const SortedPair pair{a_indices, b_indices, a_offsets, b_offsets, tensors, entries};
  const Addends add{a_values, b_values, a_weight, b_weight};
  return with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    constexpr int kBytes = decltype(bytes)::value;
    if (entries == 0) return 0;
    const Workspace space{pair.tiles(), static_cast<int64_t*>(workspace)};
    const int error = simt::fill_zero(space.tile_sums(), static_cast<size_t>(space.cleared()), stream);
    if (error != 0) return error;
    return simt::launch<merge_deltas_kernel<kBytes>>(pair.tiles(), kEntryThreads, sizeof(Desk), stream, pair,
                                                     space.cuts(), add, union_indices, union_values,
                                                     space.tile_sums(), space.tickets());
  });
}

}  // namespace graftwork::cuda
