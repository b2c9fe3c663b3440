#include "core/entropy_delta/ordinal_rans.h"

#include <stdexcept>

#include "core/entropy_delta/ordinal_rans.inl"
#include "core/entropy_delta/ordinal_rans_lanes.inl"
#include "core/support/isa.h"
#include "core/support/parallel.h"

namespace graftwork {
namespace GRAFTWORK_LEVEL {

constexpr int64_t kScratchBytes =
    ((sizeof(EncodeScratch) > sizeof(DecodeScratch) ? sizeof(EncodeScratch) : sizeof(DecodeScratch)) + 63) /
    64 * 64;

// Writes one segment; returns its bytes.
template <class Format>
int64_t encode_segment(const typename Format::Word* base, const typename Format::Word* tuned, int count,
                       uint8_t* out, EncodeScratch& scratch) {
  classify<Format>(base, tuned, count, scratch.symbols, scratch.activity);
  choose_model<Format>(base, count, scratch);
  fill_entries<Format>(scratch.model, scratch.entries);
  uint32_t states[kRansLanes];
  for (uint32_t& state : states) state = kStateLow;
  uint8_t* const words_end = out + segment_bound<typename Format::Word>(count);
  const int groups = (count + kRansLanes - 1) / kRansLanes;
#ifdef GRAFTWORK_HAS_LANES16
  const int whole = count / kRansLanes;
  uint8_t* words = encode_groups<Format>(base, count, whole, groups - 1, scratch, states, words_end);
  words = encode_lanes<Format>(base, whole - 1, scratch, states, words);
#else
  uint8_t* const words = encode_groups<Format>(base, count, 0, groups - 1, scratch, states, words_end);
#endif
  uint8_t* end =
      write_model(scratch.model, kClasses<Format>, static_cast<uint32_t>((words_end - words) / 2), out);
  std::memcpy(end, states, kStateBytes);
  end += kStateBytes;
  std::memmove(end, words, words_end - words);
  end += words_end - words;
  return write_raw_bits<Format>(base, tuned, count, end) - out;
}

// Restores one segment; false if it is malformed.
template <class Format>
bool decode_segment(const typename Format::Word* base, const uint8_t* in, int64_t size,
                    typename Format::Word* tuned, int count, DecodeScratch& scratch) {
  uint32_t words;
  const int64_t head = read_model(in, size, kClasses<Format>, scratch.model, &words);
  if (head < 0 || size - head < kStateBytes + 2 * static_cast<int64_t>(words)) return false;
  fill_levels(scratch.model, scratch.level_of);
  for (int t = 0; t < scratch.model.tables; ++t)
    fill_slots(scratch.model.frequency[t], kClasses<Format>, scratch.slots + (t << kProbabilityBits));
  Cursor cursor{
      {}, in + head + kStateBytes, in + head + kStateBytes + 2 * static_cast<int64_t>(words), {nullptr, 0}};
  std::memcpy(cursor.states, in + head, kStateBytes);
  cursor.raw = {cursor.words_end, in + size - cursor.words_end};
  int begin = 0;
#ifdef GRAFTWORK_HAS_LANES16
  begin = kRansLanes * decode_lanes<Format>(base, tuned, count / kRansLanes, scratch, cursor);
#endif
  for (; begin < count; begin += kRansLanes)
    decode_group<Format>(base + begin, tuned + begin, count - begin < kRansLanes ? count - begin : kRansLanes,
                         scratch, cursor);
  bool whole = cursor.words == cursor.words_end && cursor.raw.used_up();
  for (const uint32_t state : cursor.states) whole &= state == kStateLow;
  return whole;
}

// What the segments of one size cost in all, in bits, their raw bits apart.
template <class Format>
int64_t cost_of_segments(const typename Format::Word* base, const typename Format::Word* tuned, int64_t numel,
                         int log2_segment, uint8_t* workspace, int threads) {
  struct State {
    EncodeScratch* scratch = nullptr;
    int64_t bits = 0;
  };
  const Chunks segments = cut_segments(numel, log2_segment);
  Workshop workshop{workspace, kScratchBytes};
  int64_t bits = 0;
  parallel_chunks<State>(
      segments, threads,
      [&](State& state, int i) {
        if (state.scratch == nullptr) state.scratch = reinterpret_cast<EncodeScratch*>(workshop.take());
        const int count = static_cast<int>(segments.end(i) - segments.begin(i));
        classify<Format>(base + segments.begin(i), tuned + segments.begin(i), count, state.scratch->symbols,
                         state.scratch->activity);
        state.bits +=
            choose_model<Format>(base + segments.begin(i), count, *state.scratch) + 8 * (kStateBytes + 4);
      },
      [&](State& state) { bits += state.bits; });
  return bits;
}

// The largest segments, halved for as long as that makes them cheaper.
template <class Format>
int cheapest_segment(const typename Format::Word* base, const typename Format::Word* tuned, int64_t numel,
                     uint8_t* workspace, int threads) {
  int best = kMaxSegmentLog2;
  while (best > kMinSegmentLog2 && int64_t{1} << (best - 1) >= numel) --best;
  if (best == kMinSegmentLog2) return best;
  int64_t least = cost_of_segments<Format>(base, tuned, numel, best, workspace, threads);
  for (; best > kMinSegmentLog2; --best) {
    const int64_t halved = cost_of_segments<Format>(base, tuned, numel, best - 1, workspace, threads);
    if (halved >= least) break;
    least = halved;
  }
  return best;
}

template <class Format>
int64_t encode_words(const typename Format::Word* base, const typename Format::Word* tuned, uint8_t* payload,
                     uint8_t* workspace, int64_t numel, int log2_segment, int threads) {
  using Word = typename Format::Word;
  if (log2_segment == 0) log2_segment = cheapest_segment<Format>(base, tuned, numel, workspace, threads);
  const Chunks segments = cut_segments(numel, log2_segment);
  const int64_t stride = segment_bound<Word>(segments.length < numel ? segments.length : numel);
  uint8_t* const body = payload + frame_bytes(segments.count);
  Workshop workshop{workspace, kScratchBytes};
  struct State {
    EncodeScratch* scratch = nullptr;
  };
  parallel_chunks<State>(
      segments, threads,
      [&](State& state, int i) {
        if (state.scratch == nullptr) state.scratch = reinterpret_cast<EncodeScratch*>(workshop.take());
        const int64_t begin = segments.begin(i);
        const uint32_t length = static_cast<uint32_t>(
            encode_segment<Format>(base + begin, tuned + begin, static_cast<int>(segments.end(i) - begin),
                                   body + i * stride, *state.scratch));
        std::memcpy(payload + 4 + 4 * static_cast<int64_t>(i), &length, 4);
      },
      [](State&) {});
  return close_frame(payload, log2_segment, segments.count, stride);
}

template <class Format>
bool decode_words(const typename Format::Word* base, const uint8_t* payload, int64_t size,
                  typename Format::Word* tuned, uint8_t* workspace, int64_t numel, int threads) {
  SegmentFrame frame;
  if (!frame.open(payload, size, numel)) return false;
  struct State {
    DecodeScratch* scratch = nullptr;
    bool whole = true;
  };
  Workshop workshop{workspace, kScratchBytes};
  bool whole = true;
  parallel_chunks<State>(
      frame.segments, threads,
      [&](State& state, int i) {
        if (state.scratch == nullptr) state.scratch = reinterpret_cast<DecodeScratch*>(workshop.take());
        const int64_t begin = frame.segments.begin(i);
        state.whole &=
            decode_segment<Format>(base + begin, payload + frame.begin(i), frame.length(i), tuned + begin,
                                   static_cast<int>(frame.segments.end(i) - begin), *state.scratch);
      },
      [&](State& state) { whole &= state.whole; });
  return whole;
}

void encode_ordinal_rans(const void* base, const void* tuned, uint8_t* payload, int64_t* payload_bytes,
                         uint8_t* workspace, int64_t numel, WeightFormat format, int log2_segment,
                         int threads) {
  if (log2_segment != 0 && (log2_segment < kMinSegmentLog2 || log2_segment > kMaxSegmentLog2))
    throw std::invalid_argument("log2_segment must be 0 or 16 to 20");
  with_format(format, [=]<class Format>() {
    using Word = typename Format::Word;
    *payload_bytes = encode_words<Format>(static_cast<const Word*>(base), static_cast<const Word*>(tuned),
                                          payload, workspace, numel, log2_segment, threads);
  });
}

void decode_ordinal_rans(const void* base, const uint8_t* payload, int64_t payload_bytes, void* tuned,
                         int64_t* malformed, uint8_t* workspace, int64_t numel, WeightFormat format,
                         int threads) {
  with_format(format, [=]<class Format>() {
    using Word = typename Format::Word;
    *malformed = !decode_words<Format>(static_cast<const Word*>(base), payload, payload_bytes,
                                       static_cast<Word*>(tuned), workspace, numel, threads);
  });
}

}  // namespace GRAFTWORK_LEVEL

GRAFTWORK_DISPATCH(encode_ordinal_rans,
                   (const void* base, const void* tuned, uint8_t* payload, int64_t* payload_bytes,
                    uint8_t* workspace, int64_t numel, WeightFormat format, int log2_segment, int threads),
                   (base, tuned, payload, payload_bytes, workspace, numel, format, log2_segment, threads))
GRAFTWORK_DISPATCH(decode_ordinal_rans,
                   (const void* base, const uint8_t* payload, int64_t payload_bytes, void* tuned,
                    int64_t* malformed, uint8_t* workspace, int64_t numel, WeightFormat format, int threads),
                   (base, payload, payload_bytes, tuned, malformed, workspace, numel, format, threads))

#ifdef GRAFTWORK_LEVEL_IS_baseline
int64_t ordinal_rans_payload_bound(int64_t numel, int word_bytes) {
  // The smallest segments have the most headers.
  const int64_t segments = baseline::segment_count(numel, kMinSegmentLog2);
  const int64_t words =
      word_bytes == 2 ? baseline::segment_bound<uint16_t>(numel) : baseline::segment_bound<uint32_t>(numel);
  return baseline::frame_bytes(segments) + words + segments * baseline::segment_bound<uint32_t>(0) +
         (segments == 0 ? 0 : 8 * segments);
}

int64_t ordinal_rans_workspace_bytes(int threads) { return threads * baseline::kScratchBytes; }
#endif

}  // namespace graftwork
