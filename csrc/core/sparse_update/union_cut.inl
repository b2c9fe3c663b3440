// How the entries of several supports of the same tensors are cut into chunks of nearly equal work.
//
// A cut is a place in the order of (tensor, index): everything before it, of every support, belongs to the chunks before.
// The places depend on the supports alone, never on the number of threads.
#pragma once

#include <cstdint>

#include "core/sparse_update/arena.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

// Supports of the same tensors. A piece is what a chunk has of one tensor; the pieces are numbered in order, as
// chunk + tensor, since a chunk begins in the tensor in which the one before ends, at the latest.
template <class Index>
struct UnionCut {
  const Index* const* indices;
  const int64_t* const* offsets;
  int64_t deltas, tensors;
  int64_t* cuts;        // [chunks + 1][deltas]: where each chunk begins in each support
  int64_t* tensors_of;  // [chunks + 1]: the tensor in which each chunk begins
  Chunks chunks;

  UnionCut(const void* const* index_arrays, const void* const* offset_arrays, int64_t* workspace,
           int64_t delta_count, int64_t tensor_count)
      : indices(reinterpret_cast<const Index* const*>(index_arrays)),
        offsets(reinterpret_cast<const int64_t* const*>(offset_arrays)),
        deltas(delta_count),
        tensors(tensor_count),
        cuts(workspace),
        tensors_of(workspace + (kMaxChunks + 1) * delta_count) {
    chunks = cut_entries(entries_before(tensors));
  }

  static int64_t workspace_words(int64_t deltas) { return (kMaxChunks + 1) * (deltas + 1); }

  int64_t pieces() const { return chunks.count + tensors; }

  int64_t entries_before(int64_t tensor) const {
    int64_t sum = 0;
    for (int64_t k = 0; k < deltas; ++k) sum += offsets[k][tensor];
    return sum;
  }

  // Finds all cuts.
  void fill(int threads) {
    const Chunks cutting{chunks.count + 1, 1, chunks.count + 1};
    parallel_chunks(cutting, chunks.count < 16 ? 1 : threads, [&](int chunk) { place(chunk); });
  }

  // Calls body(piece, tensor) for the pieces of a chunk; begin() and end() say what a piece has of each support.
  template <class Body>
  void for_each_piece(int chunk, const Body& body) const {
    for (int64_t tensor = tensors_of[chunk]; tensor < tensors && tensor <= tensors_of[chunk + 1]; ++tensor)
      body(chunk + tensor, tensor);
  }

  int64_t begin(int chunk, int64_t tensor, int64_t delta) const {
    const int64_t from = cuts[chunk * deltas + delta], first = offsets[delta][tensor];
    return from > first ? from : first;
  }

  int64_t end(int chunk, int64_t tensor, int64_t delta) const {
    const int64_t to = cuts[(chunk + 1) * deltas + delta], last = offsets[delta][tensor + 1];
    return to < last ? to : last;
  }

 private:
  // Where a share of all entries ends: in the tensor that says so, at the index of its longest support that is as far
  // along there; the others follow. Shares are equal where the supports of a tensor are alike.
  void place(int chunk) {
    const int64_t target = chunk == chunks.count ? chunks.numel : chunks.begin(chunk);
    int64_t tensor = 0;
    for (int64_t after = tensors; after - tensor > 1;) {
      const int64_t middle = tensor + (after - tensor) / 2;
      (entries_before(middle) <= target ? tensor : after) = middle;
    }
    tensors_of[chunk] = tensor;
    int64_t* const cut = cuts + chunk * deltas;
    int64_t longest = 0, inside = 0;
    for (int64_t k = 0; k < deltas; ++k) {
      const int64_t mine = offsets[k][tensor + 1] - offsets[k][tensor];
      inside += mine;
      longest = mine > offsets[longest][tensor + 1] - offsets[longest][tensor] ? k : longest;
    }
    const int64_t done = target - entries_before(tensor);
    const int64_t first = offsets[longest][tensor], length = offsets[longest][tensor + 1] - first;
    const bool whole = done >= inside;
    const double share = inside == 0 ? 0 : static_cast<double>(done) / static_cast<double>(inside);
    const int64_t at = static_cast<int64_t>(share * static_cast<double>(length));
    for (int64_t k = 0; k < deltas; ++k) {
      const int64_t from = offsets[k][tensor], to = offsets[k][tensor + 1];
      if (whole || at >= length)
        cut[k] = to;
      else
        cut[k] = at == 0 ? from : lower_bound(indices[k], from, to, indices[longest][first + at]);
    }
  }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
