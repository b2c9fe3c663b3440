// topk_absdiff on the host against the CPU's loops: the same indices, counts and threshold.
#include "supports.h"

#include "core/sparse_update/topk_absdiff.cpp"
#include "cuda/sparse_update/topk_absdiff.cu"

namespace {

using harness::Buffer;
using harness::check;
using supports::Array;

namespace cuda = graftwork::cuda;

// Tensors, what they came from, and how they are listed.
struct Pairs {
  std::vector<Buffer> words;
  std::vector<void*> weights, bases;
  Array<int64_t> numels, tiles{0}, wide_formats;
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> formats;

  // values: how many different numbers there are; 0: as many as the format has.
  void add(int64_t numel, int format, unsigned seed, int values, size_t offset) {
    const int bytes = supports::word_bytes(format);
    for (const bool is_base : {false, true}) {
      auto content = supports::random_words(numel, format, seed + is_base);
      for (int64_t k = values; values > 0 && k < numel; ++k)
        std::memcpy(&content[k * bytes], &content[k * 7 % values * bytes], bytes);
      if (is_base && seed % 2 == 0)  // most weights did not change
        for (int64_t k = 0; k < numel; ++k)
          if (k % 5) std::memcpy(&content[k * bytes], words.back().data() + k * bytes, bytes);
      words.emplace_back(content, offset * bytes);
      (is_base ? bases : weights).push_back(words.back().data());
    }
    numels.push_back(numel);
    offsets.push_back(offsets.back() + numel);
    tiles.push_back(tiles.back() + (numel + cuda::selection_tile() - 1) / cuda::selection_tile());
    formats.push_back(format);
    wide_formats.push_back(format);
  }

  int64_t tensors() const { return static_cast<int64_t>(numels.size()); }
  int64_t numel() const { return offsets.back(); }

