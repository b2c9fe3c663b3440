// Resident blocks walk over segments of fixed length, so the order of every addition depends on the input's
// size alone. A block counts pairs in a histogram of its own in shared memory and adds it to the result once,
// at the end; integers may be added in any order. Doubles are summed by thread, then by block in a fixed
// tree, into one partial result a segment; a second kernel adds those in a fixed order.
//
// Contention: most pairs of a fine-tune fall into a few dozen bins, so lanes of a warp often add 1 to the
// same one. Adding the constant 1 compiles to ATOMS.POPC.INC, which serves all lanes with equal addresses at
// once: __match_any_sync would do the same again in software, and a histogram per warp (33 or 65 KB each)
// does not fit.
//
// 16-bit formats are bound by instructions, some 40 a pair, before they are by memory: hence words are
// compared two to a register, and NaN and infinity are looked for once a vector. Registers allow two blocks a
// multiprocessor; asking for three (40 registers) spills, and eight independent pairs a thread hide latency.
#include "cuda/lossless_delta/delta_stats.cuh"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda/support/device.cuh"
#include "cuda/support/numeric.cuh"
#include "cuda/support/reduce.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kSegment = 16384;  // elements: 32 a thread, so the block's reduction costs a few percent
constexpr int kVectorBytes = 16;
constexpr int kSums = 4;

enum Count { kChanged, kBaseNan, kBaseInf, kTunedNan, kTunedInf, kCounts };

struct Sums {
  double difference = 0, base = 0, tuned = 0, largest = 0;

  SIMT_DEVICE void combine(const Sums& other) {
    difference += other.difference;
    base += other.base;
    tuned += other.tuned;
    largest = other.largest > largest ? other.largest : largest;
  }
};

// Shared memory of a block: the histogram, the counts, and scratch for the reduction.
template <class Format>
struct Tally {
  using Word = typename Format::Word;
  using Signed = std::make_signed_t<Word>;
  static constexpr int kWordBits = 8 * sizeof(Word);
  static constexpr int kMantissaBits = kWordBits - 1 - Format::kExponentBits;
  static constexpr int kRows = 1 << Format::kExponentBits;
  static constexpr int kColumns = 2 * kWordBits + 1;
  static constexpr int kBins = kRows * kColumns;
  static constexpr int kCounters = (kBins + kCounts + 1) / 2 * 2;  // even: doubles follow
  static constexpr size_t kSharedBytes =
      kCounters * sizeof(uint32_t) + kReduceWords<Sums, kThreads> * sizeof(unsigned long long);

  static SIMT_DEVICE int exponent_field(Word word) { return word >> kMantissaBits & (kRows - 1); }
  static SIMT_DEVICE bool is_special(Word word) { return exponent_field(word) == kRows - 1; }
  static SIMT_DEVICE bool has_mantissa(Word word) { return (word & ((1u << kMantissaBits) - 1)) != 0; }
};

// Counts NaN and infinity in one pair.
template <class Format>
SIMT_DEVICE void count_specials(typename Format::Word base, typename Format::Word tuned, uint32_t* counts) {
  using Shape = Tally<Format>;
  if (Shape::is_special(base))
    simt::add_shared(counts + (Shape::has_mantissa(base) ? kBaseNan : kBaseInf), 1u);
  if (Shape::is_special(tuned))
    simt::add_shared(counts + (Shape::has_mantissa(tuned) ? kTunedNan : kTunedInf), 1u);
}

// Adds a pair whose ordinals differ by `moved` to the histogram, and to `sums` if it is finite: returns that.
template <class Format>
SIMT_DEVICE bool add_pair(typename Format::Word base, typename Format::Word tuned, int32_t moved,
                          uint32_t* histogram, Sums& sums) {
  using Shape = Tally<Format>;
  const uint32_t distance = moved < 0 ? 0u - static_cast<uint32_t>(moved) : static_cast<uint32_t>(moved);
  const int length = simt::bit_length(distance);
  const int bin = Shape::exponent_field(base) * Shape::kColumns + Shape::kWordBits;
  simt::add_shared(histogram + bin + (moved < 0 ? -length : length), 1u);

  const bool finite = !Shape::is_special(base) && !Shape::is_special(tuned);
  const double x = finite ? Format::value(base) : 0.0f, y = finite ? Format::value(tuned) : 0.0f;
  const double difference = y - x, size = fabs(difference);
  sums.difference += difference * difference;
  sums.base += x * x;
  sums.tuned += y * y;
  sums.largest = size > sums.largest ? size : sums.largest;
  return finite;
}

