// encode_ordinal_planes and decode_ordinal_planes: inverses of each other for any words and any planes, with the same
// bytes at every ISA level.
//
// Input: the kind of word, then in three equal parts the bytes of base, of tuned, and of planes that no encoder made.
#include "core/lossless_delta/ordinal_planes.h"

#include "target.h"

FUZZ_AT_LEVELS(encode_ordinal_planes)
FUZZ_AT_LEVELS(decode_ordinal_planes)

namespace {

constexpr size_t kMaxBytes = 64 << 10;

struct Words {
  int bytes;
  bool is_float;
  int64_t count;

  size_t size() const { return bytes * count; }
};

void require_round_trip(const Words& words, fuzz::Bytes base, fuzz::Bytes tuned) {
  static fuzz::Buffer from(kMaxBytes), to(kMaxBytes), first(kMaxBytes), planes(kMaxBytes),
      restored(kMaxBytes);
  from.assign(base);
  to.assign(tuned);
  for (const auto& [level, encode] : fuzz::encode_ordinal_planes()) {
    planes.resize(words.size());
    encode(from.data(), to.data(), planes.data(), words.count, words.bytes, words.is_float, 1);
    if (level == fuzz::encode_ordinal_planes().front().level) first.assign(planes.bytes());
    REQUIRE(fuzz::equal(planes.bytes(), first.bytes()), "%s encodes otherwise than the baseline", level);
  }
  for (const auto& [level, decode] : fuzz::decode_ordinal_planes()) {
    restored.resize(words.size());
    decode(from.data(), first.data(), restored.data(), words.count, words.bytes, words.is_float, false, 1);
    REQUIRE(fuzz::equal(restored.bytes(), tuned), "%s does not restore what was encoded", level);
    restored.resize(words.size());
    decode(to.data(), first.data(), restored.data(), words.count, words.bytes, words.is_float, true, 1);
    REQUIRE(fuzz::equal(restored.bytes(), base), "%s does not go back to the base", level);
  }
}

void require_bijection(const Words& words, fuzz::Bytes base, fuzz::Bytes planes) {
  static fuzz::Buffer from(kMaxBytes), given(kMaxBytes), first(kMaxBytes), tuned(kMaxBytes), again(kMaxBytes);
  from.assign(base);
  given.assign(planes);
  for (const auto& [level, decode] : fuzz::decode_ordinal_planes()) {
    tuned.resize(words.size());
    decode(from.data(), given.data(), tuned.data(), words.count, words.bytes, words.is_float, false, 1);
    if (level == fuzz::decode_ordinal_planes().front().level) first.assign(tuned.bytes());
    REQUIRE(fuzz::equal(tuned.bytes(), first.bytes()), "%s decodes otherwise than the baseline", level);
  }
  for (const auto& [level, encode] : fuzz::encode_ordinal_planes()) {
    again.resize(words.size());
    encode(from.data(), first.data(), again.data(), words.count, words.bytes, words.is_float, 1);
    REQUIRE(fuzz::equal(again.bytes(), planes), "%s encodes to other planes than were decoded", level);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t kind = input.byte();
  Words words{1 << (kind & 3), (kind & 4) != 0, 0};
  words.count = static_cast<int64_t>(std::min(input.left(), 3 * kMaxBytes) / (3 * words.bytes));
  const fuzz::Bytes base = input.take(words.size()), tuned = input.take(words.size());
  require_round_trip(words, base, tuned);
  require_bijection(words, base, input.take(words.size()));
  return 0;
}
