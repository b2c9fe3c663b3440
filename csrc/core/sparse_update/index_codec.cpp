#include "core/sparse_update/index_codec.h"

#include <stdexcept>

#include "core/sparse_update/index_codec.inl"
#include "core/support/isa.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

[[noreturn]] inline void refuse_codec() {
  throw std::invalid_argument("a codec must be 0 (raw), 1 (bitmap), 2 (varint) or 3 (rans)");
}

template <class Index>
int64_t encode_sorted(const Index* indices, uint8_t* data, int64_t numel, int64_t count, IndexCodec codec,
                      int threads) {
  if (!sorted_below(indices, count, numel, threads)) return -1;
  switch (codec) {
    case IndexCodec::raw: return encode_raw(indices, data, numel, count, threads);
    case IndexCodec::bitmap: return encode_bitmap(indices, data, numel, count, threads);
    case IndexCodec::varint: return encode_varint(indices, data, count, threads);
    case IndexCodec::rans: return encode_rans(indices, data, numel, count, threads);
  }
  refuse_codec();
}

void encode_indices(const void* indices, uint8_t* data, int64_t* bytes, int64_t numel, int64_t count,
                    int index_bytes, IndexCodec codec, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    *bytes = encode_sorted(static_cast<const Index*>(indices), data, numel, count, codec, threads);
  });
}

int64_t count_code(const uint8_t* data, int64_t bytes, int64_t numel, IndexCodec codec, int threads) {
  ChunkStarts starts;
  GapPayload payload;
  switch (codec) {
    case IndexCodec::raw: return bytes % raw_bytes(numel) == 0 ? bytes / raw_bytes(numel) : -1;
    case IndexCodec::bitmap: return count_bitmap(data, bytes, numel, threads, starts);
    case IndexCodec::varint: return count_varint(data, bytes, threads);
    case IndexCodec::rans: return payload.open(data, bytes, numel) ? payload.count : -1;
  }
  refuse_codec();
}

void count_indices(const uint8_t* data, int64_t bytes, int64_t* count, int64_t numel, IndexCodec codec,
                   int threads) {
  const int64_t found = count_code(data, bytes, numel, codec, threads);
  *count = found > numel ? -1 : found;
}

template <class Index>
bool decode_checked(const uint8_t* data, int64_t bytes, Index* indices, int64_t numel, int64_t count,
                    IndexCodec codec, int threads) {
  switch (codec) {
    case IndexCodec::raw:
      return raw_bytes(numel) <= static_cast<int64_t>(sizeof(Index)) && bytes == raw_bytes(numel) * count &&
             decode_raw(data, indices, numel, count, threads);
    case IndexCodec::bitmap: return decode_bitmap(data, bytes, indices, numel, count, threads);
    case IndexCodec::varint: return decode_varint(data, bytes, indices, numel, count, threads);
    case IndexCodec::rans: return decode_rans(data, bytes, indices, numel, count, threads);
  }
  refuse_codec();
}

void decode_indices(const uint8_t* data, int64_t bytes, void* indices, int64_t* malformed, int64_t numel,
                    int64_t count, int index_bytes, IndexCodec codec, int threads) {
  with_index(index_bytes, [=]<class Index>() {
    *malformed = !decode_checked(data, bytes, static_cast<Index*>(indices), numel, count, codec, threads);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(encode_indices,
                   (const void* indices, uint8_t* data, int64_t* bytes, int64_t numel, int64_t count,
                    int index_bytes, IndexCodec codec, int threads),
                   (indices, data, bytes, numel, count, index_bytes, codec, threads))

GRAFTWORK_DISPATCH(count_indices,
                   (const uint8_t* data, int64_t bytes, int64_t* count, int64_t numel, IndexCodec codec,
                    int threads),
                   (data, bytes, count, numel, codec, threads))

GRAFTWORK_DISPATCH(decode_indices,
                   (const uint8_t* data, int64_t bytes, void* indices, int64_t* malformed, int64_t numel,
                    int64_t count, int index_bytes, IndexCodec codec, int threads),
                   (data, bytes, indices, malformed, numel, count, index_bytes, codec, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t index_code_bound(int64_t numel, int64_t count, int codec) {
  switch (static_cast<IndexCodec>(codec)) {
    case IndexCodec::raw: return baseline::raw_bytes(numel) * count;
    case IndexCodec::bitmap: return (numel + 7) / 8;
    case IndexCodec::varint: {
      int digits = 1;
      while (digits < baseline::kMaxVarint && numel >> (7 * digits) != 0) ++digits;
      return digits * count;
    }
    case IndexCodec::rans: {
      const int64_t segments = baseline::segment_count(numel, kMaxSegmentLog2);
      return baseline::frame_bytes(segments) + segments * baseline::kGapSegmentBytes +
             count * baseline::kGapBytes;
    }
  }
  baseline::refuse_codec();
}
#endif

}  // namespace graftwork
