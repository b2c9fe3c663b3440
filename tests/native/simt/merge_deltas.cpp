// count_shared and merge_deltas on the host, bit for bit against the CPU's loops; look_back on every state in
// which it can find the tiles before it, which blocks that run one after another never show.
#include "supports.h"

#include "core/sparse_update/merge_deltas.cpp"
#include "cuda/sparse_update/merge_deltas.cu"

namespace {

using harness::Buffer;
using harness::check;
using supports::Array;
using supports::Support;

namespace cuda = graftwork::cuda;
namespace simt = graftwork::simt;

constexpr float kWeights[] = {0.75f, -1.5f};

struct Delta {
  const Support& support;
  Buffer indices;
  Array<float> values;

  Delta(const Support& of, int index_bytes, unsigned seed)
      : support(of),
        indices(of.indices(index_bytes)),
        values(supports::floats(supports::random_words(of.entries(), 2, seed, true))) {}
};

struct Merged {
  Array<int64_t> offsets;
  std::vector<uint8_t> indices;
  Array<float> values;
};

Merged on_cpu(const Delta& a, const Delta& b, int index_bytes) {
  const int64_t tensors = a.support.tensors();
  const void* const indices[] = {a.indices.data(), b.indices.data()};
  const void* const offsets[] = {a.support.offsets.data(), b.support.offsets.data()};
  const void* const values[] = {a.values.data(), b.values.data()};
  std::vector<int64_t> workspace(graftwork::merge_workspace_words(2, tensors));
  Merged merged;
  merged.offsets.resize(tensors + 1);
  graftwork::count_union(indices, offsets, merged.offsets.data(), workspace.data(), 2, tensors, index_bytes,
                         1);
  merged.indices.resize(merged.offsets.back() * index_bytes);
  merged.values.resize(merged.offsets.back());
  graftwork::merge_deltas(indices, offsets, values, kWeights, merged.indices.data(), merged.values.data(),
                          workspace.data(), 2, tensors, index_bytes, 1);
  return merged;
}

Merged on_gpu(const Delta& a, const Delta& b, int index_bytes) {
  const int64_t tensors = a.support.tensors(), entries = a.support.entries() + b.support.entries();
  const int64_t *const a_offsets = a.support.offsets.data(), *const b_offsets = b.support.offsets.data();
  const Buffer workspace(cuda::merge_deltas_workspace_bytes(entries)), shared(tensors * sizeof(int64_t));
  check(cuda::count_shared(a.indices.data(), a_offsets, b.indices.data(), b_offsets, tensors, entries,
                           index_bytes, shared.as<int64_t>(), workspace.data(), nullptr) == 0,
        "counting starts");
  Merged merged;
  merged.offsets.resize(tensors + 1);
  for (int64_t t = 0, both = 0; t < tensors; ++t) {
    both += shared.as<int64_t>()[t];
    merged.offsets[t + 1] = a_offsets[t + 1] + b_offsets[t + 1] - both;
  }
  const Buffer indices(merged.offsets.back() * index_bytes);
  merged.values.resize(merged.offsets.back());
  check(cuda::merge_deltas(a.indices.data(), a_offsets, a.values.data(), kWeights[0], b.indices.data(),
                           b_offsets, b.values.data(), kWeights[1], tensors, entries, index_bytes,
                           indices.data(), merged.values.data(), workspace.data(), nullptr) == 0,
        "merging starts");
  merged.indices = indices.content();
  return merged;
}

void check_pair(const Support& first, const Support& second, int index_bytes, const std::string& what) {
  const Delta a(first, index_bytes, 1), b(second, index_bytes, 2);
  const Merged wanted = on_cpu(a, b, index_bytes);
  harness::under_each_schedule([&](const std::string& schedule) {
    const Merged got = on_gpu(a, b, index_bytes);
    check(got.offsets == wanted.offsets, "offsets: " + what + schedule);
    check(got.indices == wanted.indices, "indices: " + what + schedule);
    check(supports::same(got.values, wanted.values), "values: " + what + schedule);
  });
}

__global__ void look_back_kernel(uint64_t* tiles, int64_t tile, int64_t own, int64_t* sums) {
  simt::store_global(sums + threadIdx.x, cuda::look_back(tiles, tile, own));
}

// The tiles before have published their own numbers alone, but for one that knows its sum.
void check_look_back() {
  for (const int64_t tile : {0, 1, 31, 32, 33, 64, 65, 200})
    for (int64_t known = -1; known < tile; known += 7)
      harness::under_each_schedule([&](const std::string& schedule) {
        std::vector<uint64_t> tiles(tile + 1);
        int64_t sum = 0;
        for (int64_t t = 0; t < tile; ++t) {
          const int64_t own = 1000 + t;
          sum += own;
          const bool knows = t == known || t == 0;
          tiles[t] =
              knows ? cuda::kSumToEnd | static_cast<uint64_t>(sum) : cuda::kOwn | static_cast<uint64_t>(own);
        }
        std::vector<int64_t> sums(cuda::kWarp);
        simt::launch<look_back_kernel>(1, cuda::kWarp, 0, nullptr, tiles.data(), tile, int64_t{5},
                                       sums.data());
        check(sums == std::vector<int64_t>(cuda::kWarp, sum), "sum before tile " + std::to_string(tile) +
                                                                  ", known at " + std::to_string(known) +
                                                                  ", " + schedule);
        check(tiles[tile] == (cuda::kSumToEnd | static_cast<uint64_t>(sum + 5)),
              "published sum, " + schedule);
      });
}

void check_all() {
  for (const int64_t entries : harness::kSizes)
    for (const int tensors : {1, 3, 40})
      for (const int bytes : supports::kIndexBytes) {
        const Support support = supports::make_support(entries, tensors, 7);
        const Support other = supports::other_support(support, 8), none = supports::other_support(support, 0);
        const std::string what = std::to_string(entries) + " entries of " + std::to_string(tensors) +
                                 " tensors, " + std::to_string(bytes) + " bytes, ";
        check_pair(support, other, bytes, what);
        check_pair(other, support, bytes, "turned round, " + what);
        check_pair(support, support, bytes, "itself, " + what);
        check_pair(support, none, bytes, "nothing to add, " + what);
        check_pair(none, support, bytes, "to nothing, " + what);
      }
  check_look_back();
  check(cuda::count_shared(nullptr, nullptr, nullptr, nullptr, 1, 1, 2, nullptr, nullptr, nullptr) ==
            cuda::kInvalidArgument,
        "indices of 2 bytes are refused");
}

// The weights of a tensor in turns, so that both supports' shares of a tile start on a sector.
void count_all() {
  Support a, b;
  std::vector<int64_t> even, odd;
  for (int64_t k = 0; k < 2 * cuda::kEntryTile; ++k) (k % 2 == 0 ? even : odd).push_back(k);
  a.add(2 * cuda::kEntryTile, even);
  b.add(2 * cuda::kEntryTile, odd);
  for (const int bytes : supports::kIndexBytes) on_gpu(Delta(a, bytes, 1), Delta(b, bytes, 2), bytes);
}

}  // namespace

int main(int argc, char** argv) { return harness::run(argc, argv, check_all, count_all); }
