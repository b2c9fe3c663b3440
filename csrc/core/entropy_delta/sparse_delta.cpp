#include "core/entropy_delta/sparse_delta.h"

#include <stdexcept>

#include "core/entropy_delta/sparse_delta.inl"
#include "core/support/isa.h"
#include "core/support/parallel.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

template <class Word, bool is_float>
int64_t encode_changes(const Word* base, const Word* tuned, uint8_t* payload, uint8_t* workspace,
                       int64_t numel, int64_t most, int threads) {
  const Chunks segments = cut_segments(numel, kMaxSegmentLog2);
  const int64_t stride = sparse_segment_bound<Word>(most);
  uint8_t* const body = payload + frame_bytes(segments.count);
  Workshop workshop{workspace, static_cast<int64_t>(sizeof(Change)) * most};
  struct State {
    Change* changes = nullptr;
    bool few = true;
  };
  bool few = true;
  parallel_chunks<State>(
      segments, threads,
      [&](State& state, int i) {
        if (!state.few) return;
        if (state.changes == nullptr) state.changes = reinterpret_cast<Change*>(workshop.take());
        const int64_t begin = segments.begin(i);
        const int64_t count = find_changes<Word, is_float>(base + begin, tuned + begin,
                                                           segments.end(i) - begin, most, state.changes);
        state.few &= count >= 0;
        if (count < 0) return;
        uint8_t* const out = body + i * stride;
        const uint32_t length = static_cast<uint32_t>(write_changes<Word>(state.changes, count, out) - out);
        std::memcpy(payload + 4 + 4 * static_cast<int64_t>(i), &length, 4);
      },
      [&](State& state) { few &= state.few; });
  return few ? close_frame(payload, kMaxSegmentLog2, segments.count, stride) : -1;
}

// The segments of a payload, each decoded by one thread.
struct SparsePayload {
  SegmentFrame frame;
  int threads;

  bool open(const uint8_t* payload, int64_t size, int64_t numel) {
    return frame.open(payload, size, numel) && payload[0] == kMaxSegmentLog2;
  }

  // Calls start(begin, end) for every segment and apply(index, difference) for every change of it; false if one is
  // malformed.
  template <class Word, class Start, class Apply>
  bool for_each(const Start& start, const Apply& apply) const {
    struct State {
      SparseSegment segment;
      bool whole = true;
    };
    bool whole = true;
    parallel_chunks<State>(
        frame.segments, threads,
        [&](State& state, int i) {
          const int64_t begin = frame.segments.begin(i), end = frame.segments.end(i);
          start(begin, end);
          state.whole &= state.segment.template open<Word>(frame.payload + frame.begin(i), frame.length(i)) &&
                         for_each_change<Word>(state.segment, end - begin, [&](int64_t at, Word difference) {
                           apply(begin + at, difference);
                         });
        },
        [&](State& state) { whole &= state.whole; });
    return whole;
  }
};

template <class Word, bool is_float>
inline Word moved(Word word, Word difference) {
  const Word position = static_cast<Word>(sparse_position<Word, is_float>(word) + difference);
  return is_float ? from_ordinal(position) : position;
}

template <class Word, bool is_float>
inline void move(Word& word, Word difference, bool reverse) {
  word = moved<Word, is_float>(word, reverse ? static_cast<Word>(Word{0} - difference) : difference);
}

// The changes of a payload of one segment, which is what a chunk of a file has: decoded once, kept until all are seen.
struct KeptChanges {
  static constexpr int kMost = 1 << 14;
  int64_t count = 0;
  struct {
    uint32_t at, difference;
  } changes[kMost];

  void add(int64_t at, uint32_t difference) {
    if (count < kMost) changes[count] = {static_cast<uint32_t>(at), difference};
    ++count;
  }
};

// The first pass sees that all is whole, and has the words fetched that the second one changes.
template <class Word, bool is_float>
bool apply_changes(Word* words, const SparsePayload& payload, bool reverse) {
  const auto nothing = [](int64_t, int64_t) {};
  if (payload.frame.segments.count == 1) {
    KeptChanges kept;
    if (!payload.for_each<Word>(nothing, [&](int64_t at, Word difference) {
          __builtin_prefetch(words + at, 1);
          kept.add(at, difference);
        }))
      return false;
    if (kept.count <= KeptChanges::kMost) {
      for (int64_t i = 0; i < kept.count; ++i)
        move<Word, is_float>(words[kept.changes[i].at], static_cast<Word>(kept.changes[i].difference),
                             reverse);
      return true;
    }
  } else if (!payload.for_each<Word>(nothing, [=](int64_t at, Word) { __builtin_prefetch(words + at, 1); })) {
    return false;
  }
  return payload.for_each<Word>(
      nothing, [=](int64_t at, Word difference) { move<Word, is_float>(words[at], difference, reverse); });
}

template <class Word, bool is_float>
bool decode_changes(const Word* base, Word* tuned, const SparsePayload& payload) {
  return payload.for_each<Word>(
      [=](int64_t begin, int64_t end) {
        std::memcpy(tuned + begin, base + begin, sizeof(Word) * (end - begin));
      },
      [=](int64_t at, Word difference) { tuned[at] = moved<Word, is_float>(tuned[at], difference); });
}

