// encode_indices, count_indices and decode_indices: forth and back, alike at every ISA level; what is decoded is sorted,
// unique and in range whatever the bytes are.
//
// Input: how the code comes about, its codec and the indices' size, the number of weights, a seed. Then the code itself,
// or edits of one that the library's encoder made.
#include "core/sparse_update/index_codec.h"

#include <vector>

#include "rans_writer.h"
#include "target.h"

FUZZ_AT_LEVELS(encode_indices)
FUZZ_AT_LEVELS(count_indices)
FUZZ_AT_LEVELS(decode_indices)

namespace {

constexpr int64_t kMaxNumel = (int64_t{1} << 20) + 4096;
constexpr int64_t kMaxCount = 4096;  // of what is encoded
constexpr size_t kMaxCode = kMaxNumel;

struct Case {
  graftwork::IndexCodec codec;
  int index_bytes;
  int64_t numel;
};

struct Buffers {
  fuzz::Buffer code{kMaxCode}, indices{8 * kMaxNumel};
};

Buffers& buffers() {
  static Buffers all;
  return all;
}

int64_t index_at(const std::vector<uint8_t>& indices, int index_bytes, int64_t i) {
  if (index_bytes == 8) {
    int64_t wide;
    std::memcpy(&wide, indices.data() + 8 * i, 8);
    return wide;
  }
  int32_t narrow;
  std::memcpy(&narrow, indices.data() + 4 * i, 4);
  return narrow;
}

// The indices at every level; whether the code is whole.
bool decode_alike(const Case& given, const std::vector<uint8_t>& code, std::vector<uint8_t>& indices) {
  Buffers& b = buffers();
  b.code.assign(code);
  const int64_t bytes = static_cast<int64_t>(code.size());
  int64_t count = -2;
  for (const auto& [level, number] : fuzz::count_indices()) {
    int64_t found = -2;
    number(b.code.data(), bytes, &found, given.numel, given.codec, 1);
    REQUIRE(found >= -1 && found <= given.numel, "%s counts %lld", level, static_cast<long long>(found));
    REQUIRE(count == -2 || found == count, "%s counts otherwise than the baseline", level);
    count = found;
  }
  if (count < 0) return false;
  int64_t verdict = -1;
  for (const auto& [level, decode] : fuzz::decode_indices()) {
    int64_t malformed = -1;
    b.indices.resize(static_cast<size_t>(count) * given.index_bytes);
    decode(b.code.data(), bytes, b.indices.data(), &malformed, given.numel, count, given.index_bytes,
           given.codec, 1);
    REQUIRE(malformed == 0 || malformed == 1, "%s says %lld", level, static_cast<long long>(malformed));
    REQUIRE(verdict < 0 || malformed == verdict, "%s judges a code otherwise than the baseline", level);
    verdict = malformed;
    if (malformed) continue;
    const fuzz::Bytes made = b.indices.bytes();
    if (level == fuzz::decode_indices().front().level) indices.assign(made.begin(), made.end());
    REQUIRE(fuzz::equal(made, indices), "%s makes other indices than the baseline", level);
  }
  if (verdict != 0) return false;
  int64_t last = -1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = index_at(indices, given.index_bytes, i);
    REQUIRE(index > last && index < given.numel, "index %lld follows %lld", static_cast<long long>(index),
            static_cast<long long>(last));
    last = index;
  }
  return true;
}

std::vector<uint8_t> draw_indices(const Case& given, fuzz::Random& random) {
  std::vector<uint8_t> indices;
  const uint32_t gap = 1 + random.below(std::max<int64_t>(1, given.numel / 16));
  for (int64_t at = random.below(gap), count = 0; at < given.numel && count < kMaxCount;
       at += 1 + random.below(gap), ++count) {
    const int64_t wide = at;
    const auto* const bytes = reinterpret_cast<const uint8_t*>(&wide);
    indices.insert(indices.end(), bytes, bytes + given.index_bytes);
  }
  return indices;
}

std::vector<uint8_t> encode_alike(const Case& given, const std::vector<uint8_t>& indices) {
  Buffers& b = buffers();
  const int64_t count = static_cast<int64_t>(indices.size()) / given.index_bytes;
  b.indices.assign(indices);
  std::vector<uint8_t> code;
  for (const auto& [level, encode] : fuzz::encode_indices()) {
    int64_t bytes = -2;
    const int64_t bound = graftwork::index_code_bound(given.numel, count, static_cast<int>(given.codec));
    b.code.resize(static_cast<size_t>(bound));
    encode(b.indices.data(), b.code.data(), &bytes, given.numel, count, given.index_bytes, given.codec, 1);
    REQUIRE(bytes >= 0 && bytes <= bound, "%s: %lld bytes of %lld", level, static_cast<long long>(bytes),
            static_cast<long long>(bound));
    const fuzz::Bytes made = b.code.bytes().first(static_cast<size_t>(bytes));
    if (level == fuzz::encode_indices().front().level) code.assign(made.begin(), made.end());
    REQUIRE(fuzz::equal(made, code), "%s encodes otherwise than the baseline", level);
  }
  return code;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t way = input.byte(), kinds = input.byte();
  Case given{static_cast<graftwork::IndexCodec>(kinds & 3), kinds & 4 ? 8 : 4,
             static_cast<int64_t>(input.number(2))};
  if (way >> 1 == 127) given.numel += kMaxNumel - 65536;  // two segments of the entropy code
  fuzz::Random random(input.byte());
  std::vector<uint8_t> code, indices;
  if (way & 1) {
    const std::vector<uint8_t> drawn = draw_indices(given, random);
    code = encode_alike(given, drawn);
    REQUIRE(decode_alike(given, code, indices), "a code that was just made is refused");
    REQUIRE(fuzz::equal(indices, drawn), "the indices do not come back");
    if (input.empty()) return 0;
    fuzz::edit(code, input);
  } else {
    code.assign(input.rest().begin(), input.rest().end());
  }
  if (code.size() <= kMaxCode) decode_alike(given, code, indices);
  return 0;
}
