// encode_ordinal_planes and decode_ordinal_planes on the host, against the definition word by word.
#include "cuda/lossless_delta/ordinal_planes.cu"

#include "harness.h"

namespace {

using harness::Buffer;
using harness::check;

struct Case {
  int word_bytes;
  bool is_float;
};
constexpr Case kCases[] = {{1, false}, {1, true}, {2, false}, {2, true},
                           {4, false}, {4, true}, {8, false}, {8, true}};
constexpr int kExponentBits[] = {0, 4, 8, 0, 8, 0, 0, 0, 11};  // by word bytes

std::vector<uint8_t> planes_by_definition(const harness::Words& words, const Case& of) {
  const int bits = 8 * of.word_bytes;
  const uint64_t all = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1, top = uint64_t{1} << (bits - 1);
  const auto position = [&](uint64_t word) {
    if (!of.is_float) return word;
    return word & top ? ~word & all : word | top;
  };
  const size_t numel = words.base.size();
  std::vector<uint8_t> planes(numel * of.word_bytes);
  for (size_t i = 0; i < numel; ++i) {
    const uint64_t d = (position(words.tuned[i]) - position(words.base[i])) & all;
    const uint64_t z = (d & top ? ~(d << 1) : d << 1) & all;
    for (int j = 0; j < of.word_bytes; ++j) planes[j * numel + i] = static_cast<uint8_t>(z >> 8 * j);
  }
  return planes;
}

void check_case(const Case& of, int64_t numel, size_t offset) {
  const auto words = harness::make_words(numel, of.word_bytes, kExponentBits[of.word_bytes], 1);
  const auto tuned_bytes = harness::pack(words.tuned, of.word_bytes);
  const auto wanted = planes_by_definition(words, of);
  const Buffer base(harness::pack(words.base, of.word_bytes), offset), tuned(tuned_bytes, offset);
  harness::under_each_schedule([&](const std::string& schedule) {
    const std::string what = std::to_string(of.word_bytes) + " bytes, float " + std::to_string(of.is_float) +
                             ", " + std::to_string(numel) + " elements, offset " + std::to_string(offset) +
                             ", " + schedule;
    const Buffer planes(wanted.size(), offset != 0), restored(tuned_bytes.size(), offset);
    const Buffer before(tuned_bytes.size(), offset);
    check(graftwork::cuda::encode_ordinal_planes(base.data(), tuned.data(), planes.data(), numel,
                                                 of.word_bytes, of.is_float, nullptr) == 0,
          "encode starts: " + what);
    check(planes.content() == wanted, "planes: " + what);
    check(graftwork::cuda::decode_ordinal_planes(base.data(), planes.data(), restored.data(), numel,
                                                 of.word_bytes, of.is_float, false, nullptr) == 0,
          "decode starts: " + what);
    check(restored.content() == tuned_bytes, "restored words: " + what);
    check(graftwork::cuda::decode_ordinal_planes(tuned.data(), planes.data(), before.data(), numel,
                                                 of.word_bytes, of.is_float, true, nullptr) == 0,
          "reverse decode starts: " + what);
    check(before.content() == base.content(), "the base's words: " + what);
  });
}

void check_all() {
  for (const Case& of : kCases)
    for (const int64_t numel : harness::kSizes)
      for (const size_t offset : {size_t{0}, static_cast<size_t>(of.word_bytes)})
        check_case(of, numel, offset);
  for (const Case& of : kCases) check_case(of, 8192, 0);  // more than a block of vectors, no rest
  check(graftwork::cuda::encode_ordinal_planes(nullptr, nullptr, nullptr, 1, 3, true, nullptr) ==
            graftwork::cuda::kInvalidArgument,
        "words of 3 bytes are refused");
}

void count_all() {
  for (const Case& of : kCases)
    for (const int64_t numel : {int64_t{16384}, int64_t{4097}}) {  // the second goes one word at a time
      const auto words = harness::make_words(numel, of.word_bytes, kExponentBits[of.word_bytes], 1);
      const Buffer base(harness::pack(words.base, of.word_bytes), 0),
          tuned(harness::pack(words.tuned, of.word_bytes), 0);
      const Buffer planes(numel * of.word_bytes), restored(numel * of.word_bytes);
      graftwork::cuda::encode_ordinal_planes(base.data(), tuned.data(), planes.data(), numel, of.word_bytes,
                                             of.is_float, nullptr);
      graftwork::cuda::decode_ordinal_planes(base.data(), planes.data(), restored.data(), numel,
                                             of.word_bytes, of.is_float, false, nullptr);
    }
}

}  // namespace

int main(int argc, char** argv) { return harness::run(argc, argv, check_all, count_all); }
