// What the GPU decoder needs to know of an entropy-coded payload before it starts, parsed and checked on
// the host: headers are a few hundred bytes a segment, read bit by bit.
#pragma once

#include <cstdint>

#include "core/entropy_delta/rans_model.h"
#include "core/support/weight_format.h"

namespace graftwork::cuda {

// One segment. Decoding relies on what parse_rans_segments has checked: the model (see RansModel) has no
// table number above its tables and no class longer than a word, and the words are among those of the
// tensor. Where the streams lie needs no check there: bytes outside of the payload are never read.
struct RansSegment {
  RansModel model;
  int32_t words;       // that it restores, at most 2^20
  int64_t first_word;  // of base and tuned
  int64_t states;  // byte of the payload where the 32 states begin; the rANS words and the raw bits follow
  int32_t rans_words, raw_bytes;
};

// Longer than any header. A payload on another device is parsed from two small parts: the frame (its first
// 4 + 4 segments bytes) and, of each segment, the first kRansHeadBytes (what follows a shorter one is not
// looked at).
constexpr int64_t kRansHeadBytes = 2048;

// Segments of a payload whose first four bytes are given, or -1 if they are malformed.
int64_t rans_segment_count(const uint8_t* frame, int64_t payload_bytes, int64_t numel);

// Parses all segments. Returns the most tables that one of them has (0 if there is none), or -1 if one is
// malformed or they do not fill the payload.
int parse_rans_segments(const uint8_t* frame, const uint8_t* heads, int64_t payload_bytes, int64_t numel,
                        WeightFormat format, RansSegment* segments);

}  // namespace graftwork::cuda
