// encode_ordinal_rans and decode_ordinal_rans: inverses of each other, and a decoder that stays inside of its buffers
// and judges every payload alike at every ISA level.
//
// Input: how the payload comes about, the format, the number of words, the kinds of base and update, a seed. Then, by
// the way it comes about: the payload itself; the words of base and tuned; or edits of a payload that the library's
// encoder or the writer of this file made.
#include "core/entropy_delta/ordinal_rans.h"

#include "rans_writer.h"
#include "target.h"
#include "words.h"

FUZZ_AT_LEVELS(encode_ordinal_rans)
FUZZ_AT_LEVELS(decode_ordinal_rans)

namespace {

using fuzz::Flaw;
using graftwork::kExponentSlots;
using graftwork::kRansLanes;
using graftwork::WeightFormat;

constexpr int64_t kMaxWords = (1 << 16) + 1024;  // more than the smallest segment
constexpr size_t kMaxBytes = 4 * kMaxWords;

struct Case {
  WeightFormat format;
  int64_t count;

  int word_bytes() const { return format == WeightFormat::float32 ? 4 : 2; }
  int exponent_bits() const { return format == WeightFormat::float16 ? 5 : 8; }
  size_t size() const { return static_cast<size_t>(count) * word_bytes(); }
};

struct Buffers {
  fuzz::Buffer base{kMaxBytes}, tuned{kMaxBytes}, first{kMaxBytes}, restored{kMaxBytes};
  fuzz::Buffer payload{static_cast<size_t>(graftwork::ordinal_rans_payload_bound(kMaxWords, 4)) + (64 << 10)};
  fuzz::Buffer workspace{static_cast<size_t>(graftwork::ordinal_rans_workspace_bytes(1))};

  Buffers() { workspace.resize(graftwork::ordinal_rans_workspace_bytes(1)); }
};

Buffers& buffers() {
  static Buffers all;
  return all;
}

// Decodes at every level, which must agree; whether the payload is whole.
bool decode_alike(const Case& given, const std::vector<uint8_t>& payload) {
  Buffers& b = buffers();
  b.payload.assign(payload);
  int64_t verdict = -1;
  for (const auto& [level, decode] : fuzz::decode_ordinal_rans()) {
    int64_t malformed = -1;
    b.restored.resize(given.size());
    decode(b.base.data(), b.payload.data(), static_cast<int64_t>(payload.size()), b.restored.data(),
           &malformed, b.workspace.data(), given.count, given.format, 1);
    REQUIRE(malformed == 0 || malformed == 1, "%s says %lld", level, static_cast<long long>(malformed));
    if (verdict < 0) {
      verdict = malformed;
      b.first.assign(b.restored.bytes());
    }
    REQUIRE(malformed == verdict, "%s judges a payload otherwise than the baseline", level);
    REQUIRE(malformed != 0 || fuzz::equal(b.restored.bytes(), b.first.bytes()),
            "%s restores other words than the baseline", level);
  }
  return verdict == 0;
}

// The payload, which must be the same at every level.
std::vector<uint8_t> encode_alike(const Case& given, int log2_segment) {
  Buffers& b = buffers();
  std::vector<uint8_t> payload;
  for (const auto& [level, encode] : fuzz::encode_ordinal_rans()) {
    int64_t bytes = -1;
    b.payload.resize(graftwork::ordinal_rans_payload_bound(given.count, given.word_bytes()));
    encode(b.base.data(), b.tuned.data(), b.payload.data(), &bytes, b.workspace.data(), given.count,
           given.format, log2_segment, 1);
    REQUIRE(bytes >= 0 && bytes <= static_cast<int64_t>(b.payload.size()), "%s: %lld bytes", level,
            static_cast<long long>(bytes));
    const fuzz::Bytes made = b.payload.bytes().first(bytes);
    if (payload.empty()) payload.assign(made.begin(), made.end());
    REQUIRE(fuzz::equal(made, payload), "%s encodes otherwise than the baseline", level);
  }
  return payload;
}

// ---- Payloads that the library's encoder would not make ----

struct Model {
  int levels, first_exponent;
  std::vector<uint16_t> thresholds;
  std::vector<fuzz::Table> tables;
  uint8_t table_of[kExponentSlots][graftwork::kMaxLevels];

