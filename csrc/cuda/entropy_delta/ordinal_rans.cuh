// Restores a fine-tune from its base and an entropy-coded difference (the bitstream of
// core/entropy_delta/ordinal_rans.h), on the GPU: decoding and adding to the base are one pass.
#pragma once

#include <cstdint>

#include "core/support/weight_format.h"
#include "cuda/entropy_delta/rans_segments.h"

namespace graftwork::cuda {

// What status says of a segment; any bit: malformed, and its words are undefined.
enum RansStatus : int32_t { kRansStates = 1, kRansWords = 2, kRansRawBits = 4 };

// Queues its work on `stream` and returns a CUDA error code: kInvalidArgument for an unknown format or a
// number of tables outside of 1 .. kMaxTables. All pointers are to device memory, aligned to what they
// point to; tuned may not overlap an input.
//
// payload may lie on any byte, and its segments may be those of many chunks: a segment keeps one warp busy,
// so many small ones fill a device better than few large ones. max_tables is the most tables that one of
// them has. Writes the words of the segments to tuned, and a RansStatus of each to status.
int decode_ordinal_rans(const void* base, const uint8_t* payload, int64_t payload_bytes,
                        const RansSegment* segments, int64_t segment_count, int max_tables, void* tuned,
                        int32_t* status, WeightFormat format, void* stream);

}  // namespace graftwork::cuda
