#define GRAFTWORK_LEVEL host  // the core's parser for this module, which does not link the core
#include "cuda/entropy_delta/rans_segments.h"

#include <algorithm>

#include "core/entropy_delta/rans_model.inl"
#include "core/entropy_delta/segment_frame.inl"

namespace graftwork::cuda {

int64_t rans_segment_count(const uint8_t* frame, int64_t payload_bytes, int64_t numel) {
  if (payload_bytes < 4 || frame[0] < kMinSegmentLog2 || frame[0] > kMaxSegmentLog2) return -1;
  const int64_t count = host::segment_count(numel, frame[0]);
  return count > (payload_bytes - 4) / 4 ? -1 : count;
}

int parse_rans_segments(const uint8_t* frame, const uint8_t* heads, int64_t payload_bytes, int64_t numel,
                        WeightFormat format, RansSegment* segments) {
  const int symbols = format == WeightFormat::float32 ? 65 : 33;
  host::SegmentFrame cut;
  if (!cut.open(frame, payload_bytes, numel)) return -1;
  int most_tables = 0;
  int64_t at = host::frame_bytes(cut.segments.count);
  for (int i = 0; i < cut.segments.count; ++i, ++segments, heads += kRansHeadBytes) {
    const int64_t bytes = cut.length(i);
    uint32_t words;
    const int64_t head =
        host::read_model(heads, std::min(bytes, kRansHeadBytes), symbols, segments->model, &words);
    const int64_t states = head + 4 * kRansLanes, raw = states + 2 * static_cast<int64_t>(words);
    if (head < 0 || raw > bytes) return -1;
    segments->first_word = cut.segments.begin(i);
    segments->words = static_cast<int32_t>(cut.segments.end(i) - cut.segments.begin(i));
    segments->states = at + head;
    segments->rans_words = static_cast<int32_t>(words);
    segments->raw_bytes = static_cast<int32_t>(bytes - raw);
    most_tables = std::max(most_tables, segments->model.tables);
    at += bytes;
  }
  return most_tables;
}

}  // namespace graftwork::cuda
