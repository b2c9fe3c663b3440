// A warp decodes a segment: lane i holds state i. A group of 32 words takes one step of all states, and the
// next group waits for it: for the states, for the place in the words that all lanes share, and for the
// activity that chooses the next tables. This chain is what a warp's time goes to where segments are few;
// where they are many, the issue slots of some 90 instructions a group are. Everything else stays off the
// chain:
//
//   Symbol search. A table is a bit for each of its 4096 slots, set where a symbol starts: the symbol of a
//   slot is the number of bits up to it. With 16 bits and the number of those before them in one cell of 4
//   bytes that takes two dependent loads from shared memory (cell, then the symbol's record) and a
//   population count, whatever the frequencies. A binary search takes six loads, one after another; an
//   array of all slots 16 KB a table. At 1 KB a table, 16 tables leave room for 11 warps a multiprocessor
//   of sm_90, eight of sm_80. By instruction counts two warps a scheduler outlast the chain (some 180
//   cycles, estimated from latencies), and more than that find work only in tensors above 170 MB (segments
//   of 2^16 words of 2 bytes).
//   Levels. A base word decides on a row of eight table numbers long before the level chooses from it; 4
//   bits each, they are one register.
//   Streams. rANS words and raw bits pass through rings in shared memory whose next line is under way in
//   registers. A batch of four groups never uses more than a line, so rings are refilled between batches
//   only, and a batch is straight code in which the raw bits of one group can fill the waits of the next.
//   Raw bits. Two groups share a prefix sum of lengths, 16 bits each.
//
// A block is one warp, so that the device balances segments of different cost.
#include "cuda/entropy_delta/ordinal_rans.cuh"

#include "cuda/entropy_delta/payload_ring.cuh"
#include "cuda/support/device.cuh"
#include "cuda/support/numeric.cuh"
#include "cuda/support/reduce.cuh"
#include "cuda/support/simt.h"

namespace graftwork::cuda {
namespace {

static_assert(kRansLanes == kWarp);
constexpr int kBatch = 4;  // groups
constexpr int kBatchWords = kBatch * kWarp;
constexpr int kCellSlots = 16, kCellBits = 8, kCells = 1 << kCellBits;  // of a table
constexpr int kNumberBits = 4;                                          // of a table number
static_assert(kCells * kCellSlots == kProbabilityTotal && kMaxTables == 1 << kNumberBits);

// Shared memory, in registers of 4 bytes: rows of table numbers, the rings, the tables' cells and records.
template <class Format>
struct Layout {
  static constexpr int kWordBits = 8 * sizeof(typename Format::Word);
  static constexpr int kSymbols = 2 * kWordBits + 1;
  using WordRing = Ring<kBatchWords / 2>;
  using RawRing = Ring<kBatch * kWordBits>;  // a word has fewer raw bits than bits
  static constexpr int kWords = kExponentSlots, kRaw = kWords + WordRing::kRegisters;
  static constexpr int kTables = kRaw + RawRing::kRegisters;
  static constexpr size_t shared_bytes(int tables) {
    return sizeof(uint32_t) * (kTables + static_cast<size_t>(tables) * (kCells + kSymbols));
  }
};

// What a symbol is, from the low bits up: its start (12 bits), its frequency (13), whether its class is
// negative, and the size of that (6).
SIMT_DEVICE uint32_t record_of(uint32_t start, uint32_t frequency, int ordinal_class) {
  const uint32_t magnitude = ordinal_class < 0 ? -ordinal_class : ordinal_class;
  return start | frequency << 12 | (ordinal_class < 0 ? 1u << 25 : 0u) | magnitude << 26;
}
SIMT_DEVICE uint32_t start_of(uint32_t record) { return record & (kProbabilityTotal - 1); }
SIMT_DEVICE uint32_t frequency_of(uint32_t record) { return record >> 12 & 0x1fff; }
SIMT_DEVICE bool is_negative(uint32_t record) { return (record >> 25 & 1) != 0; }
SIMT_DEVICE uint32_t magnitude_of(uint32_t record) { return record >> 26; }
SIMT_DEVICE uint32_t raw_length(uint32_t record) {
  const int length = static_cast<int>(magnitude_of(record)) - 1;
  return length < 0 ? 0 : length;
}

struct alignas(16) Cells {
  uint32_t part[4];
};

// Puts into the upper half of each cell of a table the place before that of its first symbol's record,
// `place` for the table's. A lane has eight neighbours.
SIMT_DEVICE void count_starts(uint32_t* cells, uint32_t place) {
  constexpr int kOwn = kCells / kWarp / 4;
  Cells* const own = reinterpret_cast<Cells*>(cells) + threadIdx.x * kOwn;
  Cells loaded[kOwn];
  uint32_t starts = 0;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    loaded[k] = simt::load_shared(own + k);
    for (const uint32_t cell : loaded[k].part) starts += simt::bit_count(cell);
  }
  place += sum_up_to_lane(starts) - starts;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    for (uint32_t& cell : loaded[k].part) {
      const uint32_t here = simt::bit_count(cell);
      cell |= place << 16;
      place += here;
    }
    simt::store_shared(own + k, loaded[k]);
  }
}

