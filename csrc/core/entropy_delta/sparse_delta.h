// Bit-exact difference of two tensors that agree in most words: where they differ and by how much, entropy coded.
//
// A gap (words between two changes, plus one) and an ordinal difference are coded alike: sign and bit length by rANS,
// four interleaved states, the bits below the leading one as they are. docs/store-format.md describes the bytes.
// Nothing but the changed words is read or written when a payload is applied.
#pragma once

#include <cstdint>

namespace graftwork {

// word_bytes is 2 or 4, else std::invalid_argument.

// Upper bound of a payload with at most max_changes changes in every 2^20 words, and what encoding needs beside it.
int64_t sparse_delta_payload_bound(int64_t numel, int word_bytes, int64_t max_changes);
int64_t sparse_delta_workspace_bytes(int64_t max_changes, int threads);

// Writes the payload of `tuned` against `base` and its size, or -1 if 2^20 words have more than max_changes changes.
void encode_sparse_delta(const void* base, const void* tuned, uint8_t* payload, int64_t* payload_bytes,
                         uint8_t* workspace, int64_t numel, int word_bytes, bool is_float,
                         int64_t max_changes, int threads);

// Adds the differences to `words` in place, or subtracts them. *malformed becomes 1 if the payload is not one of
// `numel` words, else 0; `words` is untouched then.
void apply_sparse_delta(void* words, const uint8_t* payload, int64_t payload_bytes, int64_t* malformed,
                        int64_t numel, int word_bytes, bool is_float, bool reverse, int threads);

// Restores `tuned` from `base`, in one pass. *malformed is as above; what `tuned` holds is undefined then.
void decode_sparse_delta(const void* base, const uint8_t* payload, int64_t payload_bytes, void* tuned,
                         int64_t* malformed, int64_t numel, int word_bytes, bool is_float, int threads);

// The same for many payloads, one after another on one thread: a call costs more than a small chunk does.
struct SparseChunk {
  const void* base;  // the words themselves where they are changed in place
  void* words;
  const uint8_t* payload;
  int64_t payload_bytes, numel, word_bytes, is_float;
};

// *whole becomes the number of chunks before the first malformed one, which are changed; the others are untouched.
void apply_sparse_chunks(const SparseChunk* chunks, int64_t* whole, int64_t count, bool reverse);

// Restores each chunk's `words` from its `base`. *whole is as above; what the others' words hold is undefined.
void decode_sparse_chunks(const SparseChunk* chunks, int64_t* whole, int64_t count);

}  // namespace graftwork