  void set_word(int64_t tensor, int64_t at, uint32_t word) {
    const int bytes = supports::word_bytes(formats[tensor]);
    std::memcpy(static_cast<uint8_t*>(weights[tensor]) + at * bytes, &word, bytes);
  }
};

struct Chosen {
  std::vector<uint8_t> indices;
  std::vector<int64_t> counts;
  float threshold;
  int64_t nan_tensor = -1;
};

Chosen on_cpu(const Pairs& pairs, bool by_size, int64_t k, int index_bytes) {
  Chosen chosen{std::vector<uint8_t>(k * index_bytes), std::vector<int64_t>(pairs.tensors()), 0};
  std::vector<const void*> zeros;
  std::vector<std::vector<uint8_t>> memory;
  for (int64_t t = 0; by_size && t < pairs.tensors(); ++t) {
    memory.emplace_back(pairs.numels[t] * 4);
    zeros.push_back(memory.back().data());
  }
  const int64_t bytes = graftwork::selection_workspace_bytes(pairs.numel(), k, 1);
  std::vector<uint8_t> workspace(bytes);
  graftwork::topk_absdiff(pairs.weights.data(), by_size ? zeros.data() : pairs.bases.data(),
                          pairs.offsets.data(), pairs.formats.data(), pairs.tensors(), k,
                          chosen.indices.data(), index_bytes, chosen.counts.data(), &chosen.threshold,
                          &chosen.nan_tensor, workspace.data(), bytes, 1);
  return chosen;
}

Chosen on_gpu(const Pairs& pairs, bool by_size, int64_t k, int index_bytes) {
  const int64_t tensors = pairs.tensors(), tile_count = pairs.tiles.back();
  const Buffer indices(k * index_bytes), workspace(cuda::topk_absdiff_workspace_bytes(tile_count));
  const Buffer report((2 * tensors + 1) * sizeof(int64_t));
  const int error =
      cuda::topk_absdiff(pairs.weights.data(), by_size ? nullptr : pairs.bases.data(), pairs.numels.data(),
                         pairs.tiles.data(), pairs.wide_formats.data(), tensors, tile_count, k,
                         indices.data(), index_bytes, report.as<int64_t>(), workspace.data(), nullptr);
  check(error == 0, "the selection starts");
  const int64_t* const numbers = report.as<int64_t>();
  Chosen chosen{indices.content(), {numbers, numbers + tensors}, 0};
  chosen.threshold = k == 0 ? HUGE_VALF : cuda::float_of(static_cast<uint32_t>(numbers[2 * tensors]));
  for (int64_t t = tensors - 1; t >= 0; --t)
    if (numbers[tensors + t] != 0) chosen.nan_tensor = t;
  return chosen;
}

void compare(const Pairs& pairs, bool by_size, int64_t k, int index_bytes, const std::string& about) {
  const std::string what = about + std::to_string(pairs.numel()) + " weights, k " + std::to_string(k) + ", ";
  const Chosen wanted = on_cpu(pairs, by_size, k, index_bytes);
  harness::under_each_schedule([&](const std::string& schedule) {
    const Chosen got = on_gpu(pairs, by_size, k, index_bytes);
    check(got.nan_tensor == wanted.nan_tensor, "tensor with NaN: " + what + schedule);
    if (wanted.nan_tensor >= 0) return;
    check(got.counts == wanted.counts, "counts: " + what + schedule);
    check(got.indices == wanted.indices, "indices: " + what + schedule);
    check(got.threshold == wanted.threshold, "threshold: " + what + schedule);
  });
}

// Several sizes and formats, aligned and not.
Pairs make_pairs(int64_t numel, int tensors, unsigned seed, int values) {
  Pairs pairs;
  for (int t = 0; t < tensors; ++t)
    pairs.add(t % 3 == 1 ? numel / 5
              : t == 5   ? 0
                         : numel,
              static_cast<int>(t + seed) % 3, seed + 3 * t, values, t % 4 == 3);
  return pairs;
}

void check_all() {
  size_t number = 0;  // each of the inputs takes two of the six k in turn
  for (const int64_t numel : harness::kSizes)
    for (const int tensors : {1, 7})
      for (const unsigned seed : {0u, 1u, 2u})
        for (const int values : {0, 3}) {
          const Pairs pairs = make_pairs(numel, tensors, seed, values);
          const int64_t all = pairs.numel(), ks[] = {0, 1, all / 25, all / 3, all - 1, all};
          for (size_t turn = (number + number / 6) % 3; turn < 6; turn += 3)
            if (0 <= ks[turn] && ks[turn] <= all) compare(pairs, seed == 1, ks[turn], seed == 2 ? 8 : 4, "");
        }
  compare(make_pairs(200, 70, 0, 0), false, 1000, 4, "many tensors, ");
  compare(make_pairs(3 * cuda::selection_tile(), 2, 1, 2), false, 5000, 4, "ties in many tiles, ");
  Pairs special = make_pairs(1000, 3, 3, 0);
  special.set_word(0, 999,
                   special.formats[0] == 2   ? 0x7f800000u
                   : special.formats[0] == 1 ? 0x7f80u
                                             : 0x7c00u);
  compare(special, false, 100, 4, "infinity, ");
  compare(special, true, 1, 4, "infinity alone, ");
  for (int64_t t = 2; t >= 1; --t) {
    special.set_word(t, 33,
                     special.formats[t] == 2   ? 0x7f800001u
                     : special.formats[t] == 1 ? 0x7f81u
                                               : 0x7c01u);
    for (const int64_t k : {0, 100}) compare(special, false, k, 4, "NaN, ");
  }
  check(cuda::topk_absdiff(nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0, 0, nullptr, 2, nullptr, nullptr,
                           nullptr) == cuda::kInvalidArgument,
        "indices of 2 bytes are refused");
}

// Whole tiles, all of them chosen: what is written starts on a sector then.
void count_all() {
  for (int format = 0; format < 3; ++format)
    for (const int bytes : supports::kIndexBytes) {
      Pairs pairs;
      for (unsigned t = 0; t < 2; ++t) pairs.add(2 * cuda::selection_tile(), format, 1 + 2 * t, 0, 0);
      on_gpu(pairs, false, pairs.numel(), bytes);
    }
}

}  // namespace

int main(int argc, char** argv) { return harness::run(argc, argv, check_all, count_all); }