// Writes the cells of all tables and then, without gaps, the records of their symbols that occur. Places of
// records count from the first cell.
template <class Format>
SIMT_DEVICE void build_tables(const RansModel& model, uint32_t* cells) {
  constexpr int kSymbols = Layout<Format>::kSymbols;
  const int lane = static_cast<int>(threadIdx.x), tables = simt::load_global(&model.tables);
  for (int k = lane; k < tables * kCells; k += kWarp) simt::store_shared(cells + k, 0u);
  __syncwarp();
  uint32_t place = tables * kCells;  // of the next record
  for (int t = 0; t < tables; ++t) {
    uint32_t* const own = cells + t * kCells;
    const uint32_t first_place = place;
    uint32_t total = 0;
#pragma unroll 1
    for (int first = 0; first < kSymbols; first += kWarp) {
      const int symbol = first + lane;
      const uint32_t frequency = symbol < kSymbols ? simt::load_global(&model.frequency[t][symbol]) : 0;
      const uint32_t upto = sum_up_to_lane(frequency), start = total + upto - frequency;
      const unsigned occurring = __ballot_sync(kWholeWarp, frequency != 0);
      if (frequency != 0) {
        simt::store_shared(cells + place + simt::bit_count(occurring & ((1u << lane) - 1)),
                           record_of(start, frequency, symbol - Layout<Format>::kWordBits));
        // Every symbol has a bit of its own, so the sum is the union.
        simt::add_shared(own + start / kCellSlots, 1u << start % kCellSlots);
      }
      place += simt::bit_count(occurring);
      total += __shfl_sync(kWholeWarp, upto, kWarp - 1);
    }
    __syncwarp();
    count_starts(own, first_place - 1);
  }
  __syncwarp();
}

// A lane's view of a segment between two groups. A word of the base is kept in the top of a register.
template <class Format>
struct Decoder {
  using Word = typename Format::Word;
  using Place = Layout<Format>;
  static constexpr int kUnused = 32 - Place::kWordBits;

  const uint32_t *rows, *cells;
  typename Place::WordRing words;
  typename Place::RawRing raw;
  int first_exponent;
  uint32_t threshold;
  uint32_t state;
  uint32_t turn;       // of a row, which brings its number for the next group's level above a cell's bits
  uint32_t word, bit;  // places of the next rANS word and raw bit in their rings
  unsigned below;

  SIMT_DEVICE void open(const RansSegment& segment, const Payload& payload, uint32_t* shared);
  SIMT_DEVICE uint32_t row_of(uint32_t base) const;
  SIMT_DEVICE uint32_t next_symbol(uint32_t row, bool active);
  SIMT_DEVICE void set_level(uint32_t activity);
  SIMT_DEVICE Word word_of(uint32_t base, uint32_t record, uint32_t bit) const;
};

template <class Format>
SIMT_DEVICE void Decoder<Format>::set_level(uint32_t activity) {
  turn = kNumberBits * simt::bit_count(__ballot_sync(kWholeWarp, threshold <= activity)) + (32 - kCellBits);
}

