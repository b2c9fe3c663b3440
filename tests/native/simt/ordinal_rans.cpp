// decode_ordinal_rans on the host: against the words that a writer by the definition took, and on malformed
// payloads against the verdict of a decoder by the definition. So too the parser that comes before it.
#include "cuda/entropy_delta/ordinal_rans.cu"

#include "cuda/entropy_delta/rans_segments.cpp"

#include "harness.h"
#include "ordinal_rans_scalar.h"

namespace {

using graftwork::WeightFormat;
using harness::Buffer;
using harness::check;
using ordrans::Bytes;
using ordrans::Choice;
using ordrans::Format;
using ordrans::RansSegment;

constexpr Format kFormats[] = {{WeightFormat::float16, 2, 5, "float16"},
                               {WeightFormat::bfloat16, 2, 8, "bfloat16"},
                               {WeightFormat::float32, 4, 8, "float32"}};

// One context; two tables and equal thresholds; all that a header can say.
std::vector<Choice> choices_of(const Format& of) {
  const int middle = 1 << (of.exponent_bits - 1);
  return {
      {.first_exponent = 200},
      {.levels = 4, .tables = 2, .first_exponent = middle - 4, .thresholds = {0, 20, 20}},
      {.levels = 8, .tables = 16, .first_exponent = middle - 12, .thresholds = {1, 5, 9, 14, 20, 40, 65535}}};
}

struct Result {
  std::vector<int32_t> status;
  Bytes tuned;
};

// Decodes with payload and words at odd places in memory.
Result run_kernel(const harness::Words& words, const Bytes& payload, const std::vector<RansSegment>& segments,
                  const Format& of, size_t payload_offset, size_t word_offset) {
  int max_tables = 1;
  for (const RansSegment& segment : segments) max_tables = std::max(max_tables, segment.model.tables);
  const Buffer base(harness::pack(words.base, of.word_bytes), word_offset);
  const Buffer tuned(words.base.size() * of.word_bytes, word_offset), bytes(payload, payload_offset);
  const Buffer table(segments.size() * sizeof(RansSegment)), status(segments.size() * sizeof(int32_t));
  if (!segments.empty()) std::memcpy(table.data(), segments.data(), segments.size() * sizeof(RansSegment));
  const int error = graftwork::cuda::decode_ordinal_rans(
      base.data(), bytes.data(), static_cast<int64_t>(payload.size()), table.as<RansSegment>(),
      static_cast<int64_t>(segments.size()), max_tables, tuned.data(), status.as<int32_t>(), of.number,
      nullptr);
  check(error == 0, std::string("the launch: ") + of.name);
  return {{status.as<int32_t>(), status.as<int32_t>() + segments.size()}, tuned.content()};
}

void check_payload(const harness::Words& words, const Choice& choice, const Format& of, int log2_segment,
                   const std::string& what) {
  const Bytes payload = ordrans::encode(words.base, words.tuned, of, choice, log2_segment);
  const auto segments = ordrans::parse(payload, words.base.size(), of);
  check(segments.has_value(), "the parser takes what the writer wrote: " + what);
  if (!segments) return;
  const Bytes wanted = harness::pack(words.tuned, of.word_bytes);
  size_t place = 0;
  harness::under_each_schedule([&](const std::string& schedule) {
    for (const size_t word_offset : {size_t{0}, static_cast<size_t>(of.word_bytes)}) {
      const Result got = run_kernel(words, payload, *segments, of, place % 131, word_offset);
      const std::string where = what + ", payload at " + std::to_string(place % 131) + ", " + schedule;
      check(got.status == std::vector<int32_t>(segments->size(), 0), "status: " + where);
      check(got.tuned == wanted, "words: " + where);
      place += 33;  // every alignment in a cache line's registers
    }
  });
}

void check_sizes(const Format& of) {
  for (const Choice& choice : choices_of(of))
    for (const int64_t numel : harness::kSizes)
      for (const bool only_small : {false, true}) {
        const auto words = harness::make_words(numel, of.word_bytes, of.exponent_bits, 3, only_small);
        check_payload(words, choice, of, 10,
                      std::string(of.name) + ", " + std::to_string(numel) + " words, levels " +
                          std::to_string(choice.levels) + (only_small ? ", small" : ""));
      }
  const auto words = harness::make_words((1 << 16) + 33, of.word_bytes, of.exponent_bits, 4);
  check_payload(words, choices_of(of).back(), of, 16, std::string(of.name) + ", more than a segment of 2^16");
}

// Words that use rings up as fast as any can: all of 12 bits and all raw bits, or none at all.
void check_extremes(const Format& of) {
  harness::Words same = harness::make_words(1000, of.word_bytes, of.exponent_bits, 5), far = same,
                 mixed = same;
  same.tuned = same.base;
  for (size_t k = 0; k < far.base.size(); ++k) {
    far.tuned[k] = of.word((of.position(far.base[k]) + of.top() - 1 - k) & of.mask());
    mixed.tuned[k] = of.word((of.position(mixed.base[k]) + (k % 97 == 0 ? of.top() : 0)) & of.mask());
  }
  for (const Choice& choice : choices_of(of)) {
    check_payload(same, choice, of, 10, std::string(of.name) + ", the base itself");
    check_payload(far, choice, of, 10, std::string(of.name) + ", the longest differences");
    check_payload(mixed, choice, of, 10, std::string(of.name) + ", rare symbols");
  }
}

Bytes mutated(Bytes payload, std::mt19937& random) {
  for (unsigned changes = 1 + random() % 3; changes > 0; --changes) {
    const size_t at = random() % payload.size();
    switch (random() % 4) {
      case 0: payload[at] ^= static_cast<uint8_t>(1u << random() % 8); break;
      case 1: payload[at] = static_cast<uint8_t>(random()); break;
      case 2: payload[at] = random() % 2 ? 0xff : 0; break;
      default: std::swap(payload[at], payload[random() % payload.size()]);
    }
  }
  return payload;
}

// Whatever a header allows, the kernel stays in its buffers and agrees with the definition on what is
// malformed.
void check_mutations(const Format& of) {
  std::mt19937 random(of.word_bytes + of.exponent_bits);
  const auto words = harness::make_words(200, of.word_bytes, of.exponent_bits, 6);
  const auto choices = choices_of(of);
  graftwork::simt::settings = {};
  int decoded = 0, refused = 0;
  for (int round = 0; round < 400; ++round) {
    const Bytes whole = ordrans::encode(words.base, words.tuned, of, choices[round % choices.size()], 7);
    const Bytes payload = mutated(whole, random);
    const auto segments = ordrans::parse(payload, words.base.size(), of);
    if (!segments) continue;
    const std::string what = std::string(of.name) + ", mutation " + std::to_string(round);
    const Result got = run_kernel(words, payload, *segments, of, round % 5, 0);
    for (size_t k = 0; k < segments->size(); ++k) {
      const RansSegment& segment = (*segments)[k];
      const auto wanted = ordrans::decode_segment(payload, segment, &words.base[segment.first_word], of);
      check((got.status[k] == 0) == wanted.has_value(), "verdict: " + what);
      ++(wanted ? decoded : refused);
      if (!wanted) continue;
      const Bytes bytes = harness::pack(*wanted, of.word_bytes);
      check(std::memcmp(bytes.data(), &got.tuned[segment.first_word * of.word_bytes], bytes.size()) == 0,
            "words: " + what);
    }
  }
  check(decoded > 100 && refused > 100, "the mutations are neither all harmless nor all in the headers");
}

// What parse_rans_segments finds, from the parts of the payload that it is given; nothing if it refuses.
std::optional<std::vector<RansSegment>> parse_parts(const Bytes& payload, size_t numel, const Format& of) {
  namespace cuda = graftwork::cuda;
  const auto bytes = static_cast<int64_t>(payload.size()), words = static_cast<int64_t>(numel);
  const int64_t count = cuda::rans_segment_count(payload.data(), bytes, words);
  if (count < 0) return {};
  const Buffer frame(Bytes(payload.begin(), payload.begin() + 4 + 4 * count), 1);
  Bytes heads;
  size_t at = 4 + 4 * count;
  for (int64_t k = 0; k < count; ++k) {
    Bytes head(&payload[std::min(at, payload.size())], payload.data() + payload.size());
    head.resize(cuda::kRansHeadBytes, 0xa5);  // what follows may be anything
    heads.insert(heads.end(), head.begin(), head.end());
    at += ordrans::read<uint32_t>(&payload[4 + 4 * k]);
  }
  std::vector<RansSegment> segments(count);
  const Buffer parts(heads, 1);
  const int tables =
      cuda::parse_rans_segments(frame.data(), parts.data(), bytes, words, of.number, segments.data());
  if (tables < 0) return {};
  int most = 0;
  for (const RansSegment& segment : segments) most = std::max(most, segment.model.tables);
  check(tables == most, "the most tables of a segment");
  return segments;
}

bool same_segment(const RansSegment& one, const RansSegment& other) {
  const auto facts = [](const RansSegment& of) {
    return std::make_tuple(of.first_word, of.words, of.states, of.rans_words, of.raw_bytes, of.model.levels,
                           of.model.tables, of.model.first_exponent);
  };
  if (facts(one) != facts(other)) return false;
  const graftwork::RansModel &first = one.model, &second = other.model;
  return std::equal(first.thresholds, first.thresholds + first.levels - 1, second.thresholds) &&
         std::memcmp(first.table_of, second.table_of, 16 * first.levels) == 0 &&
         std::memcmp(first.frequency, second.frequency, first.tables * sizeof *first.frequency) == 0;
}

// The parser takes and refuses what the definition does, and finds the same.
void check_parser(const Format& of) {
  std::mt19937 random(of.bits());
  const auto words = harness::make_words((1 << 16) + 100, of.word_bytes, of.exponent_bits, 8);
  const auto choices = choices_of(of);
  int taken = 0, refused = 0;
  for (const Choice& choice : choices) {
    const Bytes whole = ordrans::encode(words.base, words.tuned, of, choice, 16);
    const size_t second = 12 + ordrans::read<uint32_t>(&whole[4]);
    for (int round = 0; round < 300; ++round) {
      Bytes payload = whole;
      const size_t near = round % 3 == 0   ? 0
                          : round % 3 == 1 ? 12
                                           : second;  // frame, first head, second head
      const size_t at = std::min(near + random() % (near == 0 ? 12 : 300), payload.size() - 1);
      if (round > 0) payload[at] ^= static_cast<uint8_t>(1u << random() % 8);
      if (round % 50 == 1) payload.resize(random() % 16);
      const auto wanted = ordrans::parse(payload, words.base.size(), of, 16);
      const auto got = parse_parts(payload, words.base.size(), of);
      const std::string what = std::string(of.name) + ", parser, mutation " + std::to_string(round);
      check(got.has_value() == wanted.has_value(), "verdict: " + what);
      ++(wanted ? taken : refused);
      if (!got || !wanted) continue;
      check(std::equal(got->begin(), got->end(), wanted->begin(), wanted->end(), same_segment), what);
    }
  }
  check(taken > 100 && refused > 100, "mutations of headers are neither all harmless nor all refused");
}

int raw_bits(const harness::Words& words, const Format& of) {
  int bits = 0;
  for (size_t k = 0; k < words.base.size(); ++k)
    bits += std::max(0, std::abs(ordrans::class_of(of.difference(words.base[k], words.tuned[k]))) - 1);
  return bits;
}

int32_t status_of(const harness::Words& words, const Bytes& payload, const RansSegment& segment,
                  const Format& of) {
  return run_kernel(words, payload, {segment}, of, 1, 0).status.at(0);
}

// Each thing that the streams of a segment can be wrong in has its bit.
void check_status(bool padded) {
  using graftwork::cuda::kRansRawBits, graftwork::cuda::kRansStates, graftwork::cuda::kRansWords;
  const Format& of = kFormats[1];
  const std::string what = padded ? ", raw bits padded" : ", raw bits not padded";
  auto words = harness::make_words(100, of.word_bytes, of.exponent_bits, 7);
  while ((raw_bits(words, of) % 8 != 0) != padded) words.base.pop_back(), words.tuned.pop_back();
  Bytes payload = ordrans::encode(words.base, words.tuned, of, choices_of(of)[1], 10);
  const RansSegment whole = ordrans::parse(payload, words.base.size(), of)->at(0);
  check(status_of(words, payload, whole, of) == 0, "a whole segment" + what);
  RansSegment other = whole;
  other.raw_bytes = whole.raw_bytes + 1;  // which lies outside of the payload
  check(status_of(words, payload, other, of) == kRansRawBits, "a raw byte too many" + what);
  other.raw_bytes = whole.raw_bytes - 1;
  check(status_of(words, payload, other, of) == kRansRawBits, "a raw byte too few" + what);
  other = whole;
  other.rans_words += 1;
  check((status_of(words, payload, other, of) & kRansWords) != 0, "a word too many" + what);
  other.rans_words -= 2;
  check((status_of(words, payload, other, of) & kRansWords) != 0, "a word too few" + what);
  other = whole;
  other.words -= 1;
  check((status_of(words, payload, other, of) & kRansStates) != 0, "a symbol too few" + what);
  payload.back() |= 0x80;
  if (padded) check(status_of(words, payload, whole, of) == kRansRawBits, "padding that is not zero");
}

void check_all() {
  for (const Format& of : kFormats) {
    check_sizes(of);
    check_extremes(of);
    check_mutations(of);
    check_parser(of);
  }
  for (const bool padded : {false, true}) check_status(padded);
  const auto refused = [](int tables, int format) {
    return graftwork::cuda::decode_ordinal_rans(nullptr, nullptr, 0, nullptr, 1, tables, nullptr, nullptr,
                                                static_cast<WeightFormat>(format),
                                                nullptr) == graftwork::cuda::kInvalidArgument;
  };
  check(refused(1, 7), "an unknown format is refused");
  check(refused(0, 1) && refused(17, 1), "a number of tables that no segment has is refused");
}

void count_all() {
  for (const Format& of : kFormats) {
    const auto words = harness::make_words(1 << 14, of.word_bytes, of.exponent_bits, 2, true);
    const Bytes payload = ordrans::encode(words.base, words.tuned, of, choices_of(of).back(), 14);
    run_kernel(words, payload, *ordrans::parse(payload, words.base.size(), of), of, 1, 0);
  }
}

}  // namespace

int main(int argc, char** argv) { return harness::run(argc, argv, check_all, count_all); }