  Model(int symbols, fuzz::Random& random) {
    levels = 1 << random.below(4);
    first_exponent = static_cast<int>(random.below(256));
    for (int i = 1; i < levels; ++i)
      thresholds.push_back(static_cast<uint16_t>(random.below(random.below(4) == 0 ? 65536 : 300)));
    std::ranges::sort(thresholds);
    const int count = static_cast<int>(1 + random.below(random.below(2) == 0 ? 3 : graftwork::kMaxTables));
    for (int t = 0; t < count; ++t) tables.emplace_back(symbols, -1, random);
    for (auto& row : table_of)
      for (uint8_t& table : row) table = static_cast<uint8_t>(random.below(count));
  }

  const fuzz::Table& at(int exponent, int activity) const {
    const int slot = std::clamp(exponent - first_exponent, 0, kExponentSlots - 1);
    const auto level = std::ranges::upper_bound(thresholds, activity) - thresholds.begin();
    return tables[table_of[slot][level]];
  }

  // Whether the model can have the flaw at all.
  bool takes(Flaw flaw) const {
    if (flaw == Flaw::table_beyond) return tables.size() < graftwork::kMaxTables;
    if (flaw >= Flaw::no_gap) return false;
    return flaw != Flaw::thresholds || (levels > 2 && thresholds.front() < thresholds.back());
  }

  void write(uint32_t words, Flaw flaw, fuzz::Writer& out) const {
    out.number(fuzz::bit_length(levels) - 1, 1);
    out.number(static_cast<uint32_t>(tables.size()), 1);
    out.number(first_exponent, 1);
    out.number(flaw == Flaw::reserved, 1);
    out.number(words, 4);
    std::vector<uint16_t> written = thresholds;
    if (flaw == Flaw::thresholds) std::swap(written.front(), written.back());
    for (const uint16_t threshold : written) out.number(threshold, 2);
    for (int x = 0; x < kExponentSlots; ++x)
      for (int q = 0; q < levels; ++q)
        out.bits(flaw == Flaw::table_beyond && x == 0 && q == 0 ? tables.size() : table_of[x][q], 4);
    for (const fuzz::Table& table : tables) table.write(out, &table == &tables.front() ? flaw : Flaw::none);
    out.pad();
  }
};

template <class Word>
Word position(Word word) {
  constexpr Word kTop = static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));
  return static_cast<Word>(word & kTop ? ~word : word | kTop);
}

template <class Word>
Word word_at(Word position) {
  constexpr Word kTop = static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));
  return static_cast<Word>(position & kTop ? position ^ kTop : ~position);
}

// Writes the words from `begin` on, and the flaw, if the segment can have it; else `flaw` becomes none.
template <class Word>
std::vector<uint8_t> write_segment(const Case& given, int64_t begin, int64_t count, Flaw& flaw,
                                   fuzz::Random& random) {
  constexpr int kWordBits = 8 * static_cast<int>(sizeof(Word));
  const Model model(2 * kWordBits + 1, random);
  if (!model.takes(flaw)) flaw = Flaw::none;
  const int mantissa_bits = kWordBits - 1 - given.exponent_bits();
  std::vector<fuzz::Coded> sequence;
  int activity = 0, next_activity = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int lane = static_cast<int>(i % kRansLanes);
    if (lane == 0) activity = std::exchange(next_activity, 0);
    Word base;
    std::memcpy(&base, buffers().base.data() + (begin + i) * sizeof(Word), sizeof(Word));
    const int exponent = static_cast<int>(base >> mantissa_bits) & ((1 << given.exponent_bits()) - 1);
    const fuzz::Table& table = model.at(exponent, activity);
    const int symbol = table.draw(random), ordinal_class = symbol - kWordBits;
    uint32_t difference;
    sequence.push_back(fuzz::coded_difference(lane, table, symbol, ordinal_class, random, &difference));
    next_activity += std::abs(ordinal_class);
    const Word tuned = word_at(static_cast<Word>(position(base) + static_cast<Word>(difference)));
    std::memcpy(buffers().tuned.data() + (begin + i) * sizeof(Word), &tuned, sizeof(Word));
  }
  std::vector<uint32_t> states;
  std::vector<uint16_t> words;
  fuzz::write_coded(sequence, kRansLanes, states, words);
  fuzz::Writer out;
  if (flaw == Flaw::spare_word) words.push_back(0);
  model.write(static_cast<uint32_t>(words.size()), flaw, out);
  for (const uint32_t state : states) out.number(state, 4);
  for (const uint16_t word : words) out.number(word, 2);
  fuzz::write_raw(sequence, out);
  if (flaw == Flaw::spare_byte) out.number(0, 1);
  return out.bytes;
}