template <class Format>
SIMT_DEVICE void Decoder<Format>::open(const RansSegment& segment, const Payload& payload, uint32_t* shared) {
  const RansModel& model = segment.model;
  const int lane = static_cast<int>(threadIdx.x), levels = simt::load_global(&model.levels);
  rows = shared;
  cells = shared + Place::kTables;
  if (lane < kExponentSlots) {
    uint32_t row = 0;
#pragma unroll
    for (int q = 0; q < kMaxLevels; ++q)
      if (q < levels) row |= uint32_t{simt::load_global(&model.table_of[q][lane])} << kNumberBits * q;
    simt::store_shared(shared + lane, row);
  }
  build_tables<Format>(model, shared + Place::kTables);
  first_exponent = simt::load_global(&model.first_exponent);
  threshold = lane + 1 < levels ? simt::load_global(model.thresholds + lane) : ~0u;
  below = (1u << lane) - 1;
  const int64_t states = payload.byte(simt::load_global(&segment.states));
  const int64_t after = states + int64_t{4} * kWarp;
  state = payload.load_at(states + int64_t{4} * lane);
  word = 2 * words.open(shared + Place::kWords, payload, after);
  const int64_t word_bytes = int64_t{2} * simt::load_global(&segment.rans_words);
  bit = 32 * raw.open(shared + Place::kRaw, payload, after + word_bytes);
  set_level(0);
}

// The numbers of the tables that a word with this base may use, by level.
template <class Format>
SIMT_DEVICE uint32_t Decoder<Format>::row_of(uint32_t base) const {
  const int slot = static_cast<int>(base << 1 >> (32 - Format::kExponentBits)) - first_exponent;
  return simt::load_shared(rows + (slot < 0 ? 0 : slot < kExponentSlots ? slot : kExponentSlots - 1));
}

// Decodes a group: the record of this lane's symbol.
template <class Format>
SIMT_DEVICE uint32_t Decoder<Format>::next_symbol(uint32_t row, bool active) {
  constexpr uint32_t kNumber = ((1u << kNumberBits) - 1) << kCellBits;
  const uint32_t slot = state % kProbabilityTotal;
  const uint32_t cell =
      simt::load_shared(cells + ((simt::funnel_right(row, row, turn) & kNumber) | slot / kCellSlots));
  const uint32_t starts = cell << (31 - slot % kCellSlots);  // those at or before the slot
  const uint32_t record = simt::load_shared(cells + ((cell >> 16) + simt::bit_count(starts)));
  const uint32_t next = frequency_of(record) * (state >> kProbabilityBits) + slot - start_of(record);
  const bool is_short = active && next < kStateLow;
  const unsigned taking = __ballot_sync(kWholeWarp, is_short);
  const uint32_t refill = words.half_at(word + simt::bit_count(taking & below));
  if (active) state = is_short ? next << 16 | refill : next;
  word += simt::bit_count(taking);
  const uint32_t taken = active ? record : 0;  // a record of class 0
  set_level(__reduce_add_sync(kWholeWarp, magnitude_of(taken)));
  return taken;
}

// The restored word, whose raw bits begin at `bit`.
template <class Format>
SIMT_DEVICE typename Format::Word Decoder<Format>::word_of(uint32_t base, uint32_t record,
                                                           uint32_t bit) const {
  const uint32_t* const at = raw.at(bit / 32);
  const uint32_t window = simt::funnel_right(simt::load_shared(at), simt::load_shared(at + 1), bit);
  const uint32_t leading = 1u << raw_length(record), distance = leading | (window & (leading - 1));
  const uint32_t up = 1u << kUnused, step = is_negative(record) ? 0u - up : up;
  const uint32_t position = ordinal<4>(base) + distance * (magnitude_of(record) == 0 ? 0 : step);
  return static_cast<Word>(from_ordinal<4>(position) >> kUnused);
}

// Decodes the groups of words from `first` on: all kBatch of them if kWhole, else those before `end`.
template <bool kWhole, class Format>
SIMT_DEVICE void decode_batch(Decoder<Format>& at, const uint32_t* base, typename Format::Word* tuned,
                              int first, int end) {
  uint32_t row[kBatch], record[kBatch];
#pragma unroll
  for (int k = 0; k < kBatch; ++k) row[k] = at.row_of(base[k]);
#pragma unroll
  for (int k = 0; k < kBatch; k += 2) {
    const int own = first + k * kWarp + static_cast<int>(threadIdx.x), next = own + kWarp;
    record[k] = at.next_symbol(row[k], kWhole || own < end);
    record[k + 1] = at.next_symbol(row[k + 1], kWhole || next < end);
    const uint32_t lengths = raw_length(record[k]) | raw_length(record[k + 1]) << 16;
    const uint32_t upto = sum_up_to_lane(lengths), all = __shfl_sync(kWholeWarp, upto, kWarp - 1);
    const uint32_t before = upto - lengths;
    const uint32_t middle = at.bit + (all & 0xffff);
    const auto one = at.word_of(base[k], record[k], at.bit + (before & 0xffff));
    const auto other = at.word_of(base[k + 1], record[k + 1], middle + (before >> 16));
    if (kWhole || own < end) simt::store_global(tuned + own, one);
    if (kWhole || next < end) simt::store_global(tuned + next, other);
    at.bit = middle + (all >> 16);
  }
}

