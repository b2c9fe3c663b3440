// Bit-exact difference of two float tensors, entropy coded: the class of the ordinal difference (its sign and bit
// length) by rANS in the context of the base's exponent and of how much the words before changed; the bits below the
// leading one as they are. docs/store-format.md describes the bytes.
//
// Both functions work on segments of 2^16 to 2^20 words, coded each on its own, and on 32 interleaved states, so that
// any device decodes the same bytes in parallel.
#pragma once

#include <cstdint>

#include "core/entropy_delta/rans_model.h"
#include "core/support/weight_format.h"

namespace graftwork {

// Upper bound of a payload, and what the functions need beside it.
int64_t ordinal_rans_payload_bound(int64_t numel, int word_bytes);
int64_t ordinal_rans_workspace_bytes(int threads);

// Writes the payload of `tuned` against `base` and its size. log2_segment: log2 of the words in a segment, 16 to 20,
// or 0: as large as they come, halved for as long as that costs fewer bits.
void encode_ordinal_rans(const void* base, const void* tuned, uint8_t* payload, int64_t* payload_bytes,
                         uint8_t* workspace, int64_t numel, WeightFormat format, int log2_segment,
                         int threads);

// Restores `tuned`. *malformed becomes 1 if the payload is not one of `numel` words, else 0; then what `tuned` holds
// is undefined, and never has a byte outside of payload or tuned been touched.
void decode_ordinal_rans(const void* base, const uint8_t* payload, int64_t payload_bytes, void* tuned,
                         int64_t* malformed, uint8_t* workspace, int64_t numel, WeightFormat format,
                         int threads);

}  // namespace graftwork
