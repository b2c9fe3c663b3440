// The frame of an entropy-coded tensor: segments of 2^s words, coded each on its own.
//
//   u8 s, three zeros, the length of every segment in bytes (u32), the segments
#pragma once

#include <cstdint>
#include <cstring>

#include "core/entropy_delta/rans_model.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

inline int64_t segment_count(int64_t numel, int log2_words) {
  return (numel + (int64_t{1} << log2_words) - 1) >> log2_words;
}

inline Chunks cut_segments(int64_t numel, int log2_words) {
  return {numel, int64_t{1} << log2_words, static_cast<int>(segment_count(numel, log2_words))};
}

inline int64_t frame_bytes(int64_t segments) { return 4 + 4 * segments; }

// Moves segments together: number i was written written_at(i) bytes behind the frame, which is asked for once, in
// order, before anything behind it moves. Returns the payload's size.
template <class WrittenAt>
inline int64_t close_frame(uint8_t* payload, int log2_words, int64_t segments, const WrittenAt& written_at) {
  const uint8_t head[4] = {static_cast<uint8_t>(log2_words), 0, 0, 0};
  std::memcpy(payload, head, 4);
  int64_t end = frame_bytes(segments);
  for (int64_t i = 0; i < segments; ++i) {
    uint32_t length;
    std::memcpy(&length, payload + 4 + 4 * i, 4);
    std::memmove(payload + end, payload + frame_bytes(segments) + written_at(i), length);
    end += length;
  }
  return end;
}

// The same for segments that were written `stride` bytes apart.
inline int64_t close_frame(uint8_t* payload, int log2_words, int64_t segments, int64_t stride) {
  return close_frame(payload, log2_words, segments, [=](int64_t i) { return i * stride; });
}

// A payload whose segments lie inside of it and fill it.
struct SegmentFrame {
  const uint8_t* payload;
  Chunks segments;

  // False if the payload is not one of `numel` words.
  bool open(const uint8_t* bytes, int64_t size, int64_t numel) {
    payload = bytes;
    if (size < 4 || bytes[0] < kMinSegmentLog2 || bytes[0] > kMaxSegmentLog2) return false;
    if (bytes[1] != 0 || bytes[2] != 0 || bytes[3] != 0) return false;
    if (segment_count(numel, bytes[0]) > (size - 4) / 4) return false;
    segments = cut_segments(numel, bytes[0]);
    return begin(segments.count) == size;
  }

  int64_t length(int segment) const {
    uint32_t bytes;
    std::memcpy(&bytes, payload + 4 + 4 * static_cast<int64_t>(segment), 4);
    return bytes;
  }

  int64_t begin(int segment) const {
    int64_t at = frame_bytes(segments.count);
    for (int i = 0; i < segment; ++i) at += length(i);
    return at;
  }
};

// Hands every thread a part of the workspace, `bytes` long.
struct Workshop {
  uint8_t* workspace;
  int64_t bytes;
  int taken = 0;

  uint8_t* take() { return workspace + bytes * __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED); }
};

}  // namespace graftwork::GRAFTWORK_LEVEL
