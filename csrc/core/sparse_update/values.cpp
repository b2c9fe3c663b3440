#include "core/sparse_update/values.h"

#include <stdexcept>

#include "core/sparse_update/values.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

// Calls call<Word>() with the word of so many bytes.
template <class Call>
void with_word(int word_bytes, const Call& call) {
  switch (word_bytes) {
    case 2: return call.template operator()<uint16_t>();
    case 4: return call.template operator()<uint32_t>();
    default: throw std::invalid_argument("word_bytes must be 2 or 4");
  }
}

void gather_values(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                   int64_t tensors, int word_bytes, void* out, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    with_word(word_bytes, [=]<class Word>() {
      gather_words_of<Word>(dense, static_cast<const Index*>(indices), offsets, tensors,
                            static_cast<Word*>(out), threads);
    });
  });
}

void restore_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                    int64_t tensors, int word_bytes, const void* saved, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    with_word(word_bytes, [=]<class Word>() {
      restore_words_of<Word>(dense, static_cast<const Index*>(indices), offsets, tensors,
                             static_cast<const Word*>(saved), threads);
    });
  });
}

void gather_gradients(const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                      int64_t tensors, WeightFormat format, float scale, float* out, double* sum_of_squares,
                      int64_t* nonfinite, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    gather_gradients_of(dense, static_cast<const Index*>(indices), offsets, tensors, format, scale, out,
                        sum_of_squares, nonfinite, threads);
  });
}

void write_values(void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                  int64_t tensors, WeightFormat format, const void* base, const float* values, float scale,
                  int threads) {
  with_index(index_bytes, [=]<class Index>() {
    write_values_of(dense, static_cast<const Index*>(indices), offsets, tensors, format, base, values, scale,
                    threads);
  });
}

void swap_values(void* const* dense, int64_t tensors, WeightFormat format, int index_bytes,
                 const void* before_indices, const int64_t* before_offsets, const void* before_base,
                 const void* after_indices, const int64_t* after_offsets, const float* after_values,
                 float scale, void* after_base, const int64_t* offsets, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    with_format(format, [=]<class Format>() {
      swap_values_of<Format>(dense, tensors, static_cast<const Index*>(before_indices), before_offsets,
                             before_base, static_cast<const Index*>(after_indices), after_offsets,
                             after_values, scale, after_base, offsets, threads);
    });
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(gather_values,
                   (const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                    int64_t tensors, int word_bytes, void* out, int threads),
                   (dense, indices, index_bytes, offsets, tensors, word_bytes, out, threads))
GRAFTWORK_DISPATCH(restore_values,
                   (void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                    int64_t tensors, int word_bytes, const void* saved, int threads),
                   (dense, indices, index_bytes, offsets, tensors, word_bytes, saved, threads))
GRAFTWORK_DISPATCH(gather_gradients,
                   (const void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                    int64_t tensors, WeightFormat format, float scale, float* out, double* sum_of_squares,
                    int64_t* nonfinite, int threads),
                   (dense, indices, index_bytes, offsets, tensors, format, scale, out, sum_of_squares,
                    nonfinite, threads))
GRAFTWORK_DISPATCH(write_values,
                   (void* const* dense, const void* indices, int index_bytes, const int64_t* offsets,
                    int64_t tensors, WeightFormat format, const void* base, const float* values, float scale,
                    int threads),
                   (dense, indices, index_bytes, offsets, tensors, format, base, values, scale, threads))
GRAFTWORK_DISPATCH(swap_values,
                   (void* const* dense, int64_t tensors, WeightFormat format, int index_bytes,
                    const void* before_indices, const int64_t* before_offsets, const void* before_base,
                    const void* after_indices, const int64_t* after_offsets, const float* after_values,
                    float scale, void* after_base, const int64_t* offsets, int threads),
                   (dense, tensors, format, index_bytes, before_indices, before_offsets, before_base,
                    after_indices, after_offsets, after_values, scale, after_base, offsets, threads))

}  // namespace graftwork
