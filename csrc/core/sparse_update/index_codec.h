// Sorted indices as bytes. graftwork/ops/sparse_update/codec.py describes the codes.
#pragma once

#include <cstdint>

namespace graftwork {

enum class IndexCodec : int { raw = 0, bitmap = 1, varint = 2, rans = 3 };

// Upper bound of the bytes of `count` indices below `numel`. numel: at most 2^50.
int64_t index_code_bound(int64_t numel, int64_t count, int codec);

// Writes the code of int32 or int64 indices and its size, or -1 if they are not sorted, unique and below numel.
void encode_indices(const void* indices, uint8_t* data, int64_t* bytes, int64_t numel, int64_t count,
                    int index_bytes, IndexCodec codec, int threads);

// How many indices the data has, or -1 if it is seen to be malformed: what is to be known before memory is taken.
void count_indices(const uint8_t* data, int64_t bytes, int64_t* count, int64_t numel, IndexCodec codec,
                   int threads);

// Restores as many indices as count_indices found, sorted, unique and below numel. *malformed becomes 1 if the data is
// not their code, else 0; what `indices` holds is undefined then, and no byte outside of it is touched.
void decode_indices(const uint8_t* data, int64_t bytes, void* indices, int64_t* malformed, int64_t numel,
                    int64_t count, int index_bytes, IndexCodec codec, int threads);

}  // namespace graftwork