// The first kCount words of the registers at `base` and `tuned`: everything that there is to know about them.
template <class Format, int kCount>
SIMT_DEVICE void add_words(const uint32_t* base, const uint32_t* tuned, uint32_t* counters, Sums& sums) {
  using Word = typename Format::Word;
  using Signed = typename Tally<Format>::Signed;
  constexpr int kBytes = sizeof(Word), kEach = 4 / kBytes;  // words of a register
  const auto word = [](uint32_t part, int k) {
    return static_cast<Word>(part >> (8 * kBytes * (k % kEach)));
  };
  bool finite = true;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const uint32_t from = base[k / kEach], to = tuned[k / kEach];
    const uint32_t moved = subtract_lanes<kBytes>(ordinal<kBytes>(to), ordinal<kBytes>(from));
    finite &=
        add_pair<Format>(word(from, k), word(to, k), static_cast<Signed>(word(moved, k)), counters, sums);
  }
  if (finite) return;
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    count_specials<Format>(word(base[k / kEach], k), word(tuned[k / kEach], k),
                           counters + Tally<Format>::kBins);
}

struct alignas(kVectorBytes) Vector {
  uint32_t part[4];
};

// Vector number `index` of a tensor, in one access or word by word: a thread sees the same words either way.
template <class Word, bool kAligned>
SIMT_DEVICE Vector load_vector(const Word* tensor, int64_t index) {
  if constexpr (kAligned) {
    return simt::load_global(reinterpret_cast<const Vector*>(tensor) + index);
  } else {
    constexpr int kWords = kVectorBytes / sizeof(Word);
    Word word[kWords];
#pragma unroll
    for (int k = 0; k < kWords; ++k) word[k] = simt::load_global(tensor + index * kWords + k);
    Vector vector;
    memcpy(&vector, word, sizeof vector);
    return vector;
  }
}

// This thread's share of the elements [begin, end); begin is a multiple of kSegment.
template <class Format, bool kAligned>
SIMT_DEVICE Sums add_segment(const typename Format::Word* base, const typename Format::Word* tuned,
                             int64_t begin, int64_t end, uint32_t* counters) {
  using Word = typename Format::Word;
  constexpr int kWords = kVectorBytes / sizeof(Word);
  const int64_t vectors_end = end / kWords;
  Sums sums;
  for (int64_t index = begin / kWords + threadIdx.x; index < vectors_end; index += kThreads) {
    const Vector from = load_vector<Word, kAligned>(base, index);
    const Vector to = load_vector<Word, kAligned>(tuned, index);
    add_words<Format, kWords>(from.part, to.part, counters, sums);
  }
  const int64_t rest = vectors_end * kWords + threadIdx.x;
  if (rest < end) {
    const uint32_t from = simt::load_global(base + rest), to = simt::load_global(tuned + rest);
    add_words<Format, 1>(&from, &to, counters, sums);
  }
  return sums;
}

// Adds the block's histogram and counts to the result.
template <class Format>
SIMT_DEVICE void flush(const uint32_t* counters, int64_t* counts, int64_t* histogram) {
  using Shape = Tally<Format>;
  int64_t changed = 0;
  for (int bin = static_cast<int>(threadIdx.x); bin < Shape::kBins; bin += kThreads) {
    const uint32_t count = simt::load_shared(counters + bin);
    if (count == 0) continue;
    simt::add_global(histogram + bin, count);
    if (bin % Shape::kColumns != Shape::kWordBits) changed += count;
  }
  if (changed != 0) simt::add_global(counts + kChanged, changed);
  if (threadIdx.x > kChanged && threadIdx.x < kCounts) {
    const uint32_t count = simt::load_shared(counters + Shape::kBins + threadIdx.x);
    if (count != 0) simt::add_global(counts + threadIdx.x, count);
  }
}

template <class Format, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    delta_stats_kernel(const typename Format::Word* base, const typename Format::Word* tuned, int64_t numel,
                       int64_t segments, int64_t* counts, int64_t* histogram, double* partials) {
  using Shape = Tally<Format>;
  uint32_t* const counters = simt::dynamic_shared<uint32_t>();
  auto* const scratch = reinterpret_cast<unsigned long long*>(counters + Shape::kCounters);
  for (int k = static_cast<int>(threadIdx.x); k < Shape::kCounters; k += kThreads)
    simt::store_shared(counters + k, 0u);
  __syncthreads();
  for (int64_t segment = blockIdx.x; segment < segments; segment += gridDim.x) {
    const int64_t begin = segment * kSegment, end = begin + kSegment < numel ? begin + kSegment : numel;
    const Sums mine = add_segment<Format, kAligned>(base, tuned, begin, end, counters);
    const Sums total = block_reduce<kThreads>(mine, scratch);
    if (threadIdx.x != 0) continue;
    simt::store_global(partials + segment, total.difference);
    simt::store_global(partials + segments + segment, total.base);
    simt::store_global(partials + 2 * segments + segment, total.tuned);
    simt::store_global(partials + 3 * segments + segment, total.largest);
  }
  __syncthreads();
  flush<Format>(counters, counts, histogram);
}

