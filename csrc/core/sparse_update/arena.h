// The tuned weights of several tensors side by side, so that a whole model is one loop.
//
// Entries offsets[t] .. offsets[t + 1] belong to tensor t. Their indices are row-major and flat within their tensor,
// sorted and unique: no two entries write one weight, and no operation needs atomics.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int64_t kMinSpan = int64_t{1} << 12;  // entries: below this a second thread does not pay

// Entries in pieces that depend on their number alone; a piece is cut further where a tensor ends.
inline Chunks cut_entries(int64_t entries) {
  const int64_t share = (entries + kMaxChunks - 1) / kMaxChunks;
  const int64_t length = share < kMinSpan ? kMinSpan : (share + 15) / 16 * 16;
  return {entries, length, static_cast<int>((entries + length - 1) / length)};
}

// Calls body(tensor, begin, end) for the entries of one chunk, a tensor at a time.
template <class Body>
inline void for_each_span(const Chunks& chunks, int chunk, const int64_t* offsets, int64_t tensors,
                          const Body& body) {
  int64_t begin = chunks.begin(chunk);
  const int64_t end = chunks.end(chunk);
  int64_t tensor = 0;
  for (int64_t after = tensors; after - tensor > 1;) {  // the last tensor that starts at or before `begin`
    const int64_t middle = tensor + (after - tensor) / 2;
    (offsets[middle] <= begin ? tensor : after) = middle;
  }
  for (; begin < end; ++tensor) {
    const int64_t stop = end < offsets[tensor + 1] ? end : offsets[tensor + 1];
    if (begin < stop) body(tensor, begin, stop);
    begin = stop;
  }
}

// The same for all entries, on several threads. body must not throw.
template <class Body>
inline void parallel_spans(const int64_t* offsets, int64_t tensors, int threads, const Body& body) {
  const Chunks chunks = cut_entries(offsets[tensors]);
  parallel_chunks(chunks, threads, [&](int chunk) { for_each_span(chunks, chunk, offsets, tensors, body); });
}

// The first of the sorted indices[begin] .. indices[end - 1] that is not below `bound`, or end.
template <class Index>
inline int64_t lower_bound(const Index* indices, int64_t begin, int64_t end, int64_t bound) {
  for (int64_t count = end - begin; count > 0;) {
    const int64_t half = count / 2;
    const bool below = indices[begin + half] < bound;
    begin = below ? begin + half + 1 : begin;
    count = below ? count - half - 1 : half;
  }
  return begin;
}

// Calls call<Index>() with the type of the indices.
template <class Call>
inline void with_index(int index_bytes, const Call& call) {
  switch (index_bytes) {
    case 4: return call.template operator()<int32_t>();
    case 8: return call.template operator()<int64_t>();
    default: throw std::invalid_argument("index_bytes must be 4 or 8");
  }
}

}  // namespace graftwork::GRAFTWORK_LEVEL
