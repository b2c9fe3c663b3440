// The loops of index_codec.h. Where a chunk's output begins depends on the chunks before: they are counted first.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/entropy_delta/gap_code.inl"
#include "core/entropy_delta/segment_frame.inl"
#include "core/sparse_update/arena.h"
#include "core/support/parallel.h"

namespace graftwork::GRAFTWORK_LEVEL {

// A number for each chunk, then the sum of those before it.
struct ChunkStarts {
  int64_t starts[kMaxChunks + 1];

  // count(chunk) on several threads; -1 stands for an error. The sum, or -1 if there was one.
  template <class Count>
  int64_t fill(const Chunks& chunks, int threads, const Count& count) {
    parallel_chunks(chunks, threads, [&](int chunk) { starts[chunk] = count(chunk); });
    int64_t sum = 0;
    for (int chunk = 0; chunk < chunks.count; ++chunk) {
      const int64_t mine = starts[chunk];
      if (mine < 0) return -1;
      starts[chunk] = sum;
      sum += mine;
    }
    starts[chunks.count] = sum;
    return sum;
  }
};

template <class Index>
bool sorted_below(const Index* indices, int64_t count, int64_t numel, int threads) {
  if (count == 0) return true;
  if (indices[0] < 0 || indices[count - 1] >= numel) return false;
  struct State {
    bool unsorted;
  };
  bool unsorted = false;
  const Chunks chunks = cut_entries(count);
  parallel_chunks<State>(
      chunks, threads,
      [&](State& state, int chunk) {
        const int64_t end = chunks.end(chunk);
        bool any = false;
        for (int64_t i = chunks.begin(chunk) + (chunk == 0); i < end; ++i)
          any |= indices[i] <= indices[i - 1];
        state.unsorted |= any;
      },
      [&](const State& state) { unsorted |= state.unsorted; });
  return !unsorted;
}

// ---- raw ----

inline int64_t raw_bytes(int64_t numel) { return numel < int64_t{1} << 31 ? 4 : 8; }

template <class To, class From>
void convert_indices(const From* from, To* to, int64_t count, int threads) {
  const Chunks chunks = cut_entries(count);
  parallel_chunks(chunks, threads, [&](int chunk) {
    const int64_t end = chunks.end(chunk);
    for (int64_t i = chunks.begin(chunk); i < end; ++i) {  // the bytes need not be aligned
      From index;
      std::memcpy(&index, from + i, sizeof index);
      const To converted = static_cast<To>(index);
      std::memcpy(to + i, &converted, sizeof converted);
    }
  });
}

template <class Index>
int64_t encode_raw(const Index* indices, uint8_t* data, int64_t numel, int64_t count, int threads) {
  if (raw_bytes(numel) == 4)
    convert_indices(indices, reinterpret_cast<int32_t*>(data), count, threads);
  else
    convert_indices(indices, reinterpret_cast<int64_t*>(data), count, threads);
  return raw_bytes(numel) * count;
}

template <class Index>
bool decode_raw(const uint8_t* data, Index* indices, int64_t numel, int64_t count, int threads) {
  if (raw_bytes(numel) == 4)
    convert_indices(reinterpret_cast<const int32_t*>(data), indices, count, threads);
  else
    convert_indices(reinterpret_cast<const int64_t*>(data), indices, count, threads);
  return sorted_below(indices, count, numel, threads);
}

// ---- bitmap ----

template <class Index>
int64_t encode_bitmap(const Index* indices, uint8_t* data, int64_t numel, int64_t count, int threads) {
  const Chunks chunks = cut(numel);  // of elements: whole bytes, so that no two threads write one
  parallel_chunks(chunks, threads, [&](int chunk) {
    const int64_t begin = chunks.begin(chunk), end = chunks.end(chunk);
    std::memset(data + begin / 8, 0, (end + 7) / 8 - begin / 8);
    for (int64_t i = lower_bound(indices, 0, count, begin); i < count && indices[i] < end; ++i)
      data[indices[i] >> 3] |= static_cast<uint8_t>(1 << (indices[i] & 7));
  });
  return (numel + 7) / 8;
}

// Calls visit(first element, 64 bits) for the words of a chunk of the bitmap; past its end bits are zero.
template <class Visit>
inline void for_each_bitmap_word(const uint8_t* data, int64_t bytes, int64_t begin, int64_t end,
                                 const Visit& visit) {
  for (int64_t element = begin; element < end; element += 64) {
    const int64_t byte = element / 8;
    uint64_t word = 0;
    if (bytes - byte >= 8)
      std::memcpy(&word, data + byte, 8);
    else
      std::memcpy(&word, data + byte, static_cast<size_t>(bytes - byte));
    visit(element, word);
  }
}

inline int64_t count_bitmap(const uint8_t* data, int64_t bytes, int64_t numel, int threads,
                            ChunkStarts& starts) {
  if (bytes != (numel + 7) / 8) return -1;
  if (numel % 8 != 0 && data[bytes - 1] >> (numel % 8) != 0) return -1;
  const Chunks chunks = cut(numel);
  return starts.fill(chunks, threads, [&](int chunk) {
    int64_t set = 0;
    for_each_bitmap_word(data, bytes, chunks.begin(chunk), chunks.end(chunk),
                         [&](int64_t, uint64_t word) { set += __builtin_popcountll(word); });
    return set;
  });
}

template <class Index>
bool decode_bitmap(const uint8_t* data, int64_t bytes, Index* indices, int64_t numel, int64_t count,
                   int threads) {
  ChunkStarts starts;
  if (count_bitmap(data, bytes, numel, threads, starts) != count) return false;
  const Chunks chunks = cut(numel);
  parallel_chunks(chunks, threads, [&](int chunk) {
    Index* out = indices + starts.starts[chunk];
    for_each_bitmap_word(data, bytes, chunks.begin(chunk), chunks.end(chunk),
                         [&](int64_t element, uint64_t word) {
                           for (; word != 0; word &= word - 1)
                             *out++ = static_cast<Index>(element + __builtin_ctzll(word));
                         });
  });
  return true;
}

// ---- varint ----

constexpr int kMaxVarint = 9;  // bytes: 63 bits

template <class Index>
inline uint64_t skipped(const Index* indices, int64_t i) {
  return static_cast<uint64_t>(indices[i] - (i == 0 ? Index{-1} : indices[i - 1]) - 1);
}

template <class Index>
int64_t encode_varint(const Index* indices, uint8_t* data, int64_t count, int threads) {
  ChunkStarts starts;
  const Chunks chunks = cut_entries(count);
  const int64_t bytes = starts.fill(chunks, threads, [&](int chunk) {
    int64_t length = 0;
    for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
      const uint64_t value = skipped(indices, i);
      ++length;
      for (int digit = 1; digit < (sizeof(Index) == 4 ? 5 : kMaxVarint); ++digit)
        length += (value >> (7 * digit)) != 0;
    }
    return length;
  });
  parallel_chunks(chunks, threads, [&](int chunk) {
    uint8_t* out = data + starts.starts[chunk];
    for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
      uint64_t value = skipped(indices, i);
      for (; value >= 128; value >>= 7) *out++ = static_cast<uint8_t>(value | 128);
      *out++ = static_cast<uint8_t>(value);
    }
  });
  return bytes;
}

