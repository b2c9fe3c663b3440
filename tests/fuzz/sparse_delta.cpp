// encode_sparse_delta and apply_sparse_delta: forth and back, in place, alike at every ISA level; words are untouched
// where a payload is refused.
//
// Input: how the payload comes about, the kind of word, the number of words, the kinds of base and update, a seed.
// Then, by the way it comes about: the payload itself; the words of base and tuned; or edits of a payload that the
// library's encoder or the writer of this file made.
#include "core/entropy_delta/sparse_delta.h"

#include "rans_writer.h"
#include "target.h"
#include "words.h"

FUZZ_AT_LEVELS(encode_sparse_delta)
FUZZ_AT_LEVELS(apply_sparse_delta)

namespace {

using fuzz::Flaw;

constexpr int64_t kSegment = int64_t{1} << graftwork::kMaxSegmentLog2;
constexpr int64_t kMaxWords = kSegment + 1024;
constexpr int64_t kMaxChanges = 4096;
constexpr int kLanes = 4;

struct Case {
  int word_bytes;
  bool is_float;
  int64_t count;

  size_t size() const { return static_cast<size_t>(count) * word_bytes; }
};

struct Buffers {
  fuzz::Buffer base{4 * kMaxWords}, tuned{4 * kMaxWords}, first{4 * kMaxWords}, words{4 * kMaxWords};
  fuzz::Buffer payload{static_cast<size_t>(graftwork::sparse_delta_payload_bound(kMaxWords, 4, kMaxChanges)) +
                       (64 << 10)};
  fuzz::Buffer workspace{static_cast<size_t>(graftwork::sparse_delta_workspace_bytes(kMaxChanges, 1))};
};

Buffers& buffers() {
  static Buffers all;
  return all;
}

// Applies the payload to `base` at every level, and takes it back; whether it is whole. `first` holds the result.
bool apply_alike(const Case& given, const std::vector<uint8_t>& payload) {
  Buffers& b = buffers();
  b.payload.assign(payload);
  const int64_t bytes = static_cast<int64_t>(payload.size());
  int64_t verdict = -1;
  for (const auto& [level, apply] : fuzz::apply_sparse_delta()) {
    int64_t malformed = -1;
    b.words.assign(b.base.bytes());
    apply(b.words.data(), b.payload.data(), bytes, &malformed, given.count, given.word_bytes, given.is_float,
          false, 1);
    if (verdict < 0) {
      verdict = malformed;
      b.first.assign(b.words.bytes());
    }
    REQUIRE(malformed == 0 || malformed == 1, "%s says %lld", level, static_cast<long long>(malformed));
    REQUIRE(malformed == verdict, "%s judges a payload otherwise than the baseline", level);
    REQUIRE(fuzz::equal(b.words.bytes(), b.first.bytes()), "%s makes other words than the baseline", level);
    REQUIRE(malformed == 0 || fuzz::equal(b.words.bytes(), b.base.bytes()),
            "%s touches words and then refuses", level);
    apply(b.words.data(), b.payload.data(), bytes, &malformed, given.count, given.word_bytes, given.is_float,
          true, 1);
    REQUIRE(malformed == verdict, "%s judges a payload otherwise in reverse", level);
    REQUIRE(fuzz::equal(b.words.bytes(), b.base.bytes()), "%s does not go back", level);
  }
  return verdict == 0;
}

int64_t changes_of(const Case& given, int64_t begin) {
  int64_t changes = 0;
  for (int64_t i = begin; i < std::min(begin + kSegment, given.count); ++i) {
    const size_t at = static_cast<size_t>(i) * given.word_bytes;
    changes += std::memcmp(buffers().base.data() + at, buffers().tuned.data() + at, given.word_bytes) != 0;
  }
  return changes;
}

// The payload, the same at every level; empty if there are more than `most` changes in a segment.
std::vector<uint8_t> encode_alike(const Case& given, int64_t most) {
  Buffers& b = buffers();
  int64_t changes = 0;
  for (int64_t begin = 0; begin < given.count; begin += kSegment)
    changes = std::max(changes, changes_of(given, begin));
  std::vector<uint8_t> payload;
  for (const auto& [level, encode] : fuzz::encode_sparse_delta()) {
    int64_t bytes = -2;
    b.payload.resize(graftwork::sparse_delta_payload_bound(given.count, given.word_bytes, most));
    b.workspace.resize(graftwork::sparse_delta_workspace_bytes(most, 1));
    encode(b.base.data(), b.tuned.data(), b.payload.data(), &bytes, b.workspace.data(), given.count,
           given.word_bytes, given.is_float, most, 1);
    REQUIRE((bytes == -1) == (changes > most), "%s: %lld bytes for %lld changes of at most %lld", level,
            static_cast<long long>(bytes), static_cast<long long>(changes), static_cast<long long>(most));
    if (bytes == -1) continue;
    REQUIRE(bytes >= 0 && bytes <= static_cast<int64_t>(b.payload.size()), "%s: %lld bytes", level,
            static_cast<long long>(bytes));
    const fuzz::Bytes made = b.payload.bytes().first(bytes);
    if (payload.empty()) payload.assign(made.begin(), made.end());
    REQUIRE(fuzz::equal(made, payload), "%s encodes otherwise than the baseline", level);
  }
  return payload;
}

// A segment with tables that are drawn: changes until the next one would lie behind the segment's end. It has the
// flaw, if it can; else `flaw` becomes none.
std::vector<uint8_t> write_segment(int word_bits, int64_t count, Flaw& flaw, fuzz::Random& random) {
  const int never_gap = flaw == Flaw::no_gap ? -1 : 0,
            never_class = flaw == Flaw::no_difference ? -1 : word_bits;
  const fuzz::Table gaps(graftwork::kMaxSegmentLog2 + 2, never_gap, random),
      classes(2 * word_bits + 1, never_class, random);
  std::vector<fuzz::Coded> sequence;
  const uint32_t most = random.below(200);
  uint32_t changes = 0;
  int64_t last = -1;
  for (int64_t at = -1; changes < most; ++changes) {
    const int lane = static_cast<int>(2 * (changes & 1)), gap = gaps.draw(random),
              symbol = classes.draw(random);
    uint32_t step, difference;
    const fuzz::Coded coded_gap = fuzz::coded_difference(lane, gaps, gap, gap, random, &step);
    at += step;
    if (at >= count && flaw != Flaw::place_beyond) break;
    sequence.push_back(coded_gap);
    sequence.push_back(
        fuzz::coded_difference(lane + 1, classes, symbol, symbol - word_bits, random, &difference));
    last = at;
  }
  if (changes == 0 && flaw != Flaw::reserved) flaw = Flaw::none;
  if (flaw == Flaw::no_gap && gaps.frequency[0] == 0) flaw = Flaw::none;
  if (flaw == Flaw::no_difference && classes.frequency[word_bits] == 0) flaw = Flaw::none;
  if (flaw == Flaw::table_beyond || flaw == Flaw::thresholds) flaw = Flaw::none;
  if (flaw == Flaw::place_beyond && last < count) flaw = Flaw::none;
  std::vector<uint32_t> states;
  std::vector<uint16_t> words;
  fuzz::write_coded(sequence, kLanes, states, words);
  if (flaw == Flaw::spare_word) words.push_back(0);
  fuzz::Writer out;
  out.number(changes, 4);
  out.number(static_cast<uint32_t>(words.size()), 4);
  if (flaw == Flaw::reserved) {  // without changes there are no words
    out.bytes.clear();
    out.number(0, 4);
    out.number(1, 4);
    return out.bytes;
  }
  if (changes == 0) return out.bytes;
  gaps.write(out, flaw);
  classes.write(out);
  out.pad();
  for (const uint32_t state : states) out.number(state, 4);
  for (const uint16_t word : words) out.number(word, 2);
  fuzz::write_raw(sequence, out);
  if (flaw == Flaw::spare_byte) out.number(0, 1);
  return out.bytes;
}

std::vector<uint8_t> write_payload(const Case& given, Flaw& flaw, fuzz::Random& random) {
  fuzz::Writer out;
  std::vector<uint8_t> body;
  out.number(graftwork::kMaxSegmentLog2 - (flaw == Flaw::frame), 4);
  if (given.count == 0 && flaw != Flaw::frame) flaw = Flaw::none;
  for (int64_t begin = 0; begin < given.count; begin += kSegment) {
    Flaw none = Flaw::none;
    const auto segment = write_segment(8 * given.word_bytes, std::min(kSegment, given.count - begin),
                                       begin == 0 && flaw != Flaw::frame ? flaw : none, random);
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
  if (given.word_bytes == 2) {
    fuzz::draw_base<uint16_t>(b.base.data(), given.count, base_kind, 8, random);
    fuzz::draw_tuned<uint16_t>(b.tuned.data(), b.base.data(), given.count, update_kind, random);
  } else {
    fuzz::draw_base<uint32_t>(b.base.data(), given.count, base_kind, 8, random);
    fuzz::draw_tuned<uint32_t>(b.tuned.data(), b.base.data(), given.count, update_kind, random);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t way = input.byte(), kinds = input.byte();
  Case given{2 + 2 * (kinds & 1), (kinds & 2) != 0, static_cast<int64_t>(input.number(2) % 1024)};
  fuzz::Random random(input.byte());
  enum { kGiven, kWords, kEncoded, kWritten };
  const int made = way & 3;
  if (made == kWords)
    given.count = std::min(given.count, static_cast<int64_t>(input.left() / (2 * given.word_bytes)));
  if (way >> 1 == 127 && kinds >> 4 == 15) given.count += kSegment;
  draw_words(given, kinds >> 4 & 3, given.count > kSegment ? 1 : (kinds >> 6) + (way >> 2 & 1), random);
  if (made == kWords) {
    buffers().base.assign(input.take(given.size()));
    buffers().tuned.assign(input.take(given.size()));
  }
  std::vector<uint8_t> payload;
  if (made == kGiven) payload.assign(input.rest().begin(), input.rest().end());
  if (made == kWords || made == kEncoded) {
    payload = encode_alike(given, way >> 3 & 1 ? kMaxChanges : random.below(256));
    if (payload.empty()) return 0;
  }
  if (made == kWritten) {
    Flaw flaw = way >> 3 & 1 ? fuzz::draw_flaw(random) : Flaw::none;
    payload = write_payload(given, flaw, random);
    if (flaw != Flaw::none) {
      REQUIRE(!apply_alike(given, payload), "flaw %d is not noticed", static_cast<int>(flaw));
      return 0;
    }
  }
  if (made != kGiven) {
    REQUIRE(apply_alike(given, payload), "a payload that was just made is refused");
    REQUIRE(made == kWritten || fuzz::equal(buffers().first.bytes(), buffers().tuned.bytes()),
            "the words do not come back");
    if (made == kWords || input.empty()) return 0;
    fuzz::edit(payload, input);
  }
  apply_alike(given, payload);
  return 0;
}