// A payload with models that are drawn; `tuned` holds what it must restore. The first segment has the flaw, if it can.
std::vector<uint8_t> write_payload(const Case& given, Flaw& flaw, fuzz::Random& random) {
  const int log2_segment = static_cast<int>(graftwork::kMinSegmentLog2 + random.below(5));
  const int64_t length = int64_t{1} << log2_segment;
  fuzz::Writer out;
  std::vector<uint8_t> body;
  const uint32_t frame = flaw != Flaw::frame ? log2_segment : random.below(2) == 0 ? 15 : 21;
  out.number(frame, 4);
  if (given.count == 0 && flaw != Flaw::frame) flaw = Flaw::none;
  for (int64_t begin = 0; begin < given.count; begin += length) {
    const int64_t count = std::min(length, given.count - begin);
    Flaw none = Flaw::none;
    Flaw& own = begin == 0 ? flaw : none;
    const std::vector<uint8_t> segment = given.word_bytes() == 2
                                             ? write_segment<uint16_t>(given, begin, count, own, random)
                                             : write_segment<uint32_t>(given, begin, count, own, random);
    out.number(static_cast<uint32_t>(segment.size()), 4);
    body.insert(body.end(), segment.begin(), segment.end());
  }
  out.bytes.insert(out.bytes.end(), body.begin(), body.end());
  return out.bytes;
}

void draw_words(const Case& given, int base_kind, int update_kind, fuzz::Random& random) {
  Buffers& b = buffers();
  b.base.resize(given.size());
  b.tuned.resize(given.size());
  if (given.word_bytes() == 2) {
    fuzz::draw_base<uint16_t>(b.base.data(), given.count, base_kind, given.exponent_bits(), random);
    fuzz::draw_tuned<uint16_t>(b.tuned.data(), b.base.data(), given.count, update_kind, random);
  } else {
    fuzz::draw_base<uint32_t>(b.base.data(), given.count, base_kind, given.exponent_bits(), random);
    fuzz::draw_tuned<uint32_t>(b.tuned.data(), b.base.data(), given.count, update_kind, random);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t way = input.byte(), kinds = input.byte();
  Case given{static_cast<WeightFormat>(kinds % 3), static_cast<int64_t>(input.number(2) % 1024)};
  if (way >> 2 == 63 && kinds >> 4 == 15) given.count += 1 << 16;
  fuzz::Random random(input.byte());
  enum { kGiven, kWords, kEncoded, kWritten };
  const int made = way & 3;
  if (made == kWords)
    given.count = std::min(given.count, static_cast<int64_t>(input.left() / (2 * given.word_bytes())));
  draw_words(given, kinds >> 4 & 3, (kinds >> 6) + (way >> 2 & 1), random);
  if (made == kWords) {
    buffers().base.assign(input.take(given.size()));
    buffers().tuned.assign(input.take(given.size()));
  }
  std::vector<uint8_t> payload;
  if (made == kGiven) payload.assign(input.rest().begin(), input.rest().end());
  if (made == kWords || made == kEncoded) payload = encode_alike(given, way >> 3 & 1 ? 16 : 0);
  if (made == kWritten) {
    Flaw flaw = way >> 3 & 1 ? fuzz::draw_flaw(random) : Flaw::none;
    payload = write_payload(given, flaw, random);
    if (flaw != Flaw::none) {
      REQUIRE(!decode_alike(given, payload), "flaw %d is not noticed", static_cast<int>(flaw));
      return 0;
    }
  }
  if (made != kGiven) {
    REQUIRE(decode_alike(given, payload), "a payload that was just made is refused");
    REQUIRE(fuzz::equal(buffers().first.bytes(), buffers().tuned.bytes()), "the words do not come back");
    if (made == kWords || input.empty()) return 0;
    fuzz::edit(payload, input);
  }
  decode_alike(given, payload);
  return 0;
}