// Calls visit(gap) for the numbers that begin in a chunk of the bytes, of which the last is below 128; false if one is
// longer than it need be, or no gap of a tensor of `numel` elements.
template <class Visit>
inline bool for_each_varint(const uint8_t* data, int64_t begin, int64_t end, int64_t numel,
                            const Visit& visit) {
  while (begin > 0 && begin < end && data[begin - 1] >= 128) ++begin;  // the rest of one that began before
  while (begin < end) {
    uint64_t value = data[begin++];
    if (value >= 128) {
      value &= 127;
      int length = 1;
      uint8_t digit;
      do {
        if (length == kMaxVarint) return false;
        digit = data[begin++];
        value |= static_cast<uint64_t>(digit & 127) << (7 * length++);
      } while (digit >= 128);
      if (digit == 0) return false;
    }
    if (value >= static_cast<uint64_t>(numel)) return false;
    visit(static_cast<int64_t>(value) + 1);
  }
  return true;
}

inline int64_t count_varint(const uint8_t* data, int64_t bytes, int threads) {
  if (bytes > 0 && data[bytes - 1] >= 128) return -1;
  ChunkStarts starts;
  const Chunks chunks = cut(bytes);
  return starts.fill(chunks, threads, [&](int chunk) {
    int64_t ends = 0;
    for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i) ends += data[i] < 128;
    return ends;
  });
}

template <class Index>
bool decode_varint(const uint8_t* data, int64_t bytes, Index* indices, int64_t numel, int64_t count,
                   int threads) {
  if (bytes > 0 && data[bytes - 1] >= 128) return false;
  ChunkStarts entries, positions;
  const Chunks chunks = cut(bytes);
  const int64_t last = positions.fill(chunks, threads, [&](int chunk) -> int64_t {
    int64_t numbers = 0, sum = 0;
    const bool whole = for_each_varint(data, chunks.begin(chunk), chunks.end(chunk), numel, [&](int64_t gap) {
      ++numbers;
      sum = sum > numel ? sum : sum + gap;
    });
    entries.starts[chunk] = numbers;
    return whole && sum <= numel ? sum : -1;
  });
  if (last < 0 || last > numel) return false;
  if (entries.fill(chunks, 1, [&](int chunk) { return entries.starts[chunk]; }) != count) return false;
  parallel_chunks(chunks, threads, [&](int chunk) {
    Index* out = indices + entries.starts[chunk];
    int64_t position = positions.starts[chunk] - 1;
    for_each_varint(data, chunks.begin(chunk), chunks.end(chunk), numel, [&](int64_t gap) {
      position += gap;
      *out++ = static_cast<Index>(position);
    });
  });
  return true;
}