__global__ void __launch_bounds__(kThreads)
    reduce_partials_kernel(const double* partials, int64_t segments, double* sums) {
  auto* const scratch = simt::dynamic_shared<unsigned long long>();
  Sums total;
  for (int64_t k = threadIdx.x; k < segments; k += kThreads) {
    Sums one;
    one.difference = simt::load_global(partials + k);
    one.base = simt::load_global(partials + segments + k);
    one.tuned = simt::load_global(partials + 2 * segments + k);
    one.largest = simt::load_global(partials + 3 * segments + k);
    total.combine(one);
  }
  total = block_reduce<kThreads>(total, scratch);
  if (threadIdx.x != 0) return;
  simt::store_global(sums, total.difference);
  simt::store_global(sums + 1, total.base);
  simt::store_global(sums + 2, total.tuned);
  simt::store_global(sums + 3, total.largest);
}

int64_t segments_of(int64_t numel) { return (numel + kSegment - 1) / kSegment; }

template <class Format, bool kAligned>
int launch_delta_stats(const void* base, const void* tuned, int64_t numel, int64_t* counts,
                       int64_t* histogram, double* partials, void* stream) {
  using Word = typename Format::Word;
  constexpr auto kernel = delta_stats_kernel<Format, kAligned>;
  constexpr size_t kSharedBytes = Tally<Format>::kSharedBytes;
  const int64_t segments = segments_of(numel);
  int64_t resident = 0;
  const int error = simt::resident_blocks<kernel>(kThreads, kSharedBytes, &resident);
  if (error != 0) return error;
  return simt::launch<kernel>(std::min(segments, resident), kThreads, kSharedBytes, stream,
                              static_cast<const Word*>(base), static_cast<const Word*>(tuned), numel,
                              segments, counts, histogram, partials);
}

template <class Format>
int delta_stats_of(const void* base, const void* tuned, int64_t numel, int64_t* counts, double* sums,
                   int64_t* histogram, double* partials, void* stream) {
  int error = simt::fill_zero(counts, kCounts * sizeof *counts, stream);
  if (error == 0) error = simt::fill_zero(histogram, Tally<Format>::kBins * sizeof *histogram, stream);
  if (error != 0) return error;
  if (numel == 0) return simt::fill_zero(sums, kSums * sizeof *sums, stream);
  const auto places = reinterpret_cast<uintptr_t>(base) | reinterpret_cast<uintptr_t>(tuned);
  error = places % kVectorBytes == 0
              ? launch_delta_stats<Format, true>(base, tuned, numel, counts, histogram, partials, stream)
              : launch_delta_stats<Format, false>(base, tuned, numel, counts, histogram, partials, stream);
  if (error != 0) return error;
  constexpr size_t kSharedBytes = kReduceWords<Sums, kThreads> * sizeof(unsigned long long);
  return simt::launch<reduce_partials_kernel>(int64_t{1}, kThreads, kSharedBytes, stream,
                                              static_cast<const double*>(partials), segments_of(numel), sums);
}

}  // namespace

int64_t delta_stats_workspace_bytes(int64_t numel, WeightFormat /*format*/) {
  return segments_of(numel) * kSums * static_cast<int64_t>(sizeof(double));
}

int delta_stats(const void* base, const void* tuned, int64_t numel, WeightFormat format, int64_t* counts,
                double* sums, int64_t* histogram, void* workspace, void* stream) {
  double* const partials = static_cast<double*>(workspace);
  switch (format) {
    case WeightFormat::float16:
      return delta_stats_of<Float16>(base, tuned, numel, counts, sums, histogram, partials, stream);
    case WeightFormat::bfloat16:
      return delta_stats_of<BFloat16>(base, tuned, numel, counts, sums, histogram, partials, stream);
    case WeightFormat::float32:
      return delta_stats_of<Float32>(base, tuned, numel, counts, sums, histogram, partials, stream);
  }
  return kInvalidArgument;
}

}  // namespace graftwork::cuda
