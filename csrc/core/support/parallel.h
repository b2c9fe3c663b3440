// Threads for the operations of one ISA level: OpenMP where the compiler has it, else one thread.
//
// Work is cut into chunks that depend on the number of elements alone, never on the number of threads, so
// that results combined in chunk order have the same bits for any thread count.
#pragma once

#include <cstdint>

namespace graftwork::GRAFTWORK_LEVEL {

constexpr int kMaxChunks = 256;
constexpr int64_t kMinChunk = int64_t{1} << 17;  // elements: below this a second thread does not pay

struct Chunks {
  int64_t numel, length;
  int count;

  int64_t begin(int chunk) const { return chunk * length; }
  int64_t end(int chunk) const { return begin(chunk + 1) < numel ? begin(chunk + 1) : numel; }
};

inline Chunks cut(int64_t numel) {
  constexpr int64_t kQuantum = 4096;  // whole blocks of every operation; keeps each chunk's start aligned
  const int64_t share = (numel + kMaxChunks - 1) / kMaxChunks;
  const int64_t length = share < kMinChunk ? kMinChunk : (share + kQuantum - 1) / kQuantum * kQuantum;
  return {numel, length, static_cast<int>((numel + length - 1) / length)};
}

// Every thread makes a State on its stack, calls body(state, chunk) for the chunks that fall to it, and in the
// end merge(state), one thread at a time. Neither may throw: an exception must not leave a parallel region.
template <class State, class Body, class Merge>
inline void parallel_chunks(const Chunks& chunks, int threads, const Body& body, const Merge& merge) {
  if (threads > chunks.count) threads = chunks.count;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    State state{};
#pragma omp for schedule(dynamic, 1) nowait
    for (int chunk = 0; chunk < chunks.count; ++chunk) body(state, chunk);
#pragma omp critical(graftwork_merge)
    merge(state);
  }
}

template <class Body>
inline void parallel_chunks(const Chunks& chunks, int threads, const Body& body) {
  if (threads > chunks.count) threads = chunks.count;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int chunk = 0; chunk < chunks.count; ++chunk) body(chunk);
}

}  // namespace graftwork::GRAFTWORK_LEVEL
