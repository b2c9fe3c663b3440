// A thread has four entries, so that four of its words, each in a sector of its own, are on their way at once.
#include "cuda/sparse_update/values.cuh"

#include "cuda/sparse_update/arena.cuh"
#include "cuda/sparse_update/words.cuh"
#include "cuda/support/device.cuh"
#include "cuda/support/reduce.cuh"

namespace graftwork::cuda {
namespace {

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads)
    gather_values_kernel(Arena arena, const void* const* dense, bool wide, void* out) {
  const Share<kIndexBytes> mine(arena);
  const void* tensor[kEach] = {};
  mine.look_up(dense, tensor);
  uint32_t word[kEach] = {};
  for_each_row([&](int k) {
    if (mine.has(k)) word[k] = load_word(tensor[k], mine.index[k], wide);
  });
  for_each_row([&](int k) {
    if (mine.has(k)) store_word(out, mine.entry(k), word[k], wide);
  });
}

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads)
    restore_values_kernel(Arena arena, void* const* dense, bool wide, const void* saved) {
  const Share<kIndexBytes> mine(arena);
  void* tensor[kEach] = {};
  mine.look_up(dense, tensor);
  uint32_t word[kEach] = {};
  for_each_row([&](int k) {
    if (mine.has(k)) word[k] = load_word(saved, mine.entry(k), wide);
  });
  for_each_row([&](int k) {
    if (mine.has(k)) store_word(tensor[k], mine.index[k], word[k], wide);
  });
}

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads)
    write_values_kernel(Arena arena, void* const* dense, WeightFormat format, const void* base,
                        const float* values, float scale) {
  const Share<kIndexBytes> mine(arena);
  void* tensor[kEach] = {};
  mine.look_up(dense, tensor);
  const bool wide = is_wide(format);
  uint32_t under[kEach] = {};
  float value[kEach] = {};
  for_each_row([&](int k) {
    if (!mine.has(k)) return;
    under[k] = load_word(base, mine.entry(k), wide);
    value[k] = simt::load_global(values + mine.entry(k));
  });
  for_each_row([&](int k) {
    if (!mine.has(k)) return;
    const Rounded sum = Rounded{value_of(under[k], format)} + Rounded{value[k]} * Rounded{scale};
    store_word(tensor[k], mine.index[k], word_of(sum.value, format), wide);
  });
}

struct Squares {
  double sum = 0;
  int64_t nonfinite = 0;

  SIMT_DEVICE void combine(const Squares& other) {
    sum += other.sum;
    nonfinite += other.nonfinite;
  }
};
constexpr size_t kReduceBytes = kReduceWords<Squares, kEntryThreads> * sizeof(unsigned long long);

template <int kIndexBytes>
__global__ void __launch_bounds__(kEntryThreads)
    gather_gradients_kernel(Arena arena, const void* const* dense, WeightFormat format, float scale,
                            float* out, Squares* partials) {
  const Share<kIndexBytes> mine(arena);
  const void* tensor[kEach] = {};
  mine.look_up(dense, tensor);
  uint32_t word[kEach] = {};
  for_each_row([&](int k) {
    if (mine.has(k)) word[k] = load_word(tensor[k], mine.index[k], is_wide(format));
  });
  Squares squares;
  for_each_row([&](int k) {
    if (!mine.has(k)) return;
    const float gradient = __fmul_rn(value_of(word[k], format), scale);
    const double exact = gradient;  // so is its square
    squares.sum += exact * exact;
    squares.nonfinite += (bits_of(gradient) & 0x7f800000u) == 0x7f800000u;
    simt::store_global(out + mine.entry(k), gradient);
  });
  squares = block_reduce<kEntryThreads>(squares, simt::dynamic_shared<unsigned long long>());
  if (threadIdx.x == 0) simt::store_global(partials + blockIdx.x, squares);
}

__global__ void __launch_bounds__(kEntryThreads)
    sum_squares_kernel(const Squares* partials, int64_t count, double* sum_of_squares, int64_t* nonfinite) {
  Squares total;
  for (int64_t k = threadIdx.x; k < count; k += kEntryThreads) total.combine(simt::load_global(partials + k));
  total = block_reduce<kEntryThreads>(total, simt::dynamic_shared<unsigned long long>());
  if (threadIdx.x != 0) return;
  simt::store_global(sum_of_squares, total.sum);
  simt::store_global(nonfinite, total.nonfinite);
}

bool is_word(int bytes) { return bytes == 2 || bytes == 4; }

}  // namespace

int gather_values(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                  int64_t tensors, int word_bytes, void* out, int64_t entries, void* stream) {
  if (!is_word(word_bytes)) return kInvalidArgument;
  const Arena arena{indices, offsets, tensors, entries};
  return with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    if (entries == 0) return 0;
    return simt::launch<gather_values_kernel<decltype(bytes)::value>>(
        arena.blocks(), kEntryThreads, 0, stream, arena, dense, word_bytes == 4, out);
  });
}

int restore_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                   int64_t tensors, int word_bytes, const void* saved, int64_t entries, void* stream) {
  if (!is_word(word_bytes)) return kInvalidArgument;
  const Arena arena{indices, offsets, tensors, entries};
  return with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    if (entries == 0) return 0;
    return simt::launch<restore_values_kernel<decltype(bytes)::value>>(
        arena.blocks(), kEntryThreads, 0, stream, arena, dense, word_bytes == 4, saved);
  });
}

int write_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                 int64_t tensors, WeightFormat format, const void* base, const float* values, float scale,
                 int64_t entries, void* stream) {
  if (!is_format(static_cast<int>(format))) return kInvalidArgument;
  const Arena arena{indices, offsets, tensors, entries};
  return with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    if (entries == 0) return 0;
    return simt::launch<write_values_kernel<decltype(bytes)::value>>(
        arena.blocks(), kEntryThreads, 0, stream, arena, dense, format, base, values, scale);
  });
}

int64_t gather_gradients_workspace_bytes(int64_t entries) {
  return Arena{nullptr, nullptr, 0, entries}.blocks() * static_cast<int64_t>(sizeof(Squares));
}

int gather_gradients(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                     int64_t tensors, WeightFormat format, float scale, float* out, double* sum_of_squares,
                     int64_t* nonfinite, int64_t entries, void* workspace, void* stream) {
  if (!is_format(static_cast<int>(format))) return kInvalidArgument;
  const Arena arena{indices, offsets, tensors, entries};
  auto* const partials = static_cast<Squares*>(workspace);
  const int error = with_index_bytes(index_bytes, kInvalidArgument, [&](auto bytes) {
    if (entries == 0) return 0;
    return simt::launch<gather_gradients_kernel<decltype(bytes)::value>>(
        arena.blocks(), kEntryThreads, kReduceBytes, stream, arena, dense, format, scale, out, partials);
  });
  if (error != 0) return error;
  return simt::launch<sum_squares_kernel>(int64_t{1}, kEntryThreads, kReduceBytes, stream,
                                          static_cast<const Squares*>(partials), arena.blocks(),
                                          sum_of_squares, nonfinite);
}

}  // namespace graftwork::cuda