// ---- rans ----

constexpr int64_t kGapSegmentBytes = sparse_segment_bound<NoDifference>(0), kGapBytes = 5;  // upper bounds

// The indices of a segment as changes without a difference.
template <class Index>
struct SegmentGaps {
  const Index* indices;
  int64_t before;  // the position before the segment's first

  Change operator[](int64_t i) const {
    return {static_cast<uint32_t>(i == 0 ? indices[0] - before : indices[i] - indices[i - 1]), 0};
  }
};

template <class Index>
int64_t encode_rans(const Index* indices, uint8_t* data, int64_t numel, int64_t count, int threads) {
  const Chunks segments = cut_segments(numel, kMaxSegmentLog2);
  uint8_t* const body = data + frame_bytes(segments.count);
  parallel_chunks(segments, threads, [&](int i) {
    const int64_t begin = lower_bound(indices, 0, count, segments.begin(i));
    const int64_t mine = lower_bound(indices, begin, count, segments.end(i)) - begin;
    uint8_t* const out = body + i * kGapSegmentBytes + begin * kGapBytes;
    const SegmentGaps<Index> gaps{indices + begin, segments.begin(i) - 1};
    const uint32_t length = static_cast<uint32_t>(write_changes<NoDifference>(gaps, mine, out) - out);
    std::memcpy(data + 4 + 4 * static_cast<int64_t>(i), &length, 4);
  });
  int64_t before = 0;
  return close_frame(data, kMaxSegmentLog2, segments.count, [&](int64_t i) {
    const int64_t begin = i * kGapSegmentBytes + before * kGapBytes;
    uint32_t mine;
    std::memcpy(&mine, body + begin, 4);
    before += mine;
    return begin;
  });
}

// A payload's segments in groups, and where each group's bytes and indices begin.
struct GapPayload {
  SegmentFrame frame;
  Chunks groups;
  int64_t bytes[kMaxChunks], entries[kMaxChunks], count;

  // False if the payload is malformed as far as that shows without decoding it.
  bool open(const uint8_t* data, int64_t size, int64_t numel) {
    if (!frame.open(data, size, numel) || data[0] != kMaxSegmentLog2) return false;
    const int64_t segments = frame.segments.count, share = (segments + kMaxChunks - 1) / kMaxChunks;
    groups = {segments, share, segments == 0 ? 0 : static_cast<int>((segments + share - 1) / share)};
    count = 0;
    for (int64_t i = 0, at = frame_bytes(segments); i < segments; ++i) {
      const int segment = static_cast<int>(i);
      if (i % share == 0) {
        bytes[i / share] = at;
        entries[i / share] = count;
      }
      uint32_t mine;
      if (frame.length(segment) < 8) return false;
      std::memcpy(&mine, data + at, 4);
      if (mine > frame.segments.end(segment) - frame.segments.begin(segment)) return false;
      count += mine;
      at += frame.length(segment);
    }
    return true;
  }
};

template <class Index>
bool decode_rans(const uint8_t* data, int64_t size, Index* indices, int64_t numel, int64_t count,
                 int threads) {
  GapPayload payload;
  if (!payload.open(data, size, numel) || payload.count != count) return false;
  struct State {
    SparseSegment segment;
    bool whole = true;
  };
  bool whole = true;
  parallel_chunks<State>(
      payload.groups, threads,
      [&](State& state, int group) {
        const uint8_t* in = data + payload.bytes[group];
        Index* out = indices + payload.entries[group];
        for (int64_t i = payload.groups.begin(group); state.whole && i < payload.groups.end(group); ++i) {
          const int segment = static_cast<int>(i);
          const int64_t begin = payload.frame.segments.begin(segment);
          const int64_t words = payload.frame.segments.end(segment) - begin;
          state.whole = state.segment.template open<NoDifference>(in, payload.frame.length(segment)) &&
                        for_each_change<NoDifference>(state.segment, words, [&](int64_t at, NoDifference) {
                          *out++ = static_cast<Index>(begin + at);
                        });
          in += payload.frame.length(segment);
        }
      },
      [&](const State& state) { whole &= state.whole; });
  return whole;
}

}  // namespace graftwork::GRAFTWORK_LEVEL