// What is wrong with a segment whose words are all decoded.
template <class Format>
SIMT_DEVICE int32_t status_of(const Decoder<Format>& at, const RansSegment& segment, const Payload& payload,
                              uint32_t first_word, uint32_t first_bit) {
  const int words = simt::load_global(&segment.rans_words), bytes = simt::load_global(&segment.raw_bytes);
  const int64_t padding = int64_t{8} * bytes - (at.bit - first_bit);
  int32_t status = 0;
  if (__ballot_sync(kWholeWarp, at.state != kStateLow) != 0) status |= kRansStates;
  if (at.word - first_word != static_cast<uint32_t>(words)) status |= kRansWords;
  if (padding < 0 || padding >= 8) {
    status |= kRansRawBits;
  } else if (padding > 0) {
    const int64_t end =
        payload.byte(simt::load_global(&segment.states)) + 4 * kWarp + 2 * int64_t{words} + bytes;
    if ((payload.load_at(end - 1) & 0xff) >> (8 - padding) != 0) status |= kRansRawBits;
  }
  return status;
}

template <class Format>
__global__ void __launch_bounds__(kWarp)
    decode_ordinal_rans_kernel(const typename Format::Word* base, Payload payload,
                               const RansSegment* segments, typename Format::Word* tuned, int32_t* status) {
  const RansSegment& segment = segments[blockIdx.x];
  const int64_t first_word = simt::load_global(&segment.first_word);
  const int end = simt::load_global(&segment.words), lane = static_cast<int>(threadIdx.x);
  base += first_word;
  tuned += first_word;
  payload.load_tail();
  Decoder<Format> at;
  at.open(segment, payload, simt::dynamic_shared<uint32_t>());
  const uint32_t word = at.word, bit = at.bit;

  uint32_t ahead[kBatch];
  const auto load_base = [&](int first) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int own = first + k * kWarp + lane;
      ahead[k] =
          own < end ? static_cast<uint32_t>(simt::load_global(base + own)) << Decoder<Format>::kUnused : 0;
    }
  };
  load_base(0);
  for (int first = 0; first < end; first += kBatchWords) {
    uint32_t loaded[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) loaded[k] = ahead[k];
    load_base(first + kBatchWords);
    at.words.follow(at.word / 2, payload);
    at.raw.follow(at.bit / 32, payload);
    if (first + kBatchWords <= end) {
      decode_batch<true>(at, loaded, tuned, first, end);
    } else {
      decode_batch<false>(at, loaded, tuned, first, end);
    }
  }
  const int32_t found = status_of(at, segment, payload, word, bit);
  if (lane == 0) simt::store_global(status + blockIdx.x, found);
}

template <class Format>
int launch_decode(const void* base, const Payload& payload, const RansSegment* segments, int64_t count,
                  int max_tables, void* tuned, int32_t* status, void* stream) {
  using Word = typename Format::Word;
  return simt::launch<decode_ordinal_rans_kernel<Format>>(
      count, kWarp, Layout<Format>::shared_bytes(max_tables), stream, static_cast<const Word*>(base), payload,
      segments, static_cast<Word*>(tuned), status);
}

}  // namespace

int decode_ordinal_rans(const void* base, const uint8_t* payload, int64_t payload_bytes,
                        const RansSegment* segments, int64_t segment_count, int max_tables, void* tuned,
                        int32_t* status, WeightFormat format, void* stream) {
  if (segment_count == 0) return 0;
  if (max_tables < 1 || max_tables > kMaxTables) return kInvalidArgument;
  const auto launch = [&](auto format_of) {
    return launch_decode<decltype(format_of)>(base, payload_of(payload, payload_bytes), segments,
                                              segment_count, max_tables, tuned, status, stream);
  };
  switch (format) {
    case WeightFormat::float16: return launch(Float16{});
    case WeightFormat::bfloat16: return launch(BFloat16{});
    case WeightFormat::float32: return launch(Float32{});
  }
  return kInvalidArgument;
}

}  // namespace graftwork::cuda