template <class Call>
void with_sparse_word(int word_bytes, bool is_float, const Call& call) {
  switch (2 * word_bytes + is_float) {
    case 4: return call.template operator()<uint16_t, false>();
    case 5: return call.template operator()<uint16_t, true>();
    case 8: return call.template operator()<uint32_t, false>();
    case 9: return call.template operator()<uint32_t, true>();
    default: throw std::invalid_argument("word_bytes must be 2 or 4");
  }
}

void encode_sparse_delta(const void* base, const void* tuned, uint8_t* payload, int64_t* payload_bytes,
                         uint8_t* workspace, int64_t numel, int word_bytes, bool is_float,
                         int64_t max_changes, int threads) {
  with_sparse_word(word_bytes, is_float, [=]<class Word, bool floating>() {
    *payload_bytes =
        encode_changes<Word, floating>(static_cast<const Word*>(base), static_cast<const Word*>(tuned),
                                       payload, workspace, numel, max_changes, threads);
  });
}

void apply_sparse_delta(void* words, const uint8_t* payload, int64_t payload_bytes, int64_t* malformed,
                        int64_t numel, int word_bytes, bool is_float, bool reverse, int threads) {
  with_sparse_word(word_bytes, is_float, [=]<class Word, bool floating>() {
    SparsePayload opened{{}, threads};
    *malformed = !opened.open(payload, payload_bytes, numel) ||
                 !apply_changes<Word, floating>(static_cast<Word*>(words), opened, reverse);
  });
}

void decode_sparse_delta(const void* base, const uint8_t* payload, int64_t payload_bytes, void* tuned,
                         int64_t* malformed, int64_t numel, int word_bytes, bool is_float, int threads) {
  with_sparse_word(word_bytes, is_float, [=]<class Word, bool floating>() {
    SparsePayload opened{{}, threads};
    *malformed =
        !opened.open(payload, payload_bytes, numel) ||
        !decode_changes<Word, floating>(static_cast<const Word*>(base), static_cast<Word*>(tuned), opened);
  });
}

// The number of chunks before the first that `change` says is malformed.
template <class Change>
int64_t count_whole(int64_t count, const Change& change) {
  int64_t malformed = 0, whole = 0;
  while (whole < count && (change(whole, &malformed), malformed == 0)) ++whole;
  return whole;
}

void apply_sparse_chunks(const SparseChunk* chunks, int64_t* whole, int64_t count, bool reverse) {
  *whole = count_whole(count, [=](int64_t i, int64_t* malformed) {
    const SparseChunk& chunk = chunks[i];
    apply_sparse_delta(chunk.words, chunk.payload, chunk.payload_bytes, malformed, chunk.numel,
                       static_cast<int>(chunk.word_bytes), chunk.is_float != 0, reverse, 1);
  });
}

void decode_sparse_chunks(const SparseChunk* chunks, int64_t* whole, int64_t count) {
  *whole = count_whole(count, [=](int64_t i, int64_t* malformed) {
    const SparseChunk& chunk = chunks[i];
    decode_sparse_delta(chunk.base, chunk.payload, chunk.payload_bytes, chunk.words, malformed, chunk.numel,
                        static_cast<int>(chunk.word_bytes), chunk.is_float != 0, 1);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(encode_sparse_delta,
                   (const void* base, const void* tuned, uint8_t* payload, int64_t* payload_bytes,
                    uint8_t* workspace, int64_t numel, int word_bytes, bool is_float, int64_t max_changes,
                    int threads),
                   (base, tuned, payload, payload_bytes, workspace, numel, word_bytes, is_float, max_changes,
                    threads))
GRAFTWORK_DISPATCH(apply_sparse_delta,
                   (void* words, const uint8_t* payload, int64_t payload_bytes, int64_t* malformed,
                    int64_t numel, int word_bytes, bool is_float, bool reverse, int threads),
                   (words, payload, payload_bytes, malformed, numel, word_bytes, is_float, reverse, threads))

GRAFTWORK_DISPATCH(decode_sparse_delta,
                   (const void* base, const uint8_t* payload, int64_t payload_bytes, void* tuned,
                    int64_t* malformed, int64_t numel, int word_bytes, bool is_float, int threads),
                   (base, payload, payload_bytes, tuned, malformed, numel, word_bytes, is_float, threads))

GRAFTWORK_DISPATCH(apply_sparse_chunks,
                   (const SparseChunk* chunks, int64_t* whole, int64_t count, bool reverse),
                   (chunks, whole, count, reverse))

GRAFTWORK_DISPATCH(decode_sparse_chunks, (const SparseChunk* chunks, int64_t* whole, int64_t count),
                   (chunks, whole, count))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t sparse_delta_payload_bound(int64_t numel, int word_bytes, int64_t max_changes) {
  const int64_t segments = baseline::segment_count(numel, kMaxSegmentLog2);
  const int64_t segment = word_bytes == 2 ? baseline::sparse_segment_bound<uint16_t>(max_changes)
                                          : baseline::sparse_segment_bound<uint32_t>(max_changes);
  return baseline::frame_bytes(segments) + segments * segment;
}

int64_t sparse_delta_workspace_bytes(int64_t max_changes, int threads) {
  return threads * static_cast<int64_t>(sizeof(baseline::Change)) * max_changes;
}
#endif

}  // namespace graftwork
